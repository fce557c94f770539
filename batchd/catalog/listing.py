"""A provider's own list of its models: what ``GET /models`` answers, in each vendor's shape."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import msgspec

#: Models of one list that are read, and characters of a name:
#: no provider has as many, none is as long.
MAX_MODELS = 5_000
_MAX_NAME_CHARS = 300
#: Objects and lists that a page may hold:
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
        return self._exact(name) or self._exact(f"{name}:latest") or self._variant(name)

    def has(self, name: str) -> bool:
        """Whether a call to this name is served."""
        found = self.find(name)
        if found is None:
            return self.any_name or not self.whole
        return self.any_name or not found.retired

    def nearest(self, name: str) -> tuple[str, ...]:
        """Return the names that may be meant, the most alike first."""
        return nearest(name, [each.name for each in self.models.values() if not each.retired])

    def _exact(self, name: str) -> ListedModel | None:
        return self.models.get(name)

    def _variant(self, name: str) -> ListedModel | None:
        """Return a model by the name of its newest snapshot,
        or of a way to serve it: ``model:nitro``.
        """
        base, colon, _ = name.partition(":")
        if colon:
            return self.models.get(base)
        dated = [m for m in self.models.values() if _DATED.sub("", m.name) == name]
        return max(dated, key=lambda m: m.name, default=None)


@dataclass(frozen=True, slots=True)
class ListingPage:
    """One page of a list."""

    models: Sequence[ListedModel]
    #: What the next page begins behind; empty: there is none.
    after: str = ""
    any_name: bool = False
    #: Whether all of it was read.
    whole: bool = True


def nearest(name: str, known: Sequence[str]) -> tuple[str, ...]:
    """Return those of some names that may be meant by one, the most alike first."""
    return tuple(
        difflib.get_close_matches(name[:_MAX_NAME_CHARS], known, n=_MAX_SUGGESTIONS, cutoff=_ALIKE)
    )


def page(body: bytes) -> ListingPage | None:
    """Return what a page of a list says; None: it is not a list of models.

    OpenAI's shape, Anthropic's, which has pages, and a bare list;
    what is in neither form is left out.
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
    entries = [each for each in found[:MAX_MODELS] if isinstance(each, dict)]
    models = [listed for each in entries if (listed := _listed(each))]
    if found and not models:
        return None
    more = isinstance(value, dict) and value.get("has_more") is True
    after = value.get("last_id") if more else ""
    # llama.cpp serves its one model under any name.
    any_name = len(entries) == 1 and entries[0].get("owned_by") == "llamacpp"
    whole = len(found) <= MAX_MODELS
    return ListingPage(models, after if isinstance(after, str) else "", any_name, whole)


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
