"""A place of its own: without a configuration nothing in the working directory becomes a spool;
`init` makes one; `config` says what counts.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tomli
import warm
from patience import until

from batchd import config, control
from batchd.config import trust
from batchd.errors import ConfigError, NoDaemonError
from batchd.spool.task_directories import TaskDirectories

pytestmark = pytest.mark.in_turns


@dataclass(frozen=True)
class Person:
    """Somebody with a home, and an empty directory to work in."""

    folder: Path

    @property
    def home(self) -> Path:
        """Their home."""
        return self.folder / "home"

    @property
    def here(self) -> Path:
        """Where they run commands."""
        return self.folder / "here"

    @property
    def own(self) -> Path:
        """The spool of their own."""
        return self.home / ".local/share/batchd"

    @property
    def environment(self) -> dict[str, str]:
        """What says where they are at home."""
        return {**os.environ, "HOME": str(self.home), "PYTHONPATH": str(warm.ROOT)}

    def batchd(
        self, *arguments: str | Path, cwd: Path | None = None, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command."""
        command = [sys.executable, "-m", "batchd", *map(str, arguments)]
        return warm.run(command, env={**self.environment, **more}, cwd=cwd or self.here)


@pytest.fixture
def person(short: Path, monkeypatch: pytest.MonkeyPatch) -> Person:
    """Somebody on a machine without a configuration."""
    person = Person(short)
    person.home.mkdir()
    person.here.mkdir()
    monkeypatch.setattr(trust, "SYSTEM", short / "etc")
    return person


def _paths(environ: dict[str, str]) -> set[str]:
    found = config.load(None, environ).paths
    return {found.inbox, found.outbox, found.state}


def test_without_a_configuration_the_spool_is_the_users_own(
    person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lies in ~/.local/share/batchd, or where XDG_DATA_HOME says absolutely;
    variables say otherwise, key by key.
    """
    monkeypatch.chdir(person.here)
    home = {"HOME": str(person.home)}
    names = ("inbox", "outbox", ".batchd")
    assert _paths(home) == {str(person.own / name) for name in names}
    data = {**home, "XDG_DATA_HOME": "/data"}
    assert _paths(data) == {f"/data/batchd/{name}" for name in names}
    assert _paths({**data, "XDG_DATA_HOME": "data"}) == _paths(home)
    state = {**home, "BATCHD_PATHS__STATE": "state"}
    assert config.load(None, state).paths.state == str(person.here / "state")
    assert config.load(None, state).paths.inbox == str(person.own / "inbox")


def test_who_has_no_home_learns_what_to_do(person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home that is not there is none, as those of services' accounts;
    all folders by variables need none.
    """
    monkeypatch.chdir(person.here)
    homeless = {"HOME": "/nonexistent"}
    with pytest.raises(ConfigError, match=r"no home for a spool .*\(set HOME, or name a config"):
        config.load(None, homeless)
    named = {f"BATCHD_PATHS__{key}": f"/x/{key}" for key in ("INBOX", "OUTBOX", "STATE")}
    assert _paths({**homeless, **named}) == {"/x/INBOX", "/x/OUTBOX", "/x/STATE"}


def test_submit_without_a_spool_drops_nothing(person: Person) -> None:
    """It says that there is none and how to make one, with exit code 3;
    nothing is written, here or at home.
    """
    done = person.batchd("submit", "--prompt", "hello")
    assert (done.returncode, done.stdout) == (3, "")
    assert "there is no spool here, and nothing was dropped" in done.stderr
    assert "batchd init DIR" in done.stderr
    assert [*person.here.iterdir(), *person.home.iterdir()] == []
    # Where variables name one, it is one.
    named = {f"BATCHD_PATHS__{key}": key for key in ("INBOX", "OUTBOX", "STATE")}
    assert person.batchd("submit", "--prompt", "hello", **named).returncode == 0
    assert [p.name for p in person.here.glob("INBOX/*")] == ["prompt.json"]


def test_commands_say_which_spool_they_mean_where_nothing_names_it(person: Person) -> None:
    """`status` and `serve` name the user's own;
    while a daemon works there, `submit` drops there.
    """
    said = f"batchd: no configuration is found; the spool is your own, {person.own}\n"
    done = person.batchd("status")
    assert (done.returncode, done.stderr) == (0, said)
    command = [sys.executable, "-m", "batchd", "serve"]
    log = person.folder / "daemon.log"
    with (
        log.open("wb") as stderr,
        warm.Popen(command, stderr=stderr, env=person.environment, cwd=person.here) as daemon,
    ):
        try:
            until(lambda: _answers(person.own / ".batchd") or daemon.poll() is not None)
            assert log.read_text().startswith(said)
            assert stat.S_IMODE(person.own.stat().st_mode) == 0o700
            done = person.batchd("submit", "--prompt", "hello")
            assert (done.returncode, done.stdout) == (
                0,
                f"{person.own}/inbox/prompt.json: 1 task\nTaken up as prompt: batchd status prompt\n",
            )
        finally:
            daemon.terminate()
    assert [*person.here.iterdir()] == []


def _answers(state: Path) -> bool:
    try:
        control.request(state, "status")
    except NoDaemonError:
        return False
    return True


def test_what_an_earlier_version_left_here_is_not_forgotten(person: Person) -> None:
    """A store in the working directory, without a config.toml,
    is named, with the one command that goes on with it.
    """
    (person.here / ".batchd").mkdir()
    sqlite3.connect(person.here / ".batchd/batchd.db").close()
    done = person.batchd("status")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{person.here}/.batchd/batchd.db: it is a spool without a config.toml" in done.stderr
    assert f"`batchd init {person.here}`" in done.stderr
    # The user's own spool is no such thing, and neither is what a variable names.
    person.own.mkdir(parents=True)
    (person.here / ".batchd").rename(person.own / ".batchd")
    assert "a spool without" not in person.batchd("status", cwd=person.own).stderr


def test_no_task_works_in_the_users_own_spool(
    person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another spool's workspace is the whole home:
    what is written there would count without a configuration.
    """
    monkeypatch.chdir(person.here)
    file = person.here / "named.toml"
    file.write_text(f'[workspace]\nroot = "{person.home}"\n')
    (person.own / "inbox").mkdir(parents=True)
    known = TaskDirectories(config.load(file, {"HOME": str(person.home)}))
    for folder in (person.own / "inbox", person.own, person.own.parent):
        assert "a spool of batchd's user" in known.problem(str(folder), must_exist=True)


def test_init_makes_a_spool_that_works(person: Person, model_server: str) -> None:
    """What it makes passes `check`, is trusted, is its owner's alone,
    and does the sample that it brings; nothing is asked.
    """
    spool = person.folder / "spool"
    done = person.batchd(
        *("init", "--model", "standin/demo", "--base-url", model_server, "--no-key", spool)
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert f"  cd {spool}\n" in done.stdout
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (spool, *spool.iterdir())}
    private = {"config.toml": 0o600, "sample.json": 0o600, "inbox": 0o700, "outbox": 0o700}
    assert found == {"spool": 0o700, **private}
    assert person.batchd("check", "--offline", cwd=spool).returncode == 0
    # The stand-in's recordings are of a model that calls tools in text.
    text = (spool / "config.toml").read_text().replace("[pool]", 'tools = "text"\n[pool]')
    (spool / "config.toml").write_text(text)
    command = [sys.executable, "-m", "batchd", "serve"]
    with (
        (person.folder / "daemon.log").open("wb") as stderr,
        warm.Popen(command, stderr=stderr, env=person.environment, cwd=spool) as daemon,
    ):
        try:
            until(lambda: _answers(spool / ".batchd") or daemon.poll() is not None)
            done = person.batchd("submit", "--wait", "sample.json", cwd=spool)
            # Who is elsewhere learns where it runs, and works there from here.
            elsewhere = person.batchd("status").stdout
            assert f"Daemon {daemon.pid} runs in {spool}: batchd -C {spool} status\n" in elsewhere
            named = person.batchd("-C", person.folder, "-C", "spool", "status")
            assert f"Daemon {daemon.pid} running" in named.stdout
            within = ("-C", "..", "--config", "spool/config.toml", "estimate", "spool/sample.json")
            assert person.batchd(*within).returncode == 0
        finally:
            daemon.terminate()
    assert done.returncode == 0, done.stdout
    result = json.loads((spool / "outbox/sample/fizzbuzz.json").read_bytes())
    assert (result["status"], result["evaluation"]["by"]) == ("completed", "check")


def test_init_takes_what_is_usual(person: Person) -> None:
    """The defaults make a spool whose `check` misses the key alone;
    the key's place and the number of agents are given by flags.
    """
    assert person.batchd("init", "spool").returncode == 0
    spool = person.here / "spool"
    lines = json.loads(person.batchd("check", "--offline", "--json", cwd=spool).stdout)
    failed = [line["what"] for line in lines if line["verdict"] == "failed"]
    assert failed == ["provider openai"]
    checked = person.batchd("check", "--offline", cwd=spool, OPENAI_API_KEY="sk-0123456789")
    assert checked.returncode == 0
    flags = ("--model", "deepseek/deepseek-flash", "--key-file", "my.key", "--agents", "40")
    done = person.batchd("init", "other", *flags)
    assert f"put the key into {person.here}/my.key (chmod 600)" in done.stdout
    loaded = config.load(person.here / "other/config.toml", {})
    assert loaded.providers["deepseek"].api_key_file == str(person.here / "my.key")
    assert loaded.pool.processes * loaded.pool.agents_per_process == 40
    assert loaded.providers["deepseek"].max_concurrent == 40, "they would wait for one another"


@pytest.mark.parametrize(
    ("there", "flags", "said"),
    [
        ("config.toml", (), "config.toml is there already"),
        ("sample.json", (), "sample.json is there already"),
        ("inbox/mail", (), "inbox holds files already"),
        ("", ("--model", "gpt"), "write PROVIDER/MODEL, such as"),
        ("", ("--model", "deepseek-flash"), "such as deepseek/deepseek-flash"),
        ("", ("--model", "mine/x"), "mine is none of openai"),
        ("", ("--model", "mine/x", "--base-url", "ftp://x"), "base_url: it must be http(s)://HOST"),
        ("", ("--model", "mine/x", "--base-url", "http://u:sk-0123456789@h/v1"), "it must be http"),
        ("", ("--key-file", "/usr/share/key"), "/usr"),
        ("", ("--key-env", "sk-0123456789"), "must be the name of an environment variable"),
        ("", ("--agents", "0"), "a number from 1"),
    ],
)
def test_init_refuses_before_it_makes_anything(
    person: Person, there: str, flags: tuple[str, ...], said: str
) -> None:
    """What is there already is never overwritten, and wrong values leave nothing behind;
    no key is repeated.
    """
    spool = person.folder / "spool"
    if there:
        (spool / there).parent.mkdir(parents=True)
        (spool / there).write_text("mine")
    before = [*spool.rglob("*")]
    done = person.batchd("init", *flags, spool)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "sk-0123456789" not in done.stderr
    assert [*spool.rglob("*")] == before
    assert not spool.exists() or (spool / there).read_text() == "mine"
    assert [*person.home.iterdir()] == []


def test_init_takes_an_empty_name_for_a_mistake(person: Person) -> None:
    """As of a variable that is not set: nothing is made where one stands."""
    done = person.batchd("init", "")
    assert (done.returncode, done.stdout) == (2, "")
    assert "DIR is empty: name a directory, or leave it out" in done.stderr
    assert [*person.here.iterdir()] == []


def test_init_makes_no_spool_where_others_decide(person: Person) -> None:
    """Neither in a directory that everybody can change, nor in a whole home,
    nor where a name breaks a line; each with the fix.
    """
    (person.folder / "open").mkdir()
    (person.folder / "open").chmod(0o777)
    done = person.batchd("init", person.folder / "open")
    assert (done.returncode, "chmod o-w" in done.stderr) == (3, True)
    done = person.batchd("init", cwd=person.home)
    assert (done.returncode, "name a directory of its own" in done.stderr) == (2, True)
    done = person.batchd("init", person.folder / "open/a\nb")
    assert (done.returncode, "printable characters alone" in done.stderr) == (2, True)
    assert [*(person.folder / "open").iterdir(), *person.home.iterdir()] == []


def test_init_goes_on_with_what_an_earlier_version_left(person: Person) -> None:
    """A folder with a store, and files that wait in its inbox, becomes a spool around both:
    the one command that is offered.
    """
    (person.here / ".batchd").mkdir()
    (person.here / "inbox").mkdir()
    (person.here / "inbox/waits.json").write_text("{}")
    sqlite3.connect(person.here / ".batchd/batchd.db").close()
    (command,) = re.findall("`batchd (init .*?)`", person.batchd("status").stderr)
    done = person.batchd(*command.split())
    assert "the store that an earlier version left" in done.stdout
    paths = config.load(person.here / "config.toml", {}).paths
    assert (paths.inbox, paths.state) == (f"{person.here}/inbox", f"{person.here}/.batchd")
    assert (person.here / "inbox/waits.json").exists()


def test_config_says_where_each_value_comes_from(spool: Any) -> None:
    """The line of the file, the variable, the preset, the default,
    and what `tune` has changed in the daemon; never a secret.
    """
    with (spool.folder / "config.toml").open("a") as file:
        file.write(
            '[providers.openai]\nheaders = {"X-Key" = "sk-0123456789"}\n[cost]\ncompare = [\n]\n'
        )
    lines = (spool.folder / "config.toml").read_text().splitlines()
    with spool.serving():
        assert spool.batchd("tune", "pool.rest_s=0.5").returncode == 0
        done = warm.run(
            spool.command("config", "--json"),
            env={**spool.environment, "BATCHD_LIMITS__MAX_CALLS": "7"},
        )
        shown = spool.batchd("config").stdout
    found = {row["key"]: row for row in json.loads(done.stdout)["values"]}

    def origin(key: str) -> tuple[object, ...]:
        return tuple(found[key][name] for name in ("value", "source", "line", "variable"))

    assert origin("pool.rest_s") == ("0.5", "tune", None, "")
    assert origin("limits.max_calls") == (7, "variable", None, "BATCHD_LIMITS__MAX_CALLS")
    assert origin("pool.processes") == (2, "file", lines.index("processes = 2") + 1, "")
    assert origin("cost.compare") == ([], "file", lines.index("compare = [") + 1, "")
    assert origin("providers.openai.api_key_env") == ("OPENAI_API_KEY", "preset", None, "")
    assert origin("providers.openai.headers")[0] == "…"
    assert origin("budget.per_day_usd") == (0.0, "default", None, "")
    assert "sk-0123456789" not in done.stdout + shown
    assert re.search(r"^pool\.rest_s = 0\.5 +# tune$", shown, re.MULTILINE)
    # But for comments it is TOML, which says the same.
    assert tomli.loads(shown)["pool"]["processes"] == 2
