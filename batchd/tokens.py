"""The token counter, with tiktoken's o200k_base.

Other models' tokenizers differ by some ten percent: these counts are for estimates before a
call and for providers that send no usage, never a replacement for what a provider says. The
ranks ship with the package, so nothing here needs a network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib import resources
from itertools import compress, count as numbers
from operator import itemgetter
from typing import TYPE_CHECKING

import msgspec

from batchd.errors import BatchdError
from batchd.records import Message, Tool

if TYPE_CHECKING:
    import tiktoken

#: The hash of the ranks as the package has them;
#: a test holds that they make the file whose hash tiktoken itself pins.
SHA256 = "2389893ec9091bbd4f21a3a65be87b3e5eeeab662157f16c65d7706b4c892338"
#: What each message costs beside its text: two marks, the role and a line end.
MESSAGE_TOKENS = 4
#: What each tool call costs beside its name and arguments.
TOOL_CALL_TOKENS = 8
#: Bytes to a token of what cannot be read here: the items that an answer came in.
_ITEM_BYTES = 4
#: Longer texts are counted in pieces of so many characters, a token or two too high at each
#: seam: a million spaces overflow tiktoken's stack (and raise past ``Exception``).
_PIECE = 100_000

#: So many texts, of so many characters at most, are each counted by the tokens that occur in them
#: alone, which takes a tenth of what it takes to load all; who counts more needs them all.
_MOST_COUNTED_ALONE = 8
_LONGEST_COUNTED_ALONE = 10_000
#: By so many of its first bytes a token is looked for first.
_START = 6

#: tiktoken's own expression for o200k_base; a test compares the two.
_WORD_ENDS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_PATTERN = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        + _WORD_ENDS,
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        + _WORD_ENDS,
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
_SPECIAL = {"<|endoftext|>": 199999, "<|endofprompt|>": 200018}
#: The file of tokens begins with the tokens of one byte …
_BYTES = 256
#: … and this, which no text in UTF-8 has, lies between the others.
_BETWEEN = b"\xff"


class DamagedRanksError(BatchdError):
    """The token ranks in batchd/data are damaged: install batchd again."""


def load() -> None:
    """Load the ranks (about 0.2 s of processor time).

    Call it before forking, so that processes share them.

    Raises ``DamagedRanksError`` where the package data is not what tiktoken pins.
    """
    _encoding()


def count(text: str) -> int:
    """Return the number of tokens in ``text``, in which nothing counts as a special token."""
    if not _encoding.cache_info().currsize and len(text) <= _LONGEST_COUNTED_ALONE:
        if not text:
            return 0
        if _count_alone.cache_info().currsize < _MOST_COUNTED_ALONE:
            return _count_alone(text)
    encode = _encoding().encode_ordinary
    if len(text) <= _PIECE:
        return len(encode(text))
    return sum(len(encode(text[i : i + _PIECE])) for i in range(0, len(text), _PIECE))


def count_messages(messages: Sequence[Message]) -> int:
    """Return the tokens that ``messages`` add to a request, the marks between them included.

    The count of a conversation is the sum over its messages: count only what is new.
    """
    return sum(_count_message(m) for m in messages)


def count_tools(tools: Sequence[Tool]) -> int:
    """Return the tokens that the tools' schemas add to a request,
    as chat completions write them.
    """
    if not tools:
        return 0
    written = [{"type": "function", "function": tool} for tool in tools]
    return count(msgspec.json.encode(written).decode())


def _count_message(message: Message) -> int:
    if message.role == "system":
        return MESSAGE_TOKENS + _count_prompt(message.content)
    calls = (count(c.name) + count(c.arguments) + TOOL_CALL_TOKENS for c in message.tool_calls)
    thinking = count(message.reasoning) if message.reasoning else 0
    # What only its provider can read is no text: it has counted it.
    thinking += message.replay.thinking_tokens if message.replay else 0
    texts = MESSAGE_TOKENS + count(message.content) + thinking + sum(calls)
    return max(texts, count_items(message))


def count_items(message: Message) -> int:
    """Return the tokens that the items which a message goes back as may take, by their length."""
    return message.replay.size // _ITEM_BYTES if message.replay else 0


@lru_cache(maxsize=32)
def _count_prompt(text: str) -> int:
    """Return ``count(text)``, remembered: task after task has the same system prompt."""
    return count(text)


@lru_cache(maxsize=_MOST_COUNTED_ALONE)
def _count_alone(text: str) -> int:
    """Return ``count(text)``, by the tokens that occur in it: it is made of no others."""
    # A lone surrogate becomes what tiktoken makes of it.
    data = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
    starts = {data[at : at + size] for size in range(1, _START + 1) for at in range(len(data))}
    likely = map(starts.__contains__, map(itemgetter(slice(_START)), _kept_tokens()))
    ranked = compress(zip(_kept_tokens(), numbers(), strict=False), likely)
    ranks = {token: rank for token, rank in ranked if token in data}
    return len(_encoding_of(ranks).encode_ordinary(text))


@cache
def _encoding() -> tiktoken.Encoding:
    ranks = dict(zip(_tokens(), numbers(), strict=False))
    encoding = _encoding_of(ranks)
    # The encoder has its own copy, and counting needs no other: 18 MB less in every process.
    ranks.clear()
    return encoding


def _encoding_of(ranks: dict[bytes, int]) -> tiktoken.Encoding:
    import tiktoken  # 30 ms, for those who count only

    return tiktoken.Encoding(
        "o200k_base", pat_str=_PATTERN, mergeable_ranks=ranks, special_tokens=_SPECIAL
    )


def _tokens() -> list[bytes]:
    """Return all tokens in the order of their ranks."""
    try:
        data = resources.files("batchd").joinpath("data/o200k_base.tokens").read_bytes()
    except OSError as exc:
        raise DamagedRanksError from exc
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise DamagedRanksError
    bytewise = [data[i : i + 1] for i in range(_BYTES)]
    return bytewise + data[_BYTES:].split(_BETWEEN)


_kept_tokens = cache(_tokens)
