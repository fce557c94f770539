"""Problems with the ``output_schema`` of a task:
it is no valid JSON Schema, or leads out of itself."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import msgspec

from batchd.errors import Problem
from batchd.spool.decoding import Place

if TYPE_CHECKING:
    from jsonschema import FormatChecker


#: Errors of one ``output_schema`` that are reported.
_ERRORS = 200
#: Schemas that are known: a batch may repeat one in each task.
_KEPT = 64


def problems(schema: dict[str, Any]) -> tuple[tuple[Place, Problem], ...]:
    """Return what is wrong with a schema, each with its place in it."""
    try:
        text = msgspec.json.encode(schema)
    except (RecursionError, ValueError):  # no text, which is reported already
        return ()
    return _problems(text)


@functools.lru_cache(_KEPT)
def _problems(text: bytes) -> tuple[tuple[Place, Problem], ...]:
    return tuple(_found(msgspec.json.decode(text)))


def _found(schema: dict[str, Any]) -> Iterator[tuple[Place, Problem]]:
    from jsonschema import Draft202012Validator, validators  # 100 ms that few files need

    if "$schema" in schema and not _is_address(schema["$schema"]):
        why = "it must be the address of a draft of JSON Schema"
        yield ("$schema",), Problem("", why, Draft202012Validator.META_SCHEMA["$id"])
        return
    kind = validators.validator_for(schema, default=Draft202012Validator)
    yield from islice(_foreign(schema), _ERRORS)
    meta = kind(kind.META_SCHEMA, format_checker=_patterns())
    try:
        for error in islice(meta.iter_errors(schema), _ERRORS):
            why = f"it is not a valid JSON Schema: {error.message[:200]}"
            yield tuple(error.path), Problem("", why)
    except RecursionError:
        yield (), Problem("", "it is nested too deep")


def _is_address(value: Any) -> bool:
    try:
        return isinstance(value, str) and urlsplit(value) is not None
    except ValueError:
        return False


@functools.cache
def _patterns() -> FormatChecker:
    """Return what finds patterns that are no regular expressions,
    those included that fail otherwise than by ``re.error``.
    """
    from jsonschema import FormatChecker

    checker = FormatChecker(())

    @checker.checks("regex", (re.error, OverflowError, RecursionError, ValueError))
    def compiles(value: object) -> bool:
        return not isinstance(value, str) or re.compile(value) is not None

    return checker


def _foreign(schema: Mapping[str, Any]) -> Iterator[tuple[Place, Problem]]:
    """Find references out of the schema, and to nothing: fetching one would let a task file make
    the worker call any address, and each round of a task would fail of the other.
    """
    waiting: list[tuple[Place, Any]] = [((), schema)]
    within: list[tuple[Place, str]] = []
    rebased = False
    while waiting:
        at, item = waiting.pop()
        if isinstance(item, list):
            waiting += [((*at, index), below) for index, below in enumerate(item)]
        if not isinstance(item, dict):
            continue
        waiting += [((*at, key), below) for key, below in item.items()]
        reference = item.get("$ref")
        if isinstance(reference, str) and not reference.startswith("#"):
            yield (*at, "$ref"), Problem("", "it must lie in this schema", "#/$defs/…")
        elif isinstance(reference, str) and reference.startswith("#/"):
            within.append(((*at, "$ref"), reference))
        rebased |= bool(at) and isinstance(item.get("$id"), str)
    for at, reference in within:
        # Below an address of its own a part counts from there.
        if not rebased and not _there(schema, reference):
            yield at, Problem("", f"there is no {reference[:200]} in this schema")


def _there(value: Any, pointer: str) -> bool:
    """Return whether a JSON pointer (RFC 6901) leads to something."""
    for part in unquote(pointer).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        try:
            value = value[int(key)] if isinstance(value, list) else value[key]
        except (KeyError, ValueError, IndexError, TypeError):
            return False
    return True
