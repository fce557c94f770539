"""Every way around a list of hosts that we know of, tried from inside,
against real servers on the host's loopback.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import marshal
import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from attacking import AS_ROOT, DRIVERS, HERE, Attack, shell
from loopback import Recorder, name_server
from patience import PATIENCE_S, until

from batchd.sandbox import seccomp
from batchd.sandbox.launch import GIVEN
from batchd.sandbox.memory_files import memory_file

pytestmark = pytest.mark.in_turns

PORT = 3128
#: Stands in everything that must not reach a server.
SMUGGLED = b"smuggled-4711"


class Servers:
    """A server that the task may reach, one that it may not,
    and what a task with a list finds there.
    """

    def __init__(self, attack: Attack, good: Recorder, evil: Recorder) -> None:
        self._attack = attack
        self.good, self.evil = good, evil
        self.list = [f"127.0.0.1:{good.port}"]
        self.marked = {b"GOOD": b"%d" % good.port, b"EVIL": b"%d" % evil.port}

    def filled(self, payload: bytes) -> bytes:
        """Return a payload with the servers' ports."""
        for word, port in self.marked.items():
            payload = payload.replace(word, port)
        return payload

    def options(self, **options: Any) -> dict[str, Any]:
        """Return what makes a command one of a task with this list."""
        return {"network": self.list, "policy": {"network": self.list}} | options

    def send(
        self, payloads: Sequence[bytes], silent_s: float = PATIENCE_S, **options: Any
    ) -> dict[bytes, str]:
        """Send payloads to the proxy, and return what each was answered."""
        whole = [self.filled(payload).decode("latin-1") for payload in payloads]
        command = f"printf %s {shlex.quote(json.dumps(whole))} > payloads; exec {shell('sending.py', PORT, silent_s)}"
        options = self.options(**options)
        options["policy"] = {**options["policy"], "max_output_bytes": 1 << 20}
        [(exit_code, output, _, _)] = self._attack.run(command, **options)
        assert exit_code == 0, output
        return dict(zip(payloads, json.loads(output), strict=True))

    def untouched(self) -> None:
        """Hold that nothing reached the server that no command may reach,
        and nothing smuggled the other one.
        """
        time.sleep(0.1)
        assert self.evil.received == []
        assert not any(SMUGGLED in kept for kept in self.good.received), self.good.received


@pytest.fixture
def servers(attack: Attack) -> Iterator[Servers]:
    """Two servers beside an attack."""
    with Recorder() as good, Recorder() as evil:
        yield Servers(attack, good, evil)


@pytest.mark.stopped_by("network")
def test_nothing_but_the_proxy_can_be_reached(attack: Attack, servers: Servers) -> None:
    """Not even the server on the list, but through the proxy:
    no TCP, UDP, DNS, raw, netlink change, or host socket.
    """
    name = f"batchd-{os.getpid()}-{id(attack)}"
    ports = {"good": servers.good.port, "evil": servers.evil.port, "proxy": PORT}
    asked = json.dumps({**ports, "abstract": name})
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as abstract:
        abstract.bind("\0" + name)
        abstract.listen()
        answers = json.loads(attack.ran("reaching.py", asked, **servers.options()))
    unreachable = {"ENETUNREACH"}
    assert {answers[k] for k in ("good", "evil", "evil6", "abstract")} == {"ECONNREFUSED"}
    assert {answers[k] for k in ("world", "world6", "udp")} == unreachable
    assert answers["ping"] in {"EACCES", "ENETUNREACH", "EPERM"}
    assert (answers["raw"], answers["packet"], answers["vsock"]) == ("EPERM", "EAFNOSUPPORT", "EAFNOSUPPORT")  # fmt: skip
    assert (answers["names"], answers["netlink"]) == ("unknown", [1, 1, 1])
    assert (answers["proxy's port"], answers["another"], answers["proxy"]) == ("EADDRINUSE", "open", "open")  # fmt: skip
    servers.untouched()
    assert servers.good.received == []


#: Names of the other server, or of the good one under another name; all to be refused.
WRONG = [
    *(b"127.0.0.1:EVIL", b"127.1:EVIL", b"127.0.1:EVIL", b"127.0.0.1.:EVIL", b"0x7f000001:EVIL"),
    *(b"0x7f.0.0.1:EVIL", b"2130706433:EVIL", b"017700000001:EVIL", b"0177.0.0.1:EVIL", b"0:EVIL"),
    *(b"[::1]:EVIL", b"[::ffff:127.0.0.1]:EVIL", b"[::ffff:127.0.0.1]:GOOD", b"[::]:EVIL"),
    *(b"[::ffff:7f00:1]:GOOD", b"[::127.0.0.1]:GOOD", b"[64:ff9b::7f00:1]:EVIL", b"[::1%lo]:EVIL"),
    *(b"0.0.0.0:EVIL", b"0.0.0.0:GOOD", b"127.0.0.2:GOOD", b"127.000.000.001:GOOD", b"127.1:GOOD"),
    *(b"localhost:EVIL", b"LOCALHOST:EVIL", b"localhost.:EVIL", b"localhost:GOOD", b"ip6-localhost:EVIL"),
    *(b"127.0.0.1:22", b"127.0.0.1:80", b"127.0.0.1:443", b"127.0.0.1", b"127.0.0.1:", b"127.0.0.1:0"),
    *(b"127.0.0.1:GOOD@127.0.0.1:EVIL", b"127.0.0.1:EVIL@127.0.0.1:GOOD", b"a@127.0.0.1:GOOD"),
    *(b"127.0.0.1:GOOD:EVIL", b"127.0.0.1:GOOD#@127.0.0.1:EVIL", b"127.0.0.1:EVIL#.127.0.0.1:GOOD"),
    *(b"127.0.0.1%00:GOOD", b"127.0.0.1%2eevil:EVIL", b"127.0.0.1\\@127.0.0.1:EVIL", b"127.0.0.1:+GOOD"),
    *(b"127\xe3\x80\x820.0.1:EVIL", b"\xe2\x91\xa0\xe2\x91\xa1\xe2\x91\xa6.0.0.1:EVIL", b"127.0.0.1\t:GOOD"),
    *(b"169.254.169.254:80", b"metadata.google.internal:80", b"example.com:443"),
]  # fmt: skip


@pytest.mark.stopped_by("list")
def test_no_other_name_opens_a_tunnel_or_is_asked(attack: Attack, servers: Servers) -> None:
    """CONNECT, and plain requests:
    the list is kept by the letter, however an address is written.
    """
    del attack
    tunnels = [
        b"CONNECT %s HTTP/1.1\r\nHost: 127.0.0.1:GOOD\r\n\r\n%s" % (w, SMUGGLED) for w in WRONG
    ]
    # Of a plain request the port may be left out.
    plain = [b"GET http://%s/%s HTTP/1.1\r\n\r\n" % (w, SMUGGLED) for w in WRONG]
    doubled = [b"GET http://127.0.0.1:GOOD/ HTTP/1.1\r\nHost: %s\r\nX: %s\r\n\r\n" % (w, SMUGGLED) for w in WRONG]  # fmt: skip
    answers = servers.send([*tunnels, *plain, *doubled])
    accepted = [
        p for p, said in answers.items() if said[:12] not in {"HTTP/1.1 403", "HTTP/1.1 400"}
    ]
    assert accepted == []
    servers.untouched()
    assert servers.good.received == []


GET_EVIL = b"GET http://127.0.0.1:EVIL/%s HTTP/1.1\r\nHost: 127.0.0.1:EVIL\r\n\r\n" % SMUGGLED
GET_OTHER = b"GET /%s HTTP/1.1\r\nHost: other\r\n\r\n" % SMUGGLED
TO_GOOD = b"POST http://127.0.0.1:GOOD/ HTTP/1.1\r\nHost: 127.0.0.1:GOOD\r\n"
#: Requests that hide another one behind them, or in them.
#: Whether they are refused or served, that one must not arrive.
HIDING = [
    TO_GOOD + fields + b"\r\n" + body + hidden
    for hidden in (GET_EVIL, GET_OTHER)
    for fields, body in (
        (b"", b""),
        (b"Connection: keep-alive\r\n", b""),
        (b"Content-Length: 0\r\n", b""),
        (b"Content-Length: 5\r\n", b"hello"),
        (b"Content-Length: 5\r\nContent-Length: 500\r\n", b"hello"),
        (b"Content-Length: 5, 500\r\n", b"hello"),
        (b"Content-Length: +500\r\n", b""),
        (b"Content-Length : 500\r\n", b""),
        (b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
        (b"Content-Length: 500\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
        (b"Content-Length: 500\r\nTransfer-Encoding: xchunked\r\n", b"0\r\n\r\n"),
        (b"Content-Length: 500\r\nTransfer-Encoding : chunked\r\n", b"0\r\n\r\n"),
        (b"Content-Length: 500\r\nX: y\r\n Transfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
        (b"Content-Length: 500\r\nX: y\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", b"0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n0\r\nX: y\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"0;x\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"0\n\n"),
        (b"Transfer-Encoding: chunked\r\n", b"10000000000000000\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"0x0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"-1\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"1\r\nAB\r\n0\r\n\r\n"),
        (b"Connection: Content-Length\r\nContent-Length: 5\r\n", b"hello"),
        (b"Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
        (b"Upgrade: websocket\r\nConnection: Upgrade\r\n", b""),
        (b"Expect: 100-continue\r\nContent-Length: 5\r\n", b"hello"),
    )
]  # fmt: skip
#: Lines that are two for somebody.
BROKEN = [
    b"GET http://127.0.0.1:GOOD/\r\nX: %s HTTP/1.1\r\n\r\n" % SMUGGLED,
    b"GET http://127.0.0.1:GOOD/ HTTP/1.1\r\nX: y\rHost: %s\r\n\r\n" % SMUGGLED,
    b"GET http://127.0.0.1:GOOD/ HTTP/1.1\r\nX: y\nHost: %s\r\n\r\n" % SMUGGLED,
    b"GET http://127.0.0.1:GOOD/ HTTP/1.1\nHost: 127.0.0.1:GOOD\n\n%s" % SMUGGLED,
    b"GET http://127.0.0.1:GOOD/ HTTP/1.1\r\nHost: 127.0.0.1:GOOD\r\nHost: %s\r\n\r\n" % SMUGGLED,
    b"GET http://127.0.0.1:GOOD/ HTTP/1.1\r\n Host: %s\r\n\r\n" % SMUGGLED,
    b"GET http://127.0.0.1:GOOD/ HTTP/1.1\r\nX: \0%s\r\n\r\n" % SMUGGLED,
    b"GET\x0bhttp://127.0.0.1:GOOD/%s HTTP/1.1\r\n\r\n" % SMUGGLED,
    b"GET http://127.0.0.1:GOOD/ http://127.0.0.1:EVIL/%s HTTP/1.1\r\n\r\n" % SMUGGLED,
    b"\r\n\r\n" + GET_EVIL,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + GET_EVIL,
]


#: What may come of their bodies.
WHOLE = (b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"0\r\n\r\n", b"1\r\nA")


@pytest.mark.stopped_by("one request", "plain lines")
def test_nothing_is_smuggled_behind_a_request(attack: Attack, servers: Servers) -> None:
    """Every connection carries one request, and of it no more than its body;
    what is unclear is refused.
    """
    del attack
    servers.send([*HIDING, *BROKEN], silent_s=2.0)
    servers.untouched()
    assert servers.good.received, "what is plain is served"
    for kept in servers.good.received:
        head, _, body = bytes(kept).partition(b"\r\n\r\n")
        assert head.startswith(b"POST / HTTP/1.1\r\nHost: 127.0.0.1:%d" % servers.good.port)
        assert any(whole.startswith(body) for whole in WHOLE), body


@pytest.mark.stopped_by("private")
def test_a_name_does_not_lead_to_this_machine(attack: Attack, servers: Servers) -> None:
    """A name on the list that stands for loopback is refused,
    and the reason said, unless the operator says otherwise.
    """
    del attack
    named = [f"localhost:{servers.evil.port}", "localhost"]
    options = {"network": named, "policy": {"network": named}}
    hosts = (b"localhost:EVIL", b"LocalHost.:EVIL")
    payloads = [b"GET http://%s/ HTTP/1.1\r\n\r\n" % host for host in hosts]
    payloads += [b"CONNECT %s HTTP/1.1\r\n\r\n" % host for host in (*hosts, b"localhost:443")]
    for said in servers.send(payloads, **options).values():
        assert said.startswith("HTTP/1.1 403")
        assert "a private address" in said
    servers.untouched()
    options["policy"] = {"network": named, "private_hosts": named[:1]}
    answers = servers.send(payloads[:2], silent_s=2.0, **options)  # the server does not close
    assert all("\r\n\r\nok" in said for said in answers.values())
    assert len(servers.evil.received) == 2


@pytest.mark.stopped_by("pinned")
@pytest.mark.skipif(not AS_ROOT, reason="a name server of one's own needs root")
def test_an_answer_that_changes_leads_nowhere_else(attack: Attack) -> None:
    """A connection goes to the very address that was looked at,
    whatever the name stands for a moment later.
    """
    resolv = attack.folder.parent / "resolv.conf"
    resolv.write_text("nameserver 127.0.0.1\noptions attempts:1 timeout:2\n")
    bind = f'mount --bind {shlex.quote(str(resolv))} /etc/resolv.conf && exec "$@"'
    inside = Attack(["unshare", "-m", "sh", "-c", bind, "sh", *attack.python_command], attack.folder.parent)  # fmt: skip
    with (
        Recorder("127.0.0.2") as first,
        Recorder("127.0.0.1", first.port) as later,
        name_server(lambda n: "127.0.0.1" if n else "127.0.0.2") as asked,
    ):
        named = [f"changing.example:{first.port}"]
        options = {"network": named, "policy": {"network": named, "private_hosts": named}}
        [(_, output, _, _)] = inside.run(f"curl -sS http://{named[0]}/", **options)
        assert (output, len(asked)) == ("ok", 1)
        assert (len(first.received), later.received) == (1, [])
        # The metadata address, and the same name without the operator's word for it.
    with name_server(lambda _: "169.254.169.254"):
        [(_, output, _, _)] = inside.run(f"curl -sS http://{named[0]}/", **options)
        assert "no public host" in output
    with Recorder("127.0.0.2") as first, name_server(lambda n: ("8.8.8.8", "127.0.0.2")[n % 2 ^ 1]):
        options["policy"] = {"network": named}
        [(_, output, _, _)] = inside.run(f"curl -sS http://{named[0]}/", **options)
        assert "a private address" in output
        assert first.received == []


@pytest.mark.stopped_by("list", "network")
def test_the_proxy_of_one_task_is_not_anothers(attack: Attack, servers: Servers) -> None:
    """While one task has its proxy open, others without a list,
    or with another one, find theirs or none.
    """
    folder = attack.folder.with_name("other")
    ask = f"curl -sS -m 100 --noproxy '' -x http://127.0.0.1:{PORT} http://127.0.0.1:{servers.good.port}/"
    with concurrent.futures.ThreadPoolExecutor() as pool:
        running = pool.submit(
            attack.run,
            f"touch up; {ask}; while [ ! -e end ]; do sleep 0.05; done",
            **servers.options(),
        )
        until((attack.folder / "up").exists)
        attack.folder = folder
        [none] = attack.run(ask)
        other = {"network": ["other.example"], "policy": {"network": ["other.example"]}}
        [refused] = attack.run(ask, **other)
        assert not running.done()
        (folder.with_name("task") / "end").touch()
        assert running.result()[0][1] == "ok"
    assert (none[0], "Could not connect" in none[1] or "connect" in none[1]) == (7, True)
    assert "other.example" in refused[1]
    assert "is refused" in refused[1]
    assert len(servers.good.received) == 1


_CEILING, _NUMBERS = (
    pytest.mark.stopped_by("ceiling of hosts"),
    pytest.mark.stopped_by("numbers"),
)


@pytest.mark.parametrize(
    ("asked", "ceiling", "why"),
    [
        pytest.param(True, ["a.example"], "only lists of hosts", marks=_CEILING),
        pytest.param(["b.example"], ["a.example"], "does not allow b.example", marks=_CEILING),
        pytest.param(["*.a.example"], ["a.example"], "does not allow", marks=_CEILING),
        pytest.param(["127.0.0.1:80"], ["*.example", "127.0.0.1:81"], "does not allow 127.0.0.1:80", marks=_CEILING),
        pytest.param(["127.0.0.1:80"], True, "must stand in a list", marks=(_CEILING, _NUMBERS)),
        pytest.param(["a.example"], False, "does not allow it", marks=_CEILING),
        pytest.param(["127.1:80"], ["127.0.0.1:80"], "not a host name", marks=_NUMBERS),
    ],
)  # fmt: skip
def test_no_task_has_more_than_the_operator_allows(
    attack: Attack, asked: Any, ceiling: Any, why: str
) -> None:
    """The door itself refuses, whatever was checked before:
    configurations change while tasks wait.
    """
    with pytest.raises(AssertionError, match=why):
        attack.run("true", network=asked, policy={"network": ceiling})
    assert not attack.folder.exists()


@pytest.mark.stopped_by("network")
def test_a_task_with_a_list_is_confined_like_any_other(attack: Attack, servers: Servers) -> None:
    """No descriptor, capability, process or file is there because of the proxy;
    the network is its own.
    """
    plain, listed = (
        json.loads(attack.ran("confined.py", **options)) for options in ({}, servers.options())
    )
    assert listed["fds"] == ["0", "1", "2"]
    assert set(listed["links"]) == set(plain["links"])
    assert "lo" in listed["links"]
    for key in ("CapEff", "CapBnd", "CapPrm", "Seccomp", "NoNewPrivs", "Uid", "Gid", "Groups"):
        assert listed["status"][key] == plain["status"][key]
    assert listed["net"] != Path("/proc/self/ns/net").stat().st_ino
    assert (listed["pids"], listed["resolv"]) == (plain["pids"], False)


@pytest.mark.stopped_by("queue")
def test_a_flood_of_connections_hurts_no_other_task(attack: Attack, servers: Servers) -> None:
    """Hundreds of connections that say nothing wait in line;
    the proxy's descriptors stay few, and it goes on.
    """
    with concurrent.futures.ThreadPoolExecutor() as pool:
        running = pool.submit(
            attack.ran, "flooding.py", PORT, servers.good.port, **servers.options()
        )
        while not (attack.folder / "up").exists():
            assert not running.done(), running.result()
            time.sleep(0.02)
        seen = [0]
        # All that it lets in are in once their number stays.
        while seen[-1] < 64 or len({*seen[-20:]}) > 1:
            assert not running.done(), (seen, running.result())
            seen.append(_open_of_batchd(attack.folder))
            time.sleep(0.05)
        (attack.folder / "enough").touch()
        assert running.result() == "HTTP/1.1 200 OK\n"
    assert 64 <= max(seen) < 64 + 60, seen


def _open_of_batchd(folder: Path) -> int:
    """Return how many descriptors the batchd that was given this folder has open."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (path / "cmdline").read_bytes()
            if b"drivers/commands.py" in line and b"python" in line.split(b"\0")[0]:
                targets = [fd.readlink() for fd in (path / "fd").iterdir()]
                if folder in targets:
                    return len(targets)
    return 0


@pytest.mark.stopped_by("orphans")
def test_nothing_outlives_a_batchd_that_is_killed(attack: Attack) -> None:
    """SIGKILL at any moment between the sandbox, the helper that enters it and the command."""
    marker = f"1000.{time.monotonic_ns()}"
    for number in range(8):
        with subprocess.Popen(
            [*attack.python_command, DRIVERS / "dying.py", attack.folder, marker],
            stdout=subprocess.PIPE,
            cwd="/",
            env=attack.surroundings,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            if number % 2:  # in the middle of a command, on the slowest machine too
                until(
                    lambda: any(
                        marker.encode() in line and b"dying" not in line
                        for line in _command_lines()
                    )
                )
            time.sleep(0.01 + 0.013 * number)
            process.kill()
    deadline = time.monotonic() + PATIENCE_S
    left = [b"x"]
    while left and time.monotonic() < deadline:
        left = [line for line in _command_lines() if marker.encode() in line or (b"entry.py" in line and str(HERE).encode() in line)]  # fmt: skip
        time.sleep(0.02)
    assert left == []


def _command_lines() -> Iterator[bytes]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_bytes()


@pytest.mark.stopped_by("helper")
@pytest.mark.skipif(not AS_ROOT, reason="only root enters what another one has made")
def test_the_helper_enters_no_other_sandbox() -> None:
    """It knows which one: given a process that lives in another, whose number may have been one
    of ours before, it enters nothing.
    """
    made = ["bwrap", "--unshare-pid", "--unshare-net", "--bind", "/", "/", "--proc", "/proc"]
    made += ["--as-pid-1"]
    bwrap = shutil.which("bwrap")
    assert bwrap is not None
    line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-I", "-S", str(HERE / "batchd" / "sandbox" / "entry.py")]
    with (
        line,
        subprocess.Popen([*made, "sleep", "1000"]) as other,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs) as entry,
    ):
        theirs.close()
        line.settimeout(PATIENCE_S)
        try:
            mine = [bwrap, *made, "--json-status-fd", str(GIVEN), "cat"]
            assert _entered(line, mine) is None
            until(lambda: b"sleep" in _first(other.pid)[1])
            # What claims that it is another one's child.
            says = f"echo '{{ \"child-pid\": {_first(other.pid)[0]} }}' >/proc/self/fd/{GIVEN}; exec cat"
            lying = ["/bin/sh", "sh", "-c", says]
            assert _entered(line, lying) == (0, "[Errno 0] its first process is another one")
        finally:
            for process in (other, entry):
                process.kill()


def _first(bwrap: int) -> tuple[int, bytes]:
    """Return the first process of a sandbox, and its command line."""
    for word in Path(f"/proc/{bwrap}/task/{bwrap}/children").read_text().split():
        return int(word), Path(f"/proc/{word}/cmdline").read_bytes()
    return 0, b""


def _entered(line: socket.socket, words: list[str]) -> object:
    """Have a helper make a sandbox and enter it, and return what it says."""
    setup = marshal.dumps(
        {"words": [word.encode() for word in words], "at": GIVEN}
        | {"namespaces": 0x20000000 | 0x40000000, "directory": "/"}
        | {"uid": 65534, "gid": 65534, "limits": [], "environment": {}}
        | {"filter": seccomp.program(platform.machine())}
    )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(PATIENCE_S)
    text = memory_file(setup)
    with ours:
        with theirs:
            asked = seccomp.clone_number(platform.machine()), len(setup), 0
            socket.send_fds(line, [marshal.dumps(asked)], [theirs.fileno(), text])
        os.close(text)
        pid, *_, said = marshal.loads(ours.recv(4096))
    os.waitpid(pid, 0)
    return said
