from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import fields
from datetime import UTC, date, datetime

import msgspec
import pytest
from genai_prices import Usage as Theirs, calc_price
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import StartDateConstraint, TimeOfDateConstraint
from replacing import replace

from batchd import pricing
from batchd.config import Config
from batchd.config.providers import HoursSection, PricesSection as ModelPrices, ProviderSection
from batchd.config.sections import CostSection, ModelSection
from batchd.pricing import _listed
from batchd.records import Cost as Money, Price, Rate, Tally, Usage

NONE = Config()
DOUBLE = ModelPrices(output_usd_per_mtok=9.0)


@pytest.mark.parametrize("model", CostSection().compare)
def test_the_models_to_compare_with_have_prices(model: str) -> None:
    """Every model that a result is compared with by default has a price and a window."""
    price = pricing.price(model, NONE)
    assert price is not None
    assert price.source == "genai-prices"
    assert 0 < price.rates[0].cached_input <= price.rates[0].input <= price.rates[0].output
    assert pricing.context_window(model, NONE) > 0


def test_unknown_is_none_never_free() -> None:
    """A model or provider that the data does not know has no price, and window 0."""
    for model in ("openai/no-such-model", "missing/gpt-4", "ollama/qwen3", "gpt-4", ""):
        assert pricing.price(model, NONE) is None, model
        assert pricing.context_window(model, NONE) == 0
    # Embeddings have no output price, and github-copilot's data is empty: neither is free.
    assert pricing.price("openai/text-embedding-3-small", NONE) is None
    assert pricing.price("github-copilot/gpt-4o", NONE) is None
    free = pricing.price("openrouter/deepseek/deepseek-chat:free", NONE)
    assert free is not None
    assert free.cost(Usage(input_tokens=1000, output_tokens=1000)) == Money()


def test_the_address_says_whose_prices_hold() -> None:
    """A known address beats the provider's name;
    a local server has no price; a gateway goes by its name.
    """

    def at(base_url: str, provider: str = "openai") -> Config:
        return Config(providers={provider: ProviderSection(base_url=base_url)})

    by_name = pricing.price("openai/gpt-4", NONE)
    assert pricing.price("work/gpt-4", at("https://api.openai.com/v1", "work")) == by_name
    assert pricing.price("openai/gpt-4", at("https://gateway.example.com/v1")) == by_name
    there = at("https://api.anthropic.com/v1")
    assert pricing.price("openai/claude-3-opus", there) is not None
    for local in (
        "http://127.0.0.1:8080/v1",
        "http://[::1]/v1",
        "http://10.1.2.3",
        "http://gpu:80",
    ):
        assert pricing.price("openai/gpt-4", at(local)) is None, local
        assert pricing.context_window("openai/gpt-4", at(local)) == 0


def test_overrides() -> None:
    """A table of the configuration wins, key by key, also where nothing else is known."""
    prices = Config(
        models={
            "local/x": ModelSection(
                input_usd_per_mtok=2.0, output_usd_per_mtok=8.0, context_window=4096
            ),
            "local/y": ModelSection(input_usd_per_mtok=2.0),
            "openai/gpt-4": ModelSection(output_usd_per_mtok=1.0),
            "openai/gpt-5-mini": ModelSection(input_usd_per_mtok=9.0),
            "openai/gpt-3.5-turbo": ModelSection(context_window=99),
        }
    )
    own = pricing.price("local/x", prices)
    assert own == Price(rates=(Rate(input=2.0, cached_input=2.0, output=8.0),), source="config")
    assert pricing.context_window("local/x", prices) == 4096
    assert pricing.price("local/y", prices) is None
    partly = pricing.price("openai/gpt-4", prices)
    assert partly is not None
    assert (partly.rates[0].input, partly.rates[0].output, partly.source) == (30.0, 1.0, "config")
    dearer = pricing.price("openai/gpt-5-mini", prices)
    assert dearer is not None
    assert dearer.rates[0].cached_input == 9.0
    listed = pricing.price("openai/gpt-3.5-turbo", prices)
    assert listed is not None
    assert listed.source == "genai-prices"
    assert pricing.context_window("openai/gpt-3.5-turbo", prices) == 99


def test_long_inputs_cost_more() -> None:
    """Tiers count from the first token behind their threshold, and then for the whole call."""
    price = pricing.price("anthropic/claude-sonnet-4-5", NONE)
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


def test_long_cache_writes_have_their_own_price() -> None:
    """An hour in the cache is billed at its own rate, and,
    where none is listed, at the highest that there is.
    """
    price = pricing.price("anthropic/claude-sonnet-5-5", NONE)
    assert price is not None
    short = Usage(input_tokens=1_000_000, cache_write_tokens=1_000_000)
    assert price.cost(short).input == pytest.approx(2.5)
    assert price.cost(replace(short, cache_write_long_tokens=1_000_000)).input == pytest.approx(4.0)
    half = replace(short, cache_write_long_tokens=500_000)
    assert price.cost(half).input == pytest.approx(3.25)
    twelve_hours = pricing.price("openai/gpt-6.1-terra", NONE)
    assert twelve_hours is not None
    kept = Usage(input_tokens=100_000, cache_write_tokens=100_000, cache_write_long_tokens=100_000)
    assert twelve_hours.cost(kept).input == pytest.approx(0.25)


def test_a_tier_has_its_own_price_and_an_unknown_one_none() -> None:
    """Tiers are priced by genai-prices' contexts, cliffs included;
    one that it does not know never at the standard price.
    """
    price = pricing.price("openai/gpt-6.1-terra", NONE)
    assert price is not None
    usage = Usage(
        input_tokens=50_000,
        cached_input_tokens=40_000,
        cache_write_tokens=8_000,
        output_tokens=3_000,
    )
    tiers = {tier: price.at(tier) for tier in ("standard", "flex", "priority", "batch")}
    found = {tier: at.cost(usage).total for tier, at in tiers.items() if at}
    expected = {"standard": 0.029, "flex": 0.0145, "priority": 0.058, "batch": 0.0145}
    assert found == pytest.approx(expected)
    flex = tiers["flex"]
    assert flex is not None
    assert flex.cost(Usage(input_tokens=272_001)).input == pytest.approx(0.272001)
    for tier in ("scale", "ultrafast", "default", "FLEX", ""):
        assert price.at(tier) is None, tier
    # No flex is sold of it, and the data says nothing of its tiers.
    claude = pricing.price("anthropic/claude-sonnet-5-5", NONE)
    assert claude is not None
    assert claude.at("flex") is None
    assert claude.at("standard") is claude


@pytest.mark.parametrize(
    "model",
    [
        "openai/gpt-6-luna",
        "openai/gpt-6.1-sol",
        "anthropic/claude-haiku-5-5",
        "google/gemini-3.8-flash",
    ],
)
def test_the_data_itself_comes_to_the_same(model: str) -> None:
    """What genai-prices computes for a call is what it costs here,
    in each context, on both sides of each cliff.
    """
    rng = random.Random(7)
    provider, _, name = model.partition("/")
    price = pricing.price(model, NONE)
    assert price is not None
    contexts = {"standard": {}, "flex": {"service_tier": "flex"}, "batch": {"processing": "batch"}}
    for tier, context in contexts.items():
        at = price.at(tier)
        for _ in range(200) if at else ():
            assert at is not None
            given = int(10 ** rng.uniform(1, 5.95))
            cached = rng.randint(0, given)
            kept = rng.randint(0, given - cached) if at.rates[0].cache_write is not None else 0
            usage = Usage(
                input_tokens=given,
                cached_input_tokens=cached,
                cache_write_tokens=kept,
                output_tokens=rng.randint(0, 100_000),
            )
            theirs = calc_price(
                Theirs(
                    input_tokens=given,
                    cache_read_tokens=cached,
                    cache_write_tokens=kept,
                    output_tokens=usage.output_tokens,
                ),
                name,
                provider_id=provider,
                price_context=context or None,
            )
            assert at.cost(usage).total == pytest.approx(float(theirs.total_price)), (tier, usage)


def test_prices_of_tiers_may_be_given() -> None:
    """A table gives what the data lacks, a whole one alone;
    a price given whole leaves the data's tiers out.
    """
    flex = ModelPrices(input_usd_per_mtok=1.0, output_usd_per_mtok=5.0)
    prices = Config(
        models={
            "openai/gpt-6.2-sol": ModelSection(
                input_usd_per_mtok=2.0,
                cached_input_usd_per_mtok=0.1,
                cache_write_usd_per_mtok=2.5,
                cache_write_long_usd_per_mtok=5.0,
                output_usd_per_mtok=10.0,
                tiers={"flex": flex},
            ),
            "openai/gpt-6-luna": ModelSection(input_usd_per_mtok=1.0, output_usd_per_mtok=1.0),
            "openai/gpt-6.1-terra": ModelSection(
                tiers={"flex": ModelPrices(output_usd_per_mtok=0.1), "priority": flex}
            ),
            "local/x": ModelSection(tiers={"flex": flex}),
        }
    )
    sol = pricing.price("openai/gpt-6.2-sol", prices)
    assert sol is not None
    rate = Rate(input=2.0, cached_input=0.1, output=10.0, cache_write=2.5, cache_write_long=5.0)
    assert sol.rates == (rate,)
    assert sol.tiers == {"flex": (Rate(input=1.0, cached_input=1.0, output=5.0),)}
    luna = pricing.price("openai/gpt-6-luna", prices)
    assert luna is not None
    assert luna.at("flex") is None
    terra = pricing.price("openai/gpt-6.1-terra", prices)
    assert terra is not None
    assert terra.source == "config"
    assert [(r.above, r.input, r.output) for r in terra.tiers["flex"]] == [
        (0, 0.5, 0.1),
        (272_000, 1.0, 0.1),
    ]
    assert terra.tiers["priority"] == sol.tiers["flex"]
    assert terra.rates[0].output == 5.0
    # What the standard tier costs is not known by that.
    assert pricing.price("local/x", prices) is None


def test_what_is_set_aside_is_the_most_that_a_call_may_end_at() -> None:
    """All of its input written to the cache, for long where that is done,
    and at the price behind a mark that is near.
    """
    price = pricing.price("anthropic/claude-haiku-5-5", NONE)
    assert price is not None
    assert [r.above for r in price.rates] == [0, 100_000]
    assert price.most(80_000, 1000).total == pytest.approx((80_000 * 0.125 + 1000 * 0.5) / 1e6)
    assert price.most(80_000, 0, long=True).total == pytest.approx(80_000 * 0.2 / 1e6)
    for tokens in (95_000, 100_001):
        behind = 5 * (tokens * 0.125 + 1000 * 0.5) / 1e6
        assert price.most(tokens, 1000).total == pytest.approx(behind)
    free = Price(
        rates=(Rate(input=1.0, cached_input=0.1, cache_write=0.0, output=2.0),), source="x"
    )
    assert free.most(1000, 0).total == pytest.approx(0.001)


def test_what_the_cache_saved() -> None:
    """It is the price of the same input without a cache, less what it came to:
    below nothing where it was only written.
    """
    rate = Rate(input=1.0, cached_input=0.1, cache_write=1.25, output=2.0)
    price = Price(rates=(rate,), source="x")
    read = Usage(input_tokens=1_000_000, cached_input_tokens=800_000)
    assert price.saved(read) == pytest.approx(0.72)
    written = Usage(input_tokens=1_000_000, cache_write_tokens=1_000_000)
    assert price.saved(written) == pytest.approx(-0.25)
    assert Usage().cache_share is None
    known = Tally(
        input_tokens=1_000_000, cached_input_tokens=800_000, cache_reported_tokens=1_000_000
    )
    assert (known + Tally(input_tokens=5_000_000)).cache_share == 0.8


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def _on(model: str, day: str) -> Price:
    found = _listed(model, "", date.fromisoformat(day)).price
    assert found is not None
    return found


def test_prices_of_the_day() -> None:
    """Prices follow their dates, also those that come while a task runs,
    and where they change within a day the higher ones stand where the hour is not known.
    """
    assert _on("deepseek/deepseek-chat", "2026-11-24").rates[0].input == 0.27
    before = _on("anthropic/claude-opus-4-6", "2026-03-01")
    after = _on("anthropic/claude-opus-4-6", "2026-04-01")
    assert before.rates != after.rates
    assert before.now(_moment("2026-03-12 23:59:59")).rates == before.rates
    assert before.now(_moment("2026-03-13 00:00")).rates == after.rates
    both = before.between(_moment("2026-03-12 23:50"), _moment("2026-03-13 00:00"))
    assert {price.rates for price in both} == {before.rates, after.rates}
    # The prices of tiers have dates of their own.
    assert "flex" not in _on("openai/gpt-6-luna", "2026-10-11").tiers
    assert "flex" in _on("openai/gpt-6-luna", "2026-10-12").tiers


def test_the_data_has_no_conditions_but_those_that_are_read() -> None:
    """A start date, or hours of every day: weekdays among them would want no rule of ours."""
    models = [model for house in get_snapshot().providers for model in house.models]
    listed = [p for m in models if isinstance(m.prices, list) for p in m.prices]
    variants = [v for m in models for v in m.price_variants or ()]
    kinds = {type(each.constraint) for each in (*listed, *variants)} - {type(None)}
    assert {kind: {f.name for f in fields(kind)} for kind in kinds} == {
        StartDateConstraint: {"start_date"},
        TimeOfDateConstraint: {"start_time", "end_time"},
    }


def test_the_readme_s_model_is_dear_in_35_of_168_hours() -> None:
    """DeepSeek's windows are of Monday to Friday; those of its older models of each day."""
    for model, hours in (("deepseek-flash", 35), ("deepseek-v4-pro", 35), ("deepseek-chat", 112)):
        price = _on(f"deepseek/{model}", "2026-11-28")
        monday = _moment("2026-11-30 00:45")
        dear = [price.now(monday + 3600 * n).rates == price.rates for n in range(168)]
        assert dear.count(True) == hours, model
        assert {price.now(monday + 3600 * n).rates[0].input for n in range(168)} == {
            price.rates[0].input,
            price.hours[0].rates[0].input,
        }


@pytest.mark.parametrize(
    ("hours", "dear", "cheap"),
    [
        (
            HoursSection(days="fri", utc=("22:00-02:00",), peak=DOUBLE),
            ["2026-11-27 22:00", "2026-11-28 01:59:59"],
            ["2026-11-27 01:00", "2026-11-27 21:59:59", "2026-11-28 02:00", "2026-11-28 22:00"],
        ),
        (
            HoursSection(days="Sat-Mon, wed", utc=("00:00-24:00",), peak=DOUBLE),
            ["2026-11-28 00:00", "2026-11-30 23:59:59", "2026-12-02 12:00"],
            ["2026-11-27 23:59:59", "2026-12-01 00:00", "2026-12-03 00:00"],
        ),
        (
            HoursSection(utc=("22:00-2:00", "06:00-07:00"), peak=DOUBLE, except_=("2026-10-01",)),
            ["2026-10-01 00:30", "2026-10-02 06:00", "2026-10-02 22:00"],
            ["2026-10-01 06:30", "2026-10-01 23:00", "2026-10-02 01:00"],
        ),
    ],
)
def test_hours_of_the_configuration(hours: HoursSection, dear: list[str], cheap: list[str]) -> None:
    """Over midnight they belong to the day on which they begin; what they do not say,
    and the tiers, stay as at other times; of what is listed they take the place.
    """
    flex = {"flex": ModelPrices(input_usd_per_mtok=0.5, output_usd_per_mtok=1.0)}
    whole = ModelSection(input_usd_per_mtok=1.0, output_usd_per_mtok=2.0, hours=hours, tiers=flex)
    for model in (whole, ModelSection(hours=hours)):
        price = pricing.price(
            "deepseek/deepseek-flash", Config(models={"deepseek/deepseek-flash": model})
        )
        assert price is not None
        assert price.source == "config"
        assert price.rates[0].output == 9.0
        usual = price.hours[0].rates[0]
        for text in (*dear, *cheap):
            rate = price.now(_moment(text)).rates[0]
            assert rate.output == (9.0 if text in dear else usual.output), text
            assert (rate.input, rate.cached_input) == (usual.input, usual.cached_input)
            if model is whole:
                tiers = [price.now(_moment(text)).at("flex"), price.at("flex")]
                assert [t and t.now(_moment(text)).rates[0].output for t in tiers] == [1.0, 1.0]


def test_what_is_set_aside_is_never_less_than_what_is_booked() -> None:
    """Whenever within its time the request is sent; near a change the dearer counts, no longer."""
    price = _on("deepseek/deepseek-flash", "2026-11-28")
    usage = Usage(input_tokens=10_000, output_tokens=1_000)
    rng = random.Random(1)
    for _ in range(300):
        begin = _moment("2026-11-27") + rng.uniform(0, 8 * 86400)
        span = rng.choice((0.0, 600.0, 3 * 3600.0, 86400.0))
        aside = max(p.cost(usage).total for p in price.between(begin, begin + span))
        for moment in (begin, begin + span, begin + rng.uniform(0, span)):
            assert price.sent(moment, usage).cost(usage).total <= aside
    assert len(price.between(0.0, 1e9)) < 100, "nor does it take long"
    edge, dear = _moment("2026-11-30 01:00"), price.rates
    for ahead, found in ((-121, False), (-119, True), (0, True), (119, True)):
        assert (price.sent(edge + ahead, usage).rates == dear) is found, ahead
    for ahead, found in ((-1, True), (0, True), (119, True), (121, False)):
        assert (price.sent(edge + 3 * 3600 + ahead, usage).rates == dear) is found, ahead


def test_a_price_that_an_older_journal_froze_stays_as_it_is() -> None:
    """It has no hours; and a call of which no journal says when it was sent costs the most."""
    price = _on("deepseek/deepseek-flash", "2026-11-28")
    usage = Usage(input_tokens=10_000, output_tokens=1_000)
    stored = msgspec.json.decode(msgspec.json.encode(price))
    assert msgspec.convert(stored, Price) == price
    del stored["hours"]
    old = msgspec.convert(stored, Price)
    sunday = _moment("2026-11-29 12:00")
    assert (
        old.sent(sunday, usage).cost(usage) == old.cost(usage) == price.sent(0, usage).cost(usage)
    )
    half = price.sent(sunday, usage).cost(usage).total
    assert half == pytest.approx(old.cost(usage).total / 2)


def test_the_data_is_loaded_when_a_price_is_asked_for() -> None:
    """Who only imports the module, or uses local servers, does not pay for the data."""
    code = (
        "import sys, batchd.config as c, batchd.pricing as p\n"
        "from batchd.config.providers import ProviderSection\n"
        "near = {'openai': ProviderSection(base_url='http://localhost/v1')}\n"
        "p.price('openai/gpt-4', c.Config(providers=near))\n"
        "sys.exit('genai_prices' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
