"""The proof that a machine has the daemon's folders, at the same paths and with the same users.

The daemon puts a folder with a word into each of them, for the user that commands run as. The
worker reads the word as that user, and answers beside it by a rename; the daemon looks for the
answer and at whose it is. So each side has seen what the other one writes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from batchd import trees
from batchd.errors import SandboxError
from batchd.records import SandboxPolicy
from batchd.sandbox.command_user import as_root, becoming
from batchd.sandbox.probe import someone
from batchd.wire import FolderProof

_PREFIX = ".batchd-proof-"
_WORD, _ANSWER = "word", "answer"
#: What the user that commands run as does there: the word, and that it was seen.
_REPLY = f"""
read -r word <{_WORD} && printf '%s seen\\n' "$word" >{_ANSWER}.new && sync {_ANSWER}.new &&
mv {_ANSWER}.new {_ANSWER}
"""
#: What a disk may take to show a worker's answer, and a worker to give it, in seconds.
_PATIENCE_S = 30.0
#: A proof that is older was left behind by a daemon that was killed.
_OLD_S = 600.0


def ask(folders: Iterable[str], policy: SandboxPolicy) -> dict[FolderProof, str]:
    """Put a word into each folder; return the words.

    Blocks. Raises ``OSError``, ``SandboxUnavailableError``.
    """
    owner, words = someone(policy), {}
    for folder in dict.fromkeys(map(_there, folders)):
        _sweep(Path(folder))
        proof, word = FolderProof(folder, _PREFIX + secrets.token_hex(8)), secrets.token_hex()
        # A task may work in that very folder, and put another one in the place of ours.
        with contextlib.ExitStack() as undo:
            top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            undo.callback(os.close, top)
            os.mkdir(proof.name, 0o700, dir_fd=top)
            place = os.open(proof.name, trees.OPEN, dir_fd=top)
            undo.callback(os.close, place)
            if os.fstat(place).st_uid != os.geteuid():
                raise OSError(errno.EEXIST, "another folder is in its place", proof.name)
            made = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            file = os.open(_WORD, made, 0o600, dir_fd=place)
            undo.callback(os.close, file)
            os.write(file, f"{word}\n".encode())
            if as_root():
                os.fchown(file, owner.uid, owner.gid)
                os.fchown(place, owner.uid, owner.gid)
        words[proof] = word
    return words


def answer(proof: FolderProof, policy: SandboxPolicy) -> str:
    """Answer a proof on the worker's machine; return why not, empty: it is done. Blocks."""
    place = Path(proof.folder, proof.name)
    try:
        if not place.is_dir():
            return f"{proof.folder} is not the daemon's: it is not shared, or mounted elsewhere"
        owner = someone(policy)
        command = [*becoming(owner), "sh", "-c", _REPLY]
        done = subprocess.run(
            command, cwd=place, capture_output=True, text=True, errors="replace", timeout=_PATIENCE_S
        )  # fmt: skip
    except (OSError, SandboxError, subprocess.TimeoutExpired) as error:
        return f"{proof.folder} cannot be used: {error}"
    if done.returncode:
        said = done.stderr.strip().rpartition("\n")[2]
        return f"the user {owner.name} ({owner.uid}) cannot write to {proof.folder}: {said}"
    return ""


def problem(proof: FolderProof, word: str, policy: SandboxPolicy) -> str:
    """Return what is wrong with a worker's answer; empty: the folder is shared. Blocks."""
    owner, path = someone(policy), Path(proof.folder, proof.name, _ANSWER)
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                found, text = os.fstat(descriptor), file.read(1 << 10).decode("ascii", "replace")
            break
        except OSError as error:
            if time.monotonic() > until:
                return f"{proof.folder}: what it writes there is not seen here: {error.strerror}"
            time.sleep(0.1)
    if not stat.S_ISREG(found.st_mode):
        return f"{proof.folder}: what is there is no file"
    if (found.st_uid, found.st_gid) != (owner.uid, owner.gid):
        return (
            f"{proof.folder}: what the user {owner.name} writes there is of user {found.st_uid}, "
            f"group {found.st_gid} here, and should be of {owner.uid} and {owner.gid}"
        )
    return "" if text == f"{word} seen\n" else f"{proof.folder}: another word is there"


def forget(proofs: Iterable[FolderProof]) -> None:
    """Remove proofs. Blocks."""
    for proof in proofs:
        with contextlib.suppress(OSError):  # the next one sweeps it away
            trees.remove(Path(proof.folder, proof.name))


def _there(folder: str) -> str:
    """Return a folder, or what it will be made in."""
    path = Path(folder)
    while not path.exists():
        path = path.parent
    return str(path)


def _sweep(folder: Path) -> None:
    """Remove what a killed daemon left there."""
    with contextlib.suppress(OSError):
        for left in folder.glob(f"{_PREFIX}*"):
            if time.time() - left.lstat().st_mtime > _OLD_S:
                trees.remove(left)
