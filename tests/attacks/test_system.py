"""What commands see of the machine's own files: no key,
no spool, no socket, whichever user put it below /usr.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from attacking import AS_ROOT, NOBODY_ID, SECRET, Attack, shell
from camp import Camp, does, says

pytestmark = [
    pytest.mark.in_turns,
    pytest.mark.skipif(not os.access("/usr/local", os.W_OK), reason="only root writes to /usr"),
]

KEYED = """
[providers.keyed]
base_url = "http://127.0.0.1:1/v1"
api_key_file = "keys/key"
"""
KINDS = (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM)


@pytest.fixture
def place(who: list[str]) -> Iterator[Path]:
    """A folder below /usr/local that belongs to the user who runs batchd,
    and that all may enter.
    """
    folder = Path(tempfile.mkdtemp(prefix="batchd-attack-", dir="/usr/local"))
    folder.chmod(0o755)
    if AS_ROOT and who:
        os.chown(folder, NOBODY_ID, NOBODY_ID)
    yield folder
    shutil.rmtree(folder)


def _got(camp: Camp, more: str = "") -> list[str]:
    """Return what a model got that reads and orders whatever it can,
    and then, as another task, leaves the sandbox.
    """
    talks = {
        "steal": [does(shell("stealing.py", camp.folder)), says("Done.")],
        "leave": [does(f"touch {shlex.quote(str(camp.folder))}/outside"), says("Done.")],
    }
    with camp.answering(talks, KEYED + more):
        camp.play([{"first_prompt": "steal"}], "first")
        camp.play([{"first_prompt": "leave"}], "second")
    lines = (camp.folder / "outbox/first/001.jsonl").read_text("utf-8").splitlines()
    return [event["output"] for event in map(json.loads, lines) if event["event"] == "ToolRan"]


@pytest.mark.stopped_by("visible")
def test_no_command_reads_or_steers_a_spool_below_usr(
    who: list[str], place: Path, model_server: str
) -> None:
    """A daemon does not start where commands would read its keys and store, and give it orders."""
    camp = Camp.made(place, tuple(who), model_server)
    (place / "inbox").chmod(0o3770)
    camp.own(place / "keys/key", SECRET)
    got, refused = [], ""
    try:
        got = _got(camp)
    except AssertionError as error:
        refused = str(error)
    assert (got, (place / "outside").exists()) == ([], False)
    assert f'hide = ["{place}/.batchd"]' in refused
    assert f"[providers.keyed] api_key_file: {place}/keys/key lies in /usr" in refused


@pytest.mark.stopped_by("hidden")
def test_a_spool_that_is_hidden_is_not_there(
    who: list[str], place: Path, model_server: str
) -> None:
    """Below /usr too, where its folder is among what commands do not see:
    nothing is read, and no one is ordered about.
    """
    camp = Camp.made(place, tuple(who), model_server)
    camp.own(place / "keys/key", SECRET)
    hiding = f'[sandbox]\nhide = ["{place}"]\n'
    assert _got(camp, hiding) == ["[]\n"]
    assert not (place / "outside").exists()


@pytest.mark.stopped_by("sockets")
def test_no_service_below_usr_is_reached(attack: Attack, place: Path) -> None:
    """Whatever its kind; one that was made by its path, as most are, or by that of a link,
    also under an odd name; a folder that no one can list hides none.
    """
    with contextlib.ExitStack() as stack:
        (place / "closed").mkdir(mode=0o711)
        (place / "link").symlink_to("closed")
        names = [place / "s", place / "closed/t", place / "link/u"]
        names += [place / "one of two\nlines", place / os.fsdecode(b"\xff\\134 x"), place / "v"]
        for path, kind in zip(names, (*KINDS, *KINDS), strict=True):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            listener.bind(str(path))
            if kind != socket.SOCK_DGRAM:
                listener.listen()
            path.chmod(0o777)
        answers = json.loads(attack.ran("calling.py", *names))
        # What goes while commands run is in no one's way.
        names[0].unlink()
        assert attack.run("true")[0][0] == 0
    # A folder that can be entered and not listed is hidden
    # as a whole from those who cannot list it.
    assert {*answers.values()} <= {"ECONNREFUSED", "ENOENT"}, answers


@contextlib.contextmanager
def _mounted(kind: str, place: Path, source: Path) -> Iterator[Path]:
    """Mount a folder, or one file, of ``source`` below ``place``,
    by what is a mount's own kind; give where it is.
    """
    there = place / kind
    if kind == "file":
        there.touch()
        source /= "socket"
    else:
        there.mkdir()
    words = {
        "tmpfs": ["-t", "tmpfs", "-o", "mode=755", "batchd-test"],
        "overlay": ["-t", "overlay", "-o", f"lowerdir={source},upperdir={source}-upper,workdir={source}-work", "batchd-test"],
    }.get(kind, ["--bind", source])  # fmt: skip
    subprocess.run(["mount", *words, there], check=True)
    try:
        yield there
    finally:
        subprocess.run(["umount", "-l", there], check=True)


def _serve(stack: contextlib.ExitStack, path: Path) -> None:
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(str(path))
    listener.listen()
    path.chmod(0o777)


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A disk of its own with services,
    of which commands see nothing but by what is mounted below /usr.
    """
    with tempfile.TemporaryDirectory(prefix="batchd-attack-", dir="/mnt") as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "mode=755", "batchd-test", folder]
        subprocess.run(mount, check=True)
        try:
            for name in ("lower", "lower-upper", "lower-work", "lower/below"):
                Path(folder, name).mkdir()
            yield Path(folder, "lower")
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.skipif(not AS_ROOT, reason="only root mounts")
@pytest.mark.stopped_by("sockets", "mounted sockets")
@pytest.mark.parametrize("kind", ["bind", "file"])
def test_no_service_is_reached_where_its_folder_is_mounted_below_usr(
    attack: Attack, place: Path, elsewhere: Path, kind: str
) -> None:
    """A socket has a name elsewhere, and is found below /usr as well:
    in a folder that is bound there, or as a file.
    """
    with contextlib.ExitStack() as stack:
        for name in ("socket", "below/socket"):
            _serve(stack, elsewhere / name)
        there = stack.enter_context(_mounted(kind, place, elsewhere))
        answers = json.loads(attack.ran("calling.py", there))
        assert {*answers.values()} == {"ECONNREFUSED"}, answers
        assert len(answers) == (1 if kind == "file" else 2)


@pytest.mark.skipif(not AS_ROOT, reason="only root mounts")
@pytest.mark.stopped_by("sockets")
@pytest.mark.parametrize("kind", ["tmpfs", "overlay"])
def test_no_service_on_another_file_system_below_usr_is_reached(
    attack: Attack, place: Path, elsewhere: Path, kind: str
) -> None:
    """One that was made there, by its path."""
    with contextlib.ExitStack() as stack:
        there = stack.enter_context(_mounted(kind, place, elsewhere))
        _serve(stack, there / "socket")
        answers = json.loads(attack.ran("calling.py", there))
    assert answers == {f"{there}/socket": "ECONNREFUSED"}


@pytest.mark.skipif(not AS_ROOT, reason="only root mounts")
@pytest.mark.stopped_by("sockets")
def test_no_service_in_what_is_shown_is_reached(attack: Attack, elsewhere: Path) -> None:
    """A folder of /opt that the configuration shows, in which another one is bound;
    and one that is hidden in it.
    """
    with contextlib.ExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/opt")))
        top.chmod(0o755)
        _serve(stack, top / "own")
        _serve(stack, elsewhere / "socket")
        stack.enter_context(_mounted("bind", top, elsewhere))
        answers = json.loads(attack.ran("calling.py", top, policy={"show": [str(top)]}))
    assert answers == {f"{top}/{name}": "ECONNREFUSED" for name in ("own", "bind/socket")}


@pytest.mark.stopped_by("hidden")
def test_what_is_hidden_is_not_there(attack: Attack, place: Path) -> None:
    """Neither a file nor a folder, by no link, nor after another command;
    what is shown below it is, and cannot be written.
    """
    (place / "folder/shown").mkdir(parents=True)
    for name in ("file", "folder/file", "folder/shown/file"):
        (place / name).write_text(SECRET)
        (place / name).chmod(0o777)
    (place / "link").symlink_to("folder")
    policy = {
        "hide": [f"{place}/file", f"{place}/link", f"{place}/missing"],
        "show": [f"{place}/folder/shown"],
    }
    found, shown, written = attack.run(
        f"cat {place}/file {place}/folder/file {place}/link/file; ls {place}/folder {place}/link/",
        f"cat {place}/link/shown/file",
        f"touch {place}/folder/x || echo x > {place}/folder/shown/file || rm -r {place}/folder",
        policy=policy,
    )
    assert SECRET not in found[1]
    assert found[1].splitlines()[-5:] == [
        f"{place}/folder:",
        "shown",
        "",
        f"{place}/link/:",
        "shown",
    ]
    assert shown[:2] == (0, SECRET)
    assert written[0] != 0
