"""The dialects by their names: a row for each."""

from __future__ import annotations

from collections.abc import Mapping

from batchd.llm import chat, messages, responses
from batchd.llm.dialect import Dialect
from batchd.records import Api

DIALECTS: Mapping[Api, Dialect] = {
    "chat": chat.DIALECT,
    "responses": responses.DIALECT,
    "messages": messages.DIALECT,
}
