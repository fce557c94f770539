"""Packs of directories: what has changed between two looks, and what no worker of batchd writes."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from batchd.daemon.attempts.coming import Coming
from batchd.errors import TarError, WorkspaceError
from batchd.records import Pack
from batchd.sandbox import CommandEnd
from batchd.sandbox.directory import below
from batchd.workspace import directory_listing, packing, tarwalk
from batchd.workspace.directory_listing import (
    Changes,
    DirectoryLook,
    Seen,
    changes,
    lasting,
    look,
    shared,
    unsent,
)
from batchd.workspace.packfile import Lists, Writer, plain_limit
from batchd.workspace.packs import Shelf
from batchd.workspace.tarwatch import TarWatch

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
    """A file that something may write to in this very moment counts as changed at the next look;
    an older one does not.
    """
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
        (b"x" * 2048, "invalid number"),
        (b"\0" * 100 + b"1" * 412, "not a tar"),
        (tar(member("./a"), data=b"y" * 5000)[:3000], "within a file"),
        (tar(member("./a")) + b"z" * 512, "after its end"),
    ],
    ids=["root", "up", "long", "device", "pipe", "gnu", "many", "letters", "none", "cut", "more"],
)
def test_what_no_worker_writes_is_found(data: bytes, why: str) -> None:
    """Before it is unpacked, which is done in the sandbox alone."""
    with pytest.raises(WorkspaceError, match=why):
        tarwalk.check(parts(data), 20)


def test_names_that_lead_out_are_found() -> None:
    """In the lists of what goes."""
    tarwalk.check_names((b"a/b", b"..a"), 5)
    with pytest.raises(WorkspaceError, match=r"'a/\.\./b'"):
        tarwalk.check_names((b"a/../b",), 5)
    with pytest.raises(WorkspaceError, match="more than 5 paths"):
        tarwalk.check_names((b"a",) * 6, 5)


def pack_with(shelf: Shelf, removed: bytes, folders: bytes = b"", *, wrong: int = 0) -> Pack:
    """Return a pack that lies on a shelf, with lists as somebody may write them;
    ``wrong``: what is said too much of the first.
    """
    body = (
        (len(removed) + wrong).to_bytes(8, "big")
        + removed
        + len(folders).to_bytes(8, "big")
        + folders
    )
    data = zstandard.compress(b"batchd-pack 1\n" + body + b"\0" * 1024)
    pack = Pack(digest=hashlib.sha256(data).hexdigest(), size=len(data), plain=len(body) + 2048)
    shelf.prepare()
    shelf.path(pack).write_bytes(data)
    return pack


def test_lists_are_read_in_order(tmp_path: Path) -> None:
    """Whichever is asked for; names as they are, over all parts that they come in."""
    shelf = Shelf(tmp_path)
    names = [b"%d/\xff" % n * 20 for n in range(9000)]
    pack = pack_with(shelf, b"".join(n + b"\0" for n in names), b"d\0e\0")
    with shelf.reading(pack) as reading:
        assert list(reading.removed()) == names
        assert list(reading.folders()) == [b"d", b"e"]
        assert b"".join(reading.tar()) == b"\0" * 1024
    with shelf.reading(pack) as reading:
        assert list(reading.folders()) == [b"d", b"e"]
    with shelf.reading(pack) as reading:
        assert b"".join(reading.tar()) == b"\0" * 1024


@pytest.mark.parametrize(
    ("removed", "wrong", "why"),
    [
        (b"a\0" * 2_000_000, 0, "more than 1,000,000 paths"),
        (b"a" * 60_000_000, 0, "a name that is too long"),
        (b"a\0b", 0, "a list that has no end"),
        (b"a\0", 1 << 40, "too many names"),
        (b"a/../b\0", 0, "names 'a/../b'"),
    ],
    ids=["many", "long", "endless", "huge", "up"],
)
def test_lists_of_a_stranger_take_no_memory(
    tmp_path: Path, removed: bytes, wrong: int, why: str
) -> None:
    """Of a pack as a worker that lies may send it,
    the daemon keeps a few hundred kilobytes in memory, and nothing on its disk.
    """
    pack = pack_with(Shelf(tmp_path / "made"), removed, wrong=wrong)
    data = (tmp_path / "made" / pack.digest).read_bytes()
    shelf = Shelf(tmp_path / "shelf")
    shelf.prepare()
    coming = Coming(shelf, pack, 1 << 30)
    del removed
    tracemalloc.start()
    try:
        with pytest.raises(WorkspaceError, match=why):
            coming.add(pack, 0, data)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    coming.drop()
    assert not list((tmp_path / "shelf").iterdir())


def test_a_large_window_is_refused(tmp_path: Path) -> None:
    """What would make its reader keep more than our packs do is none of them."""
    params = zstandard.ZstdCompressionParameters.from_level(3, window_log=26)
    made = zstandard.ZstdCompressor(compression_params=params).compressobj()
    data = made.compress(b"batchd-pack 1\n" + bytes(1 << 20)) + made.flush()
    pack = Pack(digest="0" * 64, size=len(data), plain=1 << 30)
    (tmp_path / pack.digest).write_bytes(data)
    with pytest.raises(WorkspaceError, match="too much memory"), Shelf(tmp_path).reading(pack):
        pass


def test_what_unpacks_to_too_much_is_not_written(tmp_path: Path) -> None:
    """A worker sends no pack that the daemon would send it away for:
    how long files are counts, not how they compress.
    """
    writer = Writer(tmp_path / "draft", Lists(), 1 << 20)
    part = bytes(64 << 20)
    for _ in range(plain_limit(1 << 20) // len(part)):
        writer.add(part)
    with pytest.raises(WorkspaceError, match="more than 1,048,576 bytes, unpacked"):
        writer.add(part)
    writer.drop()


def test_what_did_not_come_is_looked_for_again() -> None:
    """It counts as another at the next look if it is there, and as gone if it is not."""
    kept = unsent({"a": FILE, "b": FILE, "d": FOLDER}, frozenset({"a", "d"}))
    assert changes(kept, {"a": FILE, "b": FILE, "d": FOLDER}).changed == ("a", "d")
    assert changes(kept, {"b": FILE}) == Changes(removed=("a", "d"))


def test_looks_have_in_common_what_has_not_changed() -> None:
    """Paths and stamps: of each that is as it was there is one in memory."""
    earlier = {f"some/path/{n}": (*FILE[:4], n + 1000) for n in range(1000)}
    later = {f"some/path/{n}": (*FILE[:4], n + 1000) for n in range(1, 1001)}
    both = shared(later, earlier)
    assert both == later
    assert all(both[path] is its for path, its in earlier.items() if path in both)
    ours = {path: path for path in earlier}
    assert all(path is ours[path] for path in both if path in ours)


def looked(folder: Path) -> DirectoryLook:
    """Return a look at a folder."""
    top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return look(top)
    finally:
        os.close(top)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EPERM])
def test_a_folder_that_cannot_be_read_is_not_empty(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not seen would be removed at home: a disk that fails ends the look."""
    (tmp_path / "d").mkdir()

    def failing(top: int, path: str) -> int:
        if path:
            raise OSError(number, os.strerror(number))
        return below(top, path)

    monkeypatch.setattr(directory_listing, "below", failing)
    with pytest.raises(OSError, match=os.strerror(number)):
        looked(tmp_path)


def test_a_folder_that_went_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Meanwhile, as a task may have it."""
    (tmp_path / "d").mkdir()

    def late(top: int, path: str) -> int:
        if path:
            (tmp_path / "d").rmdir()
        return below(top, path)

    monkeypatch.setattr(directory_listing, "below", late)
    assert set(looked(tmp_path).seen) == {"d"}


def test_a_path_that_no_program_takes_does_not_travel(tmp_path: Path) -> None:
    """It would be left out by tar: the look says so."""
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("x" * 200, dir_fd=here)
        here = os.open("x" * 200, os.O_RDONLY, dir_fd=here)
    assert len(looked(tmp_path).seen) == 20
    os.mkdir("y" * 100, dir_fd=here)
    with pytest.raises(WorkspaceError, match="a path of more than 4,093 bytes"):
        looked(tmp_path)


def watched(data: bytes, asked: dict[str, Seen]) -> TarWatch:
    """Return what has watched a tar."""
    watch = TarWatch(asked, lambda _: None)
    watch.passed(parts(data))
    return watch


def test_a_tar_is_what_was_asked_for() -> None:
    """Files, hard links, links, folders; what did not come is known."""
    asked = {"a": FILE, "h": FILE, "l": LINK, "d": FOLDER, "d/gone": FILE}
    members = [member("./a"), member("./d", tarfile.DIRTYPE), member("./l", tarfile.SYMTYPE)]
    watch = watched(tar(*members, member("./h", tarfile.LNKTYPE), data=b"x" * 900), asked)
    watch.insist(ended=True)
    assert watch.missing == {"d/gone"}


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (member("./a", tarfile.FIFOTYPE), "kind '6'"),
        (member("./a", tarfile.SYMTYPE), "a has become another kind"),
        (member("./a", tarfile.DIRTYPE), "a has become another kind"),
        (member("./b"), "b was not asked for, but came"),
    ],
    ids=["pipe", "link", "folder", "name"],
)
def test_a_tar_that_is_another_is_not_sent(entry: tarfile.TarInfo, why: str) -> None:
    """Nothing behind what is wrong is read; tar's own end may say more of one that is cut."""
    watch = watched(tar(entry) + b"\0" * 5000, {"a": FILE})
    with pytest.raises(TarError, match=why):
        watch.insist()
    cut = watched(tar(member("./a"), data=b"y" * 5000)[:3000], {"a": FILE})
    cut.insist()
    with pytest.raises(TarError, match="within a file"):
        cut.insist(ended=True)


def test_bytes_that_cannot_be_read_are_not_zeros() -> None:
    """Tar says so, writes zeros, and ends well."""
    said = "tar: ./a: Warning: Read error at byte 0, while reading 512 bytes: Input/output error\n"
    with pytest.raises(TarError, match="Input/output error"):
        packing.insist_read(CommandEnd(exit_code=0, output=said))
    packing.insist_read(CommandEnd(exit_code=1, output="tar: ./a: file changed as we read it\n"))
