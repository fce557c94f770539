"""Opaque items: what a model thought, sealed, for the client to send back as it is.

A seal says whose it is and what stood before it, and is good only byte for byte.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from base64 import b64decode, b64encode

import msgspec

from batchd import decoders

#: Held by the stand-in alone, the same in each: what one sealed, the next one opens.
_KEY = b"the stand-in's own"
_MAC = 16
_LENGTH = 4


class Seal(msgspec.Struct, frozen=True, array_like=True):
    """What an opaque item holds, and whom it is good for."""

    model: str
    account: str
    #: The hash of what stood before it.
    prefix: str
    #: Of what is written beside it in plain: a summary, or an item's name.
    beside: str
    #: The tokens that were thought.
    tokens: int


_DECODE = decoders.decoder(Seal).decode
_ENCODE = msgspec.json.Encoder().encode


def sealed(seal: Seal, size: int) -> str:
    """Return an opaque text of about so many bytes; no two are the same."""
    inside = _ENCODE(seal)
    filler = os.urandom(max(12, size * 3 // 4 - len(inside) - _MAC - _LENGTH))
    body = len(inside).to_bytes(_LENGTH) + inside + filler
    return b64encode(_mac(body) + body).decode()


def opened(text: str) -> Seal | None:
    """Return what an opaque text holds; None where it is damaged, or none of ours."""
    try:
        whole = b64decode(text, validate=True)
    except ValueError:
        return None
    body = whole[_MAC:]
    # The last characters of Base64 can differ and mean the same: they are part of the bytes, too.
    if not hmac.compare_digest(_mac(body), whole[:_MAC]) or b64encode(whole).decode() != text:
        return None
    return _DECODE(body[_LENGTH : _LENGTH + int.from_bytes(body[:_LENGTH])])


def digest(*parts: bytes) -> str:
    """Return a short hash of what is given, part for part."""
    chain = hashlib.blake2b(digest_size=12)
    for part in parts:
        chain.update(len(part).to_bytes(_LENGTH) + part)
    return chain.hexdigest()


def canonical(raw: bytes) -> bytes:
    """Return an object of JSON as it is compared: without its spaces, the order of its fields, and
    its mark for the cache.
    """
    value = msgspec.json.decode(raw)
    value.pop("cache_control", None)
    return msgspec.json.encode(value, order="sorted")


def _mac(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_MAC, key=_KEY).digest()
