"""`batchd check` and models: what their providers list,
in which shape ever, and what is known of their ends.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from batchd import control
from batchd.catalog import ModelListing, NoListing, ask, keeps_from_strangers
from batchd.errors import UsageError
from batchd.llm.model_client import DIALECTS
from batchd.records import Endpoint
from tests.conftest import Spool, stand_in

pytestmark = pytest.mark.in_turns


def _day(days: int) -> str:
    """Return a day from now, in UTC."""
    return str(datetime.now(UTC).date() + timedelta(days=days))


def _checked(spool: Spool, *arguments: str) -> dict[str, dict[str, str]]:
    done = spool.batchd("check", "--json", *arguments)
    return {line["what"]: line for line in json.loads(done.stdout)}


def _configure(spool: Spool, base_url: str, model: str, more: str = "") -> None:
    (spool.folder / "config.toml").write_text(
        f'[agent]\nmodel = "{model}"\n[providers.standin]\nbase_url = "{base_url}"\n{more}'
    )


def _control(base_url: str, **changes: object) -> None:
    address = base_url.removesuffix("/v1") + "/control"
    urllib.request.urlopen(address, json.dumps(changes).encode()).close()


def test_a_name_that_the_provider_does_not_list_fails_with_the_nearest(spool: Spool) -> None:
    """What is there is said to be; a slip fails, and names what may be meant;
    the judge's name is looked at too.
    """
    with stand_in() as base_url:
        _control(base_url, models={"gpt-6-luna": "", "gpt-6.1-terra": "", "gpt-4": _day(400)})
        judge = '[evaluation]\njudge_model = "standin/gpt-6-lunna"\n'
        _configure(spool, base_url, "standin/gpt-6-luna", judge)
        lines = _checked(spool)
        assert lines["provider standin"]["verdict"] == "ok"
        assert "lists 3 models" in lines["provider standin"]["detail"]
        assert lines["agent model"]["verdict"] == "ok"
        assert lines["judge model"]["verdict"] == "failed"
        assert "has no model gpt-6-lunna" in lines["judge model"]["detail"]
        assert "do you mean standin/gpt-6-luna" in lines["judge model"]["mend"]
        assert "[evaluation] judge_model" in lines["judge model"]["mend"]
        assert spool.batchd("check").returncode == 3
        # Far away is not soon.
        _configure(spool, base_url, "standin/gpt-4")
        assert _checked(spool)["agent model"]["verdict"] == "ok"


@pytest.mark.parametrize(
    ("days", "verdict"), [(61, "ok"), (60, "note"), (1, "note"), (0, "failed")]
)
def test_a_shutdown_date_in_the_list_is_a_warning_in_time(
    spool: Spool, days: int, verdict: str
) -> None:
    """From sixty days before on; from its day on it fails."""
    with stand_in() as base_url:
        _control(base_url, models={"old": _day(days)})
        _configure(spool, base_url, "standin/old")
        line = _checked(spool)["agent model"]
    assert line["verdict"] == verdict
    assert (_day(days) in line["detail"]) == (verdict != "ok")


@contextlib.contextmanager
def _server(
    pages: Mapping[str, tuple[int, object]], pause_s: float = 0.0, wanted: str = ""
) -> Iterator[tuple[str, list[str]]]:
    """Serve what to answer behind which model, status and body; bytes as they are, one by one.

    Its URL, and what was asked. ``wanted``: a header without which all is refused.
    """
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            after = parse_qs(urlsplit(self.path).query).get("after_id", [""])[0]
            known = not wanted or wanted in self.headers
            status, body = pages[after] if known else (401, b"")
            self.send_response(status)
            if status in range(300, 400):
                self.send_header("Location", "https://elsewhere.example/v2/models?key=hidden")
            self.end_headers()
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            with contextlib.suppress(OSError):
                for byte in data if pause_s else ():
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(pause_s)
                if not pause_s:
                    self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
        server.shutdown()


def _claude(name: str, lifecycle: str = "active", retires_at: str | None = None) -> dict[str, Any]:
    return {"type": "model", "id": name, "lifecycle": lifecycle, "retires_at": retires_at}


def _page(models: Sequence[object], *, more: bool) -> tuple[int, object]:
    last = models[-1]["id"] if isinstance(models[-1], dict) else None
    return 200, {"data": models, "has_more": more, "last_id": last}


def test_anthropics_list_is_read(spool: Spool) -> None:
    """One that is retired is not there, though listed; one that ends soon is a warning."""
    soon = f"{_day(10)}T00:00:00Z"
    models = [_claude("claude-3-opus", "retired"), _claude("claude-sonnet-4-5", "deprecated", soon)]
    verdicts = {}
    with _server({"": _page([*models, _claude("claude-haiku-5-5")], more=False)}) as (base_url, _):
        for model in ("claude-haiku-5-5", "claude-sonnet-4-5", "claude-3-opus"):
            _configure(spool, base_url, f"standin/{model}")
            verdicts[model] = _checked(spool)["agent model"]["verdict"]
    assert verdicts == {
        "claude-haiku-5-5": "ok",
        "claude-sonnet-4-5": "note",
        "claude-3-opus": "failed",
    }


@pytest.mark.parametrize(
    ("status", "body", "verdict", "words"),
    [
        (404, b"not here", "note", "HTTP 404"),
        (500, b"", "note", "HTTP 500"),
        (200, b"<html>welcome</html>", "note", "without a list"),
        (200, b"", "note", "without a list"),
        (401, b"", "failed", "wants a key"),
        (403, b"", "failed", "wants a key"),
        (302, b"", "failed", "redirects to https://elsewhere.example/v2/models (HTTP 302)"),
    ],
)
def test_a_provider_without_a_list_is_said_and_not_failed(
    spool: Spool, status: int, body: bytes, verdict: str, words: str
) -> None:
    """Not every server lists its models; no model is said to be missing then, nor to be there."""
    with _server({"": (status, body)}) as (base_url, _):
        _configure(spool, base_url, "standin/any")
        lines = _checked(spool)
    assert lines["provider standin"]["verdict"] == verdict
    assert words in lines["provider standin"]["detail"]
    assert lines["agent model"]["verdict"] == "note"
    assert "batchd did not try whether standin/any is there" in lines["agent model"]["detail"]


def test_anthropic_gets_its_key_as_the_calls_of_tasks_bring_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a header of its own: behind `Bearer` it takes tokens of other kinds."""
    pages = {"": _page([_claude("claude-opus-5-5")], more=False)}
    endpoint = Endpoint(base_url="http://api.anthropic.com/v1", api_key="sk-ant-4711-0815")
    with _server(pages, wanted="x-api-key") as (proxy, _):
        monkeypatch.setenv("http_proxy", proxy)
        assert isinstance(ask(endpoint), ModelListing)
        assert keeps_from_strangers(endpoint)


@pytest.mark.parametrize("serving", [True, False])
def test_a_key_is_tried_for_nothing_where_the_list_needs_one(spool: Spool, serving: bool) -> None:
    """What is refused without a key shows whether the key is right; no model is called."""
    with stand_in("--api-key", "sk-right-4711-0815") as base_url:
        _configure(spool, base_url, "standin/gpt-6-luna", 'api_key_file = "key"\n')
        for key, verdict, words in (
            ("sk-right-4711-0815", "ok", "answers, and takes the key; it lists "),
            ("sk-wrong-4711-0815", "failed", "it refuses the key (HTTP 401)"),
        ):
            (spool.folder / "key").write_text(key)
            with spool.serving() if serving else contextlib.nullcontext():
                line = _checked(spool)["provider standin"]
            assert (line["verdict"], line["mend"] == "") == (verdict, verdict == "ok")
            assert words in line["detail"]
        _configure(spool, base_url, "standin/gpt-6-luna")
        line = _checked(spool)["provider standin"]
        assert (line["verdict"], line["detail"]) == ("failed", "it wants a key (HTTP 401)")
        assert line["mend"] == "set api_key_env or api_key_file in [providers.standin]"
        with urllib.request.urlopen(base_url.removesuffix("/v1") + "/log") as log:
            assert json.load(log) == []


def test_where_nothing_free_tries_a_key_the_line_that_does_is_said(spool: Spool) -> None:
    """A list that anybody may read says nothing of a key, nor does a server without one;
    the line works as it stands there.
    """
    (spool.folder / "key").write_text("sk-any-4711-0815")
    with _server({"": (404, b"")}) as (base_url, _):
        _configure(spool, base_url, "standin/steps-2", 'api_key_file = "key"\n')
        line = _checked(spool)["provider standin"]
    assert (line["verdict"], line["detail"]) == (
        "note",
        f"{base_url} answers with HTTP 404: neither the key nor a model was tried",
    )
    with stand_in() as base_url:
        _configure(spool, base_url, "standin/steps-2", 'api_key_file = "key"\n')
        with spool.serving():
            line = _checked(spool)["provider standin"]
            assert line["verdict"] == "note"
            assert "the key was not tried, for the list needs none" in line["detail"]
            program, *words = line["mend"].split("`")[1].split()
            assert program == "batchd"
            assert spool.batchd(*words).returncode == 0


def test_what_cost_money_is_gone_and_says_what_to_use(spool: Spool) -> None:
    """`check --live`, and what an earlier program asks a daemon by it."""
    done = spool.batchd("check", "--live")
    assert done.returncode == 2
    assert "--live is gone: `batchd check` tries keys for nothing, and " in done.stderr
    with spool.serving(), pytest.raises(UsageError, match="batchd run --prompt ok"):
        control.ask(spool.folder / ".batchd", control.Check(live=True))


@pytest.mark.parametrize("path", [*(d.path for d in DIALECTS.values()), "responses/"])
def test_an_address_that_goes_one_step_too_far_fails_with_the_right_one(
    spool: Spool, path: str
) -> None:
    """As it is copied from a vendor's examples: each call would be answered with 404."""
    with stand_in() as base_url:
        _configure(spool, f"{base_url}/{path}", "standin/gpt-6-luna")
        line = _checked(spool)["provider standin"]
        assert line["verdict"] == "failed"
        assert f"/{path.rstrip('/')}, which each call adds" in line["detail"]
        assert line["mend"] == f'set base_url = "{base_url}" in [providers.standin]'


@pytest.mark.parametrize(
    "pages",
    [
        {"": (200, {"data": [{"id": f"model-{n}"} for n in range(6000)]})},
        {"": _page([_claude("a")], more=True)},
    ],
)
def test_of_a_list_that_is_read_in_part_no_name_is_said_to_be_missing(
    spool: Spool, pages: Mapping[str, tuple[int, object]]
) -> None:
    """It may stand behind what was read."""
    with _server(pages) as (base_url, _):
        _configure(spool, base_url, "standin/model-5999")
        line = _checked(spool)["agent model"]
    assert line["verdict"] == "note"
    assert "batchd run --prompt ok --model standin/model-5999" in line["mend"]


def test_answers_without_end_are_given_up() -> None:
    """A server that sends a byte now and then is left after the time that it has."""
    with _server({"": (200, b" " * 100_000)}, pause_s=0.05) as (base_url, _):
        late = ask(Endpoint(base_url=base_url), patience_s=0.5)
    assert late == NoListing("no answer in time")


def test_a_server_that_takes_any_name_is_said_to(spool: Spool) -> None:
    """Its one model answers a misspelt name too, so that the list proves nothing of that name."""
    listed = {"data": [{"id": "qwen.gguf", "owned_by": "llamacpp"}]}
    with _server({"": (200, listed)}) as (base_url, _):
        _configure(spool, base_url, "standin/qwenn")
        line = _checked(spool)["agent model"]
    assert line["verdict"] == "note"
    assert "it may serve that too" in line["detail"]


def test_models_of_waiting_tasks_are_in_use_as_well(spool: Spool) -> None:
    """The daemon knows which models its tasks want, and looks for them in the lists too."""
    task = spool.write("t.json", [{"first_prompt": "x", "model": "standin/gpt-6-lunna"}])
    with stand_in() as base_url:
        _control(base_url, models={"gpt-6-luna": ""})
        _configure(spool, base_url, "standin/gpt-6-luna")
        with spool.serving():
            spool.batchd("pause", "--all")
            spool.batchd("submit", task)
            spool.eventually(lambda: "task model" in _checked(spool))
            line = _checked(spool)["task model"]
    assert line["verdict"] == "failed"
    assert "do you mean standin/gpt-6-luna" in line["mend"]
