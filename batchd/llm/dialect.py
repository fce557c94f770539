"""``Dialect``: all that is known of one way to speak to models. Callers know no more of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from batchd.llm.failures import CallPlace
from batchd.llm.request import ModelRequest, ModelTarget
from batchd.records import EFFORTS, Answer, Effort, Failure, ModelSetup

#: What goes into a request's body, before the configuration's own fields are laid over it.
Encode: TypeAlias = Callable[[ModelSetup, ModelTarget, ModelRequest], dict[str, Any]]
#: A response's body with status 200 is an answer, or says what went wrong. Raises
#: ``UnreadableError``; the last is how many seconds it took.
Decode: TypeAlias = Callable[[CallPlace, ModelTarget, bytes, ModelRequest, float], Answer | Failure]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """A wire dialect: how it is spoken."""

    #: For people.
    what: str
    #: Where requests go, below ``base_url``.
    path: str
    encode: Encode
    decode: Decode
    #: Puts a body right, once the configuration's own fields are in it.
    settled: Callable[[dict[str, Any]], None] = lambda _body: None
    #: The headers that a key goes into, beside those that every request has.
    headers: Callable[[str], Mapping[str, str]]
    #: The words that it has for how much a model is to think.
    efforts: tuple[Effort, ...] = EFFORTS
    #: The headers of an answer that name the account, never its key.
    account: tuple[str, ...] = ()
    #: What a refusal of earlier items says, in lower case.
    refused_items: re.Pattern[str] = re.compile("(?!)")
    #: What can be spared of a request:
    #: the names that an error may give it, to the body's own field.
    sparable: Mapping[str, str]
    #: What stands in an answer that counts its input, so that it is not counted here.
    counted: bytes
