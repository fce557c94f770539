"""Paths of the machine that commands see: /usr, a little of /etc, and what ``show`` and ``hide`` of
``[sandbox]`` say; and the cover over it: what is hidden, and sockets, to which a read-only mount
does not prevent connecting.

All of it by real paths: what a link of the machine leads to is what counts, and where it lies
inside, too. Sockets are found by the kernel's list, which is read when a place is opened. Where a
name of it leads to a socket, that is covered, wherever commands see it. One that was made by a
relative name, or has another name since, is not found.
"""

from __future__ import annotations

import functools
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from batchd.errors import Problem, SandboxError
from batchd.records import SHOWABLE, OwnPath, SandboxPolicy
from batchd.silent_paths import Mount, holding, mounts, moved, within

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
#: More cannot be hidden: each takes every command some 20 µs.
MAX_HIDDEN_SOCKETS = 250
#: The sockets of this process's network, a line each; a name may hold the end of one.
_LIST = Path("/proc/net/unix")
_NAME = re.compile(
    rb"^[0-9a-f]+: (?:[0-9A-F]+ ){5} *\d+ (/.*?)(?=\n[0-9a-f]+: |\n?\Z)", re.M | re.S
)

#: What is covered, each with what distinguishes it from all others: None, nothing is there.
Covered: TypeAlias = Mapping[str, tuple[int, int, int] | None]


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
    leading = (Path("/", name) for name in LEADING)
    found = [Path("/usr"), *(p for p in leading if p.is_dir() and not p.is_symlink())]
    found += (path for pattern in patterns for path in sorted(_ETC_ROOT.glob(pattern)))
    return tuple((str(path), os.path.realpath(path)) for path in found)


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


class Cover:
    """The cover of one place: what it has found once is covered for all of its commands."""

    def __init__(self, seen: ShownPaths, found: tuple[str, ...] | None = None) -> None:
        """``found``: the sockets, where they are not to be looked for."""
        self._shown = seen
        self._found = found

    def fresh(self) -> Cover:
        """Return one that looks again."""
        return Cover(self._shown)

    def look(self) -> Covered:
        """Look for sockets, unless that was done;
        return what a command that begins now has covered.

        Raises ``SandboxError``.
        """
        if self._found is None:
            self._found = sockets(self._shown)
        return self._covered()

    def gone(self, covered: Covered) -> bool:
        """Return whether something is not what it was, so that it could not be covered:
        then ``look`` looks again.
        """
        now = self._covered()
        # What was away at both moments may have been there, and gone again, in between.
        if now == covered and all(now[path] for path in self._found or ()):
            return False
        self._found = None
        return True

    def _covered(self) -> Covered:
        hidden = (rule.path for rule in self._shown.rules if not rule.seen)
        return {path: _identity(path) for path in (*(self._found or ()), *hidden)}

    def options(self) -> list[str]:
        """Return what bwrap does for a command that begins now:
        what has gone by now cannot be covered.
        """
        covers = [covered(path) for path in filter(_is_socket, self._found or ())]
        more = (word for cover in covers for word in (*cover, *still(cover)))
        return [*self._shown.options(), *more]


def sockets(seen: ShownPaths) -> tuple[str, ...]:
    """Return the paths of the sockets that commands would see, as the kernel lists them.

    Raises ``SandboxError`` for more than can be hidden, and where the kernel shows no list.
    """
    try:
        table = mounts()
        names = {os.fsdecode(name) for name in _NAME.findall(_LIST.read_bytes())}
    except OSError as error:
        raise SandboxError(f"the kernel does not say which sockets there are: {error}") from error
    real = functools.cache(_real)  # many lie in one folder
    paths = (os.path.join(real(os.path.dirname(name)), os.path.basename(name)) for name in names)
    places = (place for path in paths for place in _places(path, table))
    found = {place for place in places if seen.within(place) and _is_socket(place)}
    if len(found) > MAX_HIDDEN_SOCKETS:
        raise SandboxError(
            f"{len(found):,} sockets lie below what commands see, {min(found)} among them, and only"
            f" {MAX_HIDDEN_SOCKETS} can be hidden: hide their folder with [sandbox] hide"
        )
    return tuple(sorted(found))


def _real(folder: str) -> str:
    """Return a folder's real path. A link on the way that goes meanwhile leads nowhere:
    so may those of /proc, by whose names programs make sockets.
    """
    try:
        return os.path.realpath(folder)
    except OSError:  # from CPython's own look, between two of its calls
        return folder


def _places(path: str, table: Sequence[Mount]) -> Iterator[str]:
    """Yield where else a file is found, whose real path this is, and there:
    its folder, or itself, may be mounted elsewhere too.
    """
    yield path
    mount = holding(table, path)
    if mount is not None:
        inner = moved(path, mount.place, mount.root)
        for other in table:
            if other.device == mount.device and within(inner, other.root):
                yield moved(inner, other.root, other.place)


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False


def _identity(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns
