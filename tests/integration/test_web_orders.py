"""Orders from browsers, over real HTTP to a real daemon:
what they do, who may give them, and what the log says.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socketserver
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sockets
from patience import PATIENCE_S
from serving import Page, until, web

from batchd.errors import UsageError
from batchd.pauses import aside
from batchd.records import Scope
from batchd.spool import ulid
from batchd.store.queries import StoreReader
from batchd.web.orders import WantedOrder, ordered
from batchd.web.shield import TokenCheck
from tests.conftest import Spool

pytestmark = pytest.mark.in_turns

SLOW = "standin/latency-0.3+steps-40"
CANCEL = {"verb": "cancel", "scope": "batch", "name": "b"}
PAUSE = {"verb": "pause", "scope": "all"}


@dataclass(frozen=True)
class Browser:
    """A browser that has signed in, as the server sees it."""

    page: Page
    cookie: str
    key: str

    def post(
        self, path: str, value: object, *, left_out: str = "", **other: str
    ) -> tuple[int, dict[str, Any]]:
        """Post JSON as the page does, but for the headers that are given or left out;
        return the answer.
        """
        headers = {
            "Cookie": self.cookie,
            "Origin": self.page.address,
            "Sec_Fetch_Site": "same-origin",
            "Content_Type": "application/json",
            "X_Batchd_Key": self.key,
        }
        headers = {name: text for name, text in {**headers, **other}.items() if name != left_out}
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        answer, data = self.page.ask(path, method="POST", token=None, body=body, **headers)
        return answer.status, json.loads(data)

    def send(self, value: object, file: bytes, **other: str) -> tuple[int, dict[str, Any]]:
        """Say yes to an order to take a task file."""
        headers = {"Content_Type": "application/octet-stream", "X_Batchd_Order": json.dumps(value)}
        return self.post("/api/orders/confirmed", file, **{**headers, **other})

    def order(self, value: Mapping[str, object], file: bytes | None = None) -> dict[str, Any]:
        """Ask, say yes, and return what came of it."""
        status, asked = self.post("/api/orders", value)
        assert status == 200, asked
        meant = {**value, "claim": asked["claim"]}
        if file is None:
            status, done = self.post("/api/orders/confirmed", meant)
        else:
            status, done = self.send(meant, file)
        assert status == 200, done
        return {**done, "question": asked["question"]}


def sign_in(page: Page) -> Browser:
    """Show the token."""
    answer, data = page.ask("/session")
    cookie = answer.headers["set-cookie"].partition(";")[0]
    return Browser(page, cookie, json.loads(data)["key"])


def allow(spool: Spool, orders: str = "true") -> None:
    """Let browsers give orders, and know a slow model."""
    config = spool.folder / "config.toml"
    price = "input_usd_per_mtok = 1.0\noutput_usd_per_mtok = 2.0\n"
    config.write_text(
        f'{config.read_text()}\n[models."{SLOW}"]\n{price}\n[web]\norders = {orders}\n'
    )


def drop(spool: Spool, tasks: int = 3) -> None:
    """Have a batch ``b`` of slow tasks begin."""
    given = [{"first_prompt": f"do {n}", "model": SLOW} for n in range(tasks)]
    spool.write("b.json", given).rename(spool.folder / "inbox" / "b.json")


def lines(spool: Spool, event: str) -> list[dict[str, Any]]:
    """Return what the daemon's log says of orders."""
    said = (spool.folder / "daemon.log").read_text().splitlines()
    return [line for text in said if f'"{event}"' in text and (line := json.loads(text))]


@pytest.fixture
def browser(spool: Spool) -> Iterator[Browser]:
    """A browser that has signed in where orders are allowed;
    a daemon is at work on a batch ``b``.
    """
    allow(spool)
    with spool.serving(), web(spool) as page:
        drop(spool)
        until(lambda: page.get("/api/overview")["agents"])
        yield sign_in(page)


def test_orders_are_carried_out_and_logged(spool: Spool, browser: Browser) -> None:
    """Pause, resume, cancel and retry do what the commands do;
    each leaves a line that says which session gave it, from where.
    """
    page = browser.page
    done = browser.order({"verb": "pause", "scope": "batch", "name": "b"})
    assert done["question"].startswith("Pause batch b?")
    assert done["lines"] == ["batch b is paused: 3 tasks", "To go on: batchd resume b"]
    waits = page.get("/api/batches/b")["waits"]
    assert [(w["scope"], w["name"], w["paused"]) for w in waits] == [("batch", "b", True)]
    done = browser.order({"verb": "resume", "scope": "batch", "name": "b"})
    assert done["lines"] == ["batch b goes on"]
    done = browser.order({"verb": "cancel", "scope": "task", "name": "b/003"})
    assert done["lines"] == ["b/003: 1 task cancelled"]
    done = browser.order(CANCEL)
    assert "Cancel b, 2 tasks that have not ended?" in done["question"]
    until(lambda: page.get("/api/batches/b")["batch"]["cancelled"] == 3)
    done = browser.order({"verb": "retry", "scope": "batch", "name": "b", "failed": True})
    assert done["batches"] == ["b-2"]
    assert done["lines"] == ["b-2: 3 tasks of b queued again"]
    assert page.get("/api/batches/b-2")["batch"]["retry_of"] == "b"
    found = lines(spool, "command_done")
    assert [line["verb"] for line in found] == ["pause", "resume", "cancel", "cancel", "retry"]
    assert {line["pid"] for line in found} == {page.process.pid}
    assert len({line["via"] for line in found}) == 1
    assert found[0]["via"].startswith("web session ")
    assert found[0]["via"].endswith(" from 127.0.0.1")
    log = (spool.folder / "daemon.log").read_text() + page.log.read_text()
    assert not any(secret in log for secret in (page.token, browser.key, browser.cookie))
    other = sign_in(page)
    other.order({"verb": "cancel", "scope": "batch", "name": "b-2"})
    assert lines(spool, "command_done")[-1]["via"] != found[0]["via"]


@pytest.mark.parametrize(
    ("status", "change"),
    [
        (401, {"left_out": "Cookie"}),
        (401, {"Cookie": "batchd-web-{port}=1.2"}),
        (401, {"left_out": "Cookie", "Authorization": "Bearer {token}"}),
        # Who took the cookie reads, and orders nothing.
        (403, {"left_out": "X_Batchd_Key"}),
        (403, {"X_Batchd_Key": "0" * 64}),
        (403, {"X_Batchd_Key": "{token}"}),
        (403, {"X_Batchd_Key": "{other}"}),
        (403, {"Origin": "http://evil.example"}),
        (403, {"Origin": "http://127.0.0.1:1"}),
        (403, {"Origin": "http://localhost:{port}"}),
        (403, {"Origin": "null"}),
        (403, {"left_out": "Origin"}),
        (403, {"Sec_Fetch_Site": "same-site"}),
        (403, {"Sec_Fetch_Site": "cross-site"}),
        # A name that was led here.
        (421, {"Host": "evil.example", "Origin": "http://evil.example"}),
        (415, {"Content_Type": "text/plain"}),
        (415, {"Content_Type": "application/x-www-form-urlencoded"}),
        (415, {"left_out": "Content_Type"}),
    ],
)
def test_who_may_not_orders_nothing(
    spool: Spool, spooled: Browser, status: int, change: Mapping[str, str]
) -> None:
    """Without session or key, from another page, by another name or as a form:
    refused, at both steps, and nothing happens.
    """
    del spool
    words = {
        "port": str(spooled.page.port),
        "token": spooled.page.token,
        "other": sign_in(spooled.page).key,
    }
    change = {name: text.format(**words) for name, text in change.items()}
    assert spooled.post("/api/orders", CANCEL, **change)[0] == status  # type: ignore[arg-type]
    _, asked = spooled.post("/api/orders", CANCEL)
    given = {**CANCEL, "claim": asked["claim"]}
    confirmed = spooled.post("/api/orders/confirmed", given, **change)  # type: ignore[arg-type]
    assert confirmed[0] == status
    assert spooled.page.get("/api/batches/b")["batch"]["cancelled"] == 0


@pytest.fixture(scope="module")
def spooled(tmp_path_factory: pytest.TempPathFactory, model_server: str) -> Iterator[Browser]:
    """A browser that has signed in; a batch ``b`` waits, and no daemon runs."""
    from tests.conftest import CONFIG  # as the other tests of the page do

    folder = tmp_path_factory.mktemp("spooled")
    folder.chmod(0o755)
    (folder / "config.toml").write_text(CONFIG.format(base_url=model_server, model="steps-2"))
    spool = Spool(folder)
    allow(spool)
    with spool.serving():
        drop(spool)
        until(lambda: (folder / ".batchd/batchd.db").exists() and _dropped(folder))
    with web(spool) as page:
        yield sign_in(page)


def _dropped(folder: Path) -> bool:
    with StoreReader(folder / ".batchd/batchd.db") as reader:
        return bool(reader.batches())


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, b""),
        (400, b"{"),
        (400, b"\xff"),
        (400, b"[" * 4000),
        (400, b"x" * 5000),
        (400, {"verb": "prune", "scope": "batch", "name": "b"}),
        (400, {"verb": "tune", "scope": "all"}),
        (400, {"verb": "cancel", "scope": "all"}),
        (400, {"verb": "cancel", "scope": "provider", "name": "standin"}),
        (400, {"verb": "cancel", "scope": "batch", "name": "b/001"}),
        (400, {"verb": "cancel", "scope": "task", "name": "b/"}),
        (400, {"verb": "pause", "scope": "day"}),
        (400, {"verb": "pause", "scope": "batch"}),
        (400, {"verb": "cancel", "scope": "batch", "name": "b", "uid": 0}),
        (400, {"verb": "retry", "scope": "batch", "name": "b", "failed": True}),
        (404, {"verb": "cancel", "scope": "batch", "name": "none"}),
        (404, {"verb": "pause", "scope": "task", "name": "b/none"}),
    ],
)
def test_what_is_no_order_is_refused_with_a_reason(
    spooled: Browser, status: int, body: object
) -> None:
    """Odd bodies, other verbs, scopes that make no sense, names that there are not:
    a plain answer, and no trace in the log.
    """
    found, answer = spooled.post("/api/orders", body)
    assert (found, bool(answer["error"])) == (status, True)
    assert "Traceback" not in spooled.page.log.read_text()


def test_without_its_question_an_order_is_none(spooled: Browser) -> None:
    """A yes without the mark of a question, or a question with one, is refused;
    the yes to a question has been carried to the daemon.
    """
    _, asked = spooled.post("/api/orders", CANCEL)
    given = {**CANCEL, "claim": asked["claim"]}
    status, refused = spooled.post("/api/orders/confirmed", given)
    assert (status, "`batchd cancel b` does it without one" in refused["error"]) == (409, True)
    for path, value in (("/api/orders/confirmed", CANCEL), ("/api/orders", given)):
        status, refused = spooled.post(path, value)
        assert (status, "claim of its question" in refused["error"]) == (400, True)
    assert spooled.post("/api/orders/confirmed", {})[0] == 400


def signed(browser: Browser, order: WantedOrder) -> str:
    """Return the ticket of an order, as the server makes them."""
    shown = browser.cookie.partition("=")[2]
    ticket = TokenCheck(browser.page.token).ticket(shown, msgspec.json.encode(order))
    return f"{order.claim}.{ticket}"


def test_a_yes_is_good_for_its_own_question_alone(spooled: Browser) -> None:
    """Not for another order, in another session, or after ten minutes."""
    _, asked = spooled.post("/api/orders", CANCEL)
    one = {**CANCEL, "claim": asked["claim"]}
    _, asked = spooled.post("/api/orders", PAUSE)
    ago = ulid._text(int((time.time() - 700) * 1000) << ulid._RANDOM_BITS)
    old = signed(spooled, WantedOrder(verb="cancel", scope=Scope.BATCH, name="b", claim=ago))
    for why, browser, given in (
        ("another question", spooled, {**CANCEL, "claim": asked["claim"]}),
        ("another question", spooled, {**one, "scope": "task", "name": "b/001"}),
        ("another question", spooled, {**one, "claim": one["claim"].partition(".")[0]}),
        ("another question", sign_in(spooled.page), one),
        (
            "ten minutes",
            spooled,
            {**CANCEL, "claim": old},
        ),
    ):
        status, refused = browser.post("/api/orders/confirmed", given)
        assert (status, why in refused["error"]) == (400, True), (given, refused)


def test_true_means_four_orders(spooled: Browser) -> None:
    """``apply`` and ``submit`` must be named: else neither step takes them, and no file."""
    for value in (
        {"verb": "submit", "name": "t.json", "size": 9},
        {"verb": "apply", "name": "b/001"},
    ):
        status, refused = spooled.post("/api/orders", value)
        assert (status, "cancel, pause, resume, retry" in refused["error"]) == (403, True), refused
        assert spooled.send(value, b"whatever.")[0] == 415
    _, shell = spooled.page.ask("/", Accept="text/html")
    assert b'data-orders="cancel pause resume retry"' in shell


def test_a_list_names_which(spool: Spool) -> None:
    """Others are refused; a name that there is not, with those that there are."""
    allow(spool, '["pause", "submit"]')
    with web(spool) as page:
        browser = sign_in(page)
        status, refused = browser.post("/api/orders", {**CANCEL, "verb": "retry"})
        assert (status, "it allows pause, submit" in refused["error"]) == (403, True)
        assert browser.post("/api/orders", submits("t.json", b"x"))[0] == 200
    config = spool.folder / "config.toml"
    config.write_text(config.read_text().replace('["pause", "submit"]', '["pause", "prune"]'))
    refused_start = spool.batchd("web", "--listen", "127.0.0.1:0")
    assert refused_start.returncode == 2
    assert "[web] orders: it must be true, false or a list of 'cancel'" in refused_start.stderr
    assert "'apply', 'submit', not ['pause', 'prune']" in refused_start.stderr


def submits(name: str, file: bytes) -> dict[str, Any]:
    """Return the order to take a task file."""
    return {"verb": "submit", "name": name, "size": len(file)}


def test_a_task_file_is_taken_as_the_inbox_would(spool: Spool) -> None:
    """By the inbox's own way, under its name and its limits: what is wrong is said as there, a yes
    that comes twice is one batch, and no name leads elsewhere.
    """
    allow(spool, '["submit"]')
    good = b'{"tasks": [{"first_prompt": "x"}]}'
    with web(spool) as page:
        browser = sign_in(page)
        value = submits("night.json", good)
        _, asked = browser.post("/api/orders", value)
        status, refused = browser.send({**value, "claim": asked["claim"]}, good)
        assert (status, "no daemon runs" in refused["error"]) == (409, True)
        with spool.serving():
            taken = browser.order(submits("../../ünsafe\n.json", good), good)
            assert taken["question"].startswith("Take -..-ünsafe")
            (name,) = taken["batches"]
            assert taken["lines"] == [f"Taken up as {name}: 1 task"]
            assert spool.batchd("wait", name).returncode == 0
            folder = spool.folder / "outbox" / name
            assert (folder / "request.json").read_bytes() == good
            value = submits("night.json", good)
            _, asked = browser.post("/api/orders", value)
            twice = [browser.send({**value, "claim": asked["claim"]}, good)[1] for _ in range(2)]
            assert [each["batches"] for each in twice] == [["night"], ["night"]], twice
            bad = b'{"tasks": [{"first_prompts": "x"}]}'
            refusal = browser.order(submits("bad.json", bad), bad)
            assert refusal["lines"][0] == "Refused, as bad:"
            assert "do you mean first_prompt?" in "".join(refusal["lines"])
            assert len(page.get("/api/batches")["batches"]) == 3
            assert not [*(spool.folder / ".batchd/claimed").iterdir()]
        found = lines(spool, "command_done")
        assert {line["verb"] for line in found} == {"submit"}
        assert all(line["via"].startswith("web session ") for line in found)
        for path in (spool.folder, spool.folder.parent):
            assert not [*path.glob("*nsafe*")]


def test_a_file_that_was_not_asked_for_is_refused(spool: Spool) -> None:
    """Too large, of another size, without an order or with one that takes none, as another type."""
    allow(spool, '["submit", "pause"]')
    good = b'{"tasks": [{"first_prompt": "x"}]}'
    with web(spool) as page:
        browser = sign_in(page)
        for size in (0, -1, (16 << 20) + 1):
            status, refused = browser.post("/api/orders", {**submits("a.json", good), "size": size})
            assert (status, "16 MB" in refused["error"]) == (400, True)
        assert browser.post("/api/orders", submits("", good))[0] == 400
        assert browser.post("/api/orders", good, Content_Type="application/octet-stream")[0] == 415
        value = submits("a.json", good)
        meant = {**value, "claim": browser.post("/api/orders", value)[1]["claim"]}
        pause = {**PAUSE, "claim": signed(browser, WantedOrder(verb="pause", claim=ulid.ulid()))}
        for why, (status, refused) in (
            ("may have 34 bytes", browser.send(meant, good + b" ")),
            ("33 bytes came", browser.send(meant, good[:-1])),
            ("another question", browser.send({**meant, "size": 99}, good)),
            ("another question", browser.send({**meant, "name": "b.json"}, good)),
            ("claim of its question", browser.send(value, good)),
            ("not an order", browser.send("x", good)),
            ("and with no other", browser.send(pause, good)),
            ("and with no other", browser.post("/api/orders/confirmed", meant)),
        ):
            assert (status, why in refused["error"]) == (400, True), (why, refused)
        assert browser.send(meant, good, Content_Type="text/plain")[0] == 415
        assert browser.send(meant, good, Origin="http://evil.example")[0] == 403
        assert browser.send(meant, good, X_Batchd_Key="0")[0] == 403
        headers = {"Cookie": browser.cookie, "Origin": page.address, "X_Batchd_Key": browser.key}
        answer, _ = page.ask(
            "/api/orders/confirmed", method="PUT", token=None, body=good, **headers
        )
        assert answer.status == 405
    assert not (spool.folder / ".batchd/claimed").exists()


def test_a_retry_names_what_was_paid_and_the_models_there_are(spool: Spool) -> None:
    """Models are those of the configuration; with another one, its name is in the question."""
    allow(spool)
    path = spool.write("c.json", [{"first_prompt": "x"}])
    with spool.serving(), web(spool) as page:
        assert spool.batchd("submit", path, "--wait").returncode == 0
        browser = sign_in(page)
        again = {"verb": "retry", "scope": "batch", "name": "c"}
        _, asked = browser.post("/api/orders", again)
        assert "1 task completed before, and costs money again." in asked["question"]
        assert "So far c has cost $" in asked["question"]
        assert asked["models"] == ["standin/steps-2", SLOW]
        done = browser.order({**again, "model": SLOW})
        assert done["question"].startswith(f"Run 1 task of c with {SLOW} again?")
        (name,) = done["batches"]
        assert page.get(f"/api/batches/{name}/001")["task"]["model"] == SLOW
        assert spool.batchd("cancel", name).returncode == 0


@contextlib.contextmanager
def answering(browser: Browser, answer: bytes) -> Iterator[None]:
    """Have a daemon of another version stand on a spool:
    whatever it is asked, this is its answer.
    """

    class Answering(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(answer + b"\n")

    path = browser.page.log.parent / ".batchd" / "control.sock"
    path.unlink(missing_ok=True)
    with socketserver.ThreadingUnixStreamServer(
        path.name, Answering, bind_and_activate=False
    ) as server:
        sockets.bind(server.socket, path)
        server.server_activate()
        threading.Thread(target=server.serve_forever, args=[0.01]).start()
        try:
            yield
        finally:
            server.shutdown()
            path.unlink()


def test_an_answer_of_no_sense_is_an_error_and_nothing_hangs(spooled: Browser) -> None:
    """However often it comes, each order ends with 500, the error stands
    in what the process prints, and the next one is carried out.
    """
    with answering(spooled, b"[no JSON"):
        for _ in range(9):
            _, asked = spooled.post("/api/orders", PAUSE)
            given = {**PAUSE, "claim": asked["claim"]}
            status, done = spooled.post("/api/orders/confirmed", given)
            assert (status, "`batchd status`" in done["error"]) == (500, True), done
    assert "JSONDecodeError: Expecting value" in spooled.page.log.read_text()
    with answering(spooled, b'{"ok": true, "parked": 1}'):
        lines = ["everything is paused: 1 task", "To go on: batchd resume --all"]
        assert spooled.order(PAUSE)["lines"] == lines


def test_causes_of_a_newer_daemon_are_shown(spooled: Browser) -> None:
    """What still waits for a cause, or in a scope,
    that this version does not know is shown as the daemon says it.
    """
    held = [
        {"scope": "galaxy", "name": "x", "cause": "flare", "message": "the sun", "since": 1.0},
        {"scope": "all", "cause": "paused", "message": "paused by u", "since": 1.0},
    ]
    with answering(spooled, json.dumps({"ok": True, "resumed": 1, "held": held}).encode()):
        done = spooled.order({"verb": "resume", "scope": "all"})
        said = Spool(spooled.page.log.parent).batchd("resume", "--all")
    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines() == done["lines"], "the page has the words of the command"
    assert "Waiting: galaxy x. flare: the sun\n" in said.stdout
    assert "Paused since" in said.stdout


@pytest.mark.parametrize(
    ("error", "raised"),
    [(UsageError, UsageError), (ValueError, ValueError), (StopIteration, RuntimeError)],
)
def test_work_apart_raises_what_it_raises(error: type[Exception], raised: type[Exception]) -> None:
    """Whatever ends it, who waits for it goes on."""

    def fails() -> None:
        raise error

    with pytest.raises(raised):
        asyncio.run(asyncio.wait_for(aside(fails, "order"), PATIENCE_S))


def test_no_other_method_orders(spooled: Browser) -> None:
    """GET, HEAD, PUT and the like change nothing, with everything that an order wants;
    nor does a POST anywhere else.
    """
    headers = {"Cookie": spooled.cookie, "Origin": spooled.page.address}
    headers |= {"X_Batchd_Key": spooled.key, "Content_Type": "application/json"}
    body = json.dumps(CANCEL).encode()
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        answer, _ = spooled.page.ask("/api/orders", method=method, body=body, **headers)
        assert answer.status == 405, method
    for method in ("GET", "HEAD"):
        answer, _ = spooled.page.ask("/api/orders?verb=cancel&name=b", method=method, **headers)
        assert answer.status == 405, method
    for path in ("/", "/api/batches/b", "/session", "/api/orders/", "/api/orders/confirmed/x"):
        answer, _ = spooled.page.ask(path, method="POST", body=body, **headers)
        assert answer.status == 405, path
    answer, _ = spooled.page.ask("/api/orders", method="POST", body=body, **headers)
    assert answer.headers["x-frame-options"] == "DENY"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert "access-control-allow-origin" not in answer.headers


def test_without_the_switch_nothing_can_be_ordered(spool: Spool) -> None:
    """Off by default: no key is given, no button shown,
    and each POST is refused, whatever comes with it.
    """
    with web(spool) as page:
        answer, data = page.ask("/session")
        assert json.loads(data) == {"admitted": True}
        cookie = answer.headers["set-cookie"].partition(";")[0]
        key = TokenCheck(page.token).key(cookie.partition("=")[2])
        browser = Browser(page, cookie, key)
        for path in ("/api/orders", "/api/orders/confirmed"):
            status, said = browser.post(path, CANCEL)
            assert (status, "only shows" in said["error"]) == (405, True)
        _, shell = page.ask("/", Accept="text/html")
        assert b"data-orders" not in shell


def test_who_needs_no_token_orders_nothing(spool: Spool) -> None:
    """``open`` shows the page to every user of the machine:
    with ``orders`` it is refused, with the fix.
    """
    config = spool.folder / "config.toml"
    config.write_text(f"{config.read_text()}\n[web]\nopen = true\norders = true\n")
    refused = spool.batchd("web", "--listen", "127.0.0.1:0")
    assert refused.returncode == 2
    assert "open = true asks for none" in refused.stderr
    assert "leave one of the two out" in refused.stderr


def test_what_the_daemon_refuses_is_refused(spool: Spool, browser: Browser) -> None:
    """The daemon decides: a task that ended between the question and the yes is not ended again,
    and a refusal is shown as it is.
    """
    one = {"verb": "cancel", "scope": "task", "name": "b/001"}
    _, asked = browser.post("/api/orders", one)
    assert spool.batchd("cancel", "b/001").returncode == 0
    status, done = browser.post("/api/orders/confirmed", {**one, "claim": asked["claim"]})
    assert (status, "b/001 has ended already" in done["error"]) == (400, True)
    assert spool.batchd("cancel", "b").returncode == 0
    until((spool.folder / "outbox/b/summary.json").exists)
    again = {"verb": "retry", "scope": "batch", "name": "b"}
    _, asked = browser.post("/api/orders", again)
    # The page shows no answer, and the button is pressed once more: one retry.
    twice = {**again, "claim": asked["claim"]}
    runs = [browser.post("/api/orders/confirmed", twice)[1]["batches"] for _ in range(2)]
    assert runs == [["b-2"], ["b-2"]]
    _, asked = browser.post("/api/orders", again)
    assert spool.batchd("cancel", "b-2").returncode == 0
    until((spool.folder / "outbox/b-2/summary.json").exists)
    assert spool.batchd("prune", "--outbox", "--yes").returncode == 0
    status, refused = browser.post("/api/orders/confirmed", {**again, "claim": asked["claim"]})
    assert (status, "pruned" in refused["error"]) == (400, True), refused
    assert lines(spool, "command_refused")[-1]["via"].startswith("web session ")


def test_a_session_of_an_earlier_version_is_good() -> None:
    """A cookie from before an upgrade still lets its browser look."""
    gate = TokenCheck("the-token-itself")
    until_s = str(int(time.time()) + 1000)
    old = f"{until_s}.{gate._signed(until_s)}"
    assert gate.admits(old)
    assert gate.admits(gate.session())
    assert gate.session() != gate.session()
    assert gate.key(old) != gate.key(gate.session())


@pytest.mark.parametrize("verb", ["cancel", "retry", "pause", "resume"])
def test_what_there_is_not_is_named(spooled: Browser, verb: str) -> None:
    """An order about a task that the batch does not have says
    so before anything is asked of the daemon.
    """
    folder = spooled.page.log.parent
    with (
        StoreReader(folder / ".batchd/batchd.db") as reader,
        pytest.raises(Exception, match="no task"),
    ):
        ordered(reader, WantedOrder(verb=verb, scope=Scope.TASK, name="b/999"))  # type: ignore[arg-type]
