"""The control socket's JSON, written out:
what each request and each answer looks like, also from and to other versions.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import msgspec
import pytest

import batchd
from batchd import cli, control
from batchd.control import requests, status
from batchd.control.orders import ORDERS
from batchd.control.socket_server import REQUESTS
from batchd.errors import UsageError
from batchd.records import Cause, Parking, Scope
from batchd.store.shown import BatchJson

_CLAIM = "01ARZ3NDEKTSV4RRFFQ69G5FAV"

#: As commands send them.
SENT: list[tuple[control.ControlRequest[Any], str]] = [
    (control.AskStatus(), '{"verb": "status", "last": 0, "batch": ""}'),
    (
        control.AskStatus(last=20, batch="games"),
        '{"verb": "status", "last": 20, "batch": "games"}',
    ),
    (
        control.Cancel(target=("games", "b/001"), message="no"),
        '{"verb": "cancel", "target": ["games", "b/001"], "message": "no"}',
    ),
    (control.Cancel(target=("b",)), '{"verb": "cancel", "target": ["b"], "message": ""}'),
    (
        control.Pause(scope=Scope.PROVIDER, name="openai", message="no money"),
        '{"verb": "pause", "scope": "provider", "name": "openai", "message": "no money"}',
    ),
    (
        control.Pause(scope=Scope.ALL),
        '{"verb": "pause", "scope": "all", "name": "", "message": ""}',
    ),
    (
        control.Resume(scope=Scope.TASK, name="games/001"),
        '{"verb": "resume", "scope": "task", "name": "games/001"}',
    ),
    (control.Resume(), '{"verb": "resume", "scope": "", "name": ""}'),
    (
        control.Priority(target=("games",), priority=-5),
        '{"verb": "priority", "target": ["games"], "priority": -5}',
    ),
    (
        control.Nice(target=("games",), by=-5),
        '{"verb": "nice", "target": ["games"], "by": -5}',
    ),
    (
        control.Retry(target=("games",), failed=True, model="openai/x", claim=_CLAIM),
        (
            '{"verb": "retry", "target": ["games"], "failed": true, "model": "openai/x", '
            f'"claim": "{_CLAIM}"}}'
        ),
    ),
    (
        control.Prune(older_than_days=1.5, outbox=True),
        '{"verb": "prune", "older_than_days": 1.5, "outbox": true}',
    ),
    (
        control.Tune(changes={"pool.processes": "4"}, reset=True),
        '{"verb": "tune", "changes": {"pool.processes": "4"}, "reset": true}',
    ),
    (control.Tune(), '{"verb": "tune", "changes": {}, "reset": false}'),
    (control.Check(offline=True), '{"verb": "check", "offline": true, "live": false}'),
]

#: As other clients, older ones and people with netcat, send them.
UNDERSTOOD: list[tuple[str, control.ControlRequest[Any]]] = [
    ('{"verb": "status"}', control.AskStatus()),
    ('{"verb": "status", "who": "a newer client"}', control.AskStatus()),
    ('{"verb": "cancel", "target": "games"}', control.Cancel(target="games")),
    ('{"verb": "cancel", "target": [], "message": null}', control.Cancel(target=())),
    ('{"verb": "pause", "scope": "all"}', control.Pause(scope=Scope.ALL)),
    ('{"verb": "pause", "scope": "day", "name": null}', control.Pause(scope=Scope.DAY)),
    ('{"verb": "resume"}', control.Resume()),
    ('{"verb": "resume", "scope": null}', control.Resume()),
    (
        '{"verb": "priority", "priority": 0, "target": "a/b"}',
        control.Priority(target="a/b", priority=0),
    ),
    ('{"verb": "nice", "by": 5, "target": "a/b"}', control.Nice(target="a/b", by=5)),
    ('{"verb": "retry", "target": "games"}', control.Retry(target="games")),
    (
        '{"verb": "retry", "target": ["games"], "failed": false, "model": null, "claim": ""}',
        control.Retry(target=("games",)),
    ),
    ('{"verb": "prune"}', control.Prune()),
    ('{"verb": "prune", "older_than_days": 3}', control.Prune(older_than_days=3)),
    ('{"verb": "tune"}', control.Tune()),
    ('{"verb": "tune", "changes": null, "reset": null}', control.Tune()),
    ('{"verb": "tune", "changes": {"a.b": ""}}', control.Tune(changes={"a.b": ""})),
    ('{"verb": "check"}', control.Check()),
]

#: With what is said about it.
REFUSED = [
    ('{"verb": "cancel"}', "it needs a target: BATCH or BATCH/TASK"),
    ('{"verb": "cancel", "target": ""}', "it needs a target: BATCH or BATCH/TASK"),
    ('{"verb": "cancel", "target": 3}', "target is 3: it needs a target: BATCH or BATCH/TASK"),
    ('{"verb": "cancel", "target": {"a": 1}}', "target is an object: it needs a target"),
    ('{"verb": "cancel", "target": ["a", 3]}', "target is a list: it needs a target"),
    ('{"verb": "cancel", "target": "a", "message": 3}', "message is 3: a message is text"),
    ('{"verb": "pause"}', "no scope; the scopes are all, day, provider, model, batch, task"),
    (
        '{"verb": "pause", "scope": "every\\u001b"}',
        'scope is "every\\u001b": no scope; the scopes are all,',
    ),
    ('{"verb": "resume", "scope": ["all"]}', "scope is a list: no scope; the scopes are all,"),
    ('{"verb": "pause", "scope": "batch", "name": 5}', "name is 5: a name is text"),
    ('{"verb": "priority", "target": "a"}', "a priority is a whole number; higher goes first"),
    (
        '{"verb": "priority", "target": "a", "priority": "high"}',
        'priority is "high": a priority is a whole number; higher goes first',
    ),
    (
        '{"verb": "priority", "target": "a", "priority": 1e400}',
        "priority is Infinity: a priority is a whole number",
    ),
    ('{"verb": "priority", "target": "a", "priority": 1.5}', "priority is 1.5: a priority is a"),
    ('{"verb": "priority", "target": "a", "priority": true}', "priority is true: a priority"),
    ('{"verb": "nice", "target": "a"}', "by is a whole number: +5, -5"),
    ('{"verb": "nice", "target": "a", "by": "+5"}', 'by is "+5": by is a whole number'),
    ('{"verb": "retry", "target": "a", "failed": 1}', "failed is 1: failed is true or false"),
    ('{"verb": "retry", "target": "a", "model": 4}', "model is 4: a model is text: PROVIDER/MODEL"),
    ('{"verb": "retry", "target": "a", "claim": 4}', "claim is 4: a claim is a ULID"),
    (
        '{"verb": "prune", "older_than_days": "3"}',
        'older_than_days is "3": older_than_days is a number of days, from 0 on',
    ),
    ('{"verb": "prune", "outbox": "no"}', 'outbox is "no": outbox is true or false'),
    ('{"verb": "tune", "changes": "a.b=secret"}', "tune needs SECTION.KEY=VALUE"),
    ('{"verb": "tune", "changes": {"a.b": 5}}', "tune needs SECTION.KEY=VALUE"),
    ('{"verb": "tune", "reset": "no"}', 'reset is "no": reset is true or false'),
    ('{"verb": "status", "last": "all"}', 'last is "all": last is a whole number: of batches'),
    ('{"verb": "status", "batch": 7}', "batch is 7: a batch is text: its name"),
    ('{"verb": "check", "live": 1}', "live is 1: live is true or false"),
    ('{"verb": "check", "offline": 1}', "offline is 1: offline is true or false"),
]

_HELD = Parking(
    scope=Scope.BATCH, name="games", cause=Cause.PAUSED, message="paused", since=2.5, tried_s=0.0
)
_HELD_JSON = (
    '{"scope": "batch", "name": "games", "cause": "paused", "message": "paused", '
    '"since": 2.5, "tried_s": 0.0, "again_at": null}'
)

_STANDING = (
    '{"pid": 4711, "version": "0.1.0", "started_at": 1.5, "draining": false, "watching": true, "outbox": "", "conditions": "", "batches": {"open": 1}, '
    '"tasks": {"queued": 5, "parked": 1, "running": 2, "waiting": 3}, "slots": 8, '
    '"providers": {"openai": {"under_way": 1, "waiting": 2, "paused_s": 0.0, "rpm": 0, "tpm": 0.0, '
    '"concurrent": 8, "max_concurrent": 8}}, "day": {"limit_usd": 20.0, "spent_usd": 0.5, "reserved_usd": 0.25}, '
    f'"parked": [{_HELD_JSON}], "troubles": [{{"what": "outbox_trouble", "message": "full", "since": 3.5, '
    '"mend": "make room", "batches": ["games"]}], "retiring": [{"model": "openai/x", "on": null, '
    '"message": "openai/x is gone", "mend": "name another"}], '
    '"fetching": [{"batch": "games", "source": "https://a.example/b.git", "ref": "main", "kind": "clone", "since": 4.0}], '
    '"workers": [{"pid": null, "node": "", "tasks": 1, "rss": 2, "tasks_done": 3}], "unfit": {"node7": "no bwrap"}, '
    '"running": [{"task": "games/001", "attempt": 1, "worker": null, "node": "node8", "step": "tool", "detail": "ls", '
    '"since": 4.5}], "rows": [{"calls": 3, "input_tokens": 4, '
    '"cached_input_tokens": 0, "cache_write_tokens": 0, "cache_write_long_tokens": 0, "cache_reported_tokens": 0, '
    '"cache_saved_usd": 0.0, "output_tokens": 5, "unsettled_calls": 0, "unsettled_usd": 0.0, "reasoning_tokens": 0, '
    '"estimated": false, "cost_usd": null, "known_usd": 0.5, "cache_share": null, "cache_saved": null, '
    '"name": "games", "folder": "/o/games", "request": "request.json", "status": "running", "received_at": 5.5, '
    '"finished_at": null, "published_at": null, "rejected": false, "problems": [], "tasks": 2, "queued": 0, '
    '"running": 1, "parked": 0, "completed": 1, "timeout": 0, "error": 0, "cancelled": 0, "pruned": 0, '
    '"budget_usd": 0.0, "parallel": 0, "after_batches": [], "retry_of": null, "claim": "", "outbox": "", '
    '"first_task": 0, "run": ""}]}'
)

#: As the daemon sends them.
ANSWERED: list[tuple[control.ControlRequest[Any], Any, str]] = [
    (
        control.Cancel(target="a"),
        control.Cancelled(
            cancelled=3, ended=(control.EndedBefore(target="b/001", counts={"timeout": 1}),)
        ),
        '{"cancelled": 3, "ended": [{"target": "b/001", "counts": {"timeout": 1}}]}',
    ),
    (
        control.Pause(scope=Scope.ALL),
        control.Paused(parked=3, judged=1),
        '{"parked": 3, "judged": 1}',
    ),
    (
        control.Resume(),
        control.ResumedScope(resumed=2, trying=("openai",), held=(control.ShownParking.of(_HELD),)),
        f'{{"resumed": 2, "trying": ["openai"], "held": [{_HELD_JSON}]}}',
    ),
    (control.Priority(target="a", priority=1), control.Prioritised(tasks=2), '{"tasks": 2}'),
    (
        control.Nice(target="a", by=1),
        control.Niced(tasks=2, priorities=(1, 6)),
        '{"tasks": 2, "priorities": [1, 6]}',
    ),
    (
        control.Retry(target="games"),
        control.Retried(
            runs=(control.NewRun(batch="games-2", retry_of="games", tasks=4),), batches=("games-2",)
        ),
        '{"runs": [{"batch": "games-2", "retry_of": "games", "tasks": 4}], "batches": ["games-2"]}',
    ),
    (
        control.Prune(),
        control.Pruned(pruned=1, bytes=2, folders=3, folder_bytes=4, problems=("é: a link",)),
        (
            '{"pruned": 1, "bytes": 2, "folders": 3, "folder_bytes": 4, "mirrors": 0, "mirror_bytes": 0, '
            '"problems": ["\\u00e9: a link"]}'
        ),
    ),
    (
        control.Tune(),
        control.Tuned(overrides={"pool.processes": "4"}),
        '{"overrides": {"pool.processes": "4"}}',
    ),
    (
        control.Check(),
        control.Checked(
            process=requests.DaemonProcess(
                pid=4711, version="0.1.0", uid=998, user="batchd", groups=("batchd",)
            ),
            settings=requests.SettingsInForce(
                file="/etc/batchd/config.toml",
                paths={"state": "/var/lib/batchd/.batchd"},
                stale=("pool.processes",),
                late=("log",),
                overrides={"pool.processes": "4"},
            ),
            lines=(control.CheckLine("failed", "agent model", "it has no model x", "take y"),),
        ),
        (
            '{"process": {"pid": 4711, "version": "0.1.0", "uid": 998, "user": "batchd", "groups": ["batchd"]}, '
            '"settings": {"file": "/etc/batchd/config.toml", "paths": {"state": "/var/lib/batchd/.batchd"}, '
            '"stale": ["pool.processes"], "late": ["log"], "unread": "", "overrides": {"pool.processes": "4"}}, '
            '"lines": [{"verdict": "failed", "what": "agent model", "detail": "it has no model x", '
            '"mend": "take y", "live": null}]}'
        ),
    ),
    (
        control.AskStatus(),
        control.DaemonStatus(
            pid=4711,
            version="0.1.0",
            started_at=1.5,
            draining=False,
            batches=status.BatchCounts(open=1),
            tasks=status.TaskCounts(queued=5, parked=1, running=2, waiting=3),
            slots=8,
            providers={
                "openai": status.ProviderStatus(
                    under_way=1, waiting=2, rpm=0, concurrent=8, max_concurrent=8
                )
            },
            day=status.DayStatus(limit_usd=20.0, spent_usd=0.5, reserved_usd=0.25),
            parked=(control.ShownParking.of(_HELD),),
            troubles=(control.OpenTrouble("outbox_trouble", "full", 3.5, "make room", ("games",)),),
            retiring=(control.ModelWarning("openai/x", None, "openai/x is gone", "name another"),),
            fetching=(
                status.Fetching(
                    batch="games", source="https://a.example/b.git", ref="main", since=4.0
                ),
            ),
            workers=(status.WorkerStatus(pid=None, tasks=1, rss=2, tasks_done=3),),
            unfit={"node7": "no bwrap"},
            running=(
                status.RunningTask(
                    task="games/001",
                    attempt=1,
                    worker=None,
                    node="node8",
                    step="tool",
                    detail="ls",
                    since=4.5,
                ),
            ),
            rows=(
                BatchJson(
                    name="games",
                    folder="/o/games",
                    request="request.json",
                    status="running",
                    received_at=5.5,
                    tasks=2,
                    running=1,
                    completed=1,
                    calls=3,
                    input_tokens=4,
                    output_tokens=5,
                    known_usd=0.5,
                ),
            ),
        ),
        _STANDING,
    ),
]


def read(line: str) -> control.ControlRequest[Any]:
    """Return the request on a line."""
    given = json.loads(line)
    return requests.request(REQUESTS[given.pop("verb")], given)


@pytest.mark.parametrize(("request_", "line"), SENT, ids=[line for _, line in SENT])
def test_what_commands_send(request_: control.ControlRequest[Any], line: str) -> None:
    """To the letter, with every field, and read back as the same."""
    assert json.dumps({"verb": request_.verb(), **requests.fields(request_)}) == line
    assert read(line) == request_


@pytest.mark.parametrize(("line", "request_"), UNDERSTOOD, ids=[line for line, _ in UNDERSTOOD])
def test_what_other_clients_send(line: str, request_: control.ControlRequest[Any]) -> None:
    """What is missing, null or empty has its default; what is unknown counts for nothing."""
    assert read(line) == request_


@pytest.mark.parametrize(("line", "words"), REFUSED, ids=[line for line, _ in REFUSED])
def test_what_is_refused(line: str, words: str) -> None:
    """Which field, its value, what it is to be; a value that may be a secret stays away."""
    with pytest.raises(UsageError) as caught:
        read(line)
    assert str(caught.value).startswith(words)
    assert "secret" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("asked", "answer", "text"), ANSWERED, ids=[asked.verb() for asked, *_ in ANSWERED]
)
def test_what_the_daemon_answers(
    asked: control.ControlRequest[Any], answer: object, text: str
) -> None:
    """To the letter, and read back as the same;
    fields that are not known here count for nothing.
    """
    assert json.dumps(requests.fields(answer)) == text
    assert requests.answer(asked, json.loads(text)) == answer
    assert requests.answer(asked, {**json.loads(text), "more": [1]}) == answer
    assert json.dumps(requests.fields(requests.answer(asked, json.loads(text)))) == text


def test_what_earlier_daemons_left_out_has_a_default() -> None:
    """As an answer from before the field."""
    assert requests.answer(control.Pause(scope=Scope.ALL), {"parked": 1}) == control.Paused(
        parked=1
    )
    assert requests.answer(control.Resume(), {"resumed": 1}) == control.ResumedScope(resumed=1)
    assert requests.answer(control.Cancel(target="a"), {"cancelled": 1}).ended == ()


def test_what_a_newer_daemon_is_held_by_is_understood() -> None:
    """Scopes and causes that are not known here are text as any other."""
    answer = {
        "resumed": 0,
        "held": [{"scope": "planet", "cause": "weather", "since": 1.0, "by": 2}],
    }
    (held,) = requests.answer(control.Resume(), answer).held
    assert (held.scope, held.cause, held.name) == ("planet", "weather", "")


def test_an_answer_that_is_none_is_refused() -> None:
    """What every version says must be there."""
    with pytest.raises(msgspec.ValidationError):
        requests.answer(control.Cancel(target="a"), {"done": True})


def test_a_command_and_its_request_have_one_name_and_an_answer() -> None:
    """Of the command line as of the socket; the daemon answers all of them in one place."""
    assert {*REQUESTS} == {
        *("status", "cancel", "pause", "resume", "priority", "nice", "retry", "prune", "tune"),
        *("submit", "detach", "check"),
    }
    assert {*REQUESTS} - {*cli.COMMANDS} == {"detach"}
    assert {name for name, line in cli.COMMANDS.items() if not line} == {*ORDERS}
    answering = Path(batchd.__file__).parent / "daemon" / "commands.py"
    text = answering.read_text("utf-8")
    for kind in REQUESTS.values():
        assert f"case {kind.__name__}(" in text


@pytest.mark.parametrize(
    "order",
    [
        control.Cancel(target=("a", "b/001"), message="no money"),
        control.Retry(target=("a",), failed=True, model="openai/x"),
        control.Pause(scope=Scope.ALL),
        control.Pause(scope=Scope.TASK, name="a/001", message="it's late"),
        control.Resume(),
        control.Resume(scope=Scope.MODEL, name="openai/x"),
        control.Priority(target=("a",), priority=0),
        control.Priority(target=("a", "b"), priority=-5),
        control.Nice(target=("a",), by=-5),
        control.Prune(older_than_days=1.5, outbox=True),
        control.Tune(changes={"budget.per_day_usd": "20", "log.level": '"debug"'}, reset=True),
    ],
    ids=lambda order: order.command(),
)
def test_the_command_line_of_an_order_gives_it(order: control.Order[Any]) -> None:
    """What page and `top` name where no daemon runs does the same."""
    args = cli.parser().parse_args(shlex.split(order.command()))
    given = ORDERS[args.command].given(args)
    if isinstance(given, control.Retry):
        assert given.claim
        given = msgspec.structs.replace(given, claim="")
    assert given == order
