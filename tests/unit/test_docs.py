"""The pages of the documentation lead where they say, and agree with each other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from batchd.records import TaskLimits

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *GUIDES]


def _links(page: Path) -> Iterator[str]:
    """Return where a page's links go, as they are written; code holds none."""
    text = re.sub(r"^    .*$|`[^`]*`", "", page.read_text(), flags=re.MULTILINE)
    return (m[1] for m in re.finditer(r"\]\(([^)\s]+)\)", text))


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    assert len(set(headings)) == len(headings), f"{page.name} has a heading twice"
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_links_resolve() -> None:
    """Each relative link names a file that is there, and a heading in it."""
    broken = []
    for page in PAGES:
        for link in _links(page):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if "://" in link or (target.is_file() and (not anchor or anchor in _anchors(target))):
                continue
            broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert not broken


def test_the_rooms_that_are_named_are_there() -> None:
    """Each path of docs/architecture.md is one of the code: below the room that a row names first,
    in it, or from the top.
    """
    gone = []
    for line in (ROOT / "docs/architecture.md").read_text().splitlines():
        room = ""
        for path in re.findall(r"`([\w/]+(?:\.py|/))`", line):
            place = next(
                (top for top in ("batchd", f"batchd/{room}", ".") if (ROOT / top / path).exists()),
                None,
            )
            if place is None:
                gone.append(path)
            elif "/" in path:
                room = path.rpartition("/")[0]
    assert not gone


def test_the_readme_leads_everywhere() -> None:
    """A reader of the README finds the index, and there each guide and how to contribute."""
    index = ROOT / "docs/README.md"
    assert "docs/README.md" in _links(ROOT / "README.md")
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in _links(index)}
    assert {*GUIDES, ROOT / "CONTRIBUTING.md"} - {index} <= linked


def test_limits_are_documented_as_they_are_defined() -> None:
    """config.toml and the guide have each limit with its default and its meaning,
    in the order and the words of its definition.
    """
    lines, rows = [], []
    for name, kind in get_type_hints(TaskLimits, include_extras=True).items():
        default, meaning = getattr(TaskLimits(), name), kind.__metadata__[-1].text
        lines.append(f"{f'{name} = {default}':<31} # {meaning}")
        rows.append(f"| `{name}` | {default:g} | {_zero(kind)} | {meaning} |")
    _, _, table = (ROOT / "config.toml").read_text().partition("\n[limits] ")
    assert table.partition("\n\n")[0].splitlines()[1:] == lines
    _, _, table = (ROOT / "docs/tasks.md").read_text().partition("\n### Limits\n\n")
    assert table.partition("\n\n")[0].splitlines()[2:] == rows


def _zero(kind: Any) -> str:
    """Return what 0 is among numbers of a kind."""
    try:
        TypeAdapter(kind).validate_python(0)
    except ValidationError:
        return "refused"
    return "no limit"


def test_what_the_program_names_is_there() -> None:
    """A page that commands, units, the configuration and the Makefile send people to exists,
    and so does the section.
    """
    named = 0
    files = (ROOT / name for name in ("Makefile", "config.toml", "Containerfile"))
    for path in [*files, *ROOT.glob("systemd/*"), *ROOT.glob("batchd/**/*.py")]:
        for name, anchor, heading in re.findall(
            r'\b((?:docs/)?[\w-]+\.md)(?:#([\w-]+))?(?:, "([^"]+)")?', path.read_text()
        ):
            if not name.startswith(("docs/", "README", "CONTRIBUTING")):
                continue
            named += 1
            text = (ROOT / name).read_text()
            assert not heading or f"# {heading}\n" in text, f"{path.name}: {name}, {heading}"
            assert not anchor or anchor in _anchors(ROOT / name), f"{path.name}: {name}#{anchor}"
    assert named >= 5


def test_the_tests_of_the_threat_model_are_there() -> None:
    """Each test that the page names, as a file or by its own name, exists."""
    page = (ROOT / "docs/threat-model.md").read_text()
    named = {
        name.removesuffix(".py") for name in re.findall(r"`([\w/]*\btest_\w+(?:\.py)?)`", page)
    }
    files = {path.stem: path for path in (ROOT / "tests").rglob("test_*.py")}
    tests = {
        name
        for path in files.values()
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    for name in named:
        *folder, last = name.rsplit("/", 1)
        file = files.get(last)
        assert file or last in tests, name
        assert not folder or (ROOT / f"{name}.py").is_file(), name
    assert len(named) > 50


def test_figures_stand_once() -> None:
    """The README's numbers are those of the benchmarks' page, to the letter."""
    _, _, text = (ROOT / "README.md").read_text().partition("\n## Numbers\n")
    rows = re.findall(r"^\|.+\|$", text.partition("\n## ")[0], flags=re.MULTILINE)
    assert len(rows) > 5
    assert set(rows) <= set((ROOT / "docs/benchmarks.md").read_text().splitlines())
