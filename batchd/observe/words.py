"""How numbers, spans of time and what waits are told to people."""

from __future__ import annotations

import time
from collections.abc import Sequence

from batchd.log import escape
from batchd.records import dollars

#: Names that one line has room for.
_NAMED = 5


def counted(count: int, noun: str) -> str:
    """Return ``1 task``, ``2,000 tasks``, ``3 batches``."""
    plural = "es" if noun.endswith("ch") else "s"
    return f"{count:,} {noun}{'' if count == 1 else plural}"


def listed(names: Sequence[str]) -> str:
    """Return names as people list them; of many, the first."""
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def money(usd: float | None) -> str:
    """Return dollars, in the digits that matter."""
    return "unknown" if usd is None else dollars(usd)


def at_least(usd: float | None, known: float) -> str:
    """Return what was spent or, where the price of a part is missing, what the rest came to: ``> $0.0326``."""
    return f"> {money(known)}" if usd is None and known else money(usd)


def limit(usd: float) -> str:
    """Return what may be spent, as people write it: ``$0.05``, ``$20.00``."""
    return f"${usd:,.2f}" if round(usd, 2) == usd else money(usd)


def compact(count: float) -> str:
    """Return a count in three digits or so: ``950``, ``12.3k``, ``4.56M``."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit * 0.9995:
            part = count / unit
            digits = 2 if part < 9.995 else 1 if part < 99.95 else 0  # noqa: PLR2004 (three in all)
            return f"{part:.{digits}f}{letter}"
    return f"{count:.0f}"


def duration(seconds: float | None) -> str:
    """Return ``4.2 s``, ``12:05``, ``3:12:05``."""
    if seconds is None:
        return ""
    if seconds < 60:  # noqa: PLR2004 (a minute)
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def span(seconds: float) -> str:
    """Return a span of time that goes on, in whole seconds: ``4 s``, ``12:05``."""
    return f"{seconds:.0f} s" if seconds < 59.5 else duration(round(seconds))  # noqa: PLR2004 (a minute)


def moment(at: float | None) -> str:
    """Return a moment in local time, as short as it can be told."""
    if not at:
        return ""
    now = time.localtime()
    then = time.localtime(at)
    same_day = then[:3] == now[:3]
    return time.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M", then)


def named(scope: str, name: str) -> str:
    """Return a scope as people call it."""
    words = {
        "": "everything that was parked",
        "all": "everything",
        "day": "the day's budget",
        "provider": f"provider {name}",
        "batch": f"batch {name}",
        "task": f"task {name}",
    }
    return escape(words[scope])


def option(scope: str, name: str) -> str:
    """Return the arguments of ``resume`` that mean a scope."""
    options = {"all": "--all", "provider": f"--provider {name}", "batch": name, "task": name}
    return options.get(scope, "")
