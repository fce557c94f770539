"""What is known of models beside their prices:
which there are, which end when, what they are mistaken for.

From the lists of the providers themselves, which ``query`` fetches (that alone loads a client for
HTTP): what ``GET /models`` answers, in each vendor's shape. And from a table of ours,
``data/shutdowns.json``, since no package has the dates when a provider shuts a model down. Its own
list, where it has them, counts before it: OpenAI's ``shutdown_date``, Anthropic's ``lifecycle`` and
``retires_at``.
"""

from __future__ import annotations

import difflib
import functools
import importlib.resources
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from typing import Any
from urllib.parse import urlsplit

import msgspec

from batchd import decoders

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


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model in a provider's list."""

    name: str
    #: The first day without it, where the list has one.
    ends: date | None = None
    #: Whether the list has it only as one that was.
    retired: bool = False


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
        return nearest(name, [each.name for each in self.models.values() if not each.retired])

    def _variant(self, name: str) -> ListedModel | None:
        """Return a model by the name of its newest snapshot,
        or of a way to serve it: ``model:nitro``.
        """
        base, colon, _ = name.partition(":")
        if colon:
            return self.models.get(base)
        dated = [m for m in self.models.values() if _DATED.sub("", m.name) == name]
        return max(dated, key=lambda m: m.name, default=None)


def nearest(name: str, known: Sequence[str]) -> tuple[str, ...]:
    """Return those of some names that may be meant by one, the most alike first."""
    return tuple(
        difflib.get_close_matches(name[:_MAX_NAME_CHARS], known, n=_MAX_SUGGESTIONS, cutoff=_ALIKE)
    )


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


#: A shutdown that is as near as this is reported, in days.
SOON_DAYS = 60
#: The date in the name of a snapshot: ``gpt-5-mini-2025-08-07``, ``claude-sonnet-4-5-20250929``.
_SNAPSHOT = re.compile(r"-(?:\d{4}-\d{2}-\d{2}|20\d{6}|latest)$")

_SOURCE = "says its provider's list"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shutdown:
    """The end of a model, as far as it is known."""

    #: ``provider/model``, as the configuration names it.
    model: str
    #: The first day without it, in UTC; None: it is gone, since an unknown day.
    on: date | None
    #: ``provider/model`` to take in its place: today's of that size; empty: none is known.
    successor: str = ""
    #: Who says so.
    source: str = ""

    def gone(self, today: date) -> bool:
        """Whether that day has come."""
        return self.on is None or self.on <= today

    def due(self, today: date) -> bool:
        """Whether people are to be warned: it is gone, or will be soon."""
        return self.on is None or (self.on - today).days <= SOON_DAYS

    def words(self, today: date) -> str:
        """Return it for people: when, who says so."""
        said = f" ({self.source})" if self.source else ""
        if self.on is None:
            return f"{self.model} is retired{said}"
        if self.gone(today):
            return f"{self.model} was shut down on {self.on}{said}"
        days = (self.on - today).days
        return f"{self.model} is shut down on {self.on}, in {days} day{'s' * (days != 1)}{said}"

    @property
    def fix(self) -> str:
        """What to do about it."""
        return f"take {self.successor}" if self.successor else "take another model"


class _House(msgspec.Struct, frozen=True):
    """A company that sells models: where it is reached, and what it shuts down."""

    host: str
    #: Where the dates come from; read on 2026-11-28.
    page: str
    #: By day: the models, each with what to take in its place.
    ends: Mapping[date, Mapping[str, str]]


@functools.cache
def _houses() -> Mapping[str, _House]:
    table = importlib.resources.files("batchd") / "data" / "shutdowns.json"
    return decoders.decode(table.read_bytes(), dict[str, _House])


def house(provider: str, base_url: str = "") -> str:
    """Return whose models a provider serves; empty: unknown. An address says more than a name."""
    if not base_url:
        return provider if provider in _houses() else ""
    host = urlsplit(base_url).hostname or ""
    found = (n for n, h in _houses().items() if host == h.host or host.endswith(f".{h.host}"))
    return next(found, "")


def shutdown(model: str, base_url: str = "") -> Shutdown | None:
    """Return what the table says of a ``provider/model``; None: nothing.

    ``base_url``: where its provider is reached, if it is:
    a gateway of one's own may have the model yet.
    """
    provider, _, name = model.partition("/")
    seller = house(provider, base_url)
    known = _houses().get(seller)
    # A snapshot may end by itself; else it ends with the model that it is one of.
    for each in dict.fromkeys((name, _SNAPSHOT.sub("", name))):
        for day, models in known.ends.items() if known else ():
            if known and each in models:
                successor = models[each] and f"{provider}/{models[each]}"
                return Shutdown(model=model, on=day, successor=successor, source=known.page)
    return None


def today() -> date:
    """Return the day in UTC."""
    return datetime.now(UTC).date()


def end(model: str, base_url: str = "", listing: ModelListing | None = None) -> Shutdown | None:
    """Return what is known of the end of a ``provider/model``; None: none is announced.

    ``base_url``: where its provider is reached. ``listing``: what that says it has;
    None: it was not asked, or has none.
    """
    known = shutdown(model, base_url)
    listed = listing.find(model.partition("/")[2]) if listing else None
    if listed is None:
        return known
    if listed.ends is None and not listed.retired:
        # It is there, whatever the table says of the past.
        return known if known and not known.gone(today()) else None
    over = listed.retired and not (listed.ends and listed.ends <= today())
    day = None if over else listed.ends
    return replace(known or Shutdown(model=model, on=day), on=day, source=_SOURCE)
