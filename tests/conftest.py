"""What tests of several kinds share:
a stand-in model server, and spools with real processes on them.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import shadow
import standin
import warm
from patience import PATIENCE_S, until

from batchd import control
from batchd.errors import NoDaemonError

#: What steers these tests themselves.
_OURS = ("BATCHD_SAMPLE_SEED", "BATCHD_CHAOS_")
#: Variables that change how programs look for things, speak, or reach a network.
_PERSONAL = (
    *(
        "BATCHD_",
        "XDG_",
        "LC_",
        "LANGUAGE",
        "NO_COLOR",
        "FORCE_COLOR",
        "CLICOLOR",
        "MAKE",
        "MFLAGS",
    ),
    *("GIT_", "OPENAI_", "OTEL_", "NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY"),
)

CONFIG = """\
[agent]
model = "standin/{model}"
[providers.standin]
base_url = "{base_url}"
[models."standin/{model}"]
input_usd_per_mtok = 1.0
output_usd_per_mtok = 2.0
[pool]
processes = 2
drain_s = 2
[evaluation]
by = "none"
[governor]
max_retries = 1
first_backoff_s = 0.05
"""
#: A report takes a process of its own for each daemon; few tests are about it.
NO_REPORT = "[report]\nenabled = false\n"


@dataclass(frozen=True)
class Spool:
    """A folder with a configuration, and commands that work on it."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """An environment without anybody's own batchd settings and keys."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("BATCHD_")}
        mine = {
            "COLUMNS": "80",
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "TMPDIR": str(self.folder),
        }
        return {k: v for k, v in kept.items() if not k.endswith("_API_KEY")} | mine

    def with_reports(self) -> Spool:
        """Have its batches reported."""
        config = self.folder / "config.toml"
        config.write_text(config.read_text().replace(NO_REPORT, ""))
        return self

    def batchd(
        self, *arguments: str | Path, stdin: bytes = b"", cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return warm.run(
            self.command(*arguments),
            stdin=stdin.decode(),
            env=self.environment,
            cwd=cwd or self.folder,
        )

    def command(self, *arguments: str | Path) -> list[str]:
        """Return a command line."""
        config = str(self.folder / "config.toml")
        return [sys.executable, "-m", "batchd", "--config", config, *map(str, arguments)]

    def write(self, name: str, tasks: Sequence[Mapping[str, Any]], **batch: Any) -> Path:
        """Write a task file beside the inbox."""
        path = self.folder / name
        path.write_text(json.dumps({**batch, "tasks": tasks}), "utf-8")
        return path

    def result(self, batch: str, task: str) -> dict[str, Any]:
        """Return a result, or with ``summary`` the summary."""
        found: dict[str, Any] = json.loads(
            (self.folder / "outbox" / batch / f"{task}.json").read_bytes()
        )
        return found

    @contextlib.contextmanager
    def serving(self, *options: str, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a daemon, from the moment that it answers to its drained end."""
        environment = {**self.environment, **environ}
        log = self.folder / "daemon.log"
        with (
            log.open("ab") as stderr,
            warm.Popen(self.command("serve", *options), stderr=stderr, env=environment) as process,
        ):
            try:
                self.eventually(lambda: self.answers() or process.poll() is not None)
                assert process.poll() is None, log.read_text()
                yield process
            finally:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(PATIENCE_S)
                finally:
                    process.kill()

    @staticmethod
    def eventually(condition: Callable[[], object]) -> None:
        """Wait until ``condition`` holds."""
        until(condition)

    def answers(self) -> bool:
        """Return whether a daemon runs here."""
        try:
            control.request(self.folder / ".batchd", "status")
        except NoDaemonError:
            return False
        return True


@contextlib.contextmanager
def stand_in(*options: str, count: bool = False) -> Iterator[str]:
    """Run the stand-in model server as a process; its base URL. With ``count`` it counts tokens."""
    with model_process(*options, count=count) as (base_url, _):
        yield base_url


@contextlib.contextmanager
def model_process(*options: str, count: bool = False) -> Iterator[tuple[str, warm.Popen]]:
    """Do so, for who needs the process as well."""
    options = options if count else ("--no-count", *options)
    process, base_url = standin.start(*options, popen=warm.Popen)
    with process:
        try:
            yield base_url, process
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()


def pytest_configure(config: pytest.Config) -> None:
    """Give tests, and all that they start, the same surroundings on anybody's machine."""
    for name in [*os.environ]:
        personal = name.startswith(_PERSONAL) and not name.startswith(_OURS)
        if personal or name.endswith("_API_KEY") or name.lower().endswith("_proxy"):
            del os.environ[name]
    home = tempfile.mkdtemp(prefix="batchd-home-")
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))
    os.environ |= {"HOME": home, "LANG": "C.UTF-8", "TZ": "UTC", "TERM": "xterm"}
    # Where the lifecycle and the daemon's own classes differ, the daemon ends.
    shadow.install()
    # For what asks about the width of a terminal that is none.
    os.environ |= {"COLUMNS": "80", "LINES": "24"}
    time.tzset()
    os.umask(0o022)
    # In the background of a shell, or under nohup, they are ignored,
    # and so they would be by all that is started here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    """Let pytest remove trees of thousands of levels, which a test that failed has left:
    it ended without a word of any failure.
    """
    sys.setrecursionlimit(20_000)


@pytest.fixture(autouse=True)
def plain_log() -> Iterator[None]:
    """Let no test write its log as a test before it in this process set it up."""
    yield
    if structlog := sys.modules.get("structlog"):
        structlog.reset_defaults()


@pytest.fixture(scope="session")
def model_server() -> Iterator[str]:
    """One stand-in server for all tests that change nothing about it; its base URL."""
    with stand_in() as base_url:
        yield base_url


@pytest.fixture
def slow_server() -> Iterator[str]:
    """A stand-in server of one's own that takes a moment for each answer:
    kills find calls under way.
    """
    with stand_in("--latency", "0.1") as base_url:
        yield base_url


@pytest.fixture
def counting_server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A stand-in server of one's own that counts tokens and logs bodies;
    its base URL and its log.
    """
    log = tmp_path / "requests.jsonl"
    with stand_in("--log", str(log), "--log-bodies", count=True) as base_url:
        yield base_url, log


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path leaves room for a socket's name, whatever TMPDIR is."""
    with tempfile.TemporaryDirectory(prefix="batchd-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def spool(tmp_path: Path, model_server: str) -> Spool:
    """A fresh spool, whose model answers in two calls."""
    text = CONFIG.format(base_url=model_server, model="steps-2")
    (tmp_path / "config.toml").write_text(NO_REPORT + text)
    return Spool(tmp_path)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under a seed, leave out what is ``long``, and take a sample:
    of the cases of a test, and of the tests of a file.
    """
    seed = os.environ.get("BATCHD_SAMPLE_SEED")
    if not seed:
        return
    left_out = {item for item in items if item.get_closest_marker("long")}
    cases = defaultdict(list)
    for item in items:
        if mark := item.get_closest_marker("sampled"):
            cases[item.nodeid.partition("[")[0], *mark.args].append(item)
    for (test, number), found in cases.items():
        surplus = max(len(found) - number, 0)  # fewer where only root has some of them
        left_out.update(random.Random(seed + test).sample(found, surplus))
    left_out |= _waiting((item for item in items if item not in left_out), seed)
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=list(left_out))


def _waiting(items: Iterable[pytest.Item], seed: str) -> set[pytest.Item]:
    """Return those of files whose tests take turns that have theirs another time:
    nine of ten of each file.
    """
    by_file = defaultdict(lambda: defaultdict(list))
    for item in items:
        if item.get_closest_marker("in_turns"):
            by_file[item.path][item.nodeid.partition("[")[0]].append(item)
    waiting = set()
    for file, tests in by_file.items():
        for test in random.Random(f"{seed} {file.name}").sample([*tests], len(tests) * 9 // 10):
            waiting.update(tests[test])
    return waiting


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests found worth showing, from whichever process they ran in."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{name}: {value}")
