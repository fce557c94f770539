"""Decoders of msgspec, and values read by them: what a class needs is made by one thread at a time.

msgspec keeps what it knows of a class with the class, and puts it there before it is whole. Two
threads that are the first to decode a class at the same moment end the process by SIGSEGV (msgspec
0.22, CPython 3.11; 31 of 40 runs with 50 threads).
So nothing else in batchd makes a decoder, or converts.
"""

from __future__ import annotations

import threading
from typing import Any, TypeVar, overload

import msgspec

T = TypeVar("T")

_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}
_making = threading.Lock()


@overload
def decoder(kind: type[T]) -> msgspec.json.Decoder[T]: ...
@overload
def decoder(kind: Any) -> msgspec.json.Decoder[Any]: ...
def decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    """Return the decoder of JSON into a type: one for each, for all threads."""
    found = _decoders.get(kind)
    if found is None:
        with _making:
            found = _decoders.setdefault(kind, msgspec.json.Decoder(kind))
    return found


@overload
def decode(text: bytes | str, kind: type[T]) -> T: ...
@overload
def decode(text: bytes | str, kind: Any) -> Any: ...
def decode(text: bytes | str, kind: Any) -> Any:
    """Return the value of this type that JSON holds.

    Raises ``msgspec.DecodeError``, ``UnicodeDecodeError``.
    """
    return decoder(kind).decode(text)


@overload
def convert(value: object, kind: type[T]) -> T: ...
@overload
def convert(value: object, kind: Any) -> Any: ...
def convert(value: object, kind: Any) -> Any:
    """Return the value of this type that Python's own values stand for.

    Raises ``msgspec.ValidationError``.
    """
    decoder(kind)  # makes what is to be known of the type
    return msgspec.convert(value, kind)
