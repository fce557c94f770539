"""Commands of a task with a list of hosts, against real servers on this machine's loopback."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.server
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from loglines import logged
from loopback import serving
from patience import PATIENCE_S

from batchd.errors import SandboxError
from batchd.records import Network, SandboxPolicy
from batchd.sandbox import CommandEnd, Sandbox, Workplace, check
from batchd.sandbox.network.destinations import ours

pytestmark = pytest.mark.in_turns

BLOB = os.urandom(1 << 20) * 24


class Web(http.server.BaseHTTPRequestHandler):
    """Answers what tests ask for, and keeps its connections open as long as it is let."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Send the blob, its name in chunks, or what it was asked."""
        if self.path == "/blob":
            self._send(BLOB)
        elif self.path == "/chunks":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"5\r\nhello\r\n7\r\n, world\r\n0\r\n\r\n")
        else:
            self._send(f"{self.command} {self.path} for {self.headers['Host']}".encode())

    def do_HEAD(self) -> None:
        """Say a length, and send nothing."""
        self._send(b"x" * 1000)

    def do_POST(self) -> None:
        """Send the digest of what came, whichever way its end was marked."""
        if self.headers["Transfer-Encoding"] == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            data = self.rfile.read(int(self.headers["Content-Length"]))
        self._send(hashlib.sha256(data).hexdigest().encode())

    do_PUT = do_POST

    def _send(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:  # type: ignore[override] # (it is not read)
        """Say nothing."""


@contextlib.contextmanager
def web(
    handler: type[http.server.BaseHTTPRequestHandler] = Web,
    tls: ssl.SSLContext | None = None,
    **options: Any,
) -> Iterator[int]:
    """Run a web server; its port."""
    made: Callable[..., Any] = (lambda *a: handler(*a, **options)) if options else handler
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), made) as server:
        server.daemon_threads = True
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join(10)


def visit(
    folder: Path,
    network: Network,
    body: Callable[[Workplace], Awaitable[Any]],
    private: tuple[str, ...] = (),
) -> Any:
    """Let ``body`` work in a fresh directory whose commands have this network."""

    async def inside() -> Any:
        sandbox = Sandbox(SandboxPolicy(network=network, private_hosts=private))
        async with await sandbox.open(
            str(folder / "001"), fresh=True, network=network, env={}
        ) as place:
            return await body(place)

    return asyncio.run(inside())


def shell(folder: Path, network: Network, *commands: str, **options: Any) -> list[str]:
    """Return what commands print, each of which must end well."""

    async def body(place: Workplace) -> list[str]:
        said = []
        for command in commands:
            ran = await place.shell(command, timeout_s=PATIENCE_S)
            assert ran.exit_code == 0, (command, ran)
            said.append(ran.output)
        return said

    said: list[str] = visit(folder, network, body, **options)
    return said


def descriptors() -> set[str]:
    """Return what this process has open."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
    return {line for line in found if "/fd" not in line}


def test_programs_find_the_way_by_themselves(tmp_path: Path) -> None:
    """curl, Python, git, node and wget, where they are there: the variables are all they need."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "hello").write_text("hello")
    work = tmp_path / "work"
    subprocess.run(["git", "init", "-q", work], check=True)
    (work / "a").write_text("from afar\n")
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", work, "add", "a"], check=True)
    subprocess.run(["git", "-C", work, *author, "commit", "-qm", "m"], check=True)
    subprocess.run(["git", "clone", "-q", "--bare", work, site / "r.git"], check=True)
    subprocess.run(["git", "-C", site / "r.git", "update-server-info"], check=True)

    class Files(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:  # type: ignore[override] # (it is not read)
            """Say nothing."""

    with web(Files, directory=str(site)) as port:
        at = f"http://localhost:{port}"
        programs = {
            "curl": f"curl -fsS {at}/hello",
            "wget": f"wget -qO- {at}/hello",
            "python3": f"python3 -c 'import urllib.request as u; print(u.urlopen(\"{at}/hello\").read().decode())'",
            "git": f"git clone -q {at}/r.git && cat r/a",
        }
        there = {name: command for name, command in programs.items() if shutil.which(name)}
        listed = (f"localhost:{port}",)
        said = shell(tmp_path, listed, *there.values(), private=listed)
    assert {name: text.strip() for name, text in zip(there, said, strict=True)} == {
        name: "from afar" if name == "git" else "hello" for name in there
    }


def test_tls_passes_untouched(tmp_path: Path) -> None:
    """A tunnel carries what the two say to each other, certificates included."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl to make a certificate with")
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key),
            *("-out", certificate, "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost"),
        ],
        check=True,
        capture_output=True,
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    with web(tls=tls) as port:
        listed = (f"localhost:{port}",)
        trusted = certificate.read_text()
        [said] = shell(
            tmp_path,
            listed,
            f"cat > ca <<'E'\n{trusted}E\nfor path in a b; do curl -fsS --cacert ca https://localhost:{port}/$path; done",
            private=listed,
        )
    assert said == f"GET /a for localhost:{port}GET /b for localhost:{port}"


def test_bodies_arrive_whole_both_ways(tmp_path: Path) -> None:
    """Long ones, in chunks or not, with and without a word before;
    an answer's end is found however it is marked.
    """
    with web() as port:
        at = f"http://127.0.0.1:{port}"
        make = "head -c 30000000 /dev/zero > zeros; sha256sum < zeros | cut -c1-64"
        digest, *said = shell(
            tmp_path,
            (f"127.0.0.1:{port}",),
            make,
            f"curl -fsS -T zeros {at}/put",
            f"curl -fsS -T - {at}/put < zeros",
            f"curl -fsS -H 'Expect: 100-continue' --data-binary @zeros {at}/post",
            f"curl -fsS --data-binary '' {at}/post",
            f"curl -fsS {at}/blob | sha256sum | cut -c1-64",
            f"curl -fsS -p {at}/blob | sha256sum | cut -c1-64",
            f"curl -fsS {at}/chunks",
            f"curl -fsS -m 5 -I {at}/head | grep -ci 'content-length: 1000'",
            f"curl -fsS -m 5 {at}/one {at}/two {at}/three",
        )
    assert [text.strip() for text in said[:3]] == [digest.strip()] * 3
    assert said[3] == hashlib.sha256(b"").hexdigest()
    assert {text.strip() for text in said[4:6]} == {hashlib.sha256(BLOB).hexdigest()}
    assert said[6] == "hello, world"
    assert said[7] == "1\n"
    assert said[8] == "".join(f"GET /{n} for 127.0.0.1:{port}" for n in ("one", "two", "three"))


def test_a_tunnel_may_be_closed_one_way_first(tmp_path: Path) -> None:
    """What comes after one side has said all that it had to say still arrives, from either side."""

    def waits_for_the_end(client: socket.socket) -> None:
        data = b""
        while part := client.recv(1 << 16):
            data += part
        client.sendall(b"%d bytes" % len(data))

    def ends_first(client: socket.socket) -> None:
        client.sendall(b"hello")
        client.shutdown(socket.SHUT_WR)
        data = b""
        while part := client.recv(1 << 16):
            data += part
        heard.append(len(data))
        (tmp_path / "001" / "heard").touch()

    heard: list[int] = []
    code = """
import os, socket, sys, time
with socket.create_connection(("127.0.0.1", 3128)) as line:
    line.sendall(f"CONNECT 127.0.0.1:{sys.argv[1]} HTTP/1.1\\r\\n\\r\\n".encode() + b"x" * 1000)
    assert line.recv(39) == b"HTTP/1.1 200 Connection established\\r\\n\\r\\n"
    if sys.argv[2] == "last":
        assert line.recv(5, socket.MSG_WAITALL) == b"hello" and line.recv(5) == b""
    line.sendall(b"y" * 200_000)
    line.shutdown(socket.SHUT_WR)
    print(line.recv(100).decode())
    while sys.argv[2] == "last" and not os.path.exists("heard"):
        time.sleep(0.02)  # with the command its connections end
"""
    with serving(waits_for_the_end) as one, serving(ends_first) as other:
        listed = (f"127.0.0.1:{one}", f"127.0.0.1:{other}")
        commands = [
            f"python3 - {port} {order} <<'E'\n{code}E"
            for port, order in ((one, "first"), (other, "last"))
        ]
        said = shell(tmp_path, listed, *commands)
    assert said == ["201000 bytes\n", "\n"]
    assert heard == [201_000]


def test_nothing_is_left_when_a_command_ends(tmp_path: Path) -> None:
    """No descriptor, thread or connection: at its end, at its time limit,
    when cancelled, in the middle of everything.
    """
    open_at_server: set[socket.socket] = set()

    def talks_for_ever(client: socket.socket) -> None:
        open_at_server.add(client)
        try:
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                client.sendall(b"x" * 65536)
        finally:
            open_at_server.discard(client)

    over = threading.Event()
    with (
        serving(talks_for_ever) as port,
        # Neither answers nor closes, whatever becomes of its client.
        serving(lambda _: over.wait() and None) as mute,
        web() as plain,
    ):
        listed = (f"127.0.0.1:{port}", f"127.0.0.1:{mute}", f"localhost:{plain}")
        silence = f"curl -sS http://127.0.0.1:{mute}/ & curl -sSp http://127.0.0.1:{mute}/ & wait"
        endless = f"curl -sS -p http://127.0.0.1:{port}/ > /dev/null"
        asks = f"curl -sS http://127.0.0.1:{port}/ > /dev/null"
        names = f"for i in 1 2 3 4; do curl -sS http://localhost:{plain}/$i & done; wait"

        async def body(place: Workplace) -> None:
            await place.shell(names, timeout_s=PATIENCE_S)
            before = descriptors()
            for step in range(24):
                commands = [f"{endless} & {endless} & {asks} & sleep 0.2", endless, names, silence]
                ends = [place.shell(c, timeout_s=0.02 + step * 0.02) for c in commands]
                await asyncio.gather(*ends)
                running = asyncio.ensure_future(place.shell(endless, timeout_s=PATIENCE_S))
                await asyncio.sleep(step * 0.01)
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
                assert running.cancelled()
            assert asyncio.all_tasks() == {asyncio.current_task()}
            for thread in threading.enumerate():
                if thread.name == "batchd-lookup":
                    await asyncio.to_thread(thread.join, PATIENCE_S)
            assert "batchd-lookup" not in {thread.name for thread in threading.enumerate()}
            # The silent server's own ends are in this process, too.
            over.set()
            deadline = time.monotonic() + PATIENCE_S
            # A look at the directory may have been under way before.
            while (left := descriptors() - before) and time.monotonic() < deadline:  # noqa: ASYNC110 (a server sets no event)
                await asyncio.sleep(0.02)
            assert left == set()

        visit(tmp_path, listed, body, private=(f"localhost:{plain}",))
        deadline = time.monotonic() + PATIENCE_S
        while open_at_server and time.monotonic() < deadline:
            time.sleep(0.01)
        assert open_at_server == set()


def test_an_address_of_this_machine_is_known_whatever_it_is() -> None:
    """Loopback, and the address under which others know the machine:
    a public one is no way in either.
    """
    assert ours(ip_address("127.0.0.1"), 80)
    assert not ours(ip_address("192.0.2.1"), 80)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 80))
        except OSError:
            return  # loopback is all that this machine has
        assert ours(ip_address(probe.getsockname()[0]), 80)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_an_address_of_six_is_written_in_brackets(tmp_path: Path) -> None:
    """In the list as in a request."""

    class Six(http.server.ThreadingHTTPServer):
        address_family = socket.AF_INET6

    try:
        server = Six(("::1", 0), Web)
    except OSError:
        pytest.skip("no IPv6 loopback here")
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        port = server.server_port
        listed = (f"[::1]:{port}",)
        said = shell(
            tmp_path,
            listed,
            f"curl -gfsS http://[::1]:{port}/x",
            f"curl -gfsSp http://[0::1]:{port}/y",
        )
        server.shutdown()
        thread.join(10)
    assert said == [f"GET /x for [::1]:{port}", f"GET /y for [::1]:{port}"]


def test_many_commands_have_their_ways_at_once(tmp_path: Path) -> None:
    """Sixty in one process, each with its own proxy on the same port."""
    with web() as port:

        async def body(place: Workplace) -> None:
            async def one(number: int) -> None:
                ran = await place.shell(
                    f"curl -fsS http://127.0.0.1:{port}/{number}", timeout_s=PATIENCE_S
                )
                assert ran.output == f"GET /{number} for 127.0.0.1:{port}", ran

            await place.shell("true", timeout_s=PATIENCE_S)
            before = descriptors()
            await asyncio.gather(*map(one, range(60)))
            # What watches processes reads of one for a moment.
            async with asyncio.timeout(PATIENCE_S):
                while descriptors() - before:  # noqa: ASYNC110 (no event for it)
                    await asyncio.sleep(0.02)

        visit(tmp_path, (f"127.0.0.1:{port}",), body)


def test_what_is_refused_is_reported_once_and_shortly(tmp_path: Path) -> None:
    """The client reads which hosts there are;
    batchd keeps each refusal once, and not more than a few.
    """
    many = (
        "for i in $(seq 40); do echo url = http://h$i.example/; done | curl -sS -o /dev/null -K -"
    )

    async def body(place: Workplace) -> None:
        twice = await place.shell(
            "curl -sS http://a.example/; curl -sS http://a.example/x; curl -sSv https://b.example/",
            timeout_s=PATIENCE_S,
        )
        assert twice.refused == (
            "a.example:80: not on this task's list (2 times)",
            "b.example:443: not on this task's list",
        )
        assert (
            "batchd: a.example:80 is refused: not on this task's list, which is c.example"
            in twice.output
        )
        # Of a tunnel that is refused many a program shows the first line alone.
        assert "403 batchd: b.example:443 is refused" in twice.output
        flood = await place.shell(many, timeout_s=PATIENCE_S)
        assert len(flood.refused) == 21
        assert flood.refused[-1] == "20 more"
        assert (await place.shell("true", timeout_s=PATIENCE_S)).refused == ()

    visit(tmp_path, ("c.example", "*.d.example:8443"), body)


def test_a_server_that_is_not_there_is_distinguished_from_one_that_is_refused(
    tmp_path: Path,
) -> None:
    """502, and why."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        gone = closed.getsockname()[1]
    with serving(lambda client: client.close()) as mute:
        listed = (f"127.0.0.1:{gone}", f"127.0.0.1:{mute}", "no-such-name.invalid")
        said = shell(
            tmp_path,
            listed,
            *(f"curl -sS http://127.0.0.1:{port}/" for port in (gone, mute)),
            "curl -sS http://no-such-name.invalid/",
        )
    for text, why in zip(said, ("refused", "gave no answer", "not known"), strict=True):
        assert text.startswith("batchd: ")
        assert why in text


def test_a_slow_client_does_not_hold_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that comes drop by drop ends in time, whatever else the command does."""
    monkeypatch.setattr("batchd.sandbox.network.proxy._HEAD_S", 0.5)
    code = """
import socket, time
with socket.create_connection(("127.0.0.1", 3128)) as line:
    began = time.monotonic()
    line.settimeout(0.1)
    while time.monotonic() - began < 200:
        try:
            line.sendall(b"X")
            print(line.recv(100).split(b"\\r")[0].decode(), time.monotonic() - began < 100)
            break
        except TimeoutError: pass
"""
    [said] = shell(tmp_path, ("a.example",), f"python3 - <<'E'\n{code}E")
    assert said == "HTTP/1.1 408 batchd: the request did not come in time True\n"


def test_silence_ends_a_tunnel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tunnel on which nothing moves is closed; one on which a byte moves now and then is not."""
    monkeypatch.setattr("batchd.sandbox.network.proxy._IDLE_S", 1.5)

    def drips(client: socket.socket) -> None:
        for _ in range(20):
            client.sendall(b"x")
            time.sleep(0.1)
        client.recv(10)  # and says nothing more

    with serving(drips) as port:
        tunnel = f"CONNECT 127.0.0.1:{port} HTTP/1.1\\r\\n\\r\\n"
        code = f"""
import socket, time
with socket.create_connection(("127.0.0.1", 3128)) as line:
    line.sendall(b"{tunnel}")
    heard = b""
    while data := line.recv(1000): heard += data
    print(heard.count(b"x"))
"""
        [said] = shell(tmp_path, (f"127.0.0.1:{port}",), f"python3 - <<'E'\n{code}E")
    assert said == "20\n"


def test_the_model_learns_what_it_may_reach(tmp_path: Path) -> None:
    """In the facts, with a list that is not too long; a command's own servers need no proxy."""

    async def body(place: Workplace) -> None:
        facts = await place.facts()
        assert "network: only *.d.example:8443, h0.example" in facts
        assert "h10.example and 19 more" in facts
        assert "https_proxy" in facts
        assert "\n" not in facts
        serve = "python3 -m http.server -b 127.0.0.1 8000 2>/dev/null & sleep 1; curl -fsS http://127.0.0.1:8000/ | head -1"
        assert "DOCTYPE" in (await place.shell(serve, timeout_s=PATIENCE_S)).output

    listed = ("*.d.example:8443", *(f"h{number}.example" for number in range(30)))
    visit(tmp_path, listed, body)


def test_check_tries_the_way_out_and_says_what_holds() -> None:
    """Nothing, a list or everything; and whose private addresses count."""
    details = {}
    for network in (False, ("a.example", "*.b.example"), True):
        [found] = [f for f in check(SandboxPolicy(network=network)) if f.name == "sandbox network"]
        assert found.ok
        details[network] = found.detail
    assert details[False] == "no task has any network"
    assert "a trial command had the proxy" in details["a.example", "*.b.example"]
    assert "a.example, *.b.example" in details["a.example", "*.b.example"]
    assert "loopback included" in details[True]
    private = check(SandboxPolicy(network=("a.example",), private_hosts=("a.example",)))[-1]
    assert "private addresses only of a.example" in private.detail


def test_without_a_sandbox_there_is_no_list_to_keep(tmp_path: Path) -> None:
    """Under ``backend = "none"`` commands have all of the network, and the model learns of it."""

    async def inside() -> str:
        sandbox = Sandbox(SandboxPolicy(backend="none", network=("a.example",)))
        opening = sandbox.open(str(tmp_path / "1"), fresh=True, network=("a.example",), env={})
        async with await opening as place:
            return await place.facts()

    assert "network: yes" in asyncio.run(inside())
    sandbox = Sandbox(SandboxPolicy(backend="none", network=("a.example",)))
    with pytest.raises(SandboxError, match=r"does not allow b\.example"):
        asyncio.run(sandbox.open(str(tmp_path / "2"), fresh=True, network=("b.example",), env={}))


def test_from_the_file_to_the_result(spool: Any) -> None:
    """A daemon's task reaches what its list says;
    what was refused is in the log, the transcript and `batchd logs`.
    """
    with web() as port:
        config = spool.folder / "config.toml"
        listed = json.dumps([f"127.0.0.1:{port}", "*.example.com"])
        config.write_text(f"{config.read_text()}[sandbox]\nnetwork = {listed}\n")
        reach = f"curl -fsS http://127.0.0.1:{port}/x && ! curl -fsS http://evil.example/"
        mine = {"first_prompt": "x", "check": reach, "network": [f"127.0.0.1:{port}"]}
        wide = {"first_prompt": "x", "network": ["*.example.com", "example.com", "127.0.0.1:1"]}
        (spool.folder / "inbox").mkdir()
        spool.write("inbox/good.json", [mine, {"first_prompt": "x", "check": f"! ({reach})"}])
        spool.write("inbox/wide.json", [wide, {"first_prompt": "x", "network": True}])
        spool.write("inbox/odd.json", [{"first_prompt": "x", "network": ["http://a/"]}, {"first_prompt": "x", "network": 1}])  # fmt: skip
        with spool.serving():
            for name in ("good", "wide", "odd"):
                summary = spool.folder / "outbox" / name / "summary.json"
                spool.eventually(summary.exists)
        assert spool.result("good", "001")["status"] == "completed"
        assert spool.result("good", "002")["status"] == "completed"
    problems = {
        name: {p["place"]: p["message"] for p in spool.result(name, "summary")["errors"]}
        for name in ("wide", "odd")
    }
    assert problems["wide"] == {
        "tasks[0].network": f"[sandbox] network does not allow example.com, 127.0.0.1:1; it allows 127.0.0.1:{port}, *.example.com",
        "tasks[1].network": f"[sandbox] network allows only lists of hosts, out of 127.0.0.1:{port}, *.example.com",
    }
    assert "write its name alone" in problems["odd"]["tasks[0].network"]
    assert problems["odd"]["tasks[1].network"] == "it must be true, false or a list of host names"
    refused = logged(spool.folder / "daemon.log", "network_refused")
    assert [(line["task"], line["hosts"]) for line in refused] == [
        ("001", ["evil.example:80: not on this task's list"])
    ]
    assert "evil.example:80: not on" in (spool.folder / "outbox/good/001.jsonl").read_text()
    assert "network refused: evil.example:80" in spool.batchd("logs", "good/001").stdout
    said = spool.batchd("check", "--offline").stdout
    assert "sandbox network: a trial command had the proxy; tasks may ask for 127.0.0.1" in said
    config.write_text(config.read_text().replace("*.example.com", "https://x/"))
    refusal = spool.batchd("check")
    assert (refusal.returncode, "[sandbox] network" in refusal.stderr) == (2, True)


def test_what_stays_keeps_its_way_and_no_other(tmp_path: Path) -> None:
    """A process left behind reaches the list between commands, as what enters does;
    where it may not go, the next command says.
    """
    left = """
(until [ -e go ]; do sleep 0.05; done
curl -fsS http://localhost:{port}/hello > reached; curl -fsS http://other.example/ 2> refused; touch done; sleep 1000) &
"""

    async def body(place: Workplace) -> tuple[CommandEnd, CommandEnd]:
        await place.shell(left.format(port=port), timeout_s=PATIENCE_S, stays=True)
        (tmp_path / "001/go").touch()
        while not (tmp_path / "001/done").exists():  # noqa: ASYNC110 (another process makes it)
            await asyncio.sleep(0.05)
        entered = f"curl -fsS http://localhost:{port}/hello; cat refused"
        first = await place.shell(entered, timeout_s=PATIENCE_S, stays=True)
        second = await place.shell("true", timeout_s=PATIENCE_S, stays=True)
        return first, second

    with web() as port:
        listed = (f"localhost:{port}",)
        first, second = visit(tmp_path, listed, body, private=listed)
    assert (tmp_path / "001/reached").read_text().startswith("GET /hello")
    assert first.output.startswith("GET /hello")
    assert "403" in first.output
    assert [line.partition(":")[0] for line in first.refused] == ["other.example"], first.refused
    assert second.refused == ()
