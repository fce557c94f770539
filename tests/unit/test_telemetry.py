"""Metrics and traces apart from any daemon: what is configured,
what is counted, what spans are called.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from batchd import config
from batchd.config.sections import MetricsSection, TracesSection
from batchd.errors import ConfigError, NotPossibleError
from batchd.events import CallAnswered, CallStarted, Terms
from batchd.records import Answer, Batch, ModelSetup, Price, Purpose, Rate, Ref, Usage
from batchd.telemetry import metrics
from batchd.telemetry.traces import Trace

_PRICE = Price(rates=(Rate(input=1.0, cached_input=0.5, output=2.0),), source="config")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[metrics]\nlisten = "9464"', "[metrics] listen: it must be HOST:PORT"),
        ('[metrics]\nlisten = "localhost:70000"', "[metrics] listen: it must be HOST:PORT"),
        ('[metrics]\nlisten = "::1:9464"', "[metrics] listen: it must be HOST:PORT"),
        (
            '[metrics]\ntextfile = ""',
            "[metrics] textfile: there is no such key any more (set [metrics] listen",
        ),
        ('[traces]\nendpoint = "127.0.0.1:4318"', "[traces] endpoint: it must be http"),
        ('[traces]\nendpoint = "http://me:key@host"', "[traces] endpoint: it must be http"),
        ('[traces]\nheaders_env = "a=b"', "[traces] headers_env: it must be the name"),
        ("[traces]\nratio = 1.5", "[traces] ratio: "),
        (
            '[traces]\nheaders_env = "OTLP"\n[secrets]\nenv = ["OTLP"]',
            "[secrets] env: it holds a secret of [traces]",
        ),
    ],
)
def test_what_is_wrong_is_reported(tmp_path: Path, text: str, complaint: str) -> None:
    """Addresses that are none, shares beyond one, and keys
    that a task could ask for are refused with their place.
    """
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load(tmp_path / "config.toml", {})
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("listen", "address", "exposed"),
    [
        ("127.0.0.1:9464", ("127.0.0.1", 9464), False),
        ("[::1]:9464", ("::1", 9464), False),
        ("localhost:1", ("localhost", 1), False),
        ("0.0.0.0:9464", ("0.0.0.0", 9464), True),
        ("spool.example.com:9464", ("spool.example.com", 9464), True),
    ],
)
def test_who_may_look(listen: str, address: tuple[str, int], exposed: bool) -> None:
    """Loopback is distinguished from what other machines reach."""
    assert (MetricsSection(listen=listen).address, MetricsSection(listen=listen).exposed) == (
        address,
        exposed,
    )


def test_headers_come_as_vendors_print_them(tmp_path: Path) -> None:
    """Pairs of a variable or a file, percent-encoded, over those of the table;
    what is none is refused without being quoted.
    """
    file = tmp_path / "headers"
    file.write_text("Authorization=Bearer%20abc%3D%3D, X-Team=me\n")
    wanted = TracesSection(headers={"X-Team": "you", "X-More": "1"}, headers_file=str(file))
    found = wanted.all_headers({})
    assert found == {"X-Team": "me", "X-More": "1", "Authorization": "Bearer abc=="}
    assert {"Bearer abc==", "abc=="} <= {*wanted.hidden({})}
    for text in ("just-the-key", "na me=x", "a=%0d%0aB: c", ""):
        with pytest.raises(NotPossibleError) as caught:
            TracesSection(headers_env="H").all_headers({"H": text})
        assert "just-the-key" not in str(caught.value)


def test_a_receiver_is_reached_below_its_address() -> None:
    """The path of the protocol is added, unless it is there."""
    for endpoint in ("http://h:1", "http://h:1/", "http://h:1/v1/traces"):
        assert TracesSection(endpoint=endpoint).address == "http://h:1/v1/traces"
    assert TracesSection(endpoint="https://h/otlp").address == "https://h/otlp/v1/traces"


def test_names_that_are_made_up_fill_no_memory() -> None:
    """Past five hundred models, all further ones are counted together,
    as are those of long names, and none is lost.
    """
    counted = metrics.Metrics(MetricsSection())
    batch = Batch(name="b", claim="c", outbox="/o", request="r", received_at=1.0)
    answer = Answer(content="", usage=Usage(calls=1, input_tokens=3))
    for n in range(700):
        name = f"p/model-{n}" if n >= 100 else f"p/model-{n}{'x' * 120}"
        setup, ref = ModelSetup(name=name, price=_PRICE), Ref("b", str(n))
        counted.task_dispatched(ref, batch, Terms(model=setup, judge=setup))
        for _ in range(2):
            call = CallStarted(at=1.0, purpose=Purpose.AGENT, input_tokens=1, max_output_tokens=1)
            counted.task_event(ref, call)
            event = CallAnswered(at=2.0, purpose=Purpose.AGENT, answer=answer)
            counted.task_event(ref, event)
    [tokens] = [f for f in counted.registry.collect() if f.name == "batchd_tokens"]
    read = [s for s in tokens.samples if s.labels.get("kind") == "input"]
    assert len(read) == 501
    assert sum(s.value for s in read) == 700 * 2 * 3
    assert next(s.value for s in read if s.labels["model"] == "other") == 200 * 2 * 3


def test_a_trace_differs_from_all_others_and_is_always_the_same() -> None:
    """Its ids follow from the task; another spool's batch of the same name is another;
    a ratio picks whole traces.
    """
    trace = Trace.of("games", "001", "2026-11-25T02:03:47.580Z")
    assert trace == Trace.of("games", "001", "2026-11-25T02:03:47.580Z")
    others = {
        Trace.of("games", "002", "2026-11-25T02:03:47.580Z").id,
        Trace.of("games", "001", "2026-11-25T02:03:47.581Z").id,
    }
    assert len(others | {trace.id}) == 3
    assert trace.child("call", 1.5) == trace.child("call", 1.5) != trace.child("call", 1.25)
    many = [Trace.of("games", str(n), "") for n in range(2000)]
    assert 850 < sum(t.sampled(0.5) for t in many) < 1150
    assert all(t.sampled(1.0) and not t.sampled(0.0) for t in many)
