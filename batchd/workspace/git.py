"""Runs of our own git: by scripts, without anything that a repository,
a user or the system has it run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from batchd import free_room
from batchd.errors import FolderError, WorkspaceError
from batchd.sandbox import CommandEnd

#: What a repository's own configuration could have git run,
#: or read elsewhere, and how files are taken as they are.
SETTINGS = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.attributesFile": "/dev/null",
    "core.excludesFile": "/dev/null",
    "core.autocrlf": "false",
    "core.fileMode": "true",
    "core.symlinks": "true",
    "core.bigFileThreshold": "64m",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "submodule.recurse": "false",
    "fetch.recurseSubmodules": "false",
    # Each fetch is one pack: many small files take long to look through.
    "fetch.unpackLimit": "1",
    "advice.detachedHead": "false",
    # Where a server leads elsewhere, keys and what may be read would go along.
    "http.followRedirects": "false",
    "protocol.allow": "never",
    "protocol.file.allow": "always",
    "protocol.https.allow": "always",
    "protocol.ssh.allow": "always",
}
#: In a repository of ours, or a task's: files are taken as they are,
#: whatever a ``.gitattributes`` says of them, line ends apart.
ATTRIBUTES = "* !working-tree-encoding !filter !ident !diff !merge"
#: By what no system and no user changes how git works, nor waits for somebody to answer.
VARIABLES = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_LFS_SKIP_SMUDGE": "1",
    "LC_ALL": "C",
}
_MISSING = 127
#: Of what git says, so many characters are passed on.
_SAID = 600


def text(*names: str) -> str:
    """Return scripts, one behind the other; what each does, and with what, stands in it."""
    folder = Path(__file__).with_name("scripts")
    return "".join((folder / f"{name}.sh").read_text("utf-8") for name in names)


#: Begins each script.
_OPENING = text("opening")


def variables(settings: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Return the environment of every git of ours; ``settings``: more of them."""
    every = {**SETTINGS, **settings}
    counted = {"GIT_CONFIG_COUNT": str(len(every))}
    for number, (key, value) in enumerate(every.items()):
        counted |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return {**VARIABLES, **counted}


def script(text: str, *arguments: str) -> list[str]:
    """Return a command line that runs a script for ``sh``,
    which ends where one of its commands fails.
    """
    settings = [f"{name}={value}" for name, value in variables().items()]
    return ["env", *settings, *bare(text, *arguments)]


def bare(text: str, *arguments: str) -> list[str]:
    """Return the same for who sets the environment by other means."""
    return ["sh", "-c", _OPENING + text, "sh", *arguments]


def insist(ran: CommandEnd, what: str) -> None:
    """Raise ``WorkspaceError`` where a script did not come to its end,
    ``FolderError`` where the machine's disk is the cause.

    ``what``: what could not be done, in words.
    """
    if ran.excess:
        raise WorkspaceError(f"{what}: {ran.excess}")
    if ran.timed_out:
        raise WorkspaceError(f"{what} within {ran.seconds:,.0f} s")
    if ran.exit_code:
        raise failure(what, ran.output, ran.exit_code)


def failure(what: str, output: str, exit_code: int | None) -> WorkspaceError | FolderError:
    """Return as an error what a script that failed has printed."""
    for line in output.splitlines():
        if number := free_room.refused(line):
            text, why = f"{what}: {line.strip()[:_SAID]}", os.strerror(number)
            return FolderError(text if why in text else f"{text}: {why}")
    return WorkspaceError(f"{what}: {said(output, exit_code)}")


def said(output: str, exit_code: int | None) -> str:
    """Return what git said of its failure, on one line."""
    if exit_code == _MISSING:
        return "git is not installed where commands run (`apt-get install git`)"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    words = [line for line in lines if line.startswith(("fatal:", "error:", "cp:", "find:"))]
    text = "; ".join(words or lines[-3:]) or f"exit code {exit_code}"
    return text if len(text) <= _SAID else f"{text[:_SAID]} …"
