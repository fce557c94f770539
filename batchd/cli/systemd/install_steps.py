"""What an installation under systemd is made of:
steps that can be shown, done, noted and undone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import msgspec

from batchd import decoders
from batchd.errors import NotPossibleError
from batchd.spool import files


class FileStep(msgspec.Struct, frozen=True, kw_only=True, tag="file"):
    """A file that is written where there is none."""

    path: str
    mode: int
    #: What is written; not noted, but for its hash.
    text: str = ""
    sha256: str = ""

    def shown(self) -> Iterator[str]:
        """Yield what it will be; of a unit's comments nothing."""
        yield f"write {self.path} (mode {self.mode:04o})"
        lines = [line for line in self.text.splitlines() if line]
        said = [line for line in lines if line[0] != "#"]
        yield from (f"    {line}" for line in said or lines or ["(empty)"])

    def do(self) -> FileStep:
        """Write it; return what is noted. Raises ``OSError``."""
        data = self.text.encode()
        path = Path(self.path)
        # What stands there is one of our own, unchanged since: see ``plans``.
        files.write_whole(path, lambda file: file.write(data), replace=True, mode=self.mode)
        path.chmod(self.mode)
        return FileStep(path=self.path, mode=self.mode, sha256=hashlib.sha256(data).hexdigest())

    def untouched(self) -> bool:
        """Return whether what stands there is what was written, or nothing any more."""
        try:
            data = Path(self.path).read_bytes()
        except FileNotFoundError:
            return True
        return hashlib.sha256(data).hexdigest() == self.sha256

    def undo(self) -> str:
        """Remove it; return why it stays, if it does."""
        if not self.untouched():
            return f"{self.path}: it was changed since"
        Path(self.path).unlink(missing_ok=True)
        return ""

    def undone(self) -> str:
        """Return what ``undo`` means."""
        return f"remove {self.path}" + ("" if self.untouched() else " — no: it was changed since")


class FolderStep(msgspec.Struct, frozen=True, kw_only=True, tag="folder"):
    """A folder that is made where there is none."""

    path: str
    mode: int
    #: The user whose it is, with the group of that name; empty: that of who makes it.
    owner: str = ""

    def shown(self) -> Iterator[str]:
        """Yield what it will be."""
        yield f"make {self.path}/ (mode {self.mode:04o}{self.owner and f', of {self.owner}'})"

    def do(self) -> FolderStep:
        """Make it. Raises ``OSError``."""
        path = Path(self.path)
        path.mkdir(mode=0o700)
        if self.owner:
            shutil.chown(path, self.owner, self.owner)
        path.chmod(self.mode)
        return self

    def undo(self) -> str:
        """Remove it, where nothing is in it; return why it stays, if it does."""
        with contextlib.suppress(FileNotFoundError):
            try:
                Path(self.path).rmdir()
            except OSError as error:
                return f"{self.path}: {error.strerror}"
        return ""

    def undone(self) -> str:
        """Return what ``undo`` means."""
        return f"remove {self.path}/, if it is empty"


class UserStep(msgspec.Struct, frozen=True, kw_only=True, tag="user"):
    """A user of the system, with a group of that name."""

    name: str
    home: str

    def shown(self) -> Iterator[str]:
        """Yield what it will be."""
        yield f"make the user and the group {self.name}, without a login; home: {self.home}"

    def do(self) -> UserStep:
        """Make it. Raises ``NotPossibleError``."""
        options = ("--system", "--user-group", "--no-create-home")
        places = ("--home-dir", self.home, "--shell", "/usr/sbin/nologin")
        _run("useradd", *options, *places, self.name)
        return self

    def undo(self) -> str:
        """Remove it; return why it stays, if it does."""
        with contextlib.suppress(KeyError):
            pwd.getpwnam(self.name)
            if os.path.lexists(self.home):
                return f"the user {self.name}: what is in {self.home} is theirs"
            try:
                _run("userdel", self.name)
            except NotPossibleError as error:
                return f"the user {self.name}: {error}"
        return ""

    def undone(self) -> str:
        """Return what ``undo`` means."""
        return f"remove the user {self.name}, unless {self.home} stays"


Step: TypeAlias = FileStep | FolderStep | UserStep


@dataclass(frozen=True, slots=True)
class InstallationRecord:
    """What was done, in a file: exactly that can be undone."""

    file: Path

    def read(self) -> list[Step]:
        """Return what was done, in its order. Raises ``NotPossibleError``."""
        try:
            return decoders.decode(self.file.read_bytes(), list[Step])
        except FileNotFoundError:
            return []
        except msgspec.MsgspecError as error:
            raise NotPossibleError(
                f"{self.file} does not say what is installed: {error}; remove it and the unit by hand"
            ) from None

    def write(self, steps: list[Step]) -> None:
        """Note what is done now. Raises ``OSError``."""
        data = msgspec.json.format(msgspec.json.encode(steps)) + b"\n"
        files.write_whole(self.file, lambda file: file.write(data), replace=True, mode=0o600)


def _run(*command: str) -> None:
    """Run a program of the system. Raises ``NotPossibleError``."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise NotPossibleError(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        raise NotPossibleError(f"{command[0]}: {done.stderr.strip() or done.returncode}")
