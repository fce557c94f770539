"""The JSON of messages: the fields of a class, to and fro.

Empty text and null stand for what is not given,
and unknown fields for nothing, so versions understand each other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, get_args

import msgspec

from batchd import decoders
from batchd.control.check import Check
from batchd.control.requests import (
    A,
    Cancel,
    ControlRequest,
    Detach,
    Pause,
    Priority,
    Prune,
    Resume,
    Retry,
    Submit,
    Tune,
)
from batchd.control.status import Status
from batchd.errors import UsageError
from batchd.records import Scope

_KINDS: tuple[type[ControlRequest[Any]], ...] = (
    *(Status, Cancel, Pause, Resume),
    *(Priority, Retry, Prune, Tune),
    *(Submit, Detach, Check),
)
#: By its verb, what can be asked.
REQUESTS: Mapping[str, type[ControlRequest[Any]]] = {kind.__name__.lower(): kind for kind in _KINDS}

#: What each field of a request is to be, for the message about something else.
_WANTED: Mapping[str, str] = {
    "target": "it needs a target: BATCH or BATCH/TASK",
    "message": "a message is text",
    "scope": f"no scope; the scopes are {', '.join(Scope)}",
    "name": "a name is text",
    "priority": "a priority is a whole number; higher goes first",
    "failed": "failed is true or false",
    "model": "a model is text: PROVIDER/MODEL",
    "claim": "a claim is a ULID",
    "batch": "a batch is text: its name",
    "parallel": "parallel is a number of tasks, from 0 on",
    "older_than_days": "older_than_days is a number of days, from 0 on",
    "outbox": "outbox is true or false",
    "changes": "tune needs SECTION.KEY=VALUE",
    "reset": "reset is true or false",
    "last": "last is a whole number: of batches",
    "offline": "offline is true or false",
    "live": "live is true or false",
}
#: It may hold secrets, and is not shown.
_HIDDEN = "changes"
#: Characters of a wrong value that are shown.
_SHOWN = 60
#: How msgspec says which field is wrong, or missing.
_FIELD = re.compile(r"`(?:\$\.)?(\w+)[^`]*`$")


def verb(kind: type[ControlRequest[Any]]) -> str:
    """Return what a kind of requests is called: as its class, its command and its handler."""
    return kind.__name__.lower()


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
    """Return the request that has these fields. Raises ``UsageError``."""
    try:
        return decoders.convert(known(kind, given), kind)
    except msgspec.ValidationError as error:
        raise UsageError(_complaint(str(error), known(kind, given))) from None


def answer(asked: ControlRequest[A], given: Mapping[str, Any]) -> A:
    """Return the answer that has these fields. Raises ``msgspec.ValidationError``."""
    (base,) = type(asked).__dict__["__orig_bases__"]
    (kind,) = get_args(base)
    converted: A = decoders.convert(given, kind)
    return converted


def _complaint(error: str, given: Mapping[str, Any]) -> str:
    """Return which field is wrong, what it is, and what it is to be."""
    found = _FIELD.search(error)
    name = found[1] if found else ""
    wanted = _WANTED.get(name, error)
    if name not in given or name == _HIDDEN:
        return wanted
    return f"{name} is {_shown(given[name])}: {wanted}"


def _shown(value: object) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
