"""What comes back to OpenAI's Responses:
items in their order, and whose sealed thinking is still good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from standin import opaque
from standin.dialects import items
from standin.dialects.items import (
    FunctionCallItem,
    FunctionOutputItem,
    Item,
    MessageItem,
    ReasoningItem,
)
from standin.families import Family
from standin.opaque import Seal
from standin.simulated_request import InvalidRequestError


@dataclass(frozen=True, slots=True)
class Removal:
    """A reasoning item that was left out, and why."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class ResponsesPrompt:
    """The input of a request, as the model sees it."""

    items: Sequence[Item]
    raws: Sequence[bytes]
    removed: Sequence[Removal]
    #: The hash of all that was sent.
    prefix: str
    #: How many answers are in it, and how many opaque items came back.
    answers: int
    opaque: int
    #: The items that end with a breakpoint, and for how long that is to be kept.
    breakpoints: Sequence[tuple[int, str]]


def read(raws: Sequence[bytes], family: Family, owner: Seal) -> ResponsesPrompt:
    """Return the items of an input, from their bytes.

    ``owner`` is the seal that the answer is going to have, but for its prefix, which is that of
    what stands before the items. Raises ``InvalidRequestError``.
    """
    given = [items.decoded(raw, f"input[{i}]") for i, raw in enumerate(raws)]
    _check_order(given)
    found: list[Item] = []
    kept: list[bytes] = []
    removed: list[Removal] = []
    breakpoints: list[tuple[int, str]] = []
    prefix, answers, within, sealed = owner.prefix, 0, False, 0
    for item, raw in zip(given, raws, strict=True):
        said = (
            isinstance(item, ReasoningItem | FunctionCallItem)
            or getattr(item, "role", "") == "assistant"
        )
        answers += said and not within
        within = said
        reason, canon = "", canonical(raw)
        if isinstance(item, ReasoningItem):
            seal = _opened(item)
            sealed += 1
            reason = _mismatch(seal, family, owner, prefix)
            if reason:
                removed.append(Removal(item.id, reason))
            else:
                found.append(items.SealedReasoning(seal))
        else:
            found.append(item)
        if not reason:
            kept.append(canon)
        breakpoints += [(len(found) - 1, ttl) for ttl in items.breakpoints(item)]
        prefix = opaque.digest(prefix.encode(), canon)
    return ResponsesPrompt(found, kept, removed, prefix, answers, sealed, breakpoints)


def canonical(raw: bytes) -> bytes:
    """Return JSON as it is compared: without its spaces,
    the order of its fields, and its marks for the cache.
    """
    value = msgspec.json.decode(raw)
    if b"prompt_cache_breakpoint" in raw and isinstance(value.get("content"), list):
        for part in value["content"]:
            part.pop("prompt_cache_breakpoint", None)
    return msgspec.json.encode(value, order="sorted")


def _check_order(given: Sequence[Any]) -> None:
    """Hold items to what must stand beside them. Raises ``InvalidRequestError``."""
    thought = {items.stem(item.id) for item in given if isinstance(item, ReasoningItem)}
    for item, after in zip(given, [*given[1:], None], strict=True):
        if isinstance(item, ReasoningItem):
            if not (isinstance(after, ReasoningItem) or getattr(after, "role", "") == "assistant"):
                raise InvalidRequestError(
                    f"Item '{item.id}' of type 'reasoning' was provided without its required following item.",
                    "input",
                )
        elif (
            isinstance(item, FunctionCallItem | MessageItem)
            and item.id
            and items.thinks(item.id)
            and items.stem(item.id) not in thought
        ):
            raise InvalidRequestError(
                f"Item '{item.id}' of type '{item.type}' was provided without its required 'reasoning' item: "
                f"'rs_{items.stem(item.id)}'.",
                "input",
            )
    _check_calls(given)


def _check_calls(given: Sequence[Any]) -> None:
    """Hold calls to their outputs: one each, behind it. Raises ``InvalidRequestError``."""
    called: set[str] = set()
    open_calls: dict[str, None] = {}
    for item in given:
        if isinstance(item, FunctionCallItem):
            if item.call_id in called:
                raise InvalidRequestError(f"Duplicate call_id: {item.call_id}.", "input")
            called.add(item.call_id)
            open_calls[item.call_id] = None
        elif isinstance(item, FunctionOutputItem):
            if item.call_id not in open_calls:
                raise InvalidRequestError(
                    f"No tool call found for function call output with call_id {item.call_id}.",
                    "input",
                )
            del open_calls[item.call_id]
    if open_calls:
        first = next(iter(open_calls))
        raise InvalidRequestError(f"No tool output found for function call {first}.", "input")


def _opened(item: ReasoningItem) -> Seal:
    """Return the seal of a reasoning item. Raises ``InvalidRequestError`` where it is damaged."""
    if not item.encrypted_content:
        raise InvalidRequestError(
            f"Item with id '{item.id}' not found. Items are not persisted when `store` is set to false. Try again "
            "with `store` set to true, or remove this item from your input.",
            "input",
        )
    seal = opaque.opened(item.encrypted_content)
    if seal is None or seal.beside != items.beside(item.id, [s.text for s in item.summary]):
        raise unverified(item.id)
    return seal


def unverified(item_id: str) -> InvalidRequestError:
    """Return the refusal of an item that is damaged, or somebody else's."""
    return InvalidRequestError(
        f"The encrypted content for item {item_id} could not be verified. Reason: Encrypted content could not be "
        "decrypted or parsed.",
        "input",
        "invalid_encrypted_content",
    )


def _mismatch(seal: Seal, family: Family, owner: Seal, prefix: str) -> str:
    """Return why an item is left out, if it is.

    Raises ``InvalidRequestError`` where its model refuses it instead.
    """
    foreign = {
        "organization_mismatch": seal.account != owner.account,
        "model_mismatch": seal.model != owner.model,
    }
    reason = next((name for name, wrong in foreign.items() if wrong), "")
    if not family.removes:
        if reason:
            raise unverified("of another " + reason.partition("_")[0])
        return ""
    if reason:
        return reason
    if seal.user != owner.user:
        return "end_user_mismatch"
    return "prefix_mismatch" if seal.prefix != prefix else ""
