"""Names: one name a type, one meaning a file name, and constants that say what they are for."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Where the parts of one command lie: a file of a command's name means that command.
COMMAND_ROOMS = ("cli", "control", "daemon/commands")
#: Other names that several files may share, since they mean the same in each.
SHARED_FILES: Mapping[str, str] = {
    "chat": "the dialect: as batchd speaks it, and as the stand-in does",
    "messages": "the dialect: as batchd speaks it, and as the stand-in does",
    "responses": "the dialect: as batchd speaks it, and as the stand-in does",
    "limits": "what a task may use up: the record, and the table of config.toml",
    "worker": "a worker: the process, and the command that runs one on another machine",
}
#: Words that say how large a number is, and not what it limits.
SIZES = (
    *(
        "MOST",
        "LEAST",
        "FEW",
        "MANY",
        "MUCH",
        "LITTLE",
        "PLENTY",
        "ENOUGH",
        "TOO_MANY",
        "TOO_LARGE",
    ),
    *("LONG", "LONGEST", "SHORT", "SHORTEST", "LARGE", "LARGEST", "SMALL", "SMALLEST", "BIG"),
    *("HIGH", "HIGHEST", "LOW", "LOWEST", "NEAR", "NEARLY", "FULL", "TINY", "HUGE"),
)
#: A unit says no more of what it is for.
_SIZE = re.compile(rf"_*(?:{'|'.join(SIZES)})(?:_(?:S|MS|BYTES|CHARS))?")
#: Words of a dialect that nobody else speaks, and what to write in their place.
DIALECT: Mapping[str, str] = {
    "told": "reported, notified, asked",
    "mend": "fix",
    "mends": "fixes",
    "mended": "fixed",
    "anew": "again",
    "whoever": "who, any user who",
    "nobody": "no one",
    "anybody": "any user, anyone, another process",
}
#: Where such a word is a published name, or a user of the system.
PUBLISHED = re.compile(
    r"""[.{]mend\b|\bmend(?:=|:[ ]str\b)|["`]mend["`]            # a key of the log and of the control socket
    |["`]nobody["`]|--[ ]empty:[ ]nobody[ ]knows[ ]any[ ]more   # a user; a migration, which stays as it is
    """,
    re.VERBOSE,
)


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Yield each module of batchd: its path without the suffix, and its tree."""
    for path in sorted((ROOT / "batchd").rglob("*.py")):
        name = path.relative_to(ROOT / "batchd").with_suffix("").as_posix()
        yield name, ast.parse(path.read_text("utf-8"))


def shared_classes(trees: Mapping[str, ast.Module]) -> list[str]:
    """Return a line for each public class name that several modules have."""
    found = defaultdict(list)
    for name, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(name)
    return [f"{name}: {', '.join(places)}" for name, places in found.items() if len(places) > 1]


def shared_files(paths: Iterator[str] | list[str], commands: frozenset[str]) -> list[str]:
    """Return a line for each file name that stands for two things."""
    found = defaultdict(list)
    for path in paths:
        room, _, name = path.rpartition("/")
        if not name.startswith("__") and name not in SHARED_FILES:
            found[name].append("a command" if name in commands and room in COMMAND_ROOMS else room)
    return [
        f"{name}: {', '.join(sorted(set(rooms)))}"
        for name, rooms in found.items()
        if len(set(rooms)) > 1
    ]


def sized_constants(trees: Mapping[str, ast.Module]) -> list[str]:
    """Return a line for each constant that is named by its size alone."""
    return [
        f"{name}:{node.lineno}: {node.id}"
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Name)
        and isinstance(node.ctx, ast.Store)
        and _SIZE.fullmatch(node.id)
    ]


def dialect(lines: list[str]) -> list[str]:
    """Return a line for each word of the dialect, with what to write in its place."""
    words = re.compile(rf"\b({'|'.join(DIALECT)})\b", re.IGNORECASE)
    return [
        f"{number}: {m.group()}: {DIALECT[m.group().lower()]}"
        for number, line in enumerate(lines, 1)
        for m in words.finditer(PUBLISHED.sub("", line))
    ]


@pytest.fixture(scope="module")
def trees() -> Mapping[str, ast.Module]:
    """Every module of batchd."""
    return dict(modules())


def commands() -> frozenset[str]:
    """Return the names of the commands."""
    from batchd.cli import COMMANDS  # noqa: PLC0415 (the command line is loaded for this alone)

    return frozenset(COMMANDS)


def test_a_class_has_a_name_of_its_own(trees: Mapping[str, ast.Module]) -> None:
    """No two public classes of batchd have one name."""
    assert shared_classes(trees) == []


def test_a_file_name_has_one_meaning(trees: Mapping[str, ast.Module]) -> None:
    """No two files of batchd have one name, but for those of one command,
    and those that are listed with a reason.
    """
    assert shared_files(list(trees), commands()) == []


def test_no_exception_is_out_of_use(trees: Mapping[str, ast.Module]) -> None:
    """Each name that several files may share is one that several files do share."""
    names = [path.rpartition("/")[2] for path in trees]
    assert [name for name in SHARED_FILES if names.count(name) < 2] == []


def test_a_module_beside_the_commands_is_one(trees: Mapping[str, ast.Module]) -> None:
    """What lies directly in ``batchd/cli`` is a command;
    what commands share lies in packages beside them.
    """
    found = {
        path.split("/")[1] for path in trees if path.startswith("cli/") and path.count("/") == 1
    }
    assert found - commands() - {"__init__", "parser"} == set()


def test_a_constant_says_what_it_is_for(trees: Mapping[str, ast.Module]) -> None:
    """No constant is named by its size: ``_MOST`` says nothing of what is at most so much."""
    assert sized_constants(trees) == []


def test_the_words_are_those_of_the_field() -> None:
    """Code and pages say fixed, again, no one;
    the key ``mend`` and the user ``nobody`` are published names.
    """
    paths = [
        *(ROOT / "batchd").rglob("*.py"),
        # The history keeps the words of its time.
        *(page for page in (ROOT / "docs").glob("*.md") if page.name != "history.md"),
        ROOT / "README.md",
        ROOT / "config.toml",
    ]
    found = {
        str(path.relative_to(ROOT)): wrong
        for path in sorted(paths)
        if (wrong := dialect(path.read_text("utf-8").splitlines()))
    }
    assert found == {}


def test_each_check_finds_what_it_is_for() -> None:
    """Two classes of one name, one file name in two rooms,
    a constant by its size, a word of the dialect.
    """
    one = ast.parse("class Watcher: ...\n_MOST = 5\n_MAX_ROWS = 3\n")
    two = ast.parse("class Watcher: ...\nclass _Own: ...\nLONGEST_S = 5\n")
    trees = {"web/watch": one, "spool/watch": two}
    assert shared_classes(trees) == ["Watcher: web/watch, spool/watch"]
    assert shared_files(list(trees), frozenset()) == ["watch: spool, web"]
    assert sized_constants(trees) == ["web/watch:2: _MOST", "spool/watch:3: LONGEST_S"]
    parts = ["cli/cancel", "daemon/commands/cancel", "control/cancel"]
    assert shared_files(parts, frozenset({"cancel"})) == []
    assert shared_files([*parts, "store/cancel"], frozenset({"cancel"})) == [
        "cancel: a command, store"
    ]
    assert dialect(["Nobody knows.", 'user = "nobody"', "f(mend=fix)", "to mend it"]) == [
        "1: Nobody: no one",
        "4: mend: fix",
    ]
