from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from batchd import config, records
from batchd.cli.runs import given_files
from batchd.config import Config
from batchd.config.sections import (
    AgentSection,
    LimitsCeilingSection,
    LimitsSection,
    ModelSection,
    SecretsSection,
)
from batchd.errors import TaskFileError
from batchd.records import Secret
from batchd.spool import decoding, taskfile, taskspec


@pytest.fixture
def spool(tmp_path: Path) -> Config:
    """A configuration with a workspace that is clear of the spool."""
    for name in ("work/site", "more/deep", "inbox", "outbox", "keys"):
        (tmp_path / name).mkdir(parents=True)
    _give_away(tmp_path / "inbox")
    (tmp_path / "config.toml").write_text(
        '[workspace]\nroot = "work"\nallow = ["more"]\n[limits]\nmax_calls = 50\n'
        "[limits.ceiling]\nmax_calls = 200\nmax_tokens = 1000\n"
        '[providers.openai]\napi_key_file = "keys/openai"\n'
    )
    return config.load(tmp_path / "config.toml", {})


def _give_away(path: Path) -> None:
    """Have a folder belong to an ordinary user, whichever user runs this."""
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)


def _problems(data: Any, spool: Config, name: str = "x.json") -> dict[str, str]:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    with pytest.raises(TaskFileError) as caught:
        taskfile.parse(raw, name, spool)
    assert all(len(str(p)) < 3100 for p in caught.value.problems)
    return {p.place: str(p).removeprefix(f"{p.place}: ") for p in caught.value.problems}


def _tasks(data: Any, spool: Config, name: str = "x.json") -> tuple[records.Task, ...]:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return taskfile.parse(raw, name, spool).tasks


@pytest.mark.parametrize("ending", decoding.ENDINGS)
def test_each_ending_that_is_named_as_known_is_one(ending: str, spool: Config) -> None:
    """What `status` says of files that wait is what the parser does with them."""
    (task,) = _tasks(b'{"first_prompt": "x"}', spool, f"x{ending}")
    assert task.first_prompt


@pytest.mark.parametrize("ending", decoding.ENDINGS)
def test_a_trial_is_the_first_tasks_of_a_file_of_any_ending(ending: str, spool: Config) -> None:
    """Of lines, of a list; a plain prompt is one task."""
    data = b'[{"first_prompt": "x"}, {"first_prompt": "y"}]'
    if ending != ".json":
        data = b'{"first_prompt": "x"}\n{"first_prompt": "y"}\n'
    name = f"X{ending.upper()}"
    assert len(_tasks(given_files.cut(name, data, 1, spool), spool, name)) == 1


def test_the_example_of_the_design(spool: Config, tmp_path: Path) -> None:
    """Batch keys are defaults, the task's own win,
    ids are places, limits come from three layers.
    """
    parsed = taskfile.parse(
        b"""{"model": "deepseek/deepseek-chat", "budget_usd": 5.0, "limits": {"max_cost_usd": 0.50},
             "env": {"A": "1", "B": "1"}, "tasks": [
               {"dir": "", "first_prompt": "Write a number guessing game in Python"},
               {"id": "calc", "dir": "site", "first_prompt": "\xe2\x80\xa6", "check": "node --test", "priority": 5,
                "after": ["001", "001"], "limits": {"max_calls": 7}, "env": {"B": "2"}, "model": "openai/x",
                "metadata": {"n": [1, null]}, "tags": ["a"]}]}""",
        "task.json",
        spool,
    )
    first, second = parsed.tasks
    assert parsed.budget_usd == 5.0
    assert first == records.Task(
        id="001",
        first_prompt="Write a number guessing game in Python",
        model="deepseek/deepseek-chat",
        limits=records.TaskLimits(max_calls=50, max_cost_usd=0.5, max_tokens=1000),
        env={"A": "1", "B": "1"},
    )
    assert second == records.Task(
        id="calc",
        first_prompt="…",
        model="openai/x",
        dir=str(tmp_path / "work/site"),
        priority=5,
        after=("001",),
        evaluator="none",
        check="node --test",
        limits=records.TaskLimits(max_calls=7, max_cost_usd=0.5, max_tokens=1000),
        env={"A": "1", "B": "2"},
        tags=("a",),
        metadata={"n": [1, None]},
    )


def test_the_tier_of_a_task_comes_from_the_nearest_place(spool: Config) -> None:
    """The task's own, its batch's, its model's table, [agent];
    flex may take 900 s a call unless the file says otherwise.
    """
    config = replace(
        spool,
        agent=AgentSection(model="openai/x", service_tier="flex"),
        models={"openai/y": ModelSection(service_tier="priority", tier_fallback=0.0)},
        limits=LimitsSection(call_timeout_s=60.0),
    )
    tasks = [
        {"first_prompt": "a"},
        {"first_prompt": "a", "model": "openai/y"},
        {
            "first_prompt": "a",
            "model": "openai/y",
            "service_tier": "flex",
            "tier_fallback": "never",
        },
        {"first_prompt": "a", "service_tier": "standard", "tier_fallback": 5},
        {"first_prompt": "a", "limits": {"call_timeout_s": 30}},
    ]
    found = [
        (t.service_tier, t.tier_fallback_s, t.limits.call_timeout_s) for t in _tasks(tasks, config)
    ]
    assert found == [
        ("flex", None, 900.0),
        ("priority", 0.0, 60.0),
        ("flex", None, 900.0),
        ("standard", 5.0, 60.0),
        ("flex", None, 30.0),
    ]
    batch = {"service_tier": "priority", "tasks": [tasks[0], tasks[2]]}
    assert [t.service_tier for t in _tasks(batch, config)] == ["priority", "flex"]
    bound = replace(
        config, limits=LimitsSection(ceiling=LimitsCeilingSection(call_timeout_s=120.0))
    )
    assert _tasks(tasks[0], bound)[0].limits.call_timeout_s == 120.0


def test_a_judge_of_its_own_tier_has_the_time_that_it_takes(spool: Config) -> None:
    """Its calls fall under the same limit as the task's;
    where it does not judge, its table says nothing.
    """
    config = replace(
        spool,
        evaluation=replace(spool.evaluation, judge_model="openai/judge"),
        models={"openai/judge": ModelSection(service_tier="flex")},
        limits=LimitsSection(call_timeout_s=60.0),
    )
    tasks = [{"first_prompt": "a", "evaluator": by} for by in ("judge", "none")]
    assert [t.limits.call_timeout_s for t in _tasks(tasks, config)] == [900.0, 60.0]


def test_an_unknown_tier_is_refused_with_those_that_there_are(spool: Config) -> None:
    """In the batch and in a task, each at its place."""
    batch = {
        "service_tier": "cheap",
        "tasks": [{"first_prompt": "a", "service_tier": "default", "tier_fallback": True}],
    }
    with pytest.raises(TaskFileError) as refused:
        _tasks(batch, spool)
    found = {p.place: p.message for p in refused.value.problems}
    tiers = "it must be 'standard', 'flex' or 'priority'"
    assert found == {
        "service_tier": tiers,
        "tasks[0].service_tier": tiers,
        "tasks[0].tier_fallback": "it must be 'never', or the seconds after which it goes on at the standard price",
    }


def test_a_tier_that_the_model_cannot_be_asked_for_is_refused(spool: Config) -> None:
    """Be it the task's own, its batch's or the configuration's."""
    claude = {"first_prompt": "a", "model": "anthropic/claude-haiku-5-5"}
    plain = {**claude, "service_tier": "standard"}
    with pytest.raises(TaskFileError) as refused:
        _tasks({"service_tier": "flex", "tasks": [claude, plain, {"first_prompt": "b"}]}, spool)
    (problem,) = refused.value.problems
    assert problem.place == "tasks[0].service_tier"
    assert str(problem).endswith('[models."anthropic/claude-haiku-5-5"])')
    by_config = replace(spool, agent=replace(spool.agent, service_tier="flex"))
    with pytest.raises(TaskFileError, match="flex"):
        _tasks({"tasks": [claude]}, by_config)
    assert _tasks({"tasks": [plain]}, by_config)[0].service_tier == "standard"


@pytest.mark.parametrize(
    ("data", "name", "prompts"),
    [
        (b'[{"first_prompt": "a"}, {"first_prompt": "b"}]', "x.json", ["a", "b"]),
        (b'{"first_prompt": "a", "budget_usd": 1}', "X.JSON", ["a"]),
        (b'{"first_prompt": "a", "tasks": [{}, {"first_prompt": "b"}]}', "x.json", ["a", "b"]),
        (
            b'\xef\xbb\xbf{"first_prompt": "a"}\r\n\r\n{"first_prompt": "b"}\r\n',
            "x.jsonl",
            ["a", "b"],
        ),
        ('\ufeff# Title\r\n\r\n{"no": "json"}\r'.encode(), "x.md", ['# Title\n\n{"no": "json"}\n']),
        (
            '{"first_prompt": "a\u2028"}\r{"first_prompt": "b"}'.encode(),
            "x.jsonl",
            ["a\u2028", "b"],
        ),
        (b"just do it", "x.txt", ["just do it"]),
    ],
)
def test_every_form(data: bytes, name: str, prompts: list[str], spool: Config) -> None:
    """Batch, bare list, single task, a task a line, plain prompt; with BOM, CRLF and lone CR."""
    assert [t.first_prompt for t in _tasks(data, spool, name)] == prompts


def test_ids_are_three_digit_places(spool: Config) -> None:
    """Without ids the 1st is 001 and the 1000th 1000."""
    tasks = _tasks([{"first_prompt": "x"}] * 1000, spool)
    assert (tasks[0].id, tasks[98].id, tasks[999].id) == ("001", "099", "1000")


def test_who_evaluates(spool: Config) -> None:
    """The key as given; else none where there is a check; else what the configuration says."""
    specs = [{}, {"check": "true"}, {"check": "true", "evaluator": "judge"}, {"evaluator": "none"}]
    tasks = _tasks([{"first_prompt": "x", **s} for s in specs], spool)
    assert [t.evaluator for t in tasks] == ["judge", "none", "judge", "none"]


def test_where_a_check_runs(spool: Config) -> None:
    """Apart, unless the task, its batch or the configuration says
    that it is in the task's own place.
    """
    data: dict[str, Any] = {
        "tasks": [{"first_prompt": "x"}, {"first_prompt": "x", "check_in": "task"}]
    }
    assert [t.check_in for t in _tasks(data, spool)] == ["apart", "task"]
    assert [t.check_in for t in _tasks({**data, "check_in": "task"}, spool)] == ["task", "task"]
    lax = replace(spool, evaluation=replace(spool.evaluation, check_in="task"))
    assert [t.check_in for t in _tasks({**data, "check_in": "apart"}, lax)] == ["apart", "task"]
    assert [t.check_in for t in _tasks(data, lax)] == ["task", "task"]
    assert "'apart' or 'task'" in _problems({**data, "check_in": "host"}, spool)["check_in"]


def test_when_and_how_often_a_check_runs(spool: Config) -> None:
    """As the task or its batch says; each needs a check,
    and one that ends a task needs no other evaluation beside it.
    """
    data: dict[str, Any] = {"first_prompt": "x", "check": "true"}
    (plain,) = _tasks(data, spool)
    assert (plain.check_first, plain.check_runs) == (False, 1)
    batch = {
        **data,
        "check_first": "must_fail",
        "check_runs": 2,
        "tasks": [{}, {"check_first": True}],
    }
    assert [(t.check_first, t.check_runs) for t in _tasks(batch, spool)] == [
        ("must_fail", 2),
        (True, 2),
    ]
    for key, value in (("check_first", True), ("check_runs", 2)):
        why = _problems({"first_prompt": "x", key: value}, spool)[key]
        assert why == f"there is no check to run (give one, or leave {key} out)"
    for other in ({"output_schema": {}}, {"evaluator": "judge"}):
        assert (
            "before the judge"
            in _problems({**data, **other, "check_first": True}, spool)["check_first"]
        )
        assert _tasks({**data, **other, "check_first": "must_fail"}, spool)
    assert "'must_fail'" in _problems({**data, "check_first": "yes"}, spool)["check_first"]
    assert "check_runs" in _problems({**data, "check_runs": 0}, spool)


def test_of_the_checkout_results_alone_can_be_worked_on(spool: Config) -> None:
    """A directory below batchd's own code is refused, with the fix,
    unless it lies in an ``outbox`` there.
    """
    checkout = Path(taskfile.__file__).parents[2]
    wide = replace(spool, workspace=replace(spool.workspace, allow=(str(checkout.parent),)))
    task = {"first_prompt": "x", "dir": str(checkout / "outbox")}
    assert [t.dir for t in _tasks(task, wide)] == [task["dir"]]
    why = _problems({**task, "dir": str(checkout / "docs")}, wide)["dir"]
    assert why.endswith(
        "docs lies in batchd's own checkout: work elsewhere, with [workspace] root or allow"
    )


def test_no_directory_of_programs_that_somebody_else_runs(
    spool: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the user's keys for ssh nor units of systemd,
    nor what would hold them once they are there.
    """
    home = tmp_path / "work/home"
    for name in (".ssh", ".config/systemd/user", ".local", "project"):
        (home / name).mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    dirs = {
        "home": "holds ~/.ssh",
        "home/.ssh": "is ~/.ssh",
        "home/.config": "holds a folder of systemd's units",
        "home/.config/systemd/user": "lies in a folder of systemd's units",
        "home/.local": "holds a",
    }
    for directory, why in dirs.items():
        assert why in _problems({"first_prompt": "x", "dir": directory}, spool)["dir"]
    assert _tasks({"first_prompt": "x", "dir": "home/project"}, spool)[0].dir == str(
        home / "project"
    )


@pytest.mark.parametrize("known_by", [("HEAD", "objects/x", "refs/x"), ("HEAD", "commondir")])
@pytest.mark.parametrize("directory", ["b.git", "b.git/hooks", "b.git/hooks/deep", "b.git/new"])
def test_no_directory_within_a_repository_without_a_working_tree(
    spool: Config, tmp_path: Path, known_by: tuple[str, ...], directory: str
) -> None:
    """At whatever depth, there yet or not: git runs what lies there at the next fetch or push."""
    for name in (*known_by, "hooks/deep/x", "info/x"):
        (tmp_path / "work/b.git" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "work/b.git" / name).write_text("")
    task = {"first_prompt": "x", "dir": directory}
    why = _problems({"tasks": [{"id": "a", "first_prompt": "x"}, {**task, "after": ["a"]}]}, spool)
    assert why["tasks[1].dir"].endswith("the inside of a git repository: name its working tree")


@pytest.mark.parametrize("name", [".hg", ".jj", ".sl", ".bzr", "_darcs", ".pijul", ".svn"])
def test_no_directory_that_another_program_keeps_versions_in(
    spool: Config, tmp_path: Path, name: str
) -> None:
    """As with a `.git`: its settings run commands."""
    (tmp_path / "work/x" / name / "store").mkdir(parents=True)
    for directory, why in ((name, "is a"), (f"{name}/store", "lies in a")):
        problem = _problems({"first_prompt": "x", "dir": f"x/{directory}"}, spool)["dir"]
        assert problem.endswith(f"{why} {name}")


def test_all_errors_at_once(spool: Config, tmp_path: Path) -> None:
    """One look at a file shows everything: also of a task that has another error already."""
    found = _problems(
        {
            "modell": "x",
            "limits": {"max_call": 3, "max_calls": 201, "max_seconds": 9},
            "id": "x",
            "tasks": [
                {"dir": "..", "first_prompt": " "},
                {"id": "request", "first_prompt": 3, "limits": {"timeout_s": "x", "max_tokens": 0}},
                {"id": "a b", "first_promt": "x", "limits": {"call_timeout_s": 0}},
                {"first_prompt": "x", "after": ["005", "9"]},
                {
                    "first_prompt": "x",
                    "after": ["004"],
                    "model": "opnai/x",
                    "network": True,
                    "env": {"a b": "c", "D": "\0"},
                    "check": "a\0",
                    "output_schema": {
                        "type": "objekt",
                        "properties": {
                            "x": {"pattern": "("},
                            "y": {"$ref": "http://169.254.0.1/"},
                            "z": {"$ref": "#/$defs/no"},
                            "w": {"$ref": "#/properties/z"},
                        },
                    },
                },
                3,
                {"id": "004", "first_prompt": "x", "dir": "nope", "priority": 1.5},
                {"id": "last", "first_prompt": "x", "limits": 3},
            ],
        },
        spool,
    )
    assert found == {
        "modell": "there is no such key (do you mean model?)",
        "id": found["id"],
        "limits.max_call": "there is no such key (do you mean max_calls?)",
        "limits.max_seconds": "there is no such key (do you mean timeout_s?)",
        "tasks[0].dir": f"{tmp_path} lies outside of [workspace] root and allow"
        f" ({tmp_path}/work, {tmp_path}/more)",
        "tasks[0].first_prompt": "it must say what is to be done (it is ' ')",
        "tasks[1].id": "'request' is reserved for a file of the batch",
        "tasks[1].first_prompt": "it must be a valid string (it is 3)",
        "tasks[1].limits.timeout_s": "it must be a valid number (it is 'x')",
        "tasks[2].id": "it must be 1 to 64 letters, digits, _ or -, and begin with a letter or digit",
        "tasks[2].first_promt": "there is no such key (do you mean first_prompt?)",
        "tasks[2].first_prompt": "this key is needed",
        "tasks[2].limits.call_timeout_s": "it must be greater than 0 (it is 0)",
        "tasks[3].after": "the tasks wait for each other: 004 → 005 → 004",
        "tasks[3].after[1]": "no task has the id '9'",
        "tasks[4].model": (
            "no provider 'opnai' is configured (do you mean openai?"
            " the known ones are anthropic, deepseek, local, ollama, openai, openrouter)"
        ),
        "tasks[4].network": "[sandbox] network does not allow it (it is true; leave it out, or set [sandbox] network)",
        "tasks[4].env['a b']": "a variable's name is letters, digits and _, and begins with no digit",
        "tasks[4].env.D": "it cannot hold a NUL character",
        "tasks[4].check": "it cannot hold a NUL character",
        "tasks[4].output_schema.type": (
            "it is not a valid JSON Schema: 'objekt' is not valid under any of the given schemas"
        ),
        "tasks[4].output_schema.properties.x.pattern": (
            "it is not a valid JSON Schema: '(' is not a 'regex'"
        ),
        "tasks[4].output_schema.properties.y['$ref']": "it must lie in this schema (#/$defs/…)",
        "tasks[4].output_schema.properties.z['$ref']": "there is no #/$defs/no in this schema",
        "tasks[5]": 'it must be an object (such as {"first_prompt": "…"})',
        "tasks[6].dir": f"{tmp_path}/work/nope does not exist (make it, or leave dir out for a fresh directory)",
        "tasks[6].priority": "it must be a valid integer (it is 1.5)",
        "tasks[6].id": (
            "tasks[3] has the id '004' too (a task without an id has its number in the file, such as 001)"
        ),
        "tasks[7].limits": "it must be an object",
    }


def test_ceilings_bind(spool: Config) -> None:
    """A file may not ask for more than [limits.ceiling], nor for no limit; defaults are lowered."""
    found = _problems({"first_prompt": "x", "limits": {"max_calls": 201, "max_tokens": 0}}, spool)
    assert found == {
        "limits.max_calls": "201 is above [limits.ceiling], 200",
        "limits.max_tokens": "no limit is above [limits.ceiling], 1,000",
    }
    (task,) = _tasks({"first_prompt": "x"}, spool)
    assert (task.limits.max_calls, task.limits.max_tokens) == (50, 1000)


@pytest.mark.parametrize(
    ("source", "place", "problem"),
    [
        ('{"tasks": [{"first_prompt": "x",}]}', "line 1, column 33", "remove that comma"),
        ('[\n  {"first_prompt": "x"},\n]', "line 3, column 1", "remove that comma"),
        ("{'a': 1}", "line 1, column 2", "double quotes"),
        ('{"a": 1 // why\r\n}', "line 1, column 9", "no comments"),
        ("{\u201ctasks\u201d: []}", "line 1, column 2", "typographic"),
        ("{tasks: []}", "line 1, column 2", 'write "tasks"'),
        ('{"a": True}', "line 1, column 7", "write true"),
        ('{"a": "x\ny"}', "line 1, column 9", r"write \n"),
        ('{"a":\r\n "x', "line 2, column 2", 'a closing " is missing'),
        ('{"a": "c:\\d"}', "line 1, column 10", r"write \\"),
        ('{"a": 1}\n{"a": 2}', "line 2, column 1", "name the file .jsonl"),
        ('{"a": 1 "b": 2}', "line 1, column 9", "a comma is missing"),
        ('{"a" 1}', "line 1, column 6", "a colon is missing"),
        ('{"tasks": [', "line 1, column 12", "cut off"),
        (" \n", "", "the file is empty"),
        ('"x"', "", "it must be an object"),
        ("[]", "tasks", "the file holds no task"),
        ('{"task": []}', "tasks", "here is 'task'"),
        ('{"tasks": {}}', "tasks", "it must be a list"),
        ('[{"first_prompt": "a", "first_prompt": "b"}]', "[0].first_prompt", "given twice"),
        (r'{"first_prompt": "\ud83d"}', "first_prompt", r"holds \ud83d, half of a surrogate pair"),
        (r'[{"first_prompt": "a", "k\ud83d": 1}]', "[0]", "a key holds half of a surrogate pair"),
        (r'{"tasks": [{"first_prompt": "a"}], "\ud83d": 1}', "", "a key holds half of a surrogate"),
        ('{"first_prompt": "a", "metadata": {"b": NaN}}', "metadata.b", "NaN"),
        (
            '{"first_prompt": "a", "limits": {"timeout_s": 1e999}}',
            "limits.timeout_s",
            "beyond 1e308",
        ),
        ('{"tasks": [' + "1" * 5000 + "]}", "", "a number of more than 4300 digits"),
        ("[" * 100_000, "", "nested too deep"),
        ('{"a":' * 100_000, "", "nested too deep"),
        (
            '[{"first_prompt": "a", "metadata": {"a": ' + "[" * 200 + "]" * 200 + "}}]",
            "[0].metadata.a",
            "nested deeper than 64 levels",
        ),
    ],
)
def test_what_is_no_json_is_reported_with_its_fix(
    source: str, place: str, problem: str, spool: Config
) -> None:
    """The commonest mistakes are named with line, column and fix;
    nothing crashes, nothing is guessed.
    """
    found = _problems(source.encode(), spool)
    if sys.version_info >= (3, 13) and "remove that comma" in problem:
        (found_at,) = found  # newer Pythons point at the comma itself
        assert found_at.startswith("line ")
        place = found_at
    assert place in found
    assert problem in found[place]


#: Of UTF-16 without its mark, of a program, of what was never written to its end.
_ZEROS = (
    "the file holds zero bytes: it is UTF-16, no text, or a crash has cut it off (save it as UTF-8,"
    " or write it again)"
)


@pytest.mark.parametrize(
    ("data", "name", "place", "problem"),
    [
        ("{}".encode("utf-16"), "x.json", "", "the file is UTF-16 (save it as UTF-8)"),
        ('{"a": 1}'.encode("utf-16-be"), "x.json", "", _ZEROS),
        (b"\x7fELF" + bytes(range(1, 30)) + b"\0" + b"x" * 100, "x.md", "", _ZEROS),
        ('{\n"a": "é"}'.encode("latin-1"), "x.json", "line 2, column 7", "byte 0xe9 is not UTF-8"),
        (b"tasks: []", "x.yaml", "", "the ending '.yaml' is not known"),
        (b"", "x.md", "", "the file is empty"),
        (b"do it" * 1000 + bytes(4000), "x.md", "", _ZEROS),
    ],
)
def test_other_encodings_and_endings_are_named(
    data: bytes, name: str, place: str, problem: str, spool: Config
) -> None:
    """What is not UTF-8, not text or of no known form is refused by its name."""
    assert problem in _problems(data, spool, name)[place]


def test_lines_are_named_by_their_numbers(spool: Config) -> None:
    """A broken line keeps its place, so that ids and the other lines are judged as meant."""
    data = b'{"first_prompt": "a"}\n\n{"first_prompt":}\n{"first_prompt": "c", "x": 1, "after": ["002"]}\n'
    found = _problems(data, spool, "x.jsonl")
    assert set(found) == {"line 3, column 17", "line 4, x"}


def test_long_chains_and_many_errors(spool: Config) -> None:
    """20,000 tasks in one chain, and in one circle,
    need no deep stack; a flood of errors is cut.
    """
    chain = [{"first_prompt": "x", "after": [f"{i:03d}"] if i else []} for i in range(20_000)]
    assert len(_tasks(chain, spool)) == 20_000
    chain[0]["after"] = ["20000"]
    (problem,) = _problems(chain, spool).values()
    assert problem.count("→") == 11
    found = _problems([{"first_prompt": "x", "x": 1}] * 1000, spool)
    assert len(found) == taskfile.MAX_PROBLEMS + 1
    assert found[""] == "and 800 more errors"


def test_directories_stay_clear_of_the_spool(tmp_path: Path, spool: Config) -> None:
    """Nothing that equals, holds or lies in inbox, outbox,
    state, configuration or key files; no way out.
    """
    work = tmp_path / "work"
    for name, target in {
        "out": tmp_path / "more/deep",
        "in": tmp_path / "inbox",
        "etc": Path("/etc"),
    }.items():
        (work / name).symlink_to(target)
    (work / "loop").symlink_to("loop")
    (work / "bytes").symlink_to(os.fsdecode(b"\xff\n"))
    (work / "file").write_text("")

    def refused(directory: str, **keys: Any) -> str:
        return _problems({"first_prompt": "x", "dir": directory, **keys}, spool).get("dir", "")

    def real(directory: str) -> str:
        return _tasks({"first_prompt": "x", "dir": directory}, spool)[0].dir

    assert real("site") == real(str(work / "site/../site/")) == str(work / "site")
    assert real(".") == str(work)
    assert real("out") == real(str(tmp_path / "more/deep")) == str(tmp_path / "more/deep")
    outside = "lies outside of [workspace] root and allow"
    assert outside in refused("etc")
    assert outside in refused("../outbox")
    assert outside in refused("/")
    assert outside in refused(str(work) + "-2")
    assert "is not a directory" in refused("file")
    assert "Too many levels of symbolic links" in refused("loop")
    assert "File name too long" in refused("x" * 300, after=[])
    assert "control characters" in refused("a\0b")
    assert "half of a surrogate pair" in refused("\ud800")
    assert r"\udcff\n" in refused("bytes")
    # With the workspace around everything, the spool itself still belongs to no task.
    spool = replace(spool, workspace=config.sections.WorkspaceSection(root=str(tmp_path)))
    (tmp_path / ".batchd").mkdir()
    _give_away(tmp_path / ".batchd")
    (tmp_path / "keys/openai").write_text("sk")
    assert real("work") == str(work)
    assert refused(".") == f"{tmp_path} holds the inbox folder"
    assert refused("work/in") == f"{tmp_path}/inbox is the inbox folder"
    assert refused("outbox/a/001") == f"{tmp_path}/outbox/a/001 lies in the outbox folder"
    assert refused(".batchd") == f"{tmp_path}/.batchd is the state folder"
    assert refused("keys") == f"{tmp_path}/keys holds a key file"
    assert "holds" in refused(str(tmp_path.parent)) or outside in refused(str(tmp_path.parent))
    spool = replace(spool, file=str(work / "site/config.toml"))
    assert refused("work/site") == f"{work}/site holds the configuration"


def test_what_lies_outside_of_the_workspace_is_refused_once_with_the_fix(
    spool: Config, tmp_path: Path
) -> None:
    """One line, however many tasks name how many places: all of them have one fix.

    None is offered for what no workspace may hold, nor a folder of the machine's own.
    """
    for name in "abcd":
        (tmp_path / f"srv/{name}/.git").mkdir(parents=True)
    tasks = [{"first_prompt": "x", "repo": str(tmp_path / f"srv/{name}")} for name in "aabcd"]
    tasks[3] = {"first_prompt": " ", "dir": str(tmp_path / "srv/c")}

    def hint(tasks: list[dict[str, str]]) -> str:
        found = _problems({"tasks": tasks}, spool)
        (said,) = [text for text in found.values() if "lies outside of [workspace]" in text]
        assert said.startswith(f"{tmp_path}/srv/a lies outside")
        assert "so do those of tasks[1]" in said
        assert f"tasks[{len(tasks) - 1}] (" in said
        return said

    more, srv = f'"{tmp_path}/more"', f"{tmp_path}/srv"
    assert f'set [workspace] allow = [{more}, "{srv}"] in {spool.file}' in hint(tasks)
    assert f'allow = [{more}, "{srv}/a"]' in hint(tasks[:2])
    apart = [{"first_prompt": "x", "dir": f"/opt/{name}"} for name in "abcd"]
    (said,) = [t for t in _problems({"tasks": apart}, spool).values() if "lies outside" in t]
    assert f'allow = [{more}, "/opt/a", "/opt/b", "/opt/c", "/opt/d"]' in said
    closed = [*tasks[:1], {"first_prompt": "x", "dir": str(tmp_path / "outbox")}]
    assert f'allow = [{more}, "{srv}/a"]' in hint(closed)
    assert "(it is ' ')" in _problems({"tasks": tasks}, spool)["tasks[3].first_prompt"]
    only = _problems({"first_prompt": "x", "dir": str(tmp_path / "outbox")}, spool)
    assert "kill -HUP" not in only["dir"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can have folders belong to others")
def test_a_directory_of_roots_where_batchd_is_root(spool: Config, tmp_path: Path) -> None:
    """No command runs there: it is refused with the fix.

    Where batchd is somebody else, or other tasks come before, it is not.
    """
    state, task = tmp_path / ".batchd", {"first_prompt": "x", "dir": "site"}
    assert _tasks(task, spool)  # the inbox is another user's
    state.mkdir()
    site = tmp_path / "work/site"
    fix = f"chown -R nobody {shlex.quote(str(site))}"
    why = f"{site} belongs to root, and commands never run as root: {fix}"
    assert _problems(task, spool) == {"dir": why}
    assert _tasks([{"first_prompt": "x"}, {**task, "after": ["001"]}], spool)
    _give_away(site)
    assert _tasks(task, spool)
    os.chown(site, 0, 0)
    _give_away(state)
    assert _tasks(task, spool)


def test_a_directory_that_another_task_makes(spool: Config) -> None:
    """What does not exist yet is taken only where the task waits for others, which may make it."""
    tasks = [
        {"first_prompt": "x", "dir": "site"},
        {"first_prompt": "x", "dir": "site/new", "after": ["001"]},
    ]
    assert _tasks(tasks, spool)[1].dir.endswith("/site/new")
    del tasks[1]["after"]
    assert set(_problems(tasks, spool)) == {"[1].dir"}


def test_only_regular_files_of_bearable_size_are_read(tmp_path: Path) -> None:
    """2 GB are refused by their size, unread; links,
    FIFOs and folders by their kind, without hanging.
    """
    huge = tmp_path / "huge.json"
    with huge.open("wb") as file:
        file.truncate(2 << 30)
    (tmp_path / "link.json").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "fifo.json")
    (tmp_path / "folder.json").mkdir()
    for name, problem in {
        "huge.json": "2,147.5 MB, [spool] max_file_bytes allows 1.0",
        "link.json": "cannot be read",
        "fifo.json": "not a regular file",
        "folder.json": "not a regular file",
        "absent.json": "No such file",
    }.items():
        with pytest.raises(TaskFileError, match=problem.replace("[", r"\[")):
            taskfile.read(tmp_path / name, 1_000_000)


@pytest.mark.parametrize(
    ("schema", "place", "why"),
    [
        ({"$schema": 5}, "['$schema']", "it must be the address of a draft of JSON Schema"),
        ({"$schema": ["x"]}, "['$schema']", "it must be the address of a draft of JSON Schema"),
        ({"$schema": {"a": 1}}, "['$schema']", "it must be the address of a draft of JSON Schema"),
        (
            {"$schema": "http://["},
            "['$schema']",
            "it must be the address of a draft of JSON Schema",
        ),
        ({"pattern": "a{4294967296}"}, ".pattern", "it is not a valid JSON Schema"),
        ({"patternProperties": {"(?a)(?u)x": {}}}, ".patternProperties", "it is not a valid JSON"),
    ],
)
def test_schemas_that_no_validator_can_read_are_refused(
    spool: Config, schema: dict[str, Any], place: str, why: str
) -> None:
    """A draft that is no address, a pattern that no library takes:
    with the place, and no traceback.
    """
    [(at, problem)] = _problems({"first_prompt": "x", "output_schema": schema}, spool).items()
    assert at == f"output_schema{place}"
    assert why in problem


def test_the_schema_describes_what_is_taken(spool: Config) -> None:
    """`batchd schema task`: valid itself, takes what parse takes,
    refuses typos, documents every key.
    """
    schema = taskspec.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for good in (
        [{"first_prompt": "x", "limits": {"max_calls": 3}}],
        {"first_prompt": "x"},
        {"budget_usd": 3, "tasks": [{"id": "a", "first_prompt": "x", "after": []}]},
        {"$schema": "./task.schema.json", "first_prompt": "x", "budget_usd": 3},
        {"$schema": "https://example.org/task.json", "tasks": [{"first_prompt": "x"}]},
    ):
        assert validator.is_valid(good)
        assert _tasks(good, spool)
    for bad in ([{"first_promt": "x"}], [{"$schema": "x", "first_prompt": "x"}]):
        assert not validator.is_valid(bad)
        assert _problems(bad, spool)
    for model in ("BatchSpec", "TaskSpec", "Alone", "Limits"):
        for key, value in schema["$defs"][model]["properties"].items():
            assert value.get("description") or "$ref" in str(value), key


def test_the_schema_that_an_editor_goes_by_is_no_key_of_tasks(spool: Config) -> None:
    """`$schema` stands at the top of an object, of each line of a .jsonl; it changes nothing.

    An address is text.
    """
    plain = _tasks({"tasks": [{"first_prompt": "x"}]}, spool)
    assert _tasks({"$schema": "task.json", "tasks": [{"first_prompt": "x"}]}, spool) == plain
    assert _tasks({"$schema": None, "first_prompt": "x"}, spool) == plain
    lines = b'{"$schema": "task.json", "first_prompt": "x"}\n{"first_prompt": "y"}'
    assert [task.first_prompt for task in _tasks(lines, spool, "x.jsonl")] == ["x", "y"]
    why = "it must be the address of a schema"
    assert _problems({"$schema": 5, "first_prompt": "x"}, spool) == {"['$schema']": why}
    assert _problems(b'{"$schema": [], "first_prompt": "x"}', spool, "x.jsonl") == {
        "line 1, ['$schema']": why
    }


def test_limits_of_the_file_are_those_of_the_records() -> None:
    """A task's limits have every field of the records."""
    assert taskspec.Limits.model_fields.keys() == records.TaskLimits.__dataclass_fields__.keys()


def test_secret_variables(spool: Config) -> None:
    """They are kept apart from plain ones; a task's are laid over its batch's, of either kind."""
    allowed = replace(spool, secrets=SecretsSection(env=("GITHUB_TOKEN",), files={"npm": "/x/npm"}))
    batch = {"A": {"secret": "s3cret-value"}, "B": "plain", "C": {"secret": "s3cret-value"}}
    own = {"B": {"from_env": "GITHUB_TOKEN"}, "C": "plain", "D": {"from_file": "npm"}}
    (task,) = _tasks({"env": batch, "tasks": [{"first_prompt": "x", "env": own}]}, allowed)
    assert task.env == {"C": "plain"}
    assert task.secrets == {
        "A": Secret(value="s3cret-value"),
        "B": Secret(from_env="GITHUB_TOKEN"),
        "D": Secret(from_file="npm"),
    }
    assert "s3cret-value" not in repr(task)


def test_wrong_secret_variables_are_reported_without_their_values(spool: Config) -> None:
    """What the configuration does not hand out is refused, and so is what could not be masked."""
    env = {
        "SHORT": {"secret": "12345"},
        "BOTH": {"secret": "s3cret-value", "from_env": "X"},
        "NONE": {},
        "ENV": {"from_env": "OPENAI_API_KEY"},
        "FILE": {"from_file": "../keys/openai"},
        "TYPO": {"from_evn": "s3cret-value"},
        "LIST": ["s3cret-value"],
    }
    found = {}
    for name, value in env.items():
        problems = _problems({"first_prompt": "x", "env": {name: value}}, spool)
        assert "s3cret-value" not in str(problems)
        found |= problems
    assert found == {
        "env.SHORT": "a secret of fewer than 6 characters cannot be masked: it is part of any text",
        "env.BOTH": "it needs one of secret, from_env and from_file",
        "env.NONE": "it needs one of secret, from_env and from_file",
        "env.ENV": "[secrets] env does not name 'OPENAI_API_KEY' (it allows none)",
        "env.FILE": "[secrets.files] does not name '../keys/openai' (it allows none)",
        "env.TYPO.from_evn": "there is no such key (do you mean from_env?)",
        "env.LIST": "it must be a valid string",
    }
