from __future__ import annotations

import subprocess
import sys
from datetime import date

import pytest

from batchd.config.sections import Cost, Model
from batchd.pricing import Prices, _listed
from batchd.records import Cost as Money
from batchd.records import Price, Rate, Usage

NONE = Prices({})


@pytest.mark.parametrize("model", Cost().compare)
def test_the_models_to_compare_with_have_prices(model: str) -> None:
    """Every model that a result is compared with by default has a price and a window."""
    price = NONE.price(model)
    assert price is not None
    assert price.source == "genai-prices"
    assert 0 < price.rates[0].cached_input <= price.rates[0].input <= price.rates[0].output
    assert NONE.context_window(model) > 0


def test_unknown_is_none_never_free() -> None:
    """A model or provider that the data does not know has no price, and window 0."""
    for model in ("openai/no-such-model", "nobody/gpt-4", "ollama/qwen3", "gpt-4", ""):
        assert NONE.price(model) is None, model
        assert NONE.context_window(model) == 0
    # Embeddings have no output price, and github-copilot's data is empty: neither is free.
    assert NONE.price("openai/text-embedding-3-small") is None
    assert NONE.price("github-copilot/gpt-4o") is None
    free = NONE.price("openrouter/deepseek/deepseek-chat:free")
    assert free is not None
    assert free.cost(Usage(input_tokens=1000, output_tokens=1000)) == Money()


def test_the_address_says_whose_prices_hold() -> None:
    """A known address beats the provider's name; a local server has no price; a gateway goes by its name."""
    by_name = NONE.price("openai/gpt-4")
    assert NONE.price("work/gpt-4", "https://api.openai.com/v1") == by_name
    assert NONE.price("openai/gpt-4", "https://gateway.example.com/v1") == by_name
    assert NONE.price("openai/claude-3-opus", "https://api.anthropic.com/v1") is not None
    for local in (
        "http://127.0.0.1:8080/v1",
        "http://[::1]/v1",
        "http://10.1.2.3",
        "http://gpu:80",
    ):
        assert NONE.price("openai/gpt-4", local) is None, local
        assert NONE.context_window("openai/gpt-4", local) == 0


def test_overrides() -> None:
    """A table of the configuration wins, key by key, also where nothing else is known."""
    prices = Prices(
        {
            "local/x": Model(input_usd_per_mtok=2.0, output_usd_per_mtok=8.0, context_window=4096),
            "local/y": Model(input_usd_per_mtok=2.0),
            "openai/gpt-4": Model(output_usd_per_mtok=1.0),
            "openai/gpt-5-mini": Model(input_usd_per_mtok=9.0),
            "openai/gpt-3.5-turbo": Model(context_window=99),
        }
    )
    own = prices.price("local/x", "http://127.0.0.1:1/v1")
    assert own == Price(rates=(Rate(input=2.0, cached_input=2.0, output=8.0),), source="config")
    assert prices.context_window("local/x") == 4096
    assert prices.price("local/y") is None
    partly = prices.price("openai/gpt-4")
    assert partly is not None
    assert (partly.rates[0].input, partly.rates[0].output, partly.source) == (30.0, 1.0, "config")
    dearer = prices.price("openai/gpt-5-mini")
    assert dearer is not None
    assert dearer.rates[0].cached_input == 9.0
    listed = prices.price("openai/gpt-3.5-turbo")
    assert listed is not None
    assert listed.source == "genai-prices"
    assert prices.context_window("openai/gpt-3.5-turbo") == 99


def test_long_inputs_cost_more() -> None:
    """Tiers count from the first token behind their threshold, and then for the whole call."""
    price = NONE.price("anthropic/claude-sonnet-4-5")
    assert price is not None
    assert [r.above for r in price.rates] == [0, 200_000]
    at = price.cost(Usage(input_tokens=200_000)).input
    assert at == pytest.approx(0.2 * price.rates[0].input)
    assert price.cost(Usage(input_tokens=200_001)).input == pytest.approx(2 * at, rel=1e-4)


def test_cached_input_and_cache_writes_have_their_own_price() -> None:
    """Input read from, and written to, the provider's cache is billed at its own rates."""
    price = Price(rates=(Rate(input=1, cached_input=0.1, output=0, cache_write=1.25),), source="x")
    usage = Usage(
        input_tokens=3_000_000, cached_input_tokens=1_000_000, cache_write_tokens=1_000_000
    )
    assert price.cost(usage).input == pytest.approx(1 + 0.1 + 1.25)


def test_prices_of_the_day() -> None:
    """Prices follow their dates, and where they change within a day the higher ones count."""
    night_and_day, _ = _listed("deepseek/deepseek-chat", "", date(2026, 11, 24))
    assert night_and_day[0].input == 0.27
    before, _ = _listed("anthropic/claude-opus-4-6", "", date(2026, 3, 1))
    after, _ = _listed("anthropic/claude-opus-4-6", "", date(2026, 4, 1))
    assert before != after


def test_the_data_is_loaded_when_a_price_is_asked_for() -> None:
    """Who only imports the module, or uses local servers, does not pay for the data."""
    code = (
        "import sys, batchd.pricing as p\n"
        "p.Prices({}).price('openai/gpt-4', 'http://localhost/v1')\n"
        "sys.exit('genai_prices' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
