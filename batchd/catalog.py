"""What providers list: the models that they have, which of them end when, and what a name may be
mistaken for. It is asked for by ``GET /models``, which costs nothing and shows whether address and
key are right.
"""

from __future__ import annotations

import difflib
import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from typing import Any
from urllib.parse import urlsplit

import msgspec

from batchd.masking import Masker
from batchd.records import Endpoint

#: Models of one list that are read, and characters of a name:
#: no provider has as many, none is as long.
_MAX_MODELS = 5_000
_MAX_NAME_CHARS = 300
#: Objects and lists that an answer may hold:
#: each takes hundreds of bytes of memory, and two of its body.
_MOST_OBJECTS = 1 << 18
#: Names that a message has room for.
_MAX_SUGGESTIONS = 3
#: How alike two names are where one may be meant by the other.
_ALIKE = 0.6
#: What follows the name of a model for one of its snapshots.
_DATED = re.compile(r"-(?:\d{4}-\d{2}-\d{2}|20\d{6})$")
#: A shutdown that is as near as this is reported, in days.
_SOON_DAYS = 60
#: How long a provider may take to answer in all, in seconds.
PATIENCE_S = 10.0
#: Bytes of an answer that are read.
_MAX_ANSWER_BYTES = 16 << 20
_CHUNK = 1 << 16
#: Anthropic's own API asks for it, and takes as many models in one page.
_ANTHROPIC, _VERSION = "anthropic.com", {"anthropic-version": "2023-06-01"}
_PAGE = 1000
_MOVED = range(300, 400)


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model in a provider's list."""

    name: str
    #: The first day without it, in UTC, where the list has one.
    ends: date | None = None
    #: Whether the list has it only as one that was.
    retired: bool = False

    def gone(self, today: date) -> bool:
        """Whether no call to it is served any more."""
        return self.retired or (self.ends is not None and self.ends <= today)

    def due(self, today: date) -> bool:
        """Whether people are to be warned: it is gone, or will be soon."""
        soon = self.ends is not None and (self.ends - today).days <= _SOON_DAYS
        return self.retired or soon

    def end(self, today: date) -> str:
        """Return for people how and when it ends."""
        if self.ends is None or (self.retired and self.ends > today):
            return f"{self.name} is retired, says its provider's list"
        if self.ends <= today:
            return f"{self.name} was shut down on {self.ends}, says its provider's list"
        days = (self.ends - today).days
        when = f"on {self.ends}, in {days} day{'s' * (days != 1)}"
        return f"{self.name} is shut down {when}, says its provider's list"


@dataclass(frozen=True, slots=True)
class ModelListing:
    """The models that a provider says it has."""

    models: Mapping[str, ListedModel] = field(default_factory=dict)
    #: Whether any other name will do as well: a server with one model does not look at the name.
    any_name: bool = False
    #: Whether all of it was read: what is not there else may still be.
    whole: bool = True

    def find(self, name: str) -> ListedModel | None:
        """Return the model of this name, under another one too by which it is called;
        None: it is not there.
        """
        return self.models.get(name) or self.models.get(f"{name}:latest") or self._variant(name)

    def has(self, name: str) -> bool:
        """Whether a call to this name is served."""
        found = self.find(name)
        if found is None:
            return self.any_name or not self.whole
        return self.any_name or not found.retired

    def nearest(self, name: str) -> tuple[str, ...]:
        """Return the names that may be meant, the most alike first."""
        known = [each.name for each in self.models.values() if not each.retired]
        name = name[:_MAX_NAME_CHARS]
        return (*difflib.get_close_matches(name, known, n=_MAX_SUGGESTIONS, cutoff=_ALIKE),)

    def instead(self, provider: str, name: str) -> Iterator[str]:
        """Yield what it says of a model that is refused: its end, and what may be meant."""
        listed, today = self.find(name), datetime.now(UTC).date()
        if listed is not None and listed.gone(today):
            yield listed.end(today)
        # It may be a list of yesterday, which has the name yet.
        if names := [f"{provider}/{each}" for each in self.nearest(name) if each != name]:
            yield f"nearest are {', '.join(names)}"

    def _variant(self, name: str) -> ListedModel | None:
        """Return a model by the name of its newest snapshot,
        or of a way to serve it: ``model:nitro``.
        """
        base, colon, _ = name.partition(":")
        if colon:
            return self.models.get(base)
        dated = [m for m in self.models.values() if _DATED.sub("", m.name) == name]
        return max(dated, key=lambda m: m.name, default=None)


def listing(body: bytes) -> ModelListing | None:
    """Return what an answer says; None: it is not a list of models.

    OpenAI's shape, Anthropic's, and a bare list; what is in neither form is left out.
    """
    if body.count(b"{") + body.count(b"[") > _MOST_OBJECTS:
        return None
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    found = value.get("data", value.get("models")) if isinstance(value, dict) else value
    if not isinstance(found, list):
        return None
    entries = [each for each in found[:_MAX_MODELS] if isinstance(each, dict)]
    models = {listed.name: listed for each in entries if (listed := _listed(each))}
    if found and not models:
        return None
    more = isinstance(value, dict) and value.get("has_more") is True
    # llama.cpp serves its one model under any name.
    any_name = len(entries) == 1 and entries[0].get("owned_by") == "llamacpp"
    return ModelListing(models, any_name, whole=not more and len(found) <= _MAX_MODELS)


def _listed(entry: Mapping[str, Any]) -> ListedModel | None:
    name = entry.get("id") or entry.get("name")
    if not isinstance(name, str) or not name or len(name) > _MAX_NAME_CHARS:
        return None
    ends = _day(entry.get("shutdown_date")) or _day(entry.get("retires_at"))
    # Google's have their kind before their names.
    return ListedModel(name.removeprefix("models/"), ends, entry.get("lifecycle") == "retired")


def _day(value: object) -> date | None:
    """Return the day of a date or of a moment, as JSON has it; None: it is none."""
    try:
        return date.fromisoformat(value[:10]) if isinstance(value, str) else None
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class NoListing:
    """The reason why there is no list."""

    #: For people, without secrets; empty: what it answers is no list of models.
    why: str = ""
    #: The HTTP status that it answered with; 0: it did not answer.
    status: int = 0
    #: Where it says that the list is instead.
    moved_to: str = ""


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: it would take the key along to wherever that leads."""

    def redirect_request(self, *_: object) -> None:
        return None


def ask(endpoint: Endpoint, patience_s: float = PATIENCE_S) -> ModelListing | NoListing:
    """Return the models that a provider lists, or why there is no list. Blocks; raises nothing."""
    deadline = time.monotonic() + patience_s
    if not endpoint.base_url.startswith(("http://", "https://")):
        return NoListing(f"{endpoint.base_url} is not an address")
    try:
        return listing(_get(endpoint, deadline)) or NoListing(status=200)
    except urllib.error.HTTPError as error:
        error.close()
        where = error.headers.get("Location", "") if error.code in _MOVED else ""
        where = Masker(endpoint.secrets()).text(where.partition("?")[0])
        return NoListing(f"HTTP {error.code}", error.code, where)
    except (OSError, ValueError, http.client.HTTPException) as error:
        why = getattr(error, "reason", error)
        why = "no answer in time" if isinstance(why, TimeoutError) else why
        return NoListing(Masker(endpoint.secrets()).text(str(why)))


def keeps_from_strangers(endpoint: Endpoint, patience_s: float = PATIENCE_S) -> bool:
    """Return whether a provider refuses its list without the key: else the list has not tried it.

    False too where that cannot be seen. Blocks; raises nothing.
    """
    found = ask(replace(endpoint, api_key=""), patience_s)
    # 429: too many requests.
    return isinstance(found, NoListing) and 400 <= found.status < 500 and found.status != 429


def _get(endpoint: Endpoint, deadline: float) -> bytes:
    """Return the body of an answer. Raises ``OSError``, ``ValueError`` and ``HTTPException``."""
    native = f".{urlsplit(endpoint.base_url).hostname}".endswith(f".{_ANTHROPIC}")
    headers = {"User-Agent": "batchd", **(_VERSION if native else {}), **endpoint.headers}
    if endpoint.api_key and native:
        headers["x-api-key"] = endpoint.api_key
    elif endpoint.api_key:
        headers["Authorization"] = f"Bearer {endpoint.api_key}"
    address = endpoint.address("models")
    if native:
        address += f"{'&' if '?' in address else '?'}limit={_PAGE}"
    request = urllib.request.Request(address, headers=headers)  # noqa: S310 (the scheme was checked)
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    body = bytearray()
    with urllib.request.build_opener(_Stay).open(request, timeout=left_s) as answer:
        while chunk := answer.read1(_CHUNK):
            body += chunk
            # One that drips keeps each single read within its time.
            if time.monotonic() > deadline:
                raise TimeoutError
            if len(body) > _MAX_ANSWER_BYTES:
                raise ValueError("its list of models is too long")
    return bytes(body)
