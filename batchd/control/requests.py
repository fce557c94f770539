"""Requests over the control socket, what all orders have, and the JSON; of single ones, here are
those that no person types as an order.

The fields are those of the JSON, in its order. They only grow: another version leaves some out, or
says more. Empty text and null stand for what is not given, and unknown fields for nothing, so
versions understand each other. Structs, for they are made fifty times as fast as data classes, and
every command loads them.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import (
    Annotated,
    Any,
    ClassVar,
    Generic,
    Literal,
    Self,
    TypeAlias,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec

from batchd import decoders
from batchd.errors import UsageError
from batchd.records import TargetCounts

A = TypeVar("A")

#: Characters of a wrong value that are shown.
_SHOWN = 60
#: How msgspec says which field is wrong, or missing.
_FIELD = re.compile(r"`(?:\$\.)?(\w+)[^`]*`$")


class Field:
    """What a field of a request is to be, and which argument of a command line it is, if any."""

    def __init__(self, wanted: str, *flags: str, secret: bool = False, **options: Any) -> None:
        """``wanted``: for the message about something else. ``flags``: an option's, or the name of
        what stands alone; ``options``: more of what ``add_argument`` takes. ``secret``: it may hold
        some, and is not shown.
        """
        self.wanted = wanted
        self.flags = flags
        self.secret = secret
        self.options = options


class ControlRequest(msgspec.Struct, Generic[A], frozen=True):
    """A request; ``A`` is the class of its answer."""

    @classmethod
    def verb(cls) -> str:
        """Return what it is called: as its class, and its command."""
        return cls.__name__.lower()

    @classmethod
    def described(cls) -> Iterator[tuple[str, Field]]:
        """Yield what there is to say of its fields, in their order; a class variable that is said
        something of is an argument of the command alone.
        """
        for name, hint in get_type_hints(cls, include_extras=True).items():
            said = get_args(hint)[0] if get_origin(hint) is ClassVar else hint
            yield from ((name, each) for each in get_args(said) if isinstance(each, Field))


class Order(ControlRequest[A], frozen=True):
    """A request that people give: by a command, a button of the page, a key of `top`."""

    #: What stands below its help: how it is meant, and lines that work as they stand.
    epilog: ClassVar[str] = ""
    examples: ClassVar[tuple[str, ...]]
    #: What to do instead where no daemon runs; empty: it is carried out without one.
    needs_daemon: ClassVar[str] = ""
    #: Whether an order that is carried out twice does more than once.
    adds: ClassVar[bool] = False

    @classmethod
    def line(cls) -> str:
        """Return its line in the help."""
        said = (cls.__doc__ or cls.verb()).partition("\n")[0]
        return said[0].lower() + said[1:].removesuffix(".")

    @classmethod
    def arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments of its command."""
        for _, field in cls.described():
            if field.flags:
                parser.add_argument(*field.flags, **field.options)

    @classmethod
    def given(cls, args: argparse.Namespace) -> Self:
        """Return the order that a command line gives. Raises ``UsageError``."""
        return cls.of(vars(args))

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """Return the order that has these fields, of those that it knows and that are given."""
        return decoders.convert(known(cls, fields), cls)

    def command(self) -> str:
        """Return the command line that gives it: ``retry --failed games``."""
        values = msgspec.structs.asdict(self)
        options: list[str] = [self.verb()]
        names: list[str] = []
        for name, field in self.described():
            value = values.get(name)
            if isinstance(value, dict):
                value = tuple(f"{key}={text}" for key, text in value.items())
            if field.flags and not field.flags[0].startswith("-"):
                names += map(str, value if isinstance(value, tuple) else (value,))
            elif field.flags and value:
                options += [field.flags[0]] if value is True else [field.flags[0], str(value)]
        return shlex.join((*options, *names))

    def question(self, counts: TargetCounts) -> tuple[str, str]:
        """Return what page and `top` ask before it is given, and what the page says beside it.

        Raises ``UsageError`` where there is nothing to do.
        """
        raise NotImplementedError

    def say(self, answer: A) -> Iterator[str]:
        """Yield the lines of its answer."""
        raise NotImplementedError


# JSON


def fields(message: object) -> dict[str, Any]:
    """Return the fields of a request or an answer, as JSON has them."""
    found: dict[str, Any] = msgspec.to_builtins(message)
    if isinstance(message, ControlRequest):
        return {name: "" if value is None else value for name, value in found.items()}
    return found


def known(kind: type[ControlRequest[Any]], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is given of the fields that a request of this kind has."""
    return {
        name: given[name] for name in kind.__struct_fields__ if given.get(name) not in (None, "")
    }


def request(kind: type[ControlRequest[A]], given: Mapping[str, Any]) -> ControlRequest[A]:
    """Return the request that has these fields.

    Raises ``UsageError``, which says which field is wrong, what it is, and what it is to be.
    """
    there = known(kind, given)
    try:
        return decoders.convert(there, kind)
    except msgspec.ValidationError as error:
        found = _FIELD.search(str(error))
        name = found[1] if found else ""
        said = next((each for field, each in kind.described() if field == name), None)
        if said is None:
            raise UsageError(str(error)) from None
        if name not in there or said.secret:
            raise UsageError(said.wanted) from None
        raise UsageError(f"{name} is {_shown(there[name])}: {said.wanted}") from None


def answer(asked: ControlRequest[A], given: Mapping[str, Any]) -> A:
    """Return the answer that has these fields. Raises ``msgspec.ValidationError``."""
    (base,) = type(asked).__dict__["__orig_bases__"]
    (kind,) = get_args(base)
    converted: A = decoders.convert(given, kind)
    return converted


def _shown(value: object) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


# submit, detach

_BATCH = Field("a batch is text: its name")


class Submitted(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``Submit``: the batch is durable."""

    #: Empty: the daemon ends just now, and another one is to be asked.
    batch: str
    #: Tasks; 0: the file was refused, and its folder in the outbox says why.
    tasks: int
    #: An earlier ``run`` of the same file began it.
    again: bool = False


class Submit(ControlRequest[Submitted], frozen=True, kw_only=True):
    """Take a file up that lies claimed, or a batch that a ``run`` left half-finished:
    for a ``run``, which waits for its end.

    One of the two is given.
    A daemon that works for ``run`` alone gives a batch up when who asked for it is gone.
    """

    #: The ULID of a file in the folder for claims.
    claim: Annotated[str, Field("a claim is a ULID")] = ""
    batch: Annotated[str, _BATCH] = ""
    #: A hash of the file's path and bytes: the newest batch of the same that has not ended is gone
    #: on with, in place of a new one; empty: always a new one.
    run: str = ""
    #: So many of its tasks at a time, whatever the file says; 0: what that says.
    parallel: Annotated[int, Field("parallel is a number of tasks, from 0 on")] = 0


class Detached(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``Detach``: the batch goes on without those who asked for it."""

    batch: str


class Detach(ControlRequest[Detached], frozen=True, kw_only=True):
    """Let a batch of a ``run`` go on where no one waits for it."""

    batch: Annotated[str, _BATCH]


# check

LineVerdict: TypeAlias = Literal["ok", "note", "failed"]


class CheckLine(msgspec.Struct, frozen=True):
    """One thing looked at: a line of ``batchd check``."""

    #: ``note``: it works, but know it.
    verdict: LineVerdict
    what: str
    detail: str
    mend: str = ""
    #: Always null: the billed call that up to 0.2.0 a line could be about.
    live: None = None


class DaemonProcess(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon as the kernel knows it."""

    pid: int
    version: str
    #: Who it runs as: the number, and the name where the number has one.
    uid: int
    user: str = ""
    #: By their names, or their numbers where they have none.
    groups: tuple[str, ...] = ()


class SettingsInForce(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration in force, by where it comes from; no value of it but folders."""

    #: The file; empty: there is none.
    file: str = ""
    #: As ``[paths]`` has them.
    paths: Mapping[str, str] = msgspec.field(default_factory=dict)
    #: The keys that the file has otherwise by now: those that a reload takes over, …
    stale: tuple[str, ...] = ()
    #: … and those that are read at a start alone.
    late: tuple[str, ...] = ()
    #: Why the file could not be read again; empty: it could.
    unread: str = ""
    #: What ``tune`` changed, by ``SECTION.KEY``, without secrets.
    overrides: Mapping[str, str] = msgspec.field(default_factory=dict)


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``Check``: what the daemon sees."""

    process: DaemonProcess
    settings: SettingsInForce = SettingsInForce()
    #: What it looked at, in the order of the screen.
    lines: tuple[CheckLine, ...] = ()


class Check(ControlRequest[Checked], frozen=True, kw_only=True):
    """The request that the daemon looks for what would fail."""

    #: Without asking any provider.
    offline: Annotated[bool, Field("offline is true or false")] = False
    #: Refused: up to 0.2.0 it asked each model in use for one token, which is billed.
    live: Annotated[bool, Field("live is true or false")] = False
