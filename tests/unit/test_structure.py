"""Holds the house to its floors: an import goes down, or stays on its floor, and in no circle."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: The rooms of each floor, the lowest first.
FLOORS = (
    "children console decoders errors free_room gone installation log masking pauses processes"
    " records silent_paths trees users version words",
    "catalog config events formats lifecycle pricing results taskstate terms tokens views wire",
    "control governor llm sandbox spool store workspace",
    "agent",
    "pool",
    "daemon estimate observe",
    "__main__ api cli demo notify telemetry web",
)


def _imports(path: Path) -> Iterator[str]:
    """Yield the rooms of batchd that a module imports: at any depth, for types only too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "batchd":
            names = [f"batchd.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("batchd."))


def _upward(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    floor = {room: at for at, rooms in enumerate(FLOORS) for room in rooms.split()}
    assert graph.keys() == floor.keys()
    return [(room, to) for room, found in graph.items() for to in found if floor[to] > floor[room]]


def test_an_import_goes_down_or_stays_on_its_floor(tmp_path: Path) -> None:
    """No room imports one above it; between two rooms all imports go one way."""
    graph: dict[str, set[str]] = {}
    for path in (ROOT / "batchd").rglob("*.py"):
        room = path.relative_to(ROOT / "batchd").parts[0].removesuffix(".py")
        if room != "__init__":
            graph.setdefault(room, set()).update({*_imports(path)} - {room})
    assert _upward(graph) == []
    assert [*graphlib.TopologicalSorter(graph).static_order()]  # raises for a circle
    # One that is made up is found, and with it the circle.
    made_up = tmp_path / "made_up.py"
    made_up.write_text("def late():\n    from batchd import cli\n")
    graph["sandbox"].update(_imports(made_up))
    assert _upward(graph) == [("sandbox", "cli")]
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(graph).prepare()


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
