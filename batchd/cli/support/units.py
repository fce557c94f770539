"""The shipped units, filled in for where batchd is installed;
and whether a unit could reach that at all.
"""

from __future__ import annotations

import importlib.resources
import os
import re
import stat
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path

from batchd import installation
from batchd.errors import NotPossibleError

#: What each kind of unit hides of the machine, and the line that says so.
_TMP = {"/tmp": "PrivateTmp=yes", "/var/tmp": "PrivateTmp=yes"}  # noqa: S108 (nothing is put there)
_HOMES = dict.fromkeys(("/home", "/root", "/run/user"), "ProtectHome=yes")
_CODE = Path(__file__).parents[2]


def shipped(name: str) -> str:
    """Return a unit as it is shipped: with the package, or beside it in a checkout.

    Raises ``NotPossibleError``.
    """
    places: Sequence[Traversable] = (
        importlib.resources.files("batchd") / "data" / "systemd" / name,
        _CODE.parent / "systemd" / name,
    )
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise NotPossibleError(f"this installation of batchd has no {name}: install batchd again")
    return found.read_text("utf-8")


def filled(text: str, values: Mapping[str, str], remark: str) -> str:
    """Return a unit with other values of some keys,
    and ``remark`` in the place of its first comment.
    """
    _, _, rest = text.partition("[Unit]\n")
    for key, value in values.items():
        # As a function: a path may hold what a pattern's replacement would obey.
        rest, count = re.subn(rf"(?m)^{key}=.*$", lambda _, v=f"{key}={value}": v, rest)  # type: ignore[misc]
        assert count == 1, f"the unit says {key}= {count} times"
    return f"{remark}\n[Unit]\n{rest}"


def plain(path: str) -> str:
    """Return a path as a unit has it that takes the rest of the line.

    Raises ``NotPossibleError``.
    """
    if not path.isprintable():
        raise NotPossibleError(f"{path!a}: a unit cannot name it")
    return path.replace("%", "%%")


def word(path: str, *, command: bool = False) -> str:
    """Return a path as one word of a unit's line; ``command``: of one that is run."""
    text = plain(path).replace("$", "$$") if command else plain(path)
    if re.fullmatch(r"[\w./:@%+,=~$-]+", text):
        return text
    quoted = text.replace("\\", r"\\").replace('"', r"\"")
    return f'"{quoted}"'


def program() -> Path:
    """Return the program `batchd`, as a unit is to start it. Raises ``NotPossibleError``."""
    called = Path(sys.argv[0])
    places = [called.absolute()] if called.name == "batchd" else []
    places.append(Path(sysconfig.get_path("scripts"), "batchd"))
    for place in places:
        if place.is_file() and os.access(place, os.X_OK):
            return place
    raise NotPossibleError(
        f"there is no program {places[-1]}: install batchd, and call it by that name"
    )


def reach(paths: Iterable[str], *, system: bool) -> None:
    """Insist that a unit reaches what it is to use.

    Raises ``NotPossibleError``, with the way out.
    """
    hidden = {**_TMP, **(_HOMES if system else {})}
    for path in paths:
        for place in (path, os.path.realpath(path)):
            for top, line in hidden.items():
                if place == top or place.startswith(f"{top}/"):
                    raise NotPossibleError(
                        f"the unit cannot reach {place}: it hides {top} ({line})\n{_elsewhere(system=system)}"
                    )
        if system and (closed := _closed(path)):
            raise NotPossibleError(
                f"the unit's user cannot read {path}: {closed} is closed to others\n  chmod o+rx {closed}"
            )


def installed() -> list[str]:
    """Return what a unit must reach to run batchd:
    the program, its packages, and the Python below them.
    """
    return [str(program()), str(_CODE), sys.prefix, sys.base_prefix, sys.executable]


def _elsewhere(*, system: bool) -> str:
    """Return how to have batchd where a unit reaches it, from what this one was installed from."""
    if not system:
        return "install batchd, and make the spool, in another place, such as below your home"
    if checkout := installation.checkout():
        make = "sudo make -C /opt/batchd setup PYTHON=/usr/bin/python3"
        lines = [f"sudo git clone {checkout} /opt/batchd && {make}"]
        there = "/opt/batchd/.venv/bin/batchd"
    else:
        lines = [
            "sudo /usr/bin/python3 -m venv /opt/batchd",
            "sudo /opt/batchd/bin/pip install WHEEL    # the file that this one came from",
        ]
        there = "/opt/batchd/bin/batchd"
    lines.append(f"sudo {there} init --systemd")
    what = ["install it where it can be reached:", *(f"  {line}" for line in lines)]
    return "\n".join([*what, "or take a service of your own: batchd init --systemd --user"])


def _closed(path: str) -> Path | None:
    """Return what of a path keeps other users out."""
    real = Path(path).resolve()
    for place in (*reversed(real.parents), real):
        mode = place.stat().st_mode
        needed = stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH
        if not mode & needed:
            return place
    return None
