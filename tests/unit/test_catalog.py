"""What is known of models: the table of shutdowns, providers' own lists, the nearest names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from batchd import catalog
from batchd.catalog import ListedModel, ModelListing
from batchd.config.sections import AgentSection, CostSection
from batchd.pricing import Prices

ROOT = Path(__file__).parents[2]
#: The day on which the table was read.
READ = date(2026, 11, 28)


def test_no_page_and_no_default_names_a_model_that_ends() -> None:
    """What we ship names models on sale:
    the seed's five stand in docs/cost.md alone, as what they are.
    """
    pages = [ROOT / name for name in ("README.md", "config.toml", *map(str, _guides()))]
    named = {m for page in pages for m in _models(page)} | {
        AgentSection().model,
        *CostSection().compare,
    }
    assert {"openai/gpt-6-luna", "anthropic/claude-sonnet-5-5"} <= named
    ending = {m for m in named if (end := catalog.shutdown(m)) and end.due(READ)}
    five = re.findall(r"--compare (deepseek/.*)", (ROOT / "docs/cost.md").read_text())[0].split()
    assert len(five) == 5
    assert ending == {*five, *_examples()}


def _guides() -> Iterator[Path]:
    """Yield the guides."""
    pages = (ROOT / "docs").glob("*.md")
    return (page.relative_to(ROOT) for page in pages)


def _models(page: Path) -> list[str]:
    return re.findall(r"\b(?:openai|anthropic|deepseek|google)/[\w.-]*\w", page.read_text())


def _examples() -> set[str]:
    """Return the models of which the guides show how their end is reported."""
    return {m for m in _models(ROOT / "docs/configuration.md") if catalog.shutdown(m)}


def test_what_is_named_in_place_of_another_is_on_sale_and_has_a_price() -> None:
    """No successor ends itself, as far as is known, and each can be paid for."""
    prices = Prices({})
    for seller, known in catalog._houses().items():
        for models in known.ends.values():
            for name, successor in models.items():
                end = catalog.shutdown(f"{seller}/{name}")
                assert end is not None
                assert end.successor == f"{seller}/{successor}"
                assert catalog.shutdown(end.successor) is None
                assert prices.price(end.successor) is not None, successor


def test_a_shutdown_is_said_in_time() -> None:
    """Sixty days before, not sixty-one; from its day on it is gone;
    a snapshot goes with its model, unless it has its own day.
    """
    end = catalog.shutdown("openai/gpt-5-mini")
    assert end is not None
    assert end.on == date(2026, 12, 11)
    days = {n: end.due(end.on - timedelta(days=n)) for n in (61, 60, 1, 0, -5)}
    assert days == {61: False, 60: True, 1: True, 0: True, -5: True}
    assert [end.gone(end.on - timedelta(days=n)) for n in (1, 0)] == [False, True]
    assert "in 1 day (" in end.words(end.on - timedelta(days=1))
    assert "was shut down on 2026-12-11" in end.words(end.on)
    assert end.fix == "take openai/gpt-6.1-terra"
    dated = catalog.shutdown("openai/gpt-5-mini-2025-08-07")
    assert dated is not None
    assert (dated.on, dated.model) == (end.on, "openai/gpt-5-mini-2025-08-07")
    own, alias = (catalog.shutdown(f"openai/gpt-4o{d}") for d in ("-2024-05-13", ""))
    assert own is not None
    assert alias is not None
    assert (own.on, alias.on) == (date(2026, 10, 23), date(2027, 1, 14))
    for model in ("openai/gpt-6-luna", "openai/gpt-5-minis", "openai", "mine/gpt-5-mini", ""):
        assert catalog.shutdown(model) is None


def test_the_address_says_whose_models_end() -> None:
    """A gateway or a server of one's own may have a model that its maker has shut down;
    another name for OpenAI has not.
    """
    model = "openai/gpt-4"
    for own in ("http://127.0.0.1:8080/v1", "https://gateway.example.com/v1"):
        assert catalog.shutdown(model, own) is None
    for theirs in ("https://api.openai.com/v1", "https://eu.api.openai.com/v1"):
        end = catalog.shutdown("work/gpt-4", theirs)
        assert end is not None
        assert end.successor == "work/gpt-6.1-sol"
    assert catalog.shutdown(model, "https://notapi.openai.com.example/v1") is None


def _listed(*entries: object, **more: object) -> ModelListing:
    found = catalog.listing(json.dumps({"data": entries, **more}).encode())
    assert found is not None
    return found


def test_lists_of_each_vendor_are_read() -> None:
    """OpenAI's dates, Anthropic's states, Google's prefix,
    llama.cpp's one model, bare lists.
    """
    page = _listed(
        {"id": "gpt-5-mini", "object": "model", "shutdown_date": "2026-12-11"},
        {"id": "gpt-6-luna", "object": "model", "shutdown_date": None},
    )
    assert [*page.models.values()] == [
        ListedModel("gpt-5-mini", date(2026, 12, 11)),
        ListedModel("gpt-6-luna"),
    ]
    assert page.whole
    page = _listed(
        {
            "type": "model",
            "id": "a",
            "lifecycle": "deprecated",
            "retires_at": "2026-11-30T00:00:00Z",
        },
        {"type": "model", "id": "b", "lifecycle": "retired", "retires_at": None},
        has_more=True,
        last_id="b",
    )
    assert [*page.models.values()] == [
        ListedModel("a", date(2026, 11, 30)),
        ListedModel("b", None, retired=True),
    ]
    assert not page.whole
    assert [*_listed({"id": "models/gemini-3.8-flash"}).models] == ["gemini-3.8-flash"]
    assert _listed({"id": "/models/a.gguf", "owned_by": "llamacpp"}).any_name
    for body in (b'[{"id": "x"}]', b'{"models": [{"name": "x"}]}'):
        bare = catalog.listing(body)
        assert bare is not None
        assert [*bare.models.values()] == [ListedModel("x")]


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"<html>", b"null", b"3", b'{"data": 3}', b'{"data": [1, 2]}', b'{"error": {}}'),
        *(b'{"data": [{"id": ""}]}', b'{"data": [{"id": 7}]}', b"[" * 100_000, b"\xff\xfe"),
        json.dumps({"data": [{"id": "x" * 10_000}]}).encode(),
        # What would fill the memory, small as it is on the line.
        b'{"data": [{"id": "x"}' + b",{}" * 300_000 + b"]}",
    ],
)
def test_what_is_no_list_is_none(body: bytes) -> None:
    """Nothing else than a list of models passes for one, whatever it is."""
    assert catalog.listing(body) is None


def test_dates_that_are_none_are_left_out() -> None:
    """A provider's nonsense is no date, and takes no model from the list."""
    odd: tuple[Any, ...] = ("", "soon", "2026-13-40", 7, [], "2026")
    page = _listed(*({"id": str(n), "shutdown_date": d} for n, d in enumerate(odd)))
    assert [m.ends for m in page.models.values()] == [None] * len(odd)


def test_a_name_is_found_as_it_may_be_called() -> None:
    """By itself, without ``:latest``, with a way to serve it,
    without the date of its snapshot; else it is not there.
    """
    names = ("qwen3:latest", "deepseek/deepseek-v4.1-flash", "claude-haiku-4-5-20251001", "gpt-6")
    known = ModelListing(
        {n: ListedModel(n) for n in names} | {"old": ListedModel("old", retired=True)}
    )
    for name in (*names, "qwen3", "deepseek/deepseek-v4.1-flash:nitro", "claude-haiku-4-5"):
        assert known.has(name), name
    for name in ("qwen3:8b", "claude-haiku-4", "gpt-6-luna", "old", ""):
        assert not known.has(name), name
    assert ModelListing({}, any_name=True).has("whatever")


def test_the_nearest_names_are_the_most_alike() -> None:
    """A slip of the finger finds what was meant; what is like nothing finds nothing;
    what is retired is not proposed.
    """
    names = ["gpt-6-luna", "gpt-6.1-terra", "gpt-6.1-sol", "claude-haiku-5-5"]
    known = ModelListing(
        {n: ListedModel(n) for n in names} | {"gpt-6-lun": ListedModel("gpt-6-lun", retired=True)}
    )
    assert known.nearest("gpt-6-lunna")[0] == "gpt-6-luna"
    assert known.nearest("gpt6.1-terra")[0] == "gpt-6.1-terra"
    assert known.nearest("zzz") == ()


def test_a_providers_own_list_counts_before_the_table() -> None:
    """Its date is the date; without one, what is listed is there,
    and what is to end later still ends.
    """
    luna = ModelListing({"gpt-6-luna": ListedModel("gpt-6-luna", date(2031, 1, 1))})
    end = catalog.end("openai/gpt-6-luna", "", luna)
    assert end is not None
    assert end.on == date(2031, 1, 1)
    there = ModelListing({"gpt-4": ListedModel("gpt-4")})
    assert catalog.end("openai/gpt-4", "", there) is None
    assert catalog.end("openai/gpt-4", "", ModelListing()) == catalog.shutdown("openai/gpt-4")
    retired = ModelListing({"b": ListedModel("b", None, retired=True)})
    end = catalog.end("anthropic/b", "", retired)
    assert end is not None
    assert end.gone(READ)
    assert end.words(READ) == "anthropic/b is retired (says its provider's list)"
