"""What commands see of the machine's own files: no key, no spool, no socket, whoever put it below /usr."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sockets
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
    """A folder below /usr/local that belongs to whoever runs batchd, and that all may enter."""
    folder = Path(tempfile.mkdtemp(prefix="batchd-attack-", dir="/usr/local"))
    folder.chmod(0o755)
    if AS_ROOT and who:
        os.chown(folder, NOBODY_ID, NOBODY_ID)
    yield folder
    shutil.rmtree(folder)


def _got(camp: Camp, more: str = "") -> list[str]:
    """Return what a model got that reads and orders whatever it can, and then, as another task, leaves the sandbox."""
    talks = {
        "steal": [does(shell("stealing.py", camp.folder)), says("Done.")],
        "leave": [does(f"touch {camp.folder}/outside"), says("Done.")],
    }
    with camp.told(talks, KEYED + more):
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
    """Below /usr too, where its folder is among what commands do not see: nothing is read, and no one is ordered about."""
    camp = Camp.made(place, tuple(who), model_server)
    camp.own(place / "keys/key", SECRET)
    hiding = f'[sandbox]\nhide = ["{place}"]\n'
    assert _got(camp, hiding) == ["[]\n"]
    assert not (place / "outside").exists()


def _listen(stack: contextlib.ExitStack, path: Path, kind: socket.SocketKind) -> socket.socket:
    """Give a socket that everybody may use, and whose name does not say where it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    listener = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
    sockets.bind(listener, path)
    if kind != socket.SOCK_DGRAM:
        listener.listen()
    path.chmod(0o777)
    return listener


@pytest.mark.stopped_by("sockets", "searched sockets")
def test_no_socket_below_usr_is_reached(attack: Attack, place: Path) -> None:
    """Whatever its kind and its name; also one that was made by a relative name, renamed, or moved with its folder."""
    with contextlib.ExitStack() as stack:
        there = [place / "d" / kind.name for kind in KINDS]
        there += [place / "one of two\nlines", place / os.fsdecode(b"\xff\\134"), place / "renamed"]
        for path, kind in zip(there, (*KINDS, *KINDS), strict=True):
            _listen(stack, path, kind)
        moved = there.pop()
        (place / "above").mkdir()
        there.append(moved.rename(place / "above/moved"))
        answers = json.loads(attack.ran("calling.py", place))
    assert answers == {str(path): "ECONNREFUSED" for path in there}


@pytest.mark.stopped_by("sockets")
@pytest.mark.stopped_by("named sockets", who="unprivileged")  # as root the search finds it, too
def test_no_service_below_usr_is_reached(attack: Attack, place: Path) -> None:
    """One that was made by its path, as most are, or by that of a link; a folder that no one can list hides none."""
    with contextlib.ExitStack() as stack:
        (place / "closed").mkdir(mode=0o711)
        (place / "link").symlink_to("closed")
        names = (place / "s", place / "closed/t", place / "link/u")
        for path, kind in zip(names, KINDS, strict=True):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            listener.bind(str(path))
            if kind != socket.SOCK_DGRAM:
                listener.listen()
            path.chmod(0o777)
        answers = json.loads(attack.ran("calling.py", *names))
        # What goes while commands run is in no one's way.
        names[0].unlink()
        assert attack.run("true")[0][0] == 0
    # A folder that can be entered and not listed is hidden as a whole from those who cannot list it.
    assert {*answers.values()} <= {"ECONNREFUSED", "ENOENT"}, answers


@pytest.mark.stopped_by("hidden")
def test_what_is_hidden_is_not_there(attack: Attack, place: Path) -> None:
    """Neither a file nor a folder, by no link, nor after another command; what is shown below it is, and cannot be written."""
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
