"""What providers list of models, and the nearest names."""

from __future__ import annotations

import json
from datetime import date, timedelta
from typing import Any

import pytest

from batchd import catalog
from batchd.catalog import ListedModel, ModelListing


def test_an_end_is_said_in_time() -> None:
    """Sixty days before, not sixty-one; from its day on it is gone."""
    model = ListedModel("gpt-5-mini", date(2026, 12, 11))
    assert model.ends is not None
    days = {n: model.due(model.ends - timedelta(days=n)) for n in (61, 60, 1, 0, -5)}
    assert days == {61: False, 60: True, 1: True, 0: True, -5: True}
    assert [model.gone(model.ends - timedelta(days=n)) for n in (1, 0)] == [False, True]
    assert "in 1 day, says its provider" in model.end(model.ends - timedelta(days=1))
    assert "was shut down on 2026-12-11" in model.end(model.ends)
    retired = ListedModel("b", None, retired=True)
    assert retired.gone(model.ends)
    assert retired.end(model.ends) == "b is retired, says its provider's list"


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
