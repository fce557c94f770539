"""The live page over real HTTP: who may look, what is shown,
and how it stands up to odd clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from patience import PATIENCE_S
from serving import Page, until, web

from batchd.web import page_data
from batchd.web.page_updates import MAX_LISTENERS
from batchd.web.shield import TURN_S, TokenCheck
from tests.conftest import CONFIG, Spool

pytestmark = pytest.mark.in_turns

SLOW = "standin/latency-0.3+steps-3"


@pytest.fixture
def page(spool: Spool) -> Iterator[Page]:
    """The page of a fresh spool, on which no daemon has worked yet."""
    with web(spool) as page:
        yield page


def test_nothing_is_shown_without_the_token(page: Page) -> None:
    """No token, a wrong one, one in the address, a forged session:
    401; the token, or what it was exchanged for: 200.
    """
    kept = page.log.parent / ".batchd" / "web.token"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    for path in ("/", "/cost", "/api/overview", "/live/overview", "/batches/b", "/nowhere"):
        assert page.ask(path, token=None)[0].status == 401, path
        assert page.ask(f"{path}?token={page.token}", token=None)[0].status == 401, path
    assert page.ask("/", token="x" * 43)[0].status == 401
    name = f"batchd-web-{page.port}"
    later = int(time.time()) + 9999
    for forged in ("", "1.2", f"{later}.", f"{later}.{'0' * 64}", page.token, "9" * 400):
        assert page.ask("/", token=None, Cookie=f"{name}={forged}")[0].status == 401, forged
    answer, _ = page.ask("/", token=None, Accept="text/html")
    assert answer.status == 401
    assert "text/html" in answer.headers["content-type"]
    signed, _ = page.ask("/session")
    cookie = signed.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {*cookie.split("; ")}
    assert page.token not in cookie
    shown = cookie.partition(";")[0]
    assert page.ask("/api/overview", token=None, Cookie=shown)[0].status == 200
    assert json.loads(page.ask("/session", token=None, Cookie=shown)[1]) == {"admitted": True}
    assert json.loads(page.ask("/session", token=None)[1]) == {"admitted": False}
    assert page.token not in page.log.read_text()


def test_wrong_guesses_lock_no_other_client_out(page: Page) -> None:
    """Behind a proxy all come from one address:
    after any number of wrong tokens the right one lets in, and so does a session.
    """
    cookie = page.ask("/session")[0].headers["set-cookie"].partition(";")[0]
    answers = [page.ask("/api/overview", token="wrong-token-number-n")[0].status for _ in range(15)]
    assert answers == [401] * 15
    assert page.ask("/api/overview")[0].status == 200
    assert page.ask("/session")[0].status == 200
    assert page.ask("/api/overview", token=None, Cookie=cookie)[0].status == 200


def test_guesses_are_compared_one_after_the_other() -> None:
    """However many come at once: fifty a second, of tokens that take ages to guess;
    the first ten a minute wait for nothing.
    """

    async def guess() -> None:
        gate, clock = TokenCheck("the-token-itself"), asyncio.get_running_loop().time
        for expected_s in (0.0, 40 * TURN_S):
            began = clock()
            guesses = 10 if not expected_s else 40
            assert not any(await asyncio.gather(*(gate.knows(str(n)) for n in range(guesses))))
            assert clock() - began >= expected_s
        assert await gate.knows("the-token-itself")

    asyncio.run(guess())


def test_a_code_lets_one_browser_in_once() -> None:
    """The word in the address that a terminal shows is used up by the first use,
    and by ten minutes.
    """
    now = [1000.0]
    gate = TokenCheck("the-token-itself", lambda: now[0])
    code = gate.code()
    assert asyncio.run(gate.knows(code))
    assert not asyncio.run(gate.knows(code))
    late = gate.code()
    now[0] += 601
    assert not asyncio.run(gate.knows(late))
    session = gate.session()
    assert gate.admits(session)
    assert not TokenCheck("another-token-0").admits(session)
    now[0] += 8 * 86_400
    assert not gate.admits(session)


def test_every_answer_is_guarded(page: Page) -> None:
    """Policies on every answer, errors too; nothing for other origins;
    names of other sites mean somebody else.
    """
    paths = ("/", "/session", "/api/overview", "/nowhere", "/assets/none.js", "/batches/none")
    for path in paths:
        for method in ("GET", "HEAD", "POST", "OPTIONS"):
            answer, data = page.ask(path, method=method, Origin="http://evil.example")
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert answer.headers["x-frame-options"] == "DENY"
            assert "access-control-allow-origin" not in answer.headers
            assert answer.headers["server"] is None
            if method in {"POST", "OPTIONS"}:
                assert answer.status == 405
                assert answer.headers["allow"] == "GET, HEAD"
            if method == "HEAD":
                assert data == b""
    for host in (
        "evil.example",
        f"evil.example:{page.port}",
        "localhost.evil.example",
        "",
        "127.0.0.1.evil.example",
    ):
        assert page.ask("/api/overview", Host=host)[0].status == 421, host
    for host in (f"localhost:{page.port}", "127.0.0.1", f"[::1]:{page.port}", "LOCALHOST:9"):
        assert page.ask("/api/overview", Host=host)[0].status == 200, host


def test_a_batch_is_shown_as_it_goes(spool: Spool, page: Page) -> None:
    """Events bring counts, tasks with what they do and wait for,
    and their conversation, once each, in order.
    """
    assert isinstance(page, Page)
    assert page.get("/api/overview")["daemon"] is None
    config = spool.folder / "config.toml"
    more = f'\n[models."{SLOW}"]\ninput_usd_per_mtok = 1.0\noutput_usd_per_mtok = 2.0\n'
    config.write_text(config.read_text() + more)
    tasks = [{"first_prompt": f"do {n} <b>", "model": SLOW} for n in range(4)]
    tasks[3]["after"] = ["001"]  # type: ignore[assignment]
    with page.listening("/live/overview") as seen, spool.with_reports().serving():
        assert next(seen)["data"]["batches"] == []
        (spool.folder / "inbox" / "b.json").write_text(json.dumps({"tasks": tasks}))
        for event in seen:
            if event["data"].get("batches"):
                break
        assert event["data"]["batches"][0]["name"] == "b"
        assert event["data"]["daemon"]["slots"] == 2
        rows = page.get("/api/batches/b")["rows"]
        assert rows[3]["why"].startswith("comes after 001")
        now, passages, ids = None, [], []
        with page.listening("/live/batches/b/004") as task:
            for event in task:
                if event["event"] == "now":
                    now = event["data"]["task"]
                else:
                    passages += event["data"]["passages"]
                    ids.append(int(event["id"]))
                if passages and passages[-1]["kind"] == "end":
                    break
        assert ids == sorted(ids)
        assert [p["kind"] for p in passages].count("answer") == 3
        assert [p["kind"] for p in passages][-2:] == ["verdict", "end"]
        assert now is not None
        # A browser that comes back says what it has, and gets the rest alone.
        with page.listening("/live/batches/b/004", Last_Event_ID=str(ids[-1] - 1)) as task:
            rest = next(event for event in task if event["event"] == "grown")
        assert [p["kind"] for p in rest["data"]["passages"]] == ["end"]
        with page.listening("/live/batches/b?sort=-id&status=completed") as batch:
            last = next(e["data"] for e in batch if e["data"]["batch"]["completed"] == 4)
        assert [row["id"] for row in last["rows"]] == ["004", "003", "002", "001"]
        facts = page.get("/api/batches/b/001")
        asked = ("overview", "batches", "batches/b", "batches/b/001", "cost?by=batch&days=1")
        _hold_to_schema({path: page.get(f"/api/{path}") for path in asked})
        assert (facts["prompt"], facts["task"]["status"]) == ("do 0 <b>", "completed")
        cost = page.get("/api/cost?by=model&days=1")
        assert [line["name"] for line in cost["lines"]] == [SLOW]
        assert cost["total"][0]["calls"] == 12
        tags = page.get("/api/cost?by=tag&days=1")["lines"]
        assert {line["name"]: line["calls"] for line in tags} == {"(none)": 12}
        until(lambda: page.get("/api/batches/b")["report"])
        answer, data = page.ask("/batches/b/report.html")
        assert b"<title>b" in data
        assert answer.headers["content-disposition"].endswith("b.report.html")
        assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"
    until(lambda: page.get("/api/overview")["daemon"] is None)


def _hold_to_schema(answers: dict[str, object]) -> None:
    """Hold answers of ``/api`` to what ``batchd schema api`` promises, field by field."""
    whole = page_data.schema()
    for kind, answer in zip(whole["properties"].values(), answers.values(), strict=True):
        jsonschema.validate(answer, {**kind, "$defs": whole["$defs"]})
        (made,) = [d for name, d in whole["$defs"].items() if kind["$ref"].endswith(f"/{name}")]
        assert isinstance(answer, dict)
        assert {*answer} == {*made["properties"]}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/batches/none", 404),
        ("/api/batches/b/none", 404),
        ("/api/report/none", 404),
        ("/live/batches/none", 404),
        ("/live/batches/b/none", 404),
        ("/batches/none", 404),
        ("/batches/b/none/more", 404),
        ("/batches/..%2f..%2fetc/report.html", 404),
        ("/assets/../web.token", 404),
        ("/assets/%2e%2e%2fshell.html", 404),
        ("/api/batches/b?sort=name;DROP", 400),
        ("/api/batches/b?sort=--id", 400),
        ("/api/batches/b?status=dead", 400),
        ("/api/batches/b?page=-1", 400),
        ("/api/batches/b?page=99999999999999999999", 400),
        ("/api/batches/b?page=%D9%A1", 400),
        ("/api/cost?by=secrets", 400),
        ("/api/cost?days=999999999", 200),
        ("/api/batches/b/001/conversation?before=x", 400),
        ("/api/batches/b?q=%00%27%22%3Cscript%3E&page=7", 200),
        ("/%00%ff%fe", 404),
        ("//evil.example/", 404),
        ("/cost/", 404),
    ],
)
def test_odd_addresses_get_plain_answers(spooled: Page, path: str, status: int) -> None:
    """What is unknown is 404, what makes no sense 400, each with a reason;
    nothing leads out of the store.
    """
    answer, data = spooled.ask(path)
    assert answer.status == status, data
    if status != 200 and "json" in answer.headers["content-type"]:
        assert json.loads(data)["error"]
    assert b"Traceback" not in data
    assert "Traceback" not in spooled.log.read_text()


@pytest.fixture(scope="module")
def spooled(tmp_path_factory: pytest.TempPathFactory, model_server: str) -> Iterator[Page]:
    """The page of a spool with a finished batch ``b``, without a daemon."""
    folder = tmp_path_factory.mktemp("spooled")
    folder.chmod(0o755)
    (folder / "config.toml").write_text(CONFIG.format(base_url=model_server, model="steps-2"))
    spool = Spool(folder)
    with spool.serving():
        spool.write("b.json", [{"first_prompt": "one"}]).rename(folder / "inbox" / "b.json")
        until((folder / "outbox" / "b" / "summary.json").exists)
    with web(spool) as page:
        yield page


def test_all_results_are_saved_as_a_file(spooled: Page) -> None:
    """As they lie in the batch's folder; a link that has that name leads nowhere."""
    file = spooled.log.parent / "outbox" / "b" / "results.jsonl"
    assert spooled.get("/api/batches/b")["results"] is True
    answer, data = spooled.ask("/batches/b/results.jsonl")
    assert data == file.read_bytes()
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''b.results.jsonl"
    assert "sandbox" in answer.headers["content-security-policy"]
    file.rename(file.with_suffix(".kept"))
    file.symlink_to("/etc/passwd")
    assert spooled.ask("/batches/b/results.jsonl")[0].status == 404
    file.with_suffix(".kept").replace(file)
    assert spooled.ask("/batches/none/results.jsonl")[0].status == 404


def test_a_client_that_reads_nothing_harms_no_other(spool: Spool, page: Page) -> None:
    """Clients that stop reading, or never finish a request, keep no other client waiting."""
    with contextlib.ExitStack() as stack, spool.serving():
        tasks = [{"first_prompt": "x" * 300, "model": SLOW} for _ in range(12)]
        tasks += [
            {"first_prompt": "y", "after": ["001"], "id": "n" * 60 + str(n)} for n in range(90)
        ]
        spool.write("b.json", tasks).rename(spool.folder / "inbox" / "b.json")
        until(lambda: page.ask("/api/batches/b")[0].status == 200)
        for head in (page.request("/live/batches/b"), b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n"):
            for _ in range(20):
                sock = stack.enter_context(socket.socket())
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                sock.connect(("127.0.0.1", page.port))
                sock.sendall(head)
        with page.listening("/live/batches/b") as seen:
            first = next(seen)["data"]["batch"]["completed"]
            assert next(e for e in seen if e["data"]["batch"]["completed"] > first)
        status = Path(f"/proc/{page.process.pid}/status").read_text()
        assert int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) < 150_000


def test_a_client_that_asks_nothing_keeps_no_other_out(page: Page) -> None:
    """Connections that never bring a whole request, the first or a later one,
    are let go after ten seconds; who listens stays.
    """
    whole, begun = page.request("/session"), b"GET /session HTTP/1.1\r\nHost: loc"
    with contextlib.ExitStack() as guests:

        def guest(said: bytes) -> socket.socket:
            sock = guests.enter_context(
                socket.create_connection(("127.0.0.1", page.port), PATIENCE_S)
            )
            sock.sendall(said)
            return sock

        listener = guest(page.request("/live/overview"))
        assert listener.recv(1 << 16).startswith(b"HTTP/1.1 200")
        for number in range(254):
            sock = guest((b"", begun, whole)[number % 3])
            if number % 3 == 2:
                assert sock.recv(1 << 16).startswith(b"HTTP/1.1 200")
                sock.sendall(begun)
        until(lambda: page.ask("/session")[0].status == 503)
        until(lambda: page.ask("/session")[0].status == 200)
        listener.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                assert listener.recv(1 << 16), "it was let go"


def test_only_so_many_listen(page: Page) -> None:
    """One browser too many has to come again, and may once another has gone."""
    with contextlib.ExitStack() as stack:
        others = [
            stack.enter_context(page.listening("/live/overview")) for _ in range(MAX_LISTENERS)
        ]
        assert all(next(each)["event"] == "now" for each in others)
        answer, _ = page.ask("/live/overview")
        assert (answer.status, answer.headers["retry-after"]) == (503, "10")
        assert page.ask("/api/overview")[0].status == 200
    until(lambda: _listens(page))


def _listens(page: Page) -> bool:
    try:
        with page.listening("/live/overview") as seen:
            return bool(next(seen))
    except AssertionError:
        return False


def test_the_spool_is_not_read_while_no_browser_listens(spooled: Page) -> None:
    """Once the last browser has gone the threads that look rest, however long that lasts."""
    with spooled.listening("/live/overview") as seen:
        next(seen)
        before = _turns(spooled)
        until(lambda: _turns(spooled) > before)
    until(lambda: _rest(spooled))


def _rest(page: Page) -> bool:
    """Return whether the threads that read the store have no turn in three seconds;
    they look more than once a second.
    """
    before = _turns(page)
    time.sleep(3)
    return _turns(page) == before


def _turns(page: Page) -> int:
    """Return how often the threads that read the store have had a turn."""
    main = str(page.process.pid)
    threads = (t for t in Path(f"/proc/{main}/task").iterdir() if t.name != main)
    counts = [re.findall(r"\nvoluntary\S+\s+(\d+)", (t / "status").read_text()) for t in threads]
    return sum(int(count) for (count,) in counts)


def test_a_store_that_is_exchanged_damaged_or_newer_is_reported(
    spool: Spool, spooled: Page
) -> None:
    """Another file in its place is read from then on;
    one that cannot be read is reported with its reason, and looked at again.
    """
    source = spooled.log.parent / ".batchd" / "batchd.db"
    state = spool.folder / ".batchd"
    with web(spool) as page, page.listening("/live/overview") as seen:
        assert next(seen)["data"]["batches"] == []
        shutil.copy(source, state / "draft")
        (state / "draft").rename(state / "batchd.db")
        assert next(e for e in seen if e["data"].get("ended"))["data"]["ended"][0]["name"] == "b"
        assert page.ask("/api/batches/b/001")[0].status == 200
        shutil.copy(source, state / "draft")
        with contextlib.closing(sqlite3.connect(state / "draft")) as db:
            db.execute("PRAGMA user_version = 99")
        (state / "draft").rename(state / "batchd.db")
        assert "newer batchd" in next(e for e in seen if e["data"]["trouble"])["data"]["trouble"]
        (state / "draft").write_bytes(b"no database at all" * 100)
        (state / "draft").rename(state / "batchd.db")
        trouble = next(e["data"]["trouble"] for e in seen if "newer" not in e["data"]["trouble"])
        assert "not a database" in trouble
        answer, data = page.ask("/api/batches/b")
        assert (answer.status, "not a database" in json.loads(data)["error"]) == (503, True)
        shutil.copy(source, state / "draft")
        (state / "draft").rename(state / "batchd.db")
        assert next(e for e in seen if not e["data"]["trouble"])["data"]["ended"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_ends_at_once_on_a_signal(spool: Spool, number: int) -> None:
    """Ctrl-C, systemd, a terminal that closes:
    it hangs up and ends with 0, also while browsers listen.
    """
    with web(spool) as page, page.listening("/live/overview") as seen:
        next(seen)
        begun = time.monotonic()
        page.process.send_signal(number)
        assert page.process.wait(PATIENCE_S) == 0
        assert time.monotonic() - begun < 60
        assert "Traceback" not in page.log.read_text()
        page.process.poll = lambda: None  # type: ignore[method-assign] (it has ended as it should)


@pytest.mark.parametrize(
    ("arguments", "more", "code", "complaint"),
    [
        (["--listen", "0.0.0.0:0"], "", 2, "name a token_file"),
        (["--listen", "[::]:0"], "[web]\nopen = true\n", 2, "name a token_file"),
        (["--listen", "8040"], "", 2, "HOST:PORT"),
        (["--listen", "127.0.0.1:99999"], "", 2, "HOST:PORT"),
        ([], '[web]\nlisten = "0.0.0.0:8040"\nopen = true\n', 2, "without a token"),
        ([], '[web]\nlisten = "203.0.113.9:8040"\n', 2, "other machines"),
        ([], '[web]\ntoken_env = "NOT-A-NAME"\n', 2, "name of an environment variable"),
        ([], '[web]\ntoken_env = "NOWHERE"\n', 3, "holds no token"),
        ([], '[web]\ntoken_file = "short"\n', 3, "16 characters"),
        (["--listen", "203.0.113.9:0"], '[web]\ntoken_file = "good"\n', 3, "203.0.113.9"),
    ],
)
def test_what_is_not_safe_or_not_possible_is_refused(
    spool: Spool, arguments: list[str], more: str, code: int, complaint: str
) -> None:
    """An address for others without a token, a short token,
    no address at all: one line, and no page.
    """
    (spool.folder / "short").write_text("secret")
    (spool.folder / "good").write_text("a" * 40)
    config = spool.folder / "config.toml"
    config.write_text(config.read_text() + more)
    done = spool.batchd("web", *arguments)
    assert done.returncode == code, done
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_reported(spool: Spool, page: Page) -> None:
    """Exit 3, and how to choose another."""
    done = spool.batchd("web", "--listen", f"127.0.0.1:{page.port}")
    assert done.returncode == 3
    assert (
        f"127.0.0.1:{page.port}: Address already in use; choose another with --listen"
        in done.stderr
    )


def test_a_token_of_ones_own(spool: Spool) -> None:
    """From the environment or a file; then none is made. It is neither in /proc nor in a log."""
    config = spool.folder / "config.toml"
    config.write_text(config.read_text() + '[web]\ntoken_env = "PAGE_WORD"\n')
    word = "a-word-of-my-own-0123"
    with web(spool, token=word, PAGE_WORD=word) as page:
        assert page.ask("/api/overview")[0].status == 200
        assert page.ask("/api/overview", token="a-word-of-my-own-0124")[0].status == 401
        assert not (spool.folder / ".batchd" / "web.token").exists()
        with contextlib.suppress(PermissionError):  # to whom the process is sealed
            environ = Path(f"/proc/{page.process.pid}/environ").read_bytes()
            assert word.encode() not in environ
        assert word not in page.log.read_text()


def test_open_to_everybody_is_said(spool: Spool) -> None:
    """`open = true`: no token is asked for, and the first line says who may read what."""
    config = spool.folder / "config.toml"
    config.write_text(config.read_text() + "[web]\nopen = true\n")
    with web(spool) as page:
        assert page.ask("/api/overview", token=None)[0].status == 200
        assert page.ask("/api/overview", token=None, Host="evil.example")[0].status == 421
    assert not (spool.folder / ".batchd" / "web.token").exists()


def test_a_token_file_that_others_can_read_is_not_used(spool: Spool) -> None:
    """A token that is no secret, or a link to another file,
    lets no client in: exit 3, with the fix.
    """
    state = spool.folder / ".batchd"
    state.mkdir(0o700)
    kept = state / "web.token"
    kept.write_text("0123456789abcdef0123456789abcdef\n")
    kept.chmod(0o644)
    assert "others may read" in spool.batchd("web", "--listen", "127.0.0.1:0").stderr
    kept.unlink()
    kept.symlink_to(spool.folder / "config.toml")
    done = spool.batchd("web", "--listen", "127.0.0.1:0")
    assert done.returncode == 3
    assert "Traceback" not in done.stderr


def test_without_its_packages_it_says_what_to_install(spool: Spool) -> None:
    """All else works without the page's packages; the page asks for them."""
    code = (
        "import sys; sys.modules['uvicorn'] = None\n"
        "import importlib.util as u; found = u.find_spec\n"
        "u.find_spec = lambda name: None if name == 'uvicorn' else found(name)\n"
        "from batchd.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    config = str(spool.folder / "config.toml")
    command = [sys.executable, "-c", code, "--config", config, "web"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=spool.environment
    )
    assert done.returncode == 3
    assert " -m pip install " in done.stderr
    assert "'starlette>=" in done.stderr
