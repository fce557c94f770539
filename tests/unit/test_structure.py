"""Holds the house to its table of floors: who may import whom."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Room:
    """A row of the table: its floor, and what it may import beside the leaves and itself."""

    floor: int
    may: tuple[str, ...] = ()


LEAVES = (
    "records",
    "errors",
    "actions",
    "log",
    "masking",
    "sealing",
    "trees",
    "children",
    "catalog",
    "installation",
    "users",
    "imports",
    "fitting",
    "backoff",
    "cadence",
    "decoders",
    "free_room",
    "silent_paths",
    "mounts",
)
#: The vocabulary and its fold: one room, two modules.
EVENTS = ("events", "taskstate")
FACES = (
    *("observe", "views", "words"),
    *("control", "store", "config", "spool", "pricing", "tokens", "report", "daemon", "estimate"),
    # `logs` renders stored events, `schema` prints what results look like,
    # `check` asks the sandbox.
    *(*EVENTS, "results", "formats", "sandbox", "visible", "workspace"),
)

#: The longest name that fits counts.
BELOW_THE_DAEMON: Mapping[str, Room] = {
    "records": Room(0, LEAVES),
    "errors": Room(0, LEAVES),
    # The one list of log actions.
    "actions": Room(0),
    "log": Room(0, (*LEAVES, "journald", "masking", "stderr", "console")),
    # Knows how systemd's journal wants its lines; `log` alone speaks to it.
    "journald": Room(0),
    "stderr": Room(0),
    "console": Room(0, LEAVES),
    "fitting": Room(0),
    "backoff": Room(0),
    "cadence": Room(0),
    # Makes all decoders, one at a time.
    "decoders": Room(0),
    # What the folders of a spool need on their disks; the daemon and `check` look.
    "free_room": Room(0),
    # Whether they answer at all.
    "silent_paths": Room(0, ("errors", "mounts")),
    # What is mounted where.
    "mounts": Room(0),
    # Work that may hang, in threads of its own.
    "aside": Room(0),
    "masking": Room(0, LEAVES),
    "sealing": Room(0, LEAVES),
    "trees": Room(0, LEAVES),
    "children": Room(0),
    "installation": Room(0),
    "users": Room(0),
    "imports": Room(0),
    # Which models there are, and which end when.
    "catalog": Room(0, LEAVES),
    "config": Room(1),
    "events": Room(1),
    "taskstate": Room(1, ("events",)),
    # Reads the tables of prices as the configuration has them.
    "pricing": Room(1, ("config",)),
    "tokens": Room(1),
    "llm": Room(2, ("tokens",)),
    "sandbox": Room(2, ("aside",)),
    "spool": Room(2, ("config",)),
    # Clones, copies and patches: git in the sandbox. Tasks' side of it and the daemon's.
    "workspace": Room(2, ("sandbox", "spool.files")),
    # The data classes that `results` fills, apart because the room outgrew itself.
    "formats": Room(2),
    # Whether commands would see anything of batchd's own.
    "visible": Room(3, ("config", "sandbox")),
    "results": Room(2, (*EVENTS, "pricing", "formats")),
    "lifecycle": Room(2, EVENTS),
    "governor": Room(2, ("pricing", "config")),
    "store": Room(2, EVENTS),
    "wire": Room(2, EVENTS),
    # What an event is in words: the daemon's log has them too, hence below it.
    "views": Room(2, (*EVENTS, "words")),
    # Numbers and spans of time as people read them; pure.
    "words": Room(1),
    "terms": Room(2, ("config", "pricing", "events")),
    "agent": Room(3, ("llm", "sandbox", "workspace", *EVENTS, "tokens", "pricing", "wire")),
    "pool": Room(4, ("wire",)),
    # What is kept of directories that come from the daemon's machine, and how they come and go.
    "pool.cache": Room(4, ("sandbox", "workspace")),
    "pool.travel": Room(4, ("pool.cache", "agent", "sandbox", "workspace", "wire")),
    # What an agent has of its worker.
    "pool.agent_services": Room(
        4,
        ("pool", "wire", "agent", "results", "spool.patch_files", "llm", "sandbox", *EVENTS),
    ),
    # The child joins the agent's rooms, and carries events from them to the wire.
    "pool.worker": Room(
        4,
        (
            "pool",
            "wire",
            "pool.agent_services",
            "agent",
            "results",
            "spool.outbox",
            "llm",
            "sandbox",
            *EVENTS,
        ),
    ),
    # How workers of other machines join; the certificate is a file of the spool's.
    "pool.joining": Room(4, ("pool", "wire", "spool.files")),
    # The program that a keeper starts: the worker itself.
    "pool.joining.__main__": Room(4, ("pool.joining", "pool", "pool.worker", "agent")),
    # Where workers are started.
    "pool.engines": Room(4, ("pool", "pool.joining", "pool.fork_server")),
    # What the fork server loads first of all.
    "pool.sealed": Room(4, ()),
    # The fork server itself, which commands start before they load the daemon.
    "pool.fork_server": Room(4, ()),
    # Names what the fork server loads ahead.
    "pool.preload": Room(4, ("pool", "llm", "tokens")),
    "control": Room(4),
}
ROOMS: Mapping[str, Room] = {
    **BELOW_THE_DAEMON,
    "daemon": Room(5, tuple(BELOW_THE_DAEMON)),
    # What all faces look at: how things stand, and what a task did.
    "observe": Room(5, ("control", "store", "formats", "views", "words", *EVENTS)),
    # What a batch may cost before it runs:
    # counted as the agent counts, from what the store has seen.
    "estimate": Room(
        5, ("agent", "config", "pricing", "sandbox", "store", "terms", "tokens", *EVENTS)
    ),
    "report": Room(6, FACES),
    "notify": Room(6, FACES),
    "telemetry": Room(6, FACES),
    "web": Room(6, FACES),
    "demo": Room(6, FACES),
    "cli": Room(
        6,
        (
            *FACES,
            "demo",
            "notify",
            "telemetry",
            "web",
            "pool.fork_server",
            "pool.joining",
            "pool.cache",
        ),
    ),
    "__main__": Room(6, ("cli",)),
}


def _within(module: str, name: str) -> bool:
    return module == name or module.startswith(f"{name}.")


def _room(module: str) -> str:
    return max((r for r in ROOMS if _within(module, r)), key=len, default="")


def _modules(package: Path) -> dict[str, Path]:
    """Return every module below ``package`` by its name within it; the package itself is ``""``."""
    names = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def _imports(tree: ast.AST, package: str, known: Mapping[str, Path]) -> Iterator[str]:
    """Yield the modules of ``package`` that a module imports: at any depth, for types only too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute, so that the arrows can be read"
            base = node.module or ""
            names = [
                name if name.removeprefix(f"{package}.") in known else base
                for name in (f"{base}.{a.name}" for a in node.names)
            ]
        else:
            continue
        for name in names:
            if name.startswith(f"{package}."):
                yield name.removeprefix(f"{package}.")


def arrows(package: Path) -> dict[str, set[str]]:
    """Return who imports whom below ``package``."""
    known = _modules(package)
    return {
        module: set(_imports(ast.parse(path.read_text("utf-8")), package.name, known))
        for module, path in known.items()
    }


def forbidden(graph: Mapping[str, set[str]]) -> list[str]:
    """Return a line for each arrow that the table does not have."""
    wrong = []
    for source, targets in sorted(graph.items()):
        if source and not _room(source):
            wrong.append(f"{source} is in no room of the table of floors")
            continue
        for target in sorted(targets):
            here, there = _room(source), _room(target)
            allowed = (*ROOMS[here].may, *LEAVES, here) if here else LEAVES
            if any(_within(target, name) for name in allowed):
                continue
            upward = there and here and ROOMS[there].floor > ROOMS[here].floor
            wrong.append(
                f"{source} → {target}: "
                + (
                    f"points upward, from floor {ROOMS[here].floor} to {ROOMS[there].floor}"
                    if upward
                    else f"{here or 'the package itself'} may import only {', '.join(allowed)}"
                )
            )
    return wrong


def circles(graph: Mapping[str, set[str]]) -> list[str]:
    """Return a line for each circle of imports."""
    found: dict[frozenset[str], str] = {}
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            circle = path[path.index(module) :]
            found.setdefault(frozenset(circle), " → ".join((*circle, module)))
        elif module not in done:
            for target in sorted(graph.get(module, ())):
                walk(target, (*path, module))
            done.add(module)

    for module in sorted(graph):
        walk(module, ())
    return list(found.values())


def test_every_import_is_an_arrow_of_the_table() -> None:
    """No module imports what the table of floors does not grant it."""
    assert forbidden(arrows(ROOT / "batchd")) == []


def test_no_circles() -> None:
    """No module imports itself by way of others, not even for types."""
    assert circles(arrows(ROOT / "batchd")) == []


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        (
            {"pricing.py": "from batchd.store import Reader", "store.py": ""},
            "pricing → store: points upward, from floor 1 to 2",
        ),
        (
            {"llm/model_client.py": "def f():\n    import batchd.pricing", "pricing.py": ""},
            "llm.model_client → pricing: llm may import only tokens, records, errors, actions, log, masking, sealing, trees, children, catalog, installation, users, imports, fitting, backoff, cadence, decoders, free_room, silent_paths, mounts, llm",
        ),
        (
            {
                "records.py": "if TYPE_CHECKING:\n    from batchd import daemon",
                "daemon/__init__.py": "",
            },
            "records → daemon: points upward, from floor 0 to 5",
        ),
        ({"helpers.py": ""}, "helpers is in no room of the table of floors"),
        (
            {"errors.py": "from batchd import log", "log.py": "from batchd.errors import X"},
            "errors → log → errors",
        ),
    ],
)
def test_a_forbidden_arrow_is_named(
    tmp_path: Path, files: Mapping[str, str], complaint: str
) -> None:
    """The check itself works: a tree with one wrong arrow,
    hidden or plain, is reported by its name.
    """
    for name, text in {"__init__.py": "", **files}.items():
        (tmp_path / "batchd" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "batchd" / name).write_text(text)
    graph = arrows(tmp_path / "batchd")
    assert [*forbidden(graph), *circles(graph)] == [complaint]


def test_a_clean_tree_has_no_complaints(tmp_path: Path) -> None:
    """The check does not cry wolf: arrows of the table pass."""
    (tmp_path / "batchd").mkdir()
    (tmp_path / "batchd" / "__init__.py").write_text("")
    (tmp_path / "batchd" / "events.py").write_text("from batchd.records import Task\n")
    (tmp_path / "batchd" / "records.py").write_text("import json\n")
    (tmp_path / "batchd" / "store.py").write_text("from batchd import events, records\n")
    graph = arrows(tmp_path / "batchd")
    assert graph["store"] == {"events", "records"}
    assert forbidden(graph) + circles(graph) == []


def _tracked() -> list[Path]:
    git = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if git.returncode:
        pytest.skip("not a git checkout")
    return [p for name in git.stdout.decode().split("\0") if (p := ROOT / name).is_file()]


def test_no_file_names_this_machine() -> None:
    """What is committed names no path of the machine it was written on, and no package host."""
    # Written in pieces, so that this file is not its own finding.
    words = ("work/(main|shared|steering|\\.library)", "tmp/(play|notes)", "root/\\.pyenv")
    mark = re.compile("|".join((*(f"/{w}\\b" for w in words), "--(extra-)?index-" + "url")))
    found = []
    for path in _tracked():
        text = path.read_bytes().decode("utf-8", "replace")
        found += [f"{path.relative_to(ROOT)}: {m.group()}" for m in mark.finditer(text)]
    assert found == []


def test_every_dependency_is_pinned() -> None:
    """Each package that pyproject.toml asks for, build and tools included:
    Ray has a file of its own.
    """
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for file in ("constraints.txt", "constraints-cluster.txt")
        for line in (ROOT / file).read_text().splitlines()
        if "==" in line
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [
        *project["project"]["dependencies"],
        *(name for extra in project["project"]["optional-dependencies"].values() for name in extra),
        *project["dependency-groups"]["dev"],
        *project["build-system"]["requires"],
    ]
    names = {re.split(r"[\[<>=~!; ]", w, maxsplit=1)[0].lower() for w in wanted}
    assert "prometheus-client" in names
    # An extra may name another one.
    assert names - {"batchd"} <= pinned
