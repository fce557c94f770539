"""`batchd check --live`: a token of each model in use,
and what that cost; by a daemon, and without one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import NO_REPORT, Spool

_CONFIG = """\
[agent]
model = "standin/steps-2"
[evaluation]
judge_model = "{judge}"
[providers.standin]
base_url = "{base_url}"
[providers.modern]
base_url = "{base_url}"
api = "responses"
[models."standin/steps-2"]
input_usd_per_mtok = 1000.0
output_usd_per_mtok = 2000.0
"""


def _spool(folder: Path, base_url: str, judge: str, more: str = "") -> Spool:
    text = NO_REPORT + _CONFIG.format(base_url=base_url, judge=judge) + more
    (folder / "config.toml").write_text(text)
    return Spool(folder)


def _live(spool: Spool, code: int = 0) -> list[dict[str, Any]]:
    """Return the lines about calls; the last one is about all of them."""
    done = spool.batchd("check", "--live", "--json")
    assert done.returncode == code, done.stdout
    return [line for line in json.loads(done.stdout) if line["what"] == "live"]


def _asked(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines() if "model" in line]


@pytest.mark.parametrize("serving", [True, False])
def test_each_model_is_asked_once_and_the_money_is_said(
    tmp_path: Path, counting_server: tuple[str, Path], serving: bool
) -> None:
    """The price of one is known, of the other it is null;
    the daemon's day has paid for it, and its log says who asked.
    """
    base_url, log = counting_server
    spool = _spool(tmp_path, base_url, "modern/notes-2")
    if serving:
        with spool.serving():
            agent, judge, total = _live(spool)
            spent = json.loads(spool.batchd("status", "--json").stdout)["daemon"]["day"]
        assert spent["spent_usd"] == pytest.approx(agent["live"]["cost_usd"])
        (line,) = (x for x in (tmp_path / "daemon.log").read_text().splitlines() if "verb" in x)
        assert json.loads(line)["live"] is True
        assert json.loads(line)["cost_usd"] is None
    else:
        agent, judge, total = _live(spool)
    known = agent["live"]
    assert (agent["verdict"], known["model"]) == ("ok", "standin/steps-2")
    price = known["input_tokens"] / 1e3 + known["output_tokens"] / 500
    assert known["cost_usd"] == pytest.approx(price)
    assert 0 < known["input_tokens"] < 32
    assert (judge["verdict"], judge["live"]["cost_usd"]) == ("ok", None)
    assert "price unknown" in judge["detail"]
    assert "what 1 of them cost is not known" in total["detail"]
    bodies = {body["model"]: body for body in (json.loads(x["request"]) for x in _asked(log))}
    assert len(_asked(log)) == 2
    assert bodies["steps-2"]["max_tokens"] == 1
    assert bodies["notes-2"]["max_output_tokens"] == 16  # the least that this API takes


def test_what_fails_is_said_with_the_fix_and_what_it_may_have_cost(
    tmp_path: Path, model_server: str
) -> None:
    """A key that is refused cost nothing;
    a connection that broke may have cost what was set aside.
    """
    more = '[models."standin/cut"]\ninput_usd_per_mtok = 1.0\noutput_usd_per_mtok = 1.0\n'
    agent, cut, _ = _live(_spool(tmp_path, model_server, "standin/cut", more), code=3)
    assert agent["verdict"] == "ok"
    assert cut["verdict"] == "failed"
    assert cut["live"]["cost_usd"] is None
    assert "it may be billed all the same, $" in cut["detail"]
    agent, refused, _ = _live(_spool(tmp_path, model_server, "standin/401"), code=3)
    assert refused["live"]["cost_usd"] == 0.0
    assert refused["mend"] == "set api_key_env or api_key_file in [providers.standin]"


def test_no_check_spends_more_than_the_day_has(tmp_path: Path, model_server: str) -> None:
    """A call that may be dearer than the rest of the day is not made,
    nor one without a price where a limit holds.
    """
    more = "[budget]\nper_day_usd = 0.001\n"
    spool = _spool(tmp_path, model_server, "standin/notes-2", more)
    for serving in (False, True):
        if serving:
            with spool.serving():
                agent, judge, total = _live(spool, code=3)
                assert spool.batchd("status").returncode == 0
        else:
            agent, judge, total = _live(spool, code=3)
        assert "standin/steps-2 was not asked: the next call may cost $" in agent["detail"]
        assert "no price is known" in judge["detail"]
        assert (agent["live"], judge["live"]) == (None, None)
        assert "made 0 calls" in total["detail"]


def test_what_a_model_refuses_is_said_once_and_learned(tmp_path: Path, model_server: str) -> None:
    """It is asked again without that; the daemon's tasks,
    and the next check, leave it out from the start.
    """
    spool = _spool(tmp_path, model_server, "")
    config = tmp_path / "config.toml"
    text = config.read_text().replace("steps-2", "gpt-6-luna")
    config.write_text(
        text.replace("[providers.modern]", 'output_limit_field = "max_tokens"\n[providers.modern]')
    )
    with spool.serving():
        agent, _ = _live(spool)
        assert agent["live"]["refused"] == ["name:max_tokens"]
        assert "it refuses name:max_tokens, and is asked without" in agent["detail"]
        agent, _ = _live(spool)
        assert agent["live"]["refused"] == []


def test_only_live_costs_and_says_so(spool: Spool) -> None:
    """In its help; and it cannot be had offline."""
    said = " ".join(spool.batchd("check", "--help").stdout.split())
    assert "which costs money" in said
    assert "Only --live costs money" in said
    assert spool.batchd("check", "--live", "--offline").returncode == 2
