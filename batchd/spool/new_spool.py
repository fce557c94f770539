"""A new spool: its config.toml, its folders, and a task file to try it with."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from batchd.config import trust
from batchd.config.providers import PRESETS, ProviderSection, presets
from batchd.config.sections import PathsSection
from batchd.errors import UsageError
from batchd.spool import files

#: The task file that every new spool has.
SAMPLE = "sample.json"
#: More worker processes than that are of little use; beyond it each has more agents.
_PROCESSES = 8
_FOLDERS = (PathsSection().inbox, PathsSection().outbox)
_TASKS = """\
{
  "tasks": [
    {
      "id": "fizzbuzz",
      "first_prompt": "Write fizzbuzz.py that prints FizzBuzz for 1..100, run it, and check that line 15 says FizzBuzz.",
      "check": "test \\"$(python3 -I fizzbuzz.py | sha256sum)\\" = 'f039dc221ad122dda8b7226ad5bc68b8654e9e3a42dcea2b37554cd6f91b56af  -'"
    }
  ]
}
"""
_CONFIG = """\
# The configuration of this spool, as `batchd init` made it. Relative paths are relative to this file.
# `batchd config` shows every key, its value and where that comes from; `batchd check` says whether it works.

[paths]
inbox = {inbox}  # where task files are dropped
outbox = {outbox}  # where results appear
state = {state}  # the store, the lock, the control socket; on a local disk, not NFS

[agent]
model = {model}  # provider/model; a task may name its own

[providers.{provider}]
{lines}
[pool]
processes = {processes}                   # worker processes …
agents_per_process = {agents}          # … and tasks that each works on at a time
"""
_ROOT = """
[workspace]
root = {root}  # a task's relative `dir` lies below it
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSpool:
    """The wish for a new spool."""

    directory: Path
    #: ``provider/model``.
    model: str
    #: The provider's address; empty: the preset's.
    base_url: str = ""
    #: The variable that holds its key, or the file; neither: a server without keys.
    key_env: str = ""
    key_file: str = ""
    #: Tasks at a time.
    agents: int
    #: Where its folders lie; empty: beside the configuration.
    place: str = ""

    @property
    def provider(self) -> str:
        """The provider's name."""
        return self.model.partition("/")[0]

    @property
    def config(self) -> Path:
        """Where its configuration lies."""
        return self.directory / trust.CONFIG

    def text(self) -> str:
        """Return its configuration."""
        # Workers share the agents evenly: of ten, five have two each.
        few = range(min(self.agents, _PROCESSES), 0, -1)
        processes = next(number for number in few if self.agents % number == 0)
        bare = re.fullmatch(r"[\w-]+", self.provider, re.ASCII)
        provider = self.provider if bare else _quoted(self.provider)
        folders = {
            f.name: _quoted(str(Path(self.place, str(f.default)))) for f in fields(PathsSection)
        }
        text = _CONFIG.format(
            **folders,
            model=_quoted(self.model),
            provider=provider,
            lines="".join(f"{line}\n" for line in self._provided()),
            processes=processes,
            agents=self.agents // processes,
        )
        return text + (_ROOT.format(root=_quoted(self.place)) if self.place else "")

    def _provided(self) -> Iterator[str]:
        """Yield the lines of the provider's table."""
        if self.base_url:
            yield f"base_url = {_quoted(self.base_url)}"
        if self.key_file:
            yield f"api_key_file = {_quoted(self.key_file)}  # the file that holds its key"
        elif self.key_env or PRESETS.get(self.provider, {}).get("api_key_env"):
            yield f"api_key_env = {_quoted(self.key_env)}  # the variable that holds its key; empty: it needs none"
        usual = presets().get(self.provider, ProviderSection(base_url="-"))
        if self.agents > usual.max_concurrent:
            yield f"max_concurrent = {self.agents}  # calls at a time"


def refuse(directory: Path) -> None:
    """Return where a spool can be made without harm to what is there. Raises ``UsageError``.

    A folder in which an earlier version worked without a configuration may have one made.
    """
    home = os.path.expanduser("~")
    if os.path.realpath(directory) in {"/", os.path.realpath(home)}:
        raise UsageError(f"{directory} holds more than a spool may: name a directory of its own")
    if os.path.lexists(directory) and not directory.is_dir():
        raise UsageError(f"{directory} exists already, and is not a directory")
    found = [directory / trust.CONFIG]
    if not former(directory):
        found += [directory / SAMPLE, *(directory / name for name in _FOLDERS)]
    for path in found:
        plain = path.is_dir() and not path.is_symlink()
        if os.path.lexists(path) and not (plain and not any(path.iterdir())):
            folder = path.name in _FOLDERS and path.is_dir()
            what = "holds files already" if folder else "is there already"
            fix = "name another directory"
            if path.name == trust.CONFIG:
                fix += f"; if it is batchd's, and yours: {trust.command(directory)}"
            raise UsageError(f"nothing was made: {path} {what} ({fix})")


def former(directory: Path) -> bool:
    """Return whether an earlier version has worked in a directory without a configuration."""
    return (directory / PathsSection().state / "batchd.db").is_file()


def make(wanted: NewSpool) -> None:
    """Make a spool for its owner alone, its configuration last: what is cut short counts as none.

    Raises ``OSError``.
    """
    if not wanted.directory.is_dir():
        files.make_folder(wanted.directory, 0o700)
    for name in _FOLDERS:
        with contextlib.suppress(FileExistsError):
            (wanted.directory / name).mkdir(mode=0o700)
    with contextlib.suppress(FileExistsError):
        _write(wanted.directory / SAMPLE, _TASKS)
    _write(wanted.config, wanted.text())


def _write(path: Path, text: str) -> None:
    files.write_whole(path, text.encode(), replace=False, mode=0o600)


def _quoted(text: str) -> str:
    """Return a text as TOML writes it, which is as JSON does."""
    return json.dumps(text, ensure_ascii=False)
