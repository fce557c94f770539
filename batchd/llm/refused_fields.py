"""Fields that a model refuses of a request that goes without them:
read out of the error that names one, and left out.

Lessons are words that are stored: ``field:temperature`` (leave it out), ``effort:none`` (think by
another measure), ``effort with tools`` (think not at all, where there are tools),
``name:max_tokens`` (the field has another name).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from batchd.llm.dialect import Dialect
from batchd.llm.request import ModelRequest
from batchd.records import Failure, FailureKind, ModelSetup

#: That an error is about what is sent, not about its value's sense or the conversation.
_REFUSED = re.compile(
    r"unsupported|(?:not|n't|never) (?:be )?(?:supported|support|permitted|accepted|allowed|available|compatible)"
    r"|unrecognized|unknown (?:parameter|field|name|argument)|unexpected (?:keyword|argument|field)"
    r"|deprecated|extra (?:inputs|fields)|cannot be (?:set|specified|used|disabled)|no longer|unavailable"
)
#: That it is the field itself, not the value that it has.
_FIELD = re.compile(
    r"unsupported[ _]parameter|unknown[ _](?:parameter|field|name|argument)|extra (?:inputs|fields)|unrecognized"
    r"|(?:not|n't) support (?:thinking|(?:the )?(?:\S+ )?parameter)"
)
_NO_TOOLS = re.compile(
    r"(?<![\w.])(?:function tools|tools?|function.?call\w*|tool.?(?:use|call)\w*)\b[^.]{0,80}?"
    r"(?:not|n't) (?:be )?(?:supported|support|available|allowed)"
    r"|(?:not|n't) support (?:the use of )?(?:function|tools?\b|tool.?(?:use|call))"
    r"|no endpoints found that support tool use"
    # vLLM, llama.cpp: the server was started without a parser for calls.
    r"|tool choice requires|tools param requires"
)
_EFFORTS = frozenset({"reasoning_effort", "reasoning", "reasoning.effort", "output_config.effort"})
_LIMITS = ("max_tokens", "max_completion_tokens")
_NOTHING: frozenset[str] = frozenset()
#: Of an error's body so many characters are looked at.
_LOOKED_AT = 4000


def repaired(
    failure: Failure, dialect: Dialect, request: ModelRequest, sent: Mapping[str, Any], body: bytes
) -> Failure:
    """Return a refused request's failure as one that a change
    of the request may repair, where its words say so.
    """
    words = body[:_LOOKED_AT].decode("utf-8", "replace").lower()
    if any(m.replay for m in request.messages) and dialect.refused_items.search(words):
        return replace(failure, kind=FailureKind.REPLAY)
    lesson = _lesson(dialect, sent, words)
    if lesson == "tools":
        return _unfit(failure, dialect)
    if not lesson or lesson in request.spared:
        return failure
    return replace(failure, kind=FailureKind.SPARED, refuses=lesson)


def unspoken(setup: ModelSetup, dialect: Dialect) -> frozenset[str]:
    """Return as a lesson what is asked of a model in a word that its dialect does not have."""
    if not setup.effort or setup.effort in dialect.efforts:
        return _NOTHING
    return frozenset({f"effort:{setup.effort}"})


def _unfit(failure: Failure, dialect: Dialect) -> Failure:
    fix = (
        f"it takes no tools over the {dialect.what}: set another api for it in [models], as responses or messages, "
        'or tools = "text" for its provider'
    )
    message = f"{failure.message} ({fix})"
    return replace(failure, kind=FailureKind.UNFIT, of_model=True, message=message)


def without(body: dict[str, Any], spared: frozenset[str]) -> dict[str, Any]:
    """Return a request's body without what its model refuses."""
    for lesson in spared:
        what, _, path = lesson.partition(":")
        if what != "field":
            continue
        outer, _, inner = path.partition(".")
        within = body.get(outer)
        if inner and isinstance(within, dict) and within.keys() - {inner}:
            body = body | {outer: {k: v for k, v in within.items() if k != inner}}
        elif not inner or (isinstance(within, dict) and inner in within):
            body = {k: v for k, v in body.items() if k != outer}
    return body


def _lesson(dialect: Dialect, sent: Mapping[str, Any], words: str) -> str:
    """Return what an error teaches of a model; empty: nothing that could be spared."""
    if "tools" in sent and _NO_TOOLS.search(words):
        alone = "reasoning_effort" in words and re.search(r"\bto .{0,3}none\b", words)
        return "effort with tools" if alone and sent.get("reasoning_effort") != "none" else "tools"
    if not _REFUSED.search(words):
        return ""
    named = [limit for limit in _LIMITS if re.search(rf"\b{limit}\b", words) and limit in sent]
    if named and all(limit in words for limit in _LIMITS):
        return f"name:{named[0]}"
    for name in sorted(dialect.sparable, key=len, reverse=True):
        path = dialect.sparable[name]
        if re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", words) and _has(sent, path):
            return _of_effort(path, sent, words) or f"field:{path}"
    return ""


def _has(sent: Mapping[str, Any], path: str) -> bool:
    outer, _, inner = path.partition(".")
    within = sent.get(outer)
    return outer in sent and (not inner or (isinstance(within, Mapping) and inner in within))


def _of_effort(path: str, sent: Mapping[str, Any], words: str) -> str:
    """Return that a model lacks this one effort, where it has others."""
    if path == "thinking":
        return "effort:none" if sent["thinking"] == {"type": "disabled"} else ""
    if path not in _EFFORTS or _FIELD.search(words):
        return ""
    outer = sent.get(path.partition(".")[0])
    effort = outer.get("effort") if isinstance(outer, Mapping) else outer
    return f"effort:{effort}" if isinstance(effort, str) else ""
