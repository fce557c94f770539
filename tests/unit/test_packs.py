"""Packs of directories: what has changed between two looks, and what no worker of batchd writes."""

from __future__ import annotations

import io
import stat
import tarfile
from collections.abc import Iterator

import pytest

from batchd.errors import WorkspaceError
from batchd.workspace import tarwalk
from batchd.workspace.directory_listing import Changes, Seen, changes, lasting

FILE: Seen = (stat.S_IFREG | 0o644, 1, 10, 1, 7)
LINK: Seen = (stat.S_IFLNK | 0o777, 1, 10, 1, 7)
FOLDER: Seen = (stat.S_IFDIR | 0o755, 1)


def test_nothing_has_changed_where_nothing_did() -> None:
    """Two looks at the same find nothing."""
    assert not changes({"a": FILE, "d": FOLDER}, {"a": FILE, "d": FOLDER})


def test_what_went_is_named_once() -> None:
    """Of a folder that is gone, the folder alone."""
    before = {"d": FOLDER, "d/e": FOLDER, "d/e/f": FILE, "g": FILE}
    assert changes(before, {}) == Changes(removed=("d", "g"))


def test_what_became_something_else_goes_first() -> None:
    """A folder that is a file now, a file that is a folder, a link where a file was."""
    before = {"a": FOLDER, "a/x": FILE, "b": FILE, "c": FILE}
    after = {"a": FILE, "b": FOLDER, "b/y": FILE, "c": LINK}
    assert changes(before, after) == Changes(
        removed=("a", "b", "c"), changed=("a", "b", "b/y", "c")
    )


@pytest.mark.parametrize("part", range(5))
def test_each_part_of_a_stamp_counts(part: int) -> None:
    """Mode, times, size, inode: a file that is another in any of them has changed."""
    other = tuple(value + (number == part) for number, value in enumerate(FILE))
    assert changes({"a": FILE}, {"a": other}).changed == ("a",)


def test_what_cannot_be_seen_has_not_gone() -> None:
    """Files in a folder that is closed at the second look stay as they were."""
    before = {"d": FOLDER, "d/e": FOLDER, "d/e/f": FILE, "g": FILE}
    assert changes(before, {"d": FOLDER}, {"d"}) == Changes(removed=("g",))


def test_what_is_young_is_sent_again() -> None:
    """A file that something may write to in this very moment counts as changed at the next look; an older one does not."""
    young = (*FILE[:3], 1 << 62, 7)
    kept = lasting({"old": FILE, "young": young})
    assert changes(kept, {"old": FILE, "young": young}).changed == ("young",)
    assert changes(kept, {"old": FILE}).removed == ("young",)


def tar(*members: tarfile.TarInfo, data: bytes = b"") -> bytes:
    """Return a tar as GNU's program writes it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as made:
        for member in members:
            member.size = len(data) if member.isreg() else 0
            made.addfile(member, io.BytesIO(data))
    return out.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    """Return an entry with a time that takes a record of its own."""
    made = tarfile.TarInfo(name)
    made.type, made.mtime = kind, 1.5
    return made


def parts(data: bytes, size: int = 700) -> Iterator[bytes]:
    """Yield it bit by bit."""
    return (data[at : at + size] for at in range(0, len(data), size))


def test_a_tar_of_ours_is_one() -> None:
    """Files, folders, links, long and odd names."""
    members = [
        member("./a"),
        member("./" + "long/" * 100 + "é"),
        member("./d", tarfile.DIRTYPE),
        member("./l", tarfile.SYMTYPE),
        member("./h", tarfile.LNKTYPE),
    ]
    tarwalk.check(parts(tar(*members, data=b"x" * 5000)), 20)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (tar(member("/etc/passwd")), "called b'/etc/passwd'"),
        (tar(member("./a/../../b")), r"called b'./a/../../b'"),
        (tar(member("./" + "a/" * 200 + "../b")), "called"),
        (tar(member("./x", tarfile.CHRTYPE)), "kind '3'"),
        (tar(member("./x", tarfile.FIFOTYPE)), "kind '6'"),
        (tar(member("./x", tarfile.GNUTYPE_LONGNAME)), "kind 'L'"),
        (tar(*(member(f"./{n}") for n in range(30))), "more than 20 entries"),
        (b"x" * 2048, "number that is none"),
        (b"\0" * 100 + b"1" * 412, "no tar"),
        (tar(member("./a"), data=b"y" * 5000)[:3000], "within a file"),
        (tar(member("./a")) + b"z" * 512, "behind its end"),
    ],
    ids=["root", "up", "long", "device", "pipe", "gnu", "many", "letters", "none", "cut", "more"],
)
def test_what_no_worker_writes_is_found(data: bytes, why: str) -> None:
    """Before it is unpacked, which is done in the sandbox alone."""
    with pytest.raises(WorkspaceError, match=why):
        tarwalk.check(parts(data), 20)


def test_names_that_lead_out_are_found() -> None:
    """In the lists of what goes."""
    tarwalk.check_names(("a/b", "..a"), 5)
    with pytest.raises(WorkspaceError, match=r"'a/\.\./b'"):
        tarwalk.check_names(("a/../b",), 5)
    with pytest.raises(WorkspaceError, match="6 paths"):
        tarwalk.check_names(("a",) * 6, 5)
