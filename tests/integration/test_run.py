"""``batchd run``: one set of books with the daemon, beside one, after one, and many at once."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import warm
from patience import PATIENCE_S
from teletype import Teletype
from terminal import on_a_terminal

from batchd import control, users
from batchd.cli.display import progress
from batchd.errors import NoDaemonError
from batchd.store.queries import StoreReader

pytestmark = pytest.mark.in_turns

#: Of two at a time, the last one is still to begin when the first has ended.
_SLOW = {"first_prompt": "y", "model": "standin/latency-2+steps-2"}
_HALF = [{"first_prompt": "x"}, _SLOW, _SLOW, {"first_prompt": "z"}]


def results(spool: Any, batch: str) -> list[str]:
    """Return how the tasks of a batch have ended, in order."""
    folder = spool.folder / "outbox" / batch
    lines = (folder / "results.jsonl").read_text().splitlines()
    return [json.loads(line)["status"] for line in lines]


def no_daemon(spool: Any) -> bool:
    """Return whether no daemon is at work on the spool any more."""
    try:
        control.request(spool.folder / ".batchd", "status")
    except NoDaemonError:
        return True
    return False


@contextlib.contextmanager
def begun(spool: Any, *arguments: str | Path, text: str, before: str = "") -> Iterator[warm.Popen]:
    """Run a command, and go on once its progress says ``text``, and ``before`` before it."""
    with warm.Popen(
        spool.command("run", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=spool.environment,
        cwd=spool.folder,
    ) as process:
        assert process.stdout is not None
        seen = b""
        while text.encode() not in seen:
            line = process.stdout.readline()
            assert line, seen
            seen += line
        assert before.encode() in seen
        try:
            yield process
        except BaseException:
            process.kill()  # else who leaves this waits for its end
            raise


def test_every_command_knows_what_was_run(spool: Any) -> None:
    """`status`, `logs`, `cost`, `report` and `retry` ask the store that `run` worked in;
    its daemon is gone by then, and `serve` starts.
    """
    path = spool.write("games.json", [{"first_prompt": "x"}, {"first_prompt": "y"}])
    assert spool.batchd("run", path, "--json").returncode == 0
    assert no_daemon(spool)
    assert "games  completed   2/2" in spool.batchd("status").stdout
    assert "completed" in spool.batchd("logs", "games/001").stdout
    assert "games" in spool.batchd("cost", "--by", "batch").stdout
    assert spool.batchd("report", "games").returncode == 0
    assert "games-2" in spool.batchd("retry", "--yes", "games").stdout
    assert spool.batchd("prune", "--older-than", "0").returncode == 0
    assert spool.batchd("run", path).returncode == 0
    with spool.serving():
        assert not no_daemon(spool)


def test_a_run_beside_a_daemon_is_its_batch(spool: Any) -> None:
    """The daemon works on it, `run` shows its end;
    `--processes` is refused with the reason, and nothing is dropped.
    """
    path = spool.write("games.json", [{"first_prompt": "x"}])
    with spool.serving() as daemon:
        refused = spool.batchd("run", path, "--processes", "3")
        assert refused.returncode == 2
        assert f"process {daemon.pid} works here" in refused.stderr
        assert "batchd tune pool.processes=N" in refused.stderr
        done = spool.batchd("run", path)
        assert done.returncode == 0, done.stderr
        assert "games: 1 of 1 task completed" in done.stderr
        answer = control.request(spool.folder / ".batchd", "status")
        assert (answer["pid"], answer["batches"]["open"]) == (daemon.pid, 0)
    assert results(spool, "games") == ["completed"]


def test_a_run_whose_outbox_takes_nothing_is_refused_at_once(spool: Any) -> None:
    """It does not wait, as a file that is dropped would;
    nothing of it is left, and the next one works.
    """
    path = spool.write("games.json", [{"first_prompt": "x"}])
    outbox, away = spool.folder / "outbox", spool.folder / "away"
    outbox.mkdir()
    with spool.serving():
        spool.eventually((spool.folder / ".batchd/outboxes").exists)
        outbox.rename(away)
        outbox.write_text("a file in its place")
        refused = spool.batchd("run", path)
        assert refused.returncode == 3, refused.stderr
        assert "the order is not carried out" in refused.stderr
        assert str(outbox) in refused.stderr
        outbox.unlink()
        away.rename(outbox)
        assert spool.batchd("run", path).returncode == 0
    assert results(spool, "games") == ["completed"]
    assert not (spool.folder / "outbox/games-2").exists()


def test_what_a_stopped_daemon_left_queued_stays_queued(spool: Any) -> None:
    """A `run` works on its own file and on nothing else, dropped or queued;
    the daemon then finds the rest as it was.
    """
    with spool.serving():
        assert spool.batchd("pause", "--all").returncode == 0
        spool.batchd("submit", spool.write("queued.json", [{"first_prompt": "q"}]))
        store = spool.folder / ".batchd/batchd.db"
        spool.eventually(lambda: [r for r in _rows(store) if r.batch.name == "queued"])
        assert spool.batchd("pause", "queued").returncode == 0
        assert spool.batchd("resume", "--all").returncode == 0
    spool.batchd("submit", spool.write("dropped.json", [{"first_prompt": "d"}]))
    done = spool.batchd("run", spool.write("mine.json", [{"first_prompt": "m"}]))
    assert done.returncode == 0, done.stderr
    spool.eventually(lambda: no_daemon(spool))
    assert {r.batch.name: r.finished for r in _rows(store)} == {"queued": 0, "mine": 1}
    assert (spool.folder / "inbox/dropped.json").exists()
    with spool.serving():
        assert spool.batchd("resume", "queued").returncode == 0
        for name in ("queued", "dropped"):
            spool.eventually((spool.folder / f"outbox/{name}/summary.json").exists)
    assert results(spool, "queued") == results(spool, "dropped") == ["completed"]


def _rows(store: Path) -> list[Any]:
    with StoreReader(store) as reader:
        return list(reader.batches())


def test_what_is_paused_is_not_waited_for(spool: Any) -> None:
    """A `run` of what people have paused is refused with the command that lets it go on."""
    with spool.serving():
        spool.batchd("pause", "--provider", "standin", "--message", "moving house")
    refused = spool.batchd("run", spool.write("games.json", [{"first_prompt": "x"}]))
    assert refused.returncode == 3
    assert "standin is paused (moving house): batchd resume --provider standin" in refused.stderr
    assert not (spool.folder / "outbox/games").exists()


@pytest.mark.parametrize("killed", ["run", "daemon"])
def test_a_run_that_was_killed_goes_on_with_the_next(spool: Any, killed: str) -> None:
    """Whether its terminal or its daemon dies:
    the next `run` of the file has each task once, and nothing paid twice.
    """
    tasks = [{"first_prompt": "x"}, {"first_prompt": "y", "model": "standin/hang"}]
    path = spool.write("half.json", tasks)
    with begun(spool, path, text="001 completed") as process:
        pid = control.request(spool.folder / ".batchd", "status")["pid"]
        assert pid != process.pid
        if killed == "run":
            process.kill()
        else:
            subprocess.run(["kill", "-KILL", str(pid)], check=True)
            errors, _ = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 3
            assert b"1 of 2 tasks done: its daemon has ended. `batchd run`" in errors
    spool.eventually(lambda: no_daemon(spool))
    before = spool.result("half", "001")
    going_on = "half.json: going on with half, which an earlier run began."
    with begun(spool, path, text="002 starts", before=going_on) as process:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert spool.result("half", "001") == before
    assert results(spool, "half") == ["completed", "cancelled"]
    assert not (spool.folder / "outbox/half-2").exists()


def test_a_daemon_takes_up_what_a_killed_run_left(spool: Any) -> None:
    """`serve` finishes it as any other batch."""
    path = spool.write("half.json", [{"first_prompt": "x"}, {"first_prompt": "hang 3 s"}])
    with begun(spool, path, text="starts") as process:
        process.kill()
    spool.eventually(lambda: no_daemon(spool))
    with spool.serving():
        spool.eventually((spool.folder / "outbox/half/summary.json").exists)
    assert results(spool, "half") == ["completed", "completed"]


def test_twenty_runs_at_once_share_one_daemon(spool: Any) -> None:
    """Each has its end, whichever starts the daemon; none is lost, none runs twice, and those of
    one file follow the first of them.
    """
    paths = [spool.write(f"b{i}.json", [{"first_prompt": "x"}]) for i in range(20)]
    # The first of them must not have ended when the last one begins: that begins another batch.
    same = [spool.write("same.json", [{"first_prompt": "hang 5 s"}])] * 3
    runs = [
        warm.Popen(
            spool.command("run", path, "--json"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=spool.environment,
        )
        for path in [*same, *paths]
    ]
    for run in runs:
        with run:
            out, errors = run.communicate(timeout=PATIENCE_S)
            assert run.returncode == 0, errors
            assert errors == b"" or b"same.json: going on with same" in errors
            assert json.loads(out)[0]["counts"]["completed"] == 1
    rows = {
        row.batch.name: (row.tasks, row.completed)
        for row in _rows(spool.folder / ".batchd/batchd.db")
    }
    names = {f"b{i}" for i in range(20)} | {"same"}
    assert rows == dict.fromkeys(names, (1, 1))


def test_serial_is_the_batchs_own_limit(spool: Any) -> None:
    """`--serial` beside a daemon with many slots has one task of the file at work at a time."""
    path = spool.write("row.json", [{"first_prompt": str(i)} for i in range(4)])
    with spool.serving():
        assert spool.batchd("run", path, "--serial").returncode == 0
    with StoreReader(spool.folder / ".batchd/batchd.db") as reader:
        assert reader.batch("row").batch.parallel == 1
        spans = sorted((t.started_at, t.finished_at) for t in reader.tasks("row"))
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))


def test_results_elsewhere(spool: Any, tmp_path: Path) -> None:
    """A variable has them in another outbox, whatever the file says, and in the same books."""
    environment = {**spool.environment, "BATCHD_PATHS__OUTBOX": str(tmp_path / "elsewhere")}
    command = spool.command("run", spool.write("games.json", [{"first_prompt": "x"}]))
    assert warm.run(command, env=environment, cwd=spool.folder).returncode == 0
    assert (tmp_path / "elsewhere/games/summary.json").exists()
    assert "games  completed   1/1" in spool.batchd("status").stdout


def test_a_file_waits_while_only_a_run_is_at_work(spool: Any) -> None:
    """`submit` beside a `run` says that no daemon takes it yet; `submit --wait` drops nothing."""
    path = spool.write("half.json", [{"first_prompt": "y", "model": "standin/hang"}])
    other = spool.write("other.json", [{"first_prompt": "x"}])
    with begun(spool, path, text="001 starts") as process:
        done = spool.batchd("submit", other)
        assert done.returncode == 0
        assert "the file waits until `batchd serve` starts" in done.stderr
        waiting = spool.batchd("submit", "--wait", other)
        assert waiting.returncode == 3
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 1
    assert results(spool, "half") == ["cancelled"]
    assert [path.name for path in (spool.folder / "inbox").iterdir()] == ["other.json"]


@pytest.mark.parametrize("answer", ["l", "c"])
def test_ctrl_c_asks_what_is_to_become_of_it(spool: Any, answer: str) -> None:
    """Left running, it goes on without its terminal;
    cancelled, it ends with a result for each task.
    """
    spool.write("half.json", [{"first_prompt": "y", "model": "standin/hang"}])
    question = "wait on (Enter)?"
    answers = (("001 starts", "\x03"), (question, f"{answer}\n"))
    code, seen = on_a_terminal(spool, "run", "half.json", answers=answers)
    if answer == "l":
        assert code == 130, seen
        assert "It goes on: batchd status half" in seen
        assert "running" in spool.batchd("status", "half").stdout
        # Run again, it is followed: nothing is paid twice.
        left = (("half: 1 task", "\x03"), (question, "l\n"))
        code, seen = on_a_terminal(spool, "run", "half.json", answers=left)
        assert code == 130, seen
        assert "going on with half, which an earlier run began" in seen
        assert not (spool.folder / "outbox/half-2").exists()
        # Who begins to wait later sees how long it has been at work, and no start that was none.
        waits = (("001 began", "\x03"),)
        code, seen = on_a_terminal(spool, "wait", "half", answers=waits)
        assert code == 130, seen
        assert spool.batchd("cancel", "half").returncode == 0
        spool.eventually((spool.folder / "outbox/half/summary.json").exists)
        spool.eventually(lambda: no_daemon(spool))
        assert results(spool, "half") == ["cancelled"]
    elif answer == "c":
        assert code == 1, seen
        assert results(spool, "half") == ["cancelled"]


@pytest.mark.parametrize("asked", [False, True])
def test_sigterm_cancels_what_is_left_without_a_question(spool: Any, asked: bool) -> None:
    """On a terminal too, also where it asks already; `timeout` sends it twice."""
    path = spool.write("half.json", [{"first_prompt": "y", "model": "standin/hang"}])
    with Teletype(spool.command("run", path), env=spool.environment) as terminal:
        terminal.shows("001 starts")
        if asked:
            terminal.types("\x03", "wait on (Enter)?")
        terminal.signal(signal.SIGTERM)
        terminal.shows("what is left is cancelled")
        terminal.signal(signal.SIGTERM)
        assert terminal.ends() == 1
        assert asked == ("wait on (Enter)?" in terminal.text)
    assert results(spool, "half") == ["cancelled"]


def test_who_waits_on_after_ctrl_c_reads_nothing_twice(spool: Any) -> None:
    """A watch that is followed again says what is new alone;
    one that begins late says since when what runs has run.
    """
    path = spool.write("half.json", [{"first_prompt": "y", "model": "standin/hang"}])
    with (
        begun(spool, path, text="001 starts"),
        StoreReader(spool.folder / ".batchd/batchd.db") as books,
    ):
        watch = progress.ProgressWatch(books, lambda b: [b.batch("half")])
        assert watch.look()[0] == ["half: 1 task", "▸ 001 starts: y"]
        assert watch.look()[0] == []
        # It is dispatched, and begins a moment later.
        spool.eventually(lambda: books.running()[0].started_at)
        late = progress.ProgressWatch(books, lambda b: [b.batch("half")], late=True)
        assert re.search(r"001 began [0-9.:]+ (s|min) ago: y", "".join(late.look()[0]))
        assert spool.batchd("cancel", "half").returncode == 0


def test_a_file_with_an_error_makes_nothing(spool: Any) -> None:
    """It is refused before a daemon starts, or a folder is made."""
    (spool.folder / "bad.json").write_text('{"tasks": [{}]}')
    done = spool.batchd("run", spool.folder / "bad.json")
    assert done.returncode == 2
    assert "first_prompt" in done.stderr
    assert not (spool.folder / ".batchd").exists()


def test_a_file_that_is_run_twice_at_once_is_paid_once(spool: Any) -> None:
    """The second follows the first to its end, beside `serve` as without it."""
    path = spool.write("half.json", _HALF)
    for served, name in ((False, "half"), (True, "half-2")):
        with contextlib.ExitStack() as stack:
            if served:
                stack.enter_context(spool.serving())
            first = stack.enter_context(begun(spool, path, text="001 starts"))
            second = spool.batchd("run", path)
            assert second.returncode == 0, second.stderr
            assert f"going on with {name}, which an earlier run began" in second.stderr
            first.communicate(timeout=PATIENCE_S)
        assert results(spool, name) == ["completed"] * 4
        spool.eventually(lambda: no_daemon(spool))


def test_one_line_one_answer(spool: Any) -> None:
    """A prompt's answer stands alone on standard output, all else beside it; JSON, JSONL and a
    prompt on standard input are taken for what they are.
    """
    line = spool.batchd("run", "--prompt", "say hello", "--check", "true", "--budget", "1")
    assert line.returncode == 0, line.stderr
    answer = spool.result("prompt", "001")["answer"]
    assert line.stdout == f"{answer}\n"
    assert "prompt: 1 of 1 task completed" in line.stderr
    for given, name, tasks in (
        ('{"tasks": [{"first_prompt": "x"}]}', "stdin", 1),
        ('{"first_prompt": "x"}\n{"first_prompt": "y"}\n', "stdin-2", 2),
        ("{{name}} is a word", "stdin-3", 1),
        ("[Note] do it", "prompt-2", 1),
    ):
        words = ["--prompt", "-"] if name.startswith("prompt") else []
        done = spool.batchd("run", *words, "--json", stdin=given.encode())
        assert done.returncode == 0, done.stderr
        (summary,) = json.loads(done.stdout)
        assert (summary["batch"], summary["total"]) == (name, tasks)
        assert ("answer" in summary) == (tasks == 1)
    assert spool.result("stdin-3", "001")["first_prompt"] == "{{name}} is a word"
    for options, said in (
        (["--model", "standin/x", "a.json"], "--model goes with --prompt"),
        (["--prompt", " "], "--prompt is empty"),
        (["--prompt", "x", "--model", "a/b", "--model", "c/d"], "a prompt has one --model"),
        (["--private", "a.json"], "--private is gone: "),
    ):
        refused = spool.batchd("run", *options)
        assert refused.returncode == 2
        assert said in refused.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be in the place of others")
def test_root_writes_nothing_into_the_spool_of_another_user(spool: Any) -> None:
    """There may be links: it is refused, with what to do,
    and a link in the place of the claims leads nowhere.
    """
    state, elsewhere = spool.folder / ".batchd", spool.folder / "elsewhere"
    state.mkdir(mode=0o700)
    elsewhere.mkdir()
    (state / "claimed").symlink_to(elsewhere)
    os.chown(state, 65534, 65534)
    path = spool.write("games.json", [{"first_prompt": "x"}])
    refused = spool.batchd("run", path)
    assert refused.returncode == 3
    assert f"is for the user {users.user(65534)}, who alone may enter" in refused.stderr
    os.chown(state, 0, 0)
    assert spool.batchd("run", path).returncode == 3
    assert list(elsewhere.iterdir()) == []
    spool.eventually(lambda: no_daemon(spool))


def test_a_killed_run_goes_on_while_others_work(spool: Any) -> None:
    """Its daemon lives on for another run:
    the batch is taken up again there, and is no second one.
    """
    hang = {"first_prompt": "y", "model": "standin/hang"}
    path = spool.write("half.json", [{"first_prompt": "x"}, hang])
    with begun(spool, spool.write("other.json", [hang]), text="001 starts") as other:
        with begun(spool, path, text="001 completed") as process:
            process.kill()
        with begun(spool, path, text="002 starts", before="going on with half") as again:
            again.send_signal(signal.SIGINT)
            again.communicate(timeout=PATIENCE_S)
        other.send_signal(signal.SIGINT)
        other.communicate(timeout=PATIENCE_S)
    assert results(spool, "half") == ["completed", "cancelled"]
    assert not (spool.folder / "outbox/half-2").exists()


def test_another_runs_daemon_works_only_as_ones_own_would(spool: Any) -> None:
    """With another key, other limits or another number of processes it is refused with what to do;
    alike, it is shared.
    """
    hang = {"first_prompt": "y", "model": "standin/hang"}
    path = spool.write("games.json", [{"first_prompt": "x"}])
    with begun(
        spool, spool.write("other.json", [hang]), "--processes", "2", text="001 starts"
    ) as other:
        for name, value in (
            ("OPENAI_API_KEY", "sk-another-key-1"),
            ("BATCHD_LIMITS__MAX_TOKENS", "2000"),
        ):
            refused = warm.run(
                spool.command("run", path), env={**spool.environment, name: value}, cwd=spool.folder
            )
            assert refused.returncode == 2, refused.stderr
            assert "whose keys, models, limits or sandbox are not yours" in refused.stderr
        refused = spool.batchd("run", path, "--processes", "3")
        assert "--processes is for a daemon of its own" in refused.stderr
        assert not (spool.folder / "outbox/games").exists()
        assert spool.batchd("run", path, "--processes", "2").returncode == 0
        other.send_signal(signal.SIGINT)
        other.communicate(timeout=PATIENCE_S)
    assert results(spool, "games") == ["completed"]


def test_a_run_of_a_batch_that_comes_after_another_is_refused(spool: Any) -> None:
    """What it comes after is not its errand: the message names `serve`,
    and the daemon goes on with what was dropped.
    """
    last = spool.write("last.json", [{"first_prompt": "y"}], after_batches=["first"])
    with spool.serving():
        assert spool.batchd("pause", "--all").returncode == 0
        for path in (spool.write("first.json", [{"first_prompt": "x"}]), last):
            assert spool.batchd("submit", path).returncode == 0
            spool.eventually((spool.folder / "outbox" / path.stem / "request.json").exists)
        assert spool.batchd("pause", "first").returncode == 0
        assert spool.batchd("resume", "--all").returncode == 0
    refused = spool.batchd("run", last)
    assert refused.returncode == 2, refused.stderr
    assert "first has tasks left" in refused.stderr
    assert "`batchd serve` works on both" in refused.stderr
    spool.eventually(lambda: no_daemon(spool))
    with spool.serving():
        assert spool.batchd("resume", "first").returncode == 0
        spool.eventually((spool.folder / "outbox/last/summary.json").exists)
    assert results(spool, "first") == results(spool, "last") == ["completed"]


@pytest.mark.parametrize("daemon", ["served it", "came later"])
def test_a_killed_run_is_followed_where_a_daemon_goes_on_with_it(spool: Any, daemon: str) -> None:
    """Run again beside `serve`, the file is no second batch: nothing is paid twice;
    what was dropped under its name is another.
    """
    path = spool.write("half.json", _HALF)
    if daemon == "came later":
        with begun(spool, path, text="001 completed") as process:
            process.kill()
        spool.eventually(lambda: no_daemon(spool))
    with spool.serving():
        if daemon == "served it":
            with begun(spool, path, text="001 completed") as process:
                process.kill()
        done = spool.batchd("run", path)
        assert done.returncode == 0, done.stderr
        assert "half.json: going on with half, which an earlier run began." in done.stderr
        assert not (spool.folder / "outbox/half-2").exists()
        # It has ended, and so is a new order.
        assert spool.batchd("run", path, "--first", "1").returncode == 0
    assert results(spool, "half") == ["completed"] * 4
    assert results(spool, "half-2") == ["completed"]


def test_what_was_dropped_is_no_run_that_was_left(spool: Any) -> None:
    """A stopped daemon's batch of the same file stays queued:
    it costs money, and `run` has its own.
    """
    path = spool.write("games.json", [{"first_prompt": "x"}])
    with spool.serving():
        assert spool.batchd("pause", "--all").returncode == 0
        spool.batchd("submit", path)
        spool.eventually((spool.folder / "outbox/games/request.json").exists)
        assert spool.batchd("resume", "--all").returncode == 0
        assert spool.batchd("pause", "--all").returncode == 0
    assert spool.batchd("resume", "--all").returncode == 0
    before = {row.batch.name: row.finished for row in _rows(spool.folder / ".batchd/batchd.db")}
    done = spool.batchd("run", path)
    assert done.returncode == 0, done.stderr
    assert "going on" not in done.stderr
    after = {row.batch.name: row.finished for row in _rows(spool.folder / ".batchd/batchd.db")}
    assert after == {**before, "games-2": 1}


@pytest.mark.long
def test_a_run_goes_on_only_as_it_was_begun(spool: Any, tmp_path: Path) -> None:
    """Another place for results, or `--serial`,
    is refused for what is half-finished, with what to do.
    """
    path = spool.write("half.json", _HALF)
    with begun(spool, path, text="001 completed") as process:
        process.kill()
    spool.eventually(lambda: no_daemon(spool))
    elsewhere = {"BATCHD_PATHS__OUTBOX": str(tmp_path / "elsewhere")}
    for options, more in ((["--serial"], {}), ([], elsewhere)):
        command = spool.command("run", path, *options)
        refused = warm.run(command, env={**spool.environment, **more}, cwd=spool.folder)
        assert refused.returncode == 3, refused.stderr
        assert "half is half-finished" in refused.stderr
        assert "batchd cancel half" in refused.stderr
        spool.eventually(lambda: no_daemon(spool))
    assert spool.batchd("run", path).returncode == 0
    assert results(spool, "half") == ["completed"] * 4


def test_orders_about_what_a_runs_daemon_has_not_taken_up_are_refused(spool: Any) -> None:
    """At once, and with what to do: nothing waits for a batch on which no one works."""
    hang = {"first_prompt": "y", "model": "standin/hang"}
    left = spool.write("left.json", [hang])
    with begun(spool, left, text="001 starts") as process:
        process.kill()
    spool.eventually(lambda: no_daemon(spool))
    with begun(spool, spool.write("other.json", [hang]), text="001 starts") as other:
        for order in (
            ("cancel", "left"),
            ("cancel", "left/001"),
            ("pause", "left"),
            ("pause", "left/001"),
        ):
            refused = spool.batchd(*order)
            assert refused.returncode == 3, (order, refused.stderr)
            assert "batch left is left from before" in refused.stderr
        other.send_signal(signal.SIGINT)
        other.communicate(timeout=PATIENCE_S)
    spool.eventually(lambda: no_daemon(spool))
    assert spool.batchd("cancel", "left").returncode == 0
    assert results(spool, "left") == ["cancelled"]


def test_a_run_outlives_the_directory_in_which_it_was_begun(spool: Any, tmp_path: Path) -> None:
    """Its daemon works elsewhere: a worker can be started where that directory is gone."""
    (place := tmp_path / "gone").mkdir()
    path = spool.write("games.json", [{"first_prompt": "x"}])
    words = " ".join(map(shlex.quote, spool.command("run", path)))
    script = ["sh", "-c", f"rmdir {shlex.quote(str(place))} && exec {words}"]
    done = subprocess.run(
        script,
        cwd=place,
        env=spool.environment,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert results(spool, "games") == ["completed"]


def test_a_run_takes_an_older_store_over_and_leaves_its_queue(spool: Any) -> None:
    """The store is migrated, its own file is worked on,
    and nothing else: what was queued stays so.
    """
    (archive,) = sorted((Path(__file__).parents[1] / "data").glob("store-v7.tar.gz"))
    with tarfile.open(archive) as files:
        own = [m for m in files if m.name.removeprefix("./").startswith(".batchd/batchd.db")]
        files.extractall(spool.folder, own, filter="data")
    (spool.folder / ".batchd").chmod(0o700)
    done = spool.batchd("run", spool.write("games.json", [{"first_prompt": "x"}]))
    assert done.returncode == 0, done.stderr
    rows = _rows(spool.folder / ".batchd/batchd.db")
    assert {row.batch.name for row in rows} > {"games"}
    assert any(row.finished < row.tasks for row in rows)
    assert results(spool, "games") == ["completed"]
