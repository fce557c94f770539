"""The installation of this batchd, and so how one adds the packages of an extra:
no index may have batchd itself.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

#: What the package lies in: a checkout, or where packages are.
_PLACE = Path(__file__).parents[1]


def checkout() -> Path | None:
    """Return the checkout that this one runs from, if it does."""
    return _PLACE if (_PLACE / "pyproject.toml").exists() else None


def fix(extra: str) -> str:
    """Return the command that adds what an extra needs, for a shell."""
    wanted = _requirements(extra)
    if not wanted:  # it runs from a checkout, and is not installed at all
        return shlex.join(["make", "-C", str(_PLACE), "setup"])
    return shlex.join([*_adding(), *wanted])


def page(name: str) -> str:
    """Return where a page of the documentation lies, such as ``docs/tasks.md``;
    in a checkout, by its name there.
    """
    shipped = Path(sys.prefix, "share/doc/batchd", name)
    return str(shipped) if checkout() is None and shipped.exists() else name


def _requirements(extra: str) -> list[str]:
    """Return what the installed distribution asks for in an extra."""
    from importlib import metadata  # only where something is missing

    try:
        needed = metadata.requires("batchd") or []
    except metadata.PackageNotFoundError:
        return []
    of_it = re.compile(rf"""extra == ['"]{re.escape(extra)}['"]""")
    parted = (requirement.partition(";") for requirement in needed)
    return [what.strip() for what, _, condition in parted if of_it.search(condition)]


def _adding() -> Iterator[str]:
    """Yield the words of a command that installs what comes behind them beside batchd."""
    place = sysconfig.get_path("purelib") if checkout() else _PLACE
    if not os.access(place, os.W_OK):
        yield "sudo"
    if Path(sys.prefix, "pipx_metadata.json").exists():
        yield from ("pipx", "inject")
        yield Path(sys.prefix).name
        return
    # `uv tool install --with` would look for batchd itself, and forget what was added before.
    if Path(sys.prefix, "uv-receipt.toml").exists() or importlib.util.find_spec("pip") is None:
        yield from ("uv", "pip", "install", "--python", sys.executable)
    else:
        yield from (sys.executable, "-m", "pip", "install")
    if folder := checkout():
        yield from ("-c", str(folder / "constraints.txt"))
