"""`batchd top` on a terminal: what it shows of a daemon at work,
what its keys do, and how it leaves.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from teletype import Teletype

from tests.integration.test_control import HANGS, Control

pytestmark = pytest.mark.in_turns

#: A command that renames a terminal's window, wipes it, and goes red.
EVIL = r"printf '\033]0;owned\007\033[2J\033[31mred\r\n'; exit 1"


@pytest.fixture
def at(spool: Any) -> Control:
    """A spool with room for sixteen agents."""
    path = spool.folder / "config.toml"
    text = path.read_text().replace("drain_s = 2\n", "drain_s = 2\nagents_per_process = 8\n")
    for model in ("latency-0.2+steps-6", "latency-0.2+loop", "400", "hang"):
        text += f'[models."standin/{model}"]\ninput_usd_per_mtok = 1\noutput_usd_per_mtok = 2\n'
    path.write_text(text)
    return Control(spool)


def top(at: Control, *arguments: str, **how: Any) -> Teletype:
    """Start it on a terminal."""
    env = {**at.spool.environment, **how.pop("env", {})}
    return Teletype(at.spool.command("top", *arguments), env=env, **how)


def fifty() -> list[dict[str, Any]]:
    """Return tasks of which some hang, some fail in several ways, and the rest take a second."""
    tasks: list[dict[str, Any]] = []
    for n in range(50):
        task: dict[str, Any] = {"id": f"module-{n:02}", "model": "standin/latency-0.2+steps-6"}
        if n % 10 == 4:
            task |= {"model": "standin/400"}
        if n % 10 == 7:
            task |= {"model": "standin/latency-0.2+loop"}
        if n in {0, 1}:
            task |= HANGS
        if n == 2:
            task |= {"check": EVIL}
            task |= {"limits": {"max_iterations": 1}}
        tasks.append(task)
    return tasks


def test_a_batch_of_fifty_is_shown_and_walked_through(at: Control) -> None:
    """Agents, failures and gauges in 80 columns and in 120;
    a batch's tasks; a conversation, neutralised; a resize.
    """
    with at.spool.serving(), top(at) as terminal:
        terminal.shows("nothing is left to do")
        at.drop("docs", fifty(), budget_usd=20.0)
        terminal.shows("docs/module-00", "model", "50 done", "failed", "queued", "standin")
        terminal.until(lambda s: re.search(r"docs +running .*\d+/50 +\d+ .*\$20\.00", s))
        terminal.until(lambda s: re.search(r"\d/16 agents, 2 workers", s))
        at.until((at.folder / "outbox/docs/module-49.json").exists)
        terminal.shows("AT WORK 2", "48/50 done")
        assert len(terminal.sent) < 400_000, "only what changes is sent"

        # To the last column: the clock stands there, as money may; `$0.0006` read `$0.000`.
        terminal.resize(120, 40)
        terminal.until(
            lambda s: (
                re.search(r"COST +DETAIL", s)
                and re.search(r"\d\d:\d\d:\d\d$", s[:121], re.MULTILINE)
            )
        )
        terminal.type("\t\r")
        terminal.shows("OF docs", "module-02", "Esc back")
        failures = terminal.types("f", "6 FAILED OF docs")
        assert "module-05" not in failures
        terminal.type("\x1b")
        terminal.shows("/50 OF docs")
        terminal.type("/400\r")
        screen = terminal.until(lambda s: "module-05" not in s and "module-44" in s)
        assert screen.count("bad_request") == 5

        terminal.type("\x1b")
        terminal.shows("module-05")
        terminal.type("/module-02\r")
        terminal.until(lambda s: "module-05" not in s)
        terminal.type("\r")
        terminal.shows(
            "docs/module-02",
            "not accepted after 1 round",
            "✗ check: not done",
            r"\x1b]0;owned\x07",
        )
        assert b"owned\x07" not in terminal.sent.replace(b"\\x07", b"")
        assert b"\x1b]0;" not in terminal.sent
        terminal.resize(60, 16)
        terminal.type("g")
        terminal.shows("▸ prompt", "lines below")
        terminal.type("\x1b")
        terminal.shows("OF docs")
        terminal.resize(40, 8)
        terminal.until(lambda s: "docs" in s and "quit" not in s)
        terminal.type("q")
        assert terminal.ends() == 0
        assert terminal.clean()


def test_the_window_changes_while_it_runs(at: Control) -> None:
    """After each change the whole picture fits, nothing of the former one is left,
    and what is chosen stays in sight.
    """
    with at.spool.serving(), top(at, "-i", "0.2") as terminal:
        at.drop("docs", [{"id": f"t{n:02}", **HANGS} for n in range(40)])
        terminal.shows("16/16 agents")
        terminal.type("jjj")
        for columns, lines in ((200, 50), (40, 10), (80, 24), (200, 50), (80, 24)):
            terminal.resize(columns, lines)
            screen = terminal.until(
                lambda s, wide=columns > 100: (
                    s.rpartition("\n")[2].startswith("q quit")
                    and "docs/t" in s
                    and ("DETAIL" in s) is wide
                )
            )
            rows = screen.split("\n")
            assert len(rows) == lines, screen
            assert all(len(row.rstrip()) <= columns for row in rows)
            clocks = re.findall(r"\d\d:\d\d:\d\d", screen)
            assert len(clocks) <= 1, "one picture, not two"
            assert screen.count("AT WORK") == 1
            chosen = [line for line in terminal.looks if re.search(r"\x1b\[[\d;]*\b7m", line)]
            assert len(chosen) == 1, screen
        terminal.type("q")
        assert (terminal.ends(), terminal.clean()) == (0, True)


def test_keys_cancel_pause_and_run_again(at: Control) -> None:
    """Each order reaches the daemon as the command of that name sends it;
    what was not confirmed, does not.
    """
    with at.spool.serving(), top(at, "-i", "0.3") as terminal:
        at.drop("stuck", [HANGS, HANGS, {"model": "standin/400"}])
        terminal.shows("AT WORK 2", "1/3 done")
        # A task: it is asked first, and what is no yes is a no.
        screen = terminal.types("jc", "Cancel stuck/00", "? y/n")
        name = re.findall(r"Cancel stuck/(00[12])\?", screen)[0]
        terminal.type("x")
        terminal.shows("nothing was done")
        terminal.type("cy")  # typed before the question could be read: no answer to it
        terminal.shows(f"Cancel stuck/{name}? y/n")
        terminal.type("y")
        # To be cancelled is no failure.
        terminal.shows(f"stuck/{name}: 1 task cancelled", "2/3 done  ✗ 1 failed  1 cancelled")
        assert at.spool.result("stuck", name)["status"] == "cancelled"

        # Pausing, and letting go on: of the batch, of everything.
        terminal.type("\tp")
        terminal.shows("batch stuck is paused")
        assert _parked(at) == [("batch", "stuck")]
        terminal.shows("batchd resume stuck")
        terminal.until(lambda s: "Paused since" in s)
        terminal.type("p")
        terminal.shows("batch stuck goes on")
        terminal.until(lambda s: "Paused since" not in s)
        terminal.type("P")
        terminal.shows("everything is paused")
        assert _parked(at) == [("all", "")]
        terminal.until(lambda s: "Paused since" in s)
        terminal.type("P")
        terminal.shows("everything goes on")
        assert _parked(at) == []

        terminal.type("+")
        terminal.shows("stuck: 1 task with priority 1")

        # Running again: only what has ended.
        terminal.type("r")
        terminal.shows("it has not ended")
        terminal.type("c")
        terminal.shows("Cancel stuck, 1 task", "? y/n")
        terminal.type("y")
        terminal.until(lambda s: re.search(r"stuck +failed", s) and "stuck: 1 task cancelled" in s)
        terminal.type("r")
        terminal.shows("Run 3 failed tasks of stuck again? y/n")
        terminal.type("y")
        terminal.shows("stuck-2: 3 tasks of stuck queued again")
        at.until((at.folder / "outbox/stuck-2/003.json").exists)
        terminal.type("q")
        assert (terminal.ends(), terminal.clean()) == (0, True)


def _parked(at: Control) -> list[tuple[str, str]]:
    status = json.loads(at.order("status", "--json"))
    return [(p["scope"], p["name"]) for p in status["parked"]]


def _type(text: str) -> Callable[[Teletype], None]:
    return lambda terminal: terminal.type(text)


def _send(number: signal.Signals) -> Callable[[Teletype], None]:
    return lambda terminal: terminal.signal(number)


@pytest.mark.parametrize(
    ("leave", "code"),
    [
        (_type("q"), 0),
        (_type("\x03"), 130),
        (_type("\x1c"), 131),
        (_send(signal.SIGTERM), 143),
        (_send(signal.SIGHUP), 129),
        (_type("?qq"), 0),
        (_type("/qq\x03"), 130),
    ],
    ids=["q", "ctrl-c", "ctrl-backslash", "sigterm", "sighup", "from help", "while typing"],
)
def test_every_way_out_leaves_the_terminal_as_it_was(
    at: Control, leave: Callable[[Teletype], None], code: int
) -> None:
    """Settings, screen, cursor and wrapping are back, and nothing is left to read;
    with no daemon and no store too.
    """
    with top(at) as terminal:
        terminal.shows("No daemon runs here", "No batch has been taken up here yet")
        assert terminal.taken
        leave(terminal)
        assert terminal.ends() == code, terminal.text
        assert terminal.clean()
        assert "Traceback" not in terminal.sent.decode("utf-8", "replace")


def test_a_closed_window_ends_it(at: Control) -> None:
    """Where the terminal goes away, so does it; and quietly."""
    with top(at) as terminal:
        terminal.shows("No daemon runs here")
        terminal.hang_up()
        assert terminal.ends() == 129


def test_an_error_inside_leaves_the_terminal_as_it_was(at: Control) -> None:
    """Whatever is raised while it has the terminal, the terminal is given back first, and nothing
    is said of the values of variables, where secrets may be.
    """
    program = (
        "import sys; from pathlib import Path; from batchd.cli.top import app, picture\n"
        "def broken(*_):\n    secret = 'sk-' + 'hidden'\n    raise ValueError('inside')\n"
        "picture.head = broken\napp.run(Path(sys.argv[1]), 1.0)\n"
    )
    with Teletype([sys.executable, "-c", program, str(at.folder / ".batchd")]) as terminal:
        assert terminal.ends() == 1
        assert terminal.clean()
        assert "ValueError: inside" in terminal.text
        assert b"sk-hidden" not in terminal.sent


def test_it_can_be_stopped_and_comes_back(at: Control) -> None:
    """Ctrl-Z gives the terminal to the shell, `fg` draws all of it again."""
    # A shell of its own session that waits for it, as an interactive one does.
    script = 'set -m; "$@"; echo stopped $?; read; fg; echo left $?'
    words = ["bash", "-c", script, "bash", *at.spool.command("top")]
    with Teletype(words, env=at.spool.environment) as terminal:
        terminal.shows("No daemon runs here")
        terminal.type("\x1a")
        terminal.shows("stopped 147")
        assert terminal.clean()
        terminal.type("\r")
        terminal.shows("No daemon runs here")
        terminal.type("q")
        terminal.shows("left 0")
        assert terminal.ends() == 0
        assert terminal.clean()


def test_it_outlives_daemons(at: Control) -> None:
    """It waits for a first daemon, shows what is known when one dies,
    says so to orders, and finds the next.
    """
    with top(at, "-i", "0.2") as terminal:
        terminal.shows("No daemon runs here", "this waits for the first one")
        with at.spool.serving() as daemon:
            at.drop("games", [HANGS])
            terminal.shows("games/001", "AT WORK 1", "worker")
            daemon.send_signal(signal.SIGKILL)
            terminal.shows("No daemon runs here", "games/001")
            terminal.type("p")
            terminal.shows("no daemon runs here: `batchd pause games/001`")
        with at.spool.serving():
            terminal.until(lambda s: "No daemon" not in s)
            terminal.shows("games/001")
        terminal.type("\x03")
        assert (terminal.ends(), terminal.clean()) == (130, True)


def test_a_store_that_cannot_be_read_is_reported(at: Control) -> None:
    """Not a traceback: what is wrong stands on the screen, and it goes on once that is fixed."""
    state = at.folder / ".batchd"
    state.mkdir()
    (state / "batchd.db").write_bytes(b"no database at all" * 100)
    with top(at, "-i", "0.2") as terminal:
        # However long its path, and wherever that is broken.
        terminal.until(lambda screen: "batchd.db" in screen.replace("\n", ""))
        (state / "batchd.db").unlink()
        terminal.shows("No batch has been taken up here yet")
        terminal.type("q")
        assert (terminal.ends(), terminal.clean()) == (0, True)


def test_without_a_terminal(at: Control) -> None:
    """It says what to use instead; `--once` prints one picture,
    without colours, in whatever letters there are.
    """
    done = at.spool.batchd("top")
    assert done.returncode == 2
    assert "batchd status" in done.stderr
    for wrong in ("0", "nan", "inf", "1e10"):
        done = at.spool.batchd("top", "-i", wrong)
        assert (done.returncode, "--interval is from" in done.stderr) == (2, True)
    with Teletype(
        at.spool.command("top"), env={**at.spool.environment, "TERM": "dumb"}
    ) as terminal:
        assert terminal.ends() == 2
        assert "batchd top --once" in terminal.text.replace("\n", "")
    with at.spool.serving():
        at.drop("docs", [{"id": f"t{n}", **HANGS} for n in range(5)])
        at.until_running("docs", 5)
        python, *rest = at.spool.command("top", "--once")
        command = [python, "-X", "importtime", *rest]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "rich.text" in done.stderr
        assert "textual" not in done.stderr, "one picture does without it"
        picture = done.stdout
        assert "\x1b" not in picture
        assert [line.split()[0] for line in sorted(picture.splitlines()[-5:])] == [
            f"docs/t{n}" for n in range(5)
        ]
        os.environ["PYTHONIOENCODING"] = "latin-1"
        try:
            plain = at.order("top", "--once")
        finally:
            del os.environ["PYTHONIOENCODING"]
        assert plain.isascii()
        assert "#" in plain


@pytest.mark.sampled(1)
@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"LC_ALL": "C"}], ids=["no colour", "ascii"])
def test_it_does_without_colours_and_letters(at: Control, env: dict[str, str]) -> None:
    """NO_COLOR leaves bold and reverse; a locale without other letters gets ASCII."""
    with at.spool.serving(), top(at, env=env) as terminal:
        at.drop("docs", [{}, HANGS])
        terminal.shows("docs/002", "1/2 done")
        sent = terminal.sent.decode()
        # In ASCII it is a picture again and again, without keys.
        terminal.type("\x03" if "LC_ALL" in env else "q")
        assert terminal.ends() == (130 if "LC_ALL" in env else 0)
        assert terminal.clean()
    if "LC_ALL" in env:
        assert sent.isascii()
        assert "##" in sent
    else:
        assert not re.search(r"\x1b\[[\d;]*\b[349][0-7]\b[\d;]*m", sent)
