from __future__ import annotations

import base64
import hashlib
import subprocess
import sys

import pytest
import tiktoken_ext.openai_public

from batchd import tokens
from batchd.records import Message, ToolCall


def test_known_counts() -> None:
    """Counts are those of o200k_base, as published for OpenAI's models."""
    assert tokens.count("") == 0
    assert tokens.count("hello world") == 2
    assert tokens.count("antidisestablishmentarianism") == 6
    assert tokens.count("2 + 2 = 4") == 7
    assert tokens.count("お誕生日おめでとう") == 8


def test_special_tokens_are_text() -> None:
    """What looks like a special token is counted as the text it is:
    models and files may write it.
    """
    assert tokens.count("<|endoftext|>") == 7


def test_untidy_text_is_counted() -> None:
    """Lone surrogates, and runs that overflow tiktoken's own stack, are counted all the same."""
    assert tokens.count("a\ud800b") == 3
    assert tokens.count(" " * 1_200_000) > 1000


@pytest.mark.parametrize(
    "text",
    [
        "The quick brown fox jumps over the lazy dog.\n\n    if x := f(y):\n\treturn 2 + 2\n",
        "お誕生日おめでとう, naïve DON'T 'll \U0001f600 12345678 ====----====\r\n",
        "a\ud800b \ud83d\ude00 \ufffd",
        "<|endoftext|>" + " " * 300 + "\xff\xfe",
    ],
)
def test_a_first_text_is_counted_as_any_other(text: str) -> None:
    """Its own tokens give the count that all tokens give."""
    assert tokens._count_alone(text) == len(tokens._encoding().encode_ordinary(text))


def test_who_counts_little_loads_little() -> None:
    """The first few short texts are counted without the whole encoding; then it is loaded."""
    ask = "from batchd import tokens as t; [t.count(f'{i}' * 9) for i in range(%d)]; print(t._encoding.cache_info().currsize)"
    loaded = [
        subprocess.run([sys.executable, "-c", ask % n], capture_output=True, check=True).stdout
        for n in (tokens._MOST_COUNTED_ALONE, tokens._MOST_COUNTED_ALONE + 1)
    ]
    assert loaded == [b"0\n", b"1\n"]


def test_long_text_is_counted_in_pieces() -> None:
    """Counting in pieces changes the count by less than a token or two a piece."""
    line = "The quick brown fox jumps over the lazy dog.\n"
    assert abs(tokens.count(line * 10_000) - 10_000 * tokens.count(line)) < 10


def test_the_encoding_is_tiktokens_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pattern, special tokens and hash are the ones that the installed tiktoken would use."""
    seen = {}

    def load(_url: str, expected_hash: str) -> dict[bytes, int]:
        seen["hash"] = expected_hash
        return {}

    monkeypatch.setattr(tiktoken_ext.openai_public, "load_tiktoken_bpe", load)
    theirs = tiktoken_ext.openai_public.o200k_base()
    whole = b"".join(
        b"%b %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens._tokens())
    )
    assert seen["hash"] == hashlib.sha256(whole).hexdigest()
    assert theirs["pat_str"] == tokens._PATTERN
    assert theirs["special_tokens"] == tokens._SPECIAL


def test_damaged_ranks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of ranks that is not what tiktoken pins is refused, with the fix."""
    monkeypatch.setattr(tokens, "SHA256", hashlib.sha256(b"something else").hexdigest())
    with pytest.raises(tokens.DamagedRanksError, match="install batchd again"):
        tokens._encoding.__wrapped__()


def test_messages_add_up() -> None:
    """The count of a conversation is the sum of its messages,
    so that only new ones need counting.
    """
    messages = [
        Message("system", "You work."),
        Message("user", "Write a game."),
        Message("assistant", "", (ToolCall("c1", "shell", '{"command": "ls -la"}'),)),
        Message("tool", "total 0", tool_call_id="c1"),
    ]
    total = tokens.count_messages(messages)
    assert total == sum(tokens.count_messages([m]) for m in messages)
    assert total > sum(tokens.count(m.content) for m in messages) + 3 * len(messages)
