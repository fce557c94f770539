"""The heads of lanes, by model: which of them compete,
and which may see how a parked provider does.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import TypeAlias

from batchd.lifecycle.directory_locks import Rank
from batchd.records import untiered

#: By model, ``PROVIDER/MODEL``.
Heads: TypeAlias = dict[str, list[Rank]]


def provider_of(model: str) -> str:
    """Return the provider of a model."""
    return model.partition("/")[0]


def is_of(model: str, name: str) -> bool:
    """Whether a model, at its tier or any, is the one of this name,
    or one of the provider of this name.
    """
    return name in {model, untiered(model), provider_of(model)}


def competing(heads: Mapping[str, list[Rank]], parked: AbstractSet[str]) -> Heads:
    """Return those of the models that are not parked, nor their providers."""
    return {
        model: theirs
        for model, theirs in heads.items()
        if parked.isdisjoint((model, untiered(model), provider_of(model)))
    }


def of(heads: Mapping[str, list[Rank]], name: str, parked: AbstractSet[str]) -> Heads:
    """Return those of a model, or of a provider's models that are not parked themselves."""
    if name in heads:
        return {name: heads[name]}
    return {
        model: theirs
        for model, theirs in heads.items()
        if provider_of(model) == name and model not in parked
    }
