from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest

from batchd import config, records, terms
from batchd.config import loading, providers, sections
from batchd.errors import ConfigError, NotPossibleError, UsageError

ROOT = Path(__file__).parents[2]


def _problems(path: Path | None, environ: dict[str, str]) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        config.load(path, environ)
    return {p.place: str(p).removeprefix(f"{p.place}: ") for p in caught.value.problems}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Return where a test writes its config.toml."""
    return tmp_path / "config.toml"


def test_the_shipped_file_says_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """config.toml at top level is the built-in configuration,
    to the last preset, so neither can drift.
    """
    (tmp_path / "config.toml").write_bytes((ROOT / "config.toml").read_bytes())
    shipped = config.load(tmp_path / "config.toml", {})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").unlink()
    built_in = config.load(None, {"HOME": str(tmp_path)})
    assert built_in.file == ""
    # Without a file no place but the user's own is meant.
    own = tmp_path / ".local/share/batchd"
    paths = sections.PathsSection(
        inbox=f"{own}/inbox", outbox=f"{own}/outbox", state=f"{own}/.batchd"
    )
    workspace = replace(shipped.workspace, mirrors=f"{own}/.batchd-mirrors")
    assert replace(shipped, file="", paths=paths, workspace=workspace) == built_in


def test_the_shipped_file_has_every_key_with_a_comment() -> None:
    """A user who opens config.toml finds each key of each section, and what it means."""
    text = (ROOT / "config.toml").read_text()
    for section in fields(sections.ConfigSections):
        if section.name in {"providers", "models", "notify"}:
            continue
        kind = section.default_factory
        table = text.partition(f"\n[{section.name}]")[2].partition("\n[")[0]
        for key in fields(kind):  # type: ignore[arg-type] # (they are dataclasses)
            if key.name not in {"ceiling", "compare"}:
                assert re.search(rf"^{key.name} = .*\S\s+# ", table, re.MULTILINE), key.name
    openai = text.partition("[providers.openai]")[2].partition("\n[")[0]
    for key in fields(providers.ProviderSection):
        assert re.search(rf"^{key.name} = .* # ", openai, re.MULTILINE), key.name
    # Those of tables that only a user can name stand there as comments.
    for key in (*fields(sections.ReceiverSection), *fields(providers.ModelSection)):
        if key.name not in {"tiers", "hours"}:
            assert re.search(rf"^# {key.name} = .*\S\s+# ", text, re.MULTILINE), key.name
    for table in ("tiers.flex", "hours"):
        assert re.search(rf'^# \[models."openai/some-model".{table}\]\s+# ', text, re.MULTILINE)


def test_the_receivers_in_the_shipped_file_are_sound(written: Path) -> None:
    """Without the comment signs before them,
    the receivers are ones that are read, with what they say.
    """
    text = (
        (ROOT / "config.toml")
        .read_text()
        .partition("# ── Notifications")[2]
        .partition("[notify.me]")[2]
    )
    lines = re.findall(r"^# (\[notify\.\w+\]|\w+ = .*)$", f"# [notify.me]{text}", re.MULTILINE)
    written.write_text("\n".join(lines))
    shipped = config.load(written, {}).notify
    assert {name: r.kind for name, r in shipped.items()} == {
        "me": "apprise",
        "hook": "webhook",
        "tool": "command",
    }
    assert shipped["me"].on == sections.ReceiverSection(kind="apprise").on
    assert shipped["me"].max_per_minute == sections.ReceiverSection(kind="apprise").max_per_minute
    assert shipped["hook"].secret_file == str(written.parent / "hook.key")


def test_receivers_are_held_to_their_kind(written: Path) -> None:
    """What a kind of receiver lacks, what it does not know,
    and what would give a password away, is reported with its place.
    """
    written.write_text(
        '[notify.a]\nkind = "apprise"\nurl_env = "A"\ncommand = ["x"]\n'
        '[notify.b]\nkind = "webhook"\nurl = "https://me:pw@host/"\nurl_env = "X"\n'
        '[notify.c]\nkind = "command"\nsecret_env = "no variable"\n[notify."../d"]\nkind = "apprise"\nurl = "x://"\n'
        '[notify.e]\nkind = "webhook"\nurl_env = "HOOK"\n[secrets]\nenv = ["HOOK"]\n'
    )
    found = _problems(written, {})
    assert {place: text.partition(" (")[0] for place, text in found.items()} == {
        "[notify.a] command": "kind 'apprise' has no such key",
        "[notify.b] url": "it must be http(s)://HOST[:PORT]/PATH, without user or password",
        "[notify.c] secret_env": "it must be the name of an environment variable",
        "[notify.c] command": "this key is needed",
        "[notify] ../d": "a name has at most 64 letters, digits, _ and -",
        "[secrets] env": "it holds a secret of [notify.e], which no command may see",
    }


def test_what_a_receiver_had_once_says_what_to_write_instead(written: Path) -> None:
    """Mail's keys name Apprise, and how it writes them; an event that is gone says who tells it."""
    written.write_text(
        '[notify.a]\nkind = "email"\nhost = "mail"\npassword_file = "x"\nto = ["me@example.com"]\n'
        '[notify.b]\nkind = "command"\ncommand = ["x"]\non = ["model_retiring"]\n'
    )
    found = _problems(written, {})
    mail = 'mail goes by Apprise: kind = "apprise", and url_file with mailtos://USER:PASSWORD@HOST/'
    for key in ("kind", "host", "password_file", "to"):
        assert mail in found.pop(f"[notify.a] {key}")
    assert list(found) == ["[notify.b] on[0]"]
    assert "`check` names models that end" in found["[notify.b] on[0]"]


def test_hours_are_what_a_person_means_or_refused(written: Path) -> None:
    """Dates as text or as TOML's own; a wrong value with its place and how it is written;
    `tune` and variables reach them.
    """
    table = '[models."openai/x".hours]\nutc = ["01:00-04:00"]\npeak = {output_usd_per_mtok = 1}\n'
    written.write_text(f'{table}except = [2026-10-01, "2026-10-02"]\ndays = "mon-fri"\n')
    loaded = config.load(written, {"BATCHD_MODELS__OPENAI_X__HOURS__DAYS": "sat"})
    hours = loaded.models["openai/x"].hours
    assert hours
    assert (hours.days, hours.except_) == ("sat", ("2026-10-01", "2026-10-02"))
    new = config.changed(loaded, {("models", "openai/x", "hours", "utc"): '["22:00-02:00"]'})
    assert new.models["openai/x"].hours == replace(hours, utc=("22:00-02:00",))
    span = 'must be hours in UTC, as in "06:00-10:00" or "22:00-02:00"'
    for line, where, said in (
        ('days = "mon-fry"', " days", '\'mon-fry\' must be days, as in "mon-fri" or "sat,sun"'),
        ('except = ["1.10."]', " except[0]", "'1.10.' must be a date, as in \"2026-10-01\""),
        ('execpt = ["2026-10-01"]', " execpt", "there is no such key (do you mean except?)"),
    ):
        written.write_text(table + line)
        assert _problems(written, {}) == {f'[models."openai/x".hours]{where}': said}
    for text in ("25:00-26:00", "04:00-04:00", "01:60-02:00", "01:00", "1-2", "24:00-01:00"):
        written.write_text(table.replace("01:00-04:00", text))
        assert _problems(written, {}) == {'[models."openai/x".hours] utc[0]': f"{text!r} {span}"}
    written.write_text('[models."openai/x".hours]\nutc = []\n')
    assert _problems(written, {}) == {
        '[models."openai/x".hours] utc': "it must have at least 1 item after validation, not 0 (it is a list)",
        '[models."openai/x".hours] peak': "this key is needed",
    }


def test_receivers_come_from_variables_too_and_keep_their_secrets(written: Path) -> None:
    """A key of a receiver can be set in the environment;
    passwords, keys and secret addresses are hidden, and their variables forgotten.
    """
    written.write_text('[notify.me]\nkind = "webhook"\n')
    environ = {
        "BATCHD_NOTIFY__ME__URL_ENV": "HOOK_URL",
        "BATCHD_NOTIFY__ME__ON": '["batch_failed"]',
        "BATCHD_NOTIFY__ME__SECRET_ENV": "HOOK_KEY",
        "HOOK_URL": "https://hooks.example.com/services/T0001ABCD/xyzzy42plugh",
        "HOOK_KEY": "whsec_c2VjcmV0LWtleQ==",
    }
    found = config.load(written, environ)
    assert found.notify["me"].on == ("batch_failed",)
    hidden = set(found.hidden())
    assert {environ["HOOK_URL"], environ["HOOK_KEY"], "T0001ABCD", "xyzzy42plugh"} <= hidden
    assert not {"hooks.example.com", "services"} & hidden
    assert {"HOOK_URL", "HOOK_KEY", "BATCHD_NOTIFY__ME__URL_ENV"} <= found.variables()


@pytest.mark.parametrize("key", ["url", "url_env"])
def test_a_password_of_words_is_hidden(written: Path, key: str) -> None:
    """As an address has it, %-escaped or among its parameters; its other words are not."""
    urls = (
        "mailtos://batchd:correct-horse-battery@smtp.example.com/?to=me@example.com, "
        "jsons://me:pony%2Bsaddle%21@hooks.example.com/path?format=text, "
        "mailtos://mail.example.com?user=me&pass=stable-door-hinge"
    )
    value = "MAIL" if key == "url_env" else urls
    written.write_text(f'[notify.me]\nkind = "apprise"\n{key} = "{value}"\n')
    hidden = set(config.load(written, {"MAIL": urls}).hidden())
    wanted = {"correct-horse-battery", "pony%2Bsaddle%21", "pony+saddle!", "stable-door-hinge"}
    assert hidden - {"", urls} == wanted


def test_everything_wrong_is_reported_at_once(written: Path) -> None:
    """Unknown keys, wrong types and bad values:
    each with its place, the reason and the nearest key.
    """
    written.write_text(
        '[pool]\nproceses = 3\nagents_per_process = "4"\nrest_s = nan\nmax_attempts = true\n'
        '[pol]\nx = 1\n[agent]\nmodel = "opnai/x"\n[providers.mine]\nrpm = -1\n'
        '[models."openai/x"]\noutput = 1\n[limits.ceiling]\ntimout_s = 3\n[cost]\ncompare = ["a", 3]\n'
        '[sandbox]\nbackend = "docker"\n[spool]\nscan_s = "5"\n[budget]\nper_day_usd = -1.5\nlog = {}\n'
    )
    assert _problems(written, {}) == {
        "[pool] proceses": "there is no such key (do you mean processes?)",
        "[pool] agents_per_process": "it must be a valid integer (it is '4')",
        "[pool] rest_s": "it must be a finite number (it is NaN)",
        "[pool] max_attempts": "it must be a valid integer (it is true)",
        "[pol]": "there is no such key (do you mean pool?)",
        "[providers.mine] base_url": "this key is needed",
        "[providers.mine] rpm": "it must be greater than or equal to 0 (it is -1)",
        '[models."openai/x"] output': (
            "there is no such key (the known ones are api, cache_write_long_usd_per_mtok, cache_write_usd_per_mtok,"
            " cached_input_usd_per_mtok, context_window, effort, hours, input_usd_per_mtok, options, output_usd_per_mtok,"
            " service_tier, tier_fallback, tiers)"
        ),
        "[limits.ceiling] timout_s": "there is no such key (do you mean timeout_s?)",
        "[cost] compare[1]": "it must be a valid string (it is 3)",
        "[sandbox] backend": "it must be 'bwrap' or 'none' (it is 'docker')",
        "[spool] scan_s": "it must be a valid number (it is '5')",
        "[budget] per_day_usd": "it must be greater than or equal to 0 (it is -1.5)",
        "[budget] log": "there is no such key (the known ones are per_day_usd)",
    }


def test_a_tier_is_one_that_there_is(written: Path) -> None:
    """An unknown tier, a price of one, and a fallback that is none are refused with what there is;
    variables say it too.
    """
    written.write_text(
        '[agent]\nservice_tier = "cheap"\ntier_fallback = "soon"\n'
        '[models."openai/x"]\nservice_tier = "batch"\ntier_fallback = -1\n'
        '[models."openai/x".tiers.scale]\ninput_usd_per_mtok = 1.0\n'
        '[models."openai/x".tiers.flex]\ninput = 1.0\n'
    )
    tiers = "it must be 'standard', 'flex' or 'priority'"
    when = "it must be 'never', or the seconds after which it goes on at the standard price"
    found = _problems(written, {})
    assert found == {
        "[agent] service_tier": f"{tiers} (it is 'cheap')",
        "[agent] tier_fallback": f"{when} (it is 'soon')",
        '[models."openai/x"] service_tier': f"{tiers} (it is 'batch')",
        '[models."openai/x"] tier_fallback': f"{when} (it is -1)",
        '[models."openai/x".tiers] scale': "it must be 'flex' or 'priority' (it is 'scale')",
        '[models."openai/x".tiers.flex] input': (
            "there is no such key (the known ones are cache_write_long_usd_per_mtok, cache_write_usd_per_mtok,"
            " cached_input_usd_per_mtok, input_usd_per_mtok, output_usd_per_mtok)"
        ),
    }
    written.write_text('[models."openai/x".tiers.flex]\ninput_usd_per_mtok = 1.0\n')
    environ = {"BATCHD_AGENT__SERVICE_TIER": "flex", "BATCHD_AGENT__TIER_FALLBACK": "300"}
    loaded = config.load(written, environ)
    assert (loaded.agent.service_tier, loaded.agent.tier_fallback) == ("flex", 300.0)
    assert loaded.models["openai/x"].tiers["flex"].input_usd_per_mtok == 1.0
    assert (
        config.load(written, {"BATCHD_AGENT__TIER_FALLBACK": "never"}).agent
        == sections.AgentSection()
    )


def test_what_is_one_of_a_few_words_says_what_stands_there(written: Path) -> None:
    """With what may be meant; a name of a model without quotes is a table in a table."""
    written.write_text(
        '[agent]\neffort = "hihg"\nservice_tier = true\n[evaluation]\njudge_effort = ["low"]\n'
        '[providers.x]\nbase_url = "http://x/v1"\napi = "Message"\n'
        '[models."a/b/c"]\napi = "' + "x" * 90 + '"\n[models.openai.gpt-6.1-sol]\napi = "chat"\n'
    )
    efforts = "it must be 'none', 'minimal', 'low', 'medium', 'high', 'xhigh' or 'max'"
    apis = "it must be 'chat', 'responses' or 'messages'"
    assert _problems(written, {}) == {
        "[agent] effort": f"{efforts} (it is 'hihg'; do you mean high?)",
        "[agent] service_tier": "it must be 'standard', 'flex' or 'priority' (it is true)",
        "[evaluation] judge_effort": f"{efforts} (it is a list)",
        "[providers.x] api": f"{apis} (it is 'Message'; do you mean messages?)",
        '[models."a/b/c"] api': f"{apis} (it is '{'x' * 63}…')",
        "[models.openai] gpt-6": "there is no such key (put a model's name in quotes, "
        'as in [models."openai/gpt-6.1-sol"])',
    }


def test_a_tier_is_not_set_for_a_model_that_cannot_be_asked_for_it(written: Path) -> None:
    """Requests of the Messages API have none: each call would be refused."""
    haiku = "anthropic/claude-haiku-5-5"
    why = f'and {haiku} is called with api = "messages", which has no tiers'
    fix = f'set service_tier = "standard" in [models."{haiku}"]'
    written.write_text(f'[models."{haiku}"]\nservice_tier = "priority"\n')
    assert _problems(written, {}) == {
        f'[models."{haiku}"] service_tier': f"it is 'priority', {why} ({fix})"
    }
    agent = f'[agent]\nmodel = "{haiku}"\nservice_tier = "flex"\n[models."{haiku}"]\n'
    written.write_text(agent)
    assert _problems(written, {}) == {"[agent] service_tier": f"it is 'flex', {why} ({fix})"}
    for fixed in ('service_tier = "standard"', 'api = "chat"'):
        written.write_text(f"{agent}{fixed}\n")
        config.load(written, {})


def test_a_table_of_a_model_names_its_provider(written: Path) -> None:
    """Without it no call would heed what it sets.

    A name that costs are compared with needs none.
    """
    written.write_text(
        '[agent]\nmodel = "deepseek/flash"\n[models.flash]\ncontext_window = 5000\n'
        '[models."gpt-5"]\ninput_usd_per_mtok = 1.0\n[models."openai/"]\n[models."other/x"]\n'
    )
    why = "it is not provider/model, so it sets nothing for any model in use"
    compared = "models to compare the cost with go into [cost] compare"
    assert _problems(written, {}) == {
        f"[models] {name}": f'{why} ([models."deepseek/{own}"]; {compared})'
        for name, own in (("flash", "flash"), ("gpt-5", "gpt-5"), ("openai/", "MODEL"))
    }
    written.write_text('[models."gpt-5"]\n')
    (problem,) = _problems(written, {}).values()
    assert problem == f'{why} ([models."openai/gpt-5"]; {compared})'
    written.write_text('[cost]\ncompare = ["gpt-5"]\n[models."gpt-5"]\n')
    config.load(written, {})


@pytest.mark.parametrize(
    "url", ["http://[::1", "http://x:port/v1", "http://x:99999/", "http://:80"]
)
def test_an_address_that_cannot_be_read_is_none(written: Path, url: str) -> None:
    """It is refused where it is written, not where it is used."""
    written.write_text(f'[providers.x]\nbase_url = "{url}"\n')
    assert _problems(written, {}) == {
        "[providers.x] base_url": "it must be http(s)://HOST[:PORT]/PATH, as in http://10.0.0.7:8000/v1"
    }


def test_the_network_is_true_false_or_a_list_of_hosts(tmp_path: Path) -> None:
    """Each host as it is compared; all that is no host is reported at once;
    variables and changes say it in the same way.
    """
    path = tmp_path / "config.toml"
    path.write_text(
        '[sandbox]\nnetwork = ["API.Example.com.", "*.example.org:8443", "127.0.0.1:80"]\n'
    )
    loaded = config.load(path, {"BATCHD_SANDBOX__PRIVATE_HOSTS": '["mirror.example"]'})
    hosts = ("api.example.com", "*.example.org:8443", "127.0.0.1:80")
    assert (loaded.sandbox.network, loaded.sandbox.private_hosts) == (hosts, ("mirror.example",))
    assert (loaded.sandbox_policy().network, config.changed(loaded, {})) == (hosts, loaded)
    for said, read in (("true", True), ("false", False), ('["B"]', ("b",)), ("[]", ())):
        assert config.changed(loaded, {("sandbox", "network"): said}).sandbox.network == read
    wanted = "it must be true, false or a list of host names"
    for wrong, why in {
        '"a.example"': wanted,
        "1": wanted,
        '["a.example", 1]': wanted,
        '["*", "https://a.example/"]': "'*' is not a host name; 'https://a.example/' is not a host",
        '["169.254.169.254"]': "'169.254.169.254' cannot be allowed: it is an address of no public host",
    }.items():
        path.write_text(f"[sandbox]\nnetwork = {wrong}\nprivate_hosts = true\n")
        problems = _problems(path, {})
        assert problems["[sandbox] network"].startswith(why), problems
        assert problems["[sandbox] private_hosts"] == "it must be a list of host names (it is true)"


def test_what_is_shown_and_hidden_lies_below_usr_etc_and_opt(tmp_path: Path) -> None:
    """Each path by its shortest form; not what every command needs,
    nor what batchd makes; all that is wrong at once.
    """
    path = tmp_path / "config.toml"
    path.write_text(
        '[sandbox]\nshow = ["/opt", "/etc/pip.conf"]\nhide = ["/usr/local/x", "/etc/ssl"]\n'
    )
    policy = config.load(path, {}).sandbox_policy()
    assert policy.show == ("/opt", "/etc/pip.conf")
    assert policy.hide == ("/usr/local/x", "/etc/ssl")
    none = 'is not an absolute path below /usr, /etc or /opt (as in "/opt/tools")'
    wrong = {
        "/home/me": f"'/home/me' {none}",
        "opt/tools": f"'opt/tools' {none}",
        "/usrlocal": f"'/usrlocal' {none}",
        "": f"'' {none}",
        "/opt/x/": "'/opt/x/' is not the shortest form of this path (write \"/opt/x\")",
        "/opt/../root": "'/opt/../root' is not the shortest form of this path (write \"/root\")",
        "/etc": "/etc holds secrets, and what every command needs (name the parts of it)",
        "/etc/passwd": "/etc/passwd is not the machine's own: batchd makes it (leave it out)",
    }
    paths = json.dumps([*wrong])
    path.write_text(f'[sandbox]\nshow = {paths}\nhide = ["/usr", "/opt/x/", "/opt"]\n')
    assert _problems(path, {}) == {
        **{f"[sandbox] show[{n}]": why for n, why in enumerate(wrong.values())},
        "[sandbox] hide[0]": "without /usr no command could run (name the parts of it)",
        "[sandbox] hide[1]": wrong["/opt/x/"],
    }
    path.write_text('[sandbox]\nshow = ["/opt/x"]\nhide = ["/opt/x", "/opt"]\n')
    assert _problems(path, {}) == {
        "[sandbox] hide[0]": "/opt/x is in show too (name it in one of them)"
    }
    path.write_text('[sandbox]\nshow = "/opt"\nhide = [1]\n')
    assert _problems(path, {}).keys() == {"[sandbox] show", "[sandbox] hide[0]"}


def test_contradictions_are_reported(written: Path) -> None:
    """Models without a provider, addresses that are none, folders within one another."""
    written.write_text(
        '[agent]\nmodel = "opnai/x"\n[evaluation]\njudge_model = "gpt"\n'
        '[providers.mine]\nbase_url = "https://user:secret@host/v1"\n'
        '[paths]\ninbox = "in"\noutbox = "in/out"\nstate = "in"\n'
    )
    found = _problems(written, {})
    assert found.keys() == {
        *("[agent] model", "[evaluation] judge_model", "[providers.mine] base_url"),
        *("[paths] outbox", "[paths] state"),
    }
    assert "do you mean openai?" in found["[agent] model"]
    assert found["[evaluation] judge_model"].startswith("'gpt' is not provider/model")


def test_a_pool_is_one_that_can_work(written: Path) -> None:
    """Here, or on machines; and a cluster has room for as many as stay."""
    written.write_text("[pool]\nprocesses = 0\n")
    assert {*_problems(written, {})} == {"[pool] processes"}
    written.write_text('[pool]\nprocesses = 0\nmachines = [{command = ["ssh", "a", "b"]}]\n')
    assert config.load(written, {}).pool.machines
    written.write_text('[pool]\nengine = "ray"\nprocesses = 2\n[ray]\nmin_processes = 3\n')
    assert {*_problems(written, {})} == {"[ray] min_processes"}


def test_control_characters_are_refused(written: Path) -> None:
    """A NUL in a path, a line break in a header or a name is reported, not run into;
    a body is free text.
    """
    written.write_text(
        '[paths]\ninbox = "a\\u0000b"\n[workspace]\nallow = ["ok", "a\\n"]\n'
        '[providers.openai]\nheaders = {"X" = "a\\r\\nEvil: 1"}\nextra_body = {stop = ["\\n"]}\n'
        '[providers."a\\nb"]\nbase_url = "http://x"\n'
    )
    assert _problems(written, {}) == {
        "[paths] inbox": "it holds control characters",
        "[workspace] allow[1]": "it holds control characters",
        "[providers.openai.headers] X": "it holds control characters",
        "[providers]": r"the key 'a\nb' holds control characters",
    }


@pytest.mark.parametrize(
    ("data", "place", "reason"),
    [
        (b"[pool]\nprocesses = \n", "line 2, column 13", "a value is missing here"),
        (b"[pool]\n[web]\n[pool]\n", "line 3, column 6", "the table [pool] is given twice"),
        (
            b"[pool]\nprocesses = 1\nprocesses = 2\n",
            "line 3, column 14",
            "Cannot overwrite a value",
        ),
        (b"a = '\xff'", "byte 5", "the file is not UTF-8"),
        (b"a = " + b"[" * 100_000, "", "it is nested too deep"),
        (None, "", "the file cannot be read: No such file or directory"),
    ],
)
def test_a_broken_file_is_reported_by_line_and_column(
    written: Path, data: bytes | None, place: str, reason: str
) -> None:
    """What is no TOML is refused with its place, and a file that is asked for must be there."""
    if data is not None:
        written.write_bytes(data)
    assert _problems(written, {}) == {place: reason}


@pytest.mark.timeout(120)
def test_a_pipe_is_refused_and_not_waited_for(written: Path) -> None:
    """No process writes to it:
    a daemon that read its configuration or a key from one would stand still for ever.
    """
    os.mkfifo(pipe := written.with_name("pipe"))
    assert _problems(pipe, {}) == {
        "": "the file cannot be read: it is a pipe, which cannot be read again"
    }
    written.write_text(f'[providers.a]\nbase_url = "http://a"\napi_key_file = "{pipe}"\n')
    with pytest.raises(NotPossibleError, match=r"the key of provider a cannot be read .* a pipe"):
        config.load(written, {}).endpoint("a")


def test_variables_override_every_key(written: Path) -> None:
    """BATCHD_SECTION__KEY wins over the file and the presets,
    in nested tables too, each with its type.
    """
    written.write_text('[pool]\nprocesses = 2\n[providers.my-server]\nbase_url = "http://a"\n')
    loaded = config.load(
        written,
        {
            "BATCHD_POOL__PROCESSES": "8",
            "BATCHD_POOL__REST_S": "1",
            "BATCHD_SANDBOX__NETWORK": "true",
            "BATCHD_PROVIDERS__OPENAI__BASE_URL": "http://127.0.0.1:1/v1",
            "BATCHD_PROVIDERS__MY_SERVER__EXTRA_BODY": '{a = [1, "x"]}',
            "BATCHD_LIMITS__CEILING__MAX_COST_USD": "2.5",
            "BATCHD_COST__COMPARE": '["openai/gpt-4"]',
            "BATCHD_PATHS__OUTBOX": "123",
            "BATCHD_PATHS__INBOX": "elsewhere",
            "BATCHD_UNRELATED": "x",
        },
    )
    assert (loaded.pool.processes, loaded.pool.rest_s, loaded.sandbox.network) == (8, 1.0, True)
    assert loaded.providers["openai"].base_url == "http://127.0.0.1:1/v1"
    assert loaded.providers["my-server"].extra_body == {"a": [1, "x"]}
    assert loaded.limits.ceiling.max_cost_usd == 2.5
    assert loaded.cost.compare == ("openai/gpt-4",)
    assert loaded.paths.outbox == str(written.parent / "123")
    assert loaded.paths.inbox == str(written.parent / "elsewhere")


def test_a_wrong_variable_is_reported_by_its_name(written: Path) -> None:
    """The place of a problem is the variable that brought it, whatever is wrong with it."""
    written.write_text("")
    environ = {
        "BATCHD_POOL__PROCESSES": "many",
        "BATCHD_POOL__PROCESSS": "1",
        "BATCHD_POOLS__X": "1",
        "BATCHD_LOG__LEVEL": "loud",
        "BATCHD_AGENT__MODEL__X": "1",
        "BATCHD_PATHS__INBOX": "a\udcff",
    }
    assert _problems(written, environ).keys() == environ.keys()


def test_where_the_file_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trusted ./config.toml goes before the user's own;
    paths are relative to the file, ~ is the home.
    """
    own = tmp_path / "home/.config/batchd/config.toml"
    own.parent.mkdir(parents=True)
    own.write_text('[paths]\ninbox = "~/in"\noutbox = "../out"\n')
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    loaded = config.load(None, {"HOME": str(tmp_path / "home")})
    assert loaded.file == str(own)
    assert loaded.paths.inbox == str(tmp_path / "home/in")
    assert loaded.paths.outbox == str(own.parent.parent / "out")
    (here / "config.toml").write_text("")
    (own.parent / "trusted").write_text(f"{here}\n")
    assert config.load(None, {"HOME": str(tmp_path / "home")}).file == str(here / "config.toml")


def test_keys_come_from_the_environment_a_file_or_nowhere(written: Path) -> None:
    """A missing key names the variable or file; a credential of systemd is found by its name."""
    credentials = written.parent / "credentials"
    credentials.mkdir()
    (credentials / "deepseek").write_text("sk-from-systemd\n")
    (written.parent / "key").write_text("sk-from-file\n")
    written.write_text(
        '[providers.openrouter]\napi_key_file = "key"\n[providers.deepseek]\napi_key_file = "deepseek"\n'
        '[providers.anthropic]\napi_key_file = "absent"\n'
    )
    environ = {"OPENAI_API_KEY": "sk-secret", "CREDENTIALS_DIRECTORY": str(credentials)}
    loaded = config.load(written, environ)
    assert loaded.endpoint("openai").api_key == "sk-secret"
    assert loaded.endpoint("openrouter").api_key == "sk-from-file"
    assert loaded.endpoint("deepseek").api_key == "sk-from-systemd"
    assert loaded.endpoint("ollama").api_key == ""
    with pytest.raises(NotPossibleError, match=r"anthropic .* the file .*/absent: No such file"):
        loaded.endpoint("anthropic")
    with pytest.raises(NotPossibleError, match="set the environment variable OPENAI_API_KEY"):
        config.load(written, {}).endpoint("openai")
    with pytest.raises(UsageError, match="no provider 'missing' is configured"):
        loaded.endpoint("missing")
    (written.parent / "key").write_text("two\nlines")
    with pytest.raises(NotPossibleError, match="holds no key"):
        loaded.endpoint("openrouter")


def test_no_secret_is_shown(written: Path) -> None:
    """Neither keys nor headers nor the environment appear in any repr."""
    written.write_text('[providers.openai]\nheaders = {X-Key = "sk-in-a-header"}\n')
    loaded = config.load(written, {"OPENAI_API_KEY": "sk-secret"})
    assert "sk-" not in repr(loaded) + repr(loaded.endpoint("openai"))


def test_limits_and_policy_have_the_fields_of_the_records() -> None:
    """What tasks and workers get has every field of the records, with the same defaults."""
    assert sections.LimitsSection().record() == records.TaskLimits()
    assert config.Config().sandbox_policy() == records.SandboxPolicy()
    names = {f.name for f in fields(records.TaskLimits)}
    assert {f.name for f in fields(sections.LimitsCeilingSection)} == names
    assert all(
        is_dataclass(f.default_factory) or f.name in {"providers", "models", "notify"}
        for f in fields(sections.ConfigSections)
    )


def test_reading_a_configuration_loads_nothing_heavy() -> None:
    """A process that only handles a Config does not import pydantic, tomli or structlog."""
    script = "import sys; from batchd import config, log; config.Config(); print(*sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert not {"pydantic", "tomli", "structlog"} & set(out.stdout.split())


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("pool.processes", ("pool", "processes")),
        ("limits.ceiling.max_calls", ("limits", "ceiling", "max_calls")),
        ('models."a/b-1.5".context_window', ("models", "a/b-1.5", "context_window")),
    ],
)
def test_a_dotted_key_is_a_place_and_back(key: str, place: tuple[str, ...]) -> None:
    """Names with more than letters stand in quotes, as in TOML."""
    assert loading.place_of(key) == place
    assert loading.dotted(place) == key


@pytest.mark.parametrize("key", ["", "pool", "a/b.c", "x = 1\ny", "a.b # c", "a.b.", "[a]\nb.c"])
def test_what_is_no_dotted_key_is_refused(key: str) -> None:
    """Nothing else that TOML would read gets through."""
    with pytest.raises(ConfigError, match=r"not SECTION\.KEY"):
        loading.place_of(key)


def test_a_change_is_read_as_strictly_as_the_file(tmp_path: Path) -> None:
    """It changes its key alone; a wrong one is reported by its own name, all at once;
    relative paths lie beside the file.
    """
    path = tmp_path / "config.toml"
    path.write_text("[pool]\nprocesses = 2\n[limits]\nmax_calls = 5\n")
    old = config.load(path, {"BATCHD_POOL__REST_S": "1.5"})
    new = config.changed(
        old,
        {
            ("pool", "processes"): "8",
            ("providers", "mine", "base_url"): "http://127.0.0.1:1/v1",
            ("agent", "model"): "mine/some.model",
            ("cost", "compare"): '["openai/gpt-4"]',
            ("workspace", "root"): "work",
        },
    )
    assert (new.pool.processes, new.pool.rest_s, new.limits.max_calls) == (8, 1.5, 5)
    assert (new.agent.model, new.cost.compare) == ("mine/some.model", ("openai/gpt-4",))
    assert new.workspace.root == str(tmp_path / "work")
    assert (new.file, new.environ) == (old.file, old.environ)
    assert config.changed(old, {}) == old
    with pytest.raises(ConfigError) as caught:
        config.changed(
            old,
            {
                ("pool", "processes"): "many",
                ("pool", "proceses"): "3",
                ("agent", "model", "x"): "3",
                ("agent", "model"): "a\nb",
            },
        )
    places = {problem.place for problem in caught.value.problems}
    assert places == {"pool.processes", "pool.proceses", "agent.model.x", "agent.model"}


def test_no_key_of_a_provider_is_handed_out(written: Path) -> None:
    """Neither its variable nor its file may be among what tasks can ask for."""
    written.write_text(
        '[secrets]\nenv = ["OPENAI_API_KEY"]\nfiles = { key = "a/../my.key" }\n'
        '[providers.deepseek]\napi_key_file = "my.key"\n'
    )
    with pytest.raises(ConfigError) as caught:
        config.load(written, {})
    problems = [str(problem) for problem in caught.value.problems]
    assert problems == [
        "[secrets] env: it holds a secret of [providers.openai], which no command may see",
        "[secrets.files] key: it holds a secret of [providers.deepseek], which no command may see",
    ]


def test_a_key_in_the_place_of_its_variables_name_is_not_shown(written: Path) -> None:
    """A key in ``api_key_env`` itself is refused, and not quoted."""
    written.write_text('[providers.openai]\napi_key_env = "sk-proj-abcdef"\n')
    with pytest.raises(ConfigError) as caught:
        config.load(written, {})
    assert "it must be the name of an environment variable" in str(caught.value)
    assert "sk-proj" not in str(caught.value)


def test_what_is_secret_in_a_provider_goes_with_its_endpoint(written: Path) -> None:
    """A key in the address, in headers or in the body is hidden;
    the rest may be shown and stored.
    """
    written.write_text(
        '[providers.x]\nbase_url = "http://h/v1?api-key=qu3ry-key&api-version=2026-01-01"\n'
        'headers = { Authorization = "Basic dXNlcjpwYXNz", X-Title = "frontend" }\n'
        'extra_body = { user_token = "b0dy-key", seed = 7 }\n'
    )
    settings = config.load(written, {})
    endpoint = settings.endpoint("x")
    assert endpoint.base_url == "http://h/v1"
    assert (
        endpoint.address("models") == "http://h/v1/models?api-key=qu3ry-key&api-version=2026-01-01"
    )
    assert endpoint.body == {"user_token": "b0dy-key"}
    assert {*endpoint.secrets()} - {""} == {
        *("qu3ry-key", "b0dy-key", "Basic dXNlcjpwYXNz", "dXNlcjpwYXNz")
    }
    assert "key" not in repr(endpoint)
    setup = terms.setup("x/model", settings)
    assert setup.extra_body == {"seed": 7}
