"""Paths of the machine that commands see: /usr, a little of /etc,
and what ``show`` and ``hide`` of ``[sandbox]`` say.

All of it by real paths: what a link of the machine leads
to is what counts, and where it lies inside, too.
"""

from __future__ import annotations

import functools
import json
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from batchd.errors import Problem
from batchd.records import SHOWABLE, OwnPath, SandboxPolicy
from batchd.silent_paths import within

#: What leads to /usr; where it is a folder of its own, it is shown like that.
LEADING = ("bin", "sbin", "lib", "lib32", "lib64")
#: Of /etc, what programs need and what holds no secret. Shell patterns.
_ETC = (
    *("alternatives", "crypto-policies", "fonts", "java-*-openjdk", "ld.so.cache", "localtime"),
    *("pki/ca-trust", "pki/tls/certs", "services", "ssl/certs", "ssl/openssl.cnf"),
)
_ETC_ROOT = Path("/etc")
_ETC_NETWORK = ("resolv.conf", "hosts")
#: A folder in the place of one that is hidden has no room, and needs none (bytes).
_NO_ROOM = "65536"


@dataclass(frozen=True, slots=True)
class PathRule:
    """A path that is shown or hidden, with all below it."""

    path: str
    seen: bool


@dataclass(frozen=True, slots=True)
class ShownPaths:
    """The paths that commands see."""

    #: What is there without being asked for: where commands find it, and its real path.
    always: tuple[tuple[str, str], ...]
    #: What is shown or hidden beside, the outer before the inner.
    rules: tuple[PathRule, ...] = ()
    #: Names that lead to what is shown, and where they lead.
    links: tuple[tuple[str, str], ...] = ()

    def within(self, path: str) -> str:
        """Return what it is that commands see, and that a real path lies in;
        empty: they do not see it.
        """
        rule = next((r for r in reversed(self.rules) if within(path, r.path)), None)
        if rule is not None:
            return rule.path if rule.seen else ""
        return next((real for _, real in self.always if within(path, real)), "")

    def below(self, path: str) -> str:
        """Return something that commands see at or below a real path; empty: nothing."""
        return next((root for root in self.roots() if within(root, path)), "")

    def roots(self) -> Iterator[str]:
        """Yield the real paths below which all lies that is shown;
        what lies there may be hidden.
        """
        reals = dict.fromkeys(real for _, real in self.always)
        for real in reals:
            if not any(within(real, other) for other in reals if other != real):
                yield real
        yield from (rule.path for rule in self.rules if rule.seen)

    def hides(self, path: str) -> bool:
        """Return whether a real path is one that is hidden,
        with all below it that is not shown by itself.
        """
        return PathRule(path, seen=False) in self.rules

    def options(self) -> list[str]:
        """Return what bwrap does for ``show`` and ``hide``: after what is always there,
        before / becomes read-only.
        """
        options: list[str] = []
        last: list[str] = []
        for end, rule in enumerate(self.rules):
            there = ShownPaths(self.always, self.rules[:end]).within(rule.path)
            if rule.seen and not there and os.path.lexists(rule.path):
                options += [*_above(rule.path), "--ro-bind-try", rule.path, rule.path]
            elif there and not rule.seen:
                cover = covered(rule.path)
                options += cover
                last += still(cover)
        for name, real in self.links:
            if not self.within(os.path.dirname(name)):
                options += [*_above(name), "--symlink", real, name]
        return [*options, *last]


def of(policy: SandboxPolicy, *, network: bool) -> ShownPaths:
    """Return what commands see as the machine is now.

    Raises ``ValueError`` for a link that leads elsewhere.
    """
    if not (policy.show or policy.hide):
        return ShownPaths(_always(network=network))
    hidden = {os.path.realpath(path) for path in policy.hide}
    shown = dict(_led(path) for path in policy.show)
    rules = {PathRule(path, seen=path not in hidden) for path in (*hidden, *shown.values())}
    names = (*policy.hide, *hidden)
    return ShownPaths(
        tuple(
            (place, real)
            for place, real in _always(network=network)
            if not any(within(place, name) or within(real, name) for name in names)
        ),
        tuple(sorted(rules, key=lambda rule: (rule.path.count("/"), rule.path))),
        tuple((name, real) for name, real in shown.items() if name != real and real not in hidden),
    )


def seen(
    policy: SandboxPolicy, places: Iterable[OwnPath], *, around: bool = True
) -> Iterator[Problem]:
    """Yield which of these places commands see something of, each with the fix.

    Raises ``ValueError`` as ``of`` does.

    ``around``: those too in which something lies that they see.
    """
    if policy.backend == "none":
        return  # they see all that their user does
    shown = of(policy, network=policy.network is True)
    for place in places:
        real = os.path.realpath(place.path)
        name = place.path if place.path == real else f"{place.path} ({real})"
        if outer := shown.within(real):
            yield Problem(place.key, f"{name} lies in {outer}, which commands see", _fix(real))
        elif around and (inner := shown.below(real)):
            yield Problem(
                place.key, f"{name} holds {inner}, which commands see", "move one of them"
            )


def covered(path: str) -> list[str]:
    """Return what bwrap does to hide a path: an empty folder, or a file that no one can open.

    Nothing is there: nothing.

    Of what lies in a folder that this process may enter and not list,
    that whole folder: bwrap finds no way into it.
    """
    for above in reversed(Path(path).parents):
        if not os.access(above, os.R_OK):
            path = str(above)
            break
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return []  # nor can a command get there: it may do no more than this process
    if stat.S_ISDIR(mode):
        return ["--perms", "0555", "--size", _NO_ROOM, "--tmpfs", path]
    return [] if stat.S_ISLNK(mode) else ["--ro-bind", os.devnull, path]


def still(cover: list[str]) -> list[str]:
    """Return what has a cover stay as it is, once all that is shown in it is there."""
    return ["--remount-ro", cover[-1]] if "--tmpfs" in cover else []


def folder(path: str) -> list[str]:
    """Return what bwrap does to have a folder: missing parents it makes for their owner alone."""
    return ["--perms", "0755", "--dir", path]


@functools.cache
def _always(*, network: bool) -> tuple[tuple[str, str], ...]:
    patterns = (*_ETC, *(_ETC_NETWORK if network else ()))
    found = [Path("/usr"), *(p for name in LEADING if _apart(p := Path("/", name)))]
    found += (path for pattern in patterns for path in sorted(_ETC_ROOT.glob(pattern)))
    return tuple((str(path), os.path.realpath(path)) for path in found)


def _apart(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _led(path: str) -> tuple[str, str]:
    """Return a path of ``show`` and where it leads.

    Raises ``ValueError``: to what cannot be shown.
    """
    real = os.path.realpath(path)
    if real != "/etc" and any(within(real, os.path.realpath(top)) for top in SHOWABLE):
        return path, real
    raise ValueError(
        f"[sandbox] show: {path} leads to {real}, which is not below {', '.join(SHOWABLE)}:"
        " take it out, or put there what it leads to"
    )


def _above(path: str) -> list[str]:
    """Return what bwrap does to have the folders above a path."""
    above = [str(parent) for parent in reversed(Path(path).parents)]
    return [word for parent in above[1:] for word in folder(parent)]


def _fix(real: str) -> str:
    if any(within(real, top) for top in SHOWABLE):
        name = json.dumps(real, ensure_ascii=False)
        return f"move it, or hide it from them in [sandbox]: hide = [{name}]"
    return "move it"
