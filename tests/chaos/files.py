"""Task files of all kinds, as users and their editors write them: valid, broken, huge, odd."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from books import Promise

#: Models of the two providers, each with its number of calls in its name;
#: ``notes`` leave a line for each command.
LANES = ("north/steps-3", "north/notes-2", "south/steps-2", "south/notes-3")
_COMPLETED = "completed"
_BUDGET = "timeout/budget"

Task = dict[str, Any]


@dataclass(frozen=True)
class File:
    """A task file, and what may become of it."""

    #: In the inbox, as bytes: not every name is UTF-8.
    name: bytes
    #: What is written under that name, one after another; the last one must be taken.
    versions: Sequence[bytes]
    #: ``move``, ``write`` (in place), ``halves`` (in place,
    #: with a pause) or ``save`` (in place, each version).
    how: str = "move"
    #: By prompt; none where it is to be refused.
    promises: Mapping[str, Promise] = field(default_factory=dict)
    #: The lane of each prompt.
    lanes: Mapping[str, str] = field(default_factory=dict)
    ids: Sequence[str] = ()
    budget_usd: float = 0.0

    @property
    def batch(self) -> str:
        """The name that its batch has where it is a plain one."""
        return self.name.partition(b".")[0].decode("ascii", "replace")


def _tasks(rng: random.Random, token: str, count: int) -> tuple[list[Task], dict[str, Promise]]:
    models = rng.sample(LANES, rng.choice((1, 1, 2)))
    tasks: list[Task] = []
    promises = {}
    for i in range(count):
        task: Task = {"first_prompt": f"{token}/{i}", "model": rng.choice(models)}
        ends, most = {_COMPLETED}, 0.0
        chance = rng.random()
        if chance < 0.15:
            task["check"] = rng.choice(("true", "test -d /task"))
        elif chance < 0.2:
            task |= {"check": "false", "limits": {"max_iterations": 2}}
            ends = {"timeout/max_iterations", "error/loop"}
        elif chance < 0.3:
            most = rng.choice((0.0008, 0.002, 0.02))
            task["limits"] = {"max_cost_usd": most}
            ends.add(_BUDGET)
        if rng.random() < 0.2:
            task["priority"] = rng.randint(-5, 5)
        tasks.append(task)
        promises[task["first_prompt"]] = Promise(frozenset(ends), most)
    return tasks, promises


def _file(token: str, tasks: list[Task], promises: Mapping[str, Promise], **more: Any) -> File:
    batch = {"tasks": tasks, **more.pop("batch", {})}
    return File(
        name=more.pop("name", f"{token}.json".encode()),
        versions=more.pop("versions", (json.dumps(batch).encode(),)),
        promises=promises,
        lanes={t["first_prompt"]: t["model"] for t in tasks},
        ids=[t.get("id", f"{i:03}") for i, t in enumerate(tasks, 1)],
        **more,
    )


def plain(rng: random.Random, token: str) -> File:
    """A few tasks, moved into the inbox or written in place."""
    how = rng.choice(("move", "move", "write"))
    return _file(token, *_tasks(rng, token, rng.randint(1, 6)), how=how)


def many(rng: random.Random, token: str) -> File:
    """As many tasks as all slots together have for some seconds."""
    return _file(token, *_tasks(rng, token, 25))


def chain(rng: random.Random, token: str) -> File:
    """Tasks that come one after another, or all after one."""
    tasks, promises = _tasks(rng, token, rng.randint(2, 5))
    line = rng.random() < 0.5
    for i, task in enumerate(tasks):
        task |= {"id": f"t{i}", "model": tasks[0]["model"]}
        if i:
            task["after"] = [f"t{i - 1 if line else 0}"]
    return _file(token, tasks, promises)


def budget(rng: random.Random, token: str) -> File:
    """A batch whose tasks cost more than it may."""
    tasks, promises = _tasks(rng, token, rng.randint(2, 6))
    most = rng.choice((0.002, 0.004, 0.1))
    promises = {prompt: Promise(p.ends | {_BUDGET}, p.max_usd) for prompt, p in promises.items()}
    return _file(token, tasks, promises, batch={"budget_usd": most}, budget_usd=most)


def prose(rng: random.Random, token: str) -> File:
    """A file that is its prompt, written in two halves."""
    prompt = f"{token}/0"
    half = rng.choice(("halves", "move"))
    tasks = [{"first_prompt": prompt, "model": LANES[0]}]
    promises = {prompt: Promise(frozenset({_COMPLETED}))}
    name, versions = f"{token}.md".encode(), (prompt.encode(),)
    return _file(token, tasks, promises, name=name, versions=versions, how=half)


def lines(rng: random.Random, token: str) -> File:
    """A task a line."""
    tasks, promises = _tasks(rng, token, rng.randint(1, 4))
    data = "".join(json.dumps(task) + "\n" for task in tasks).encode()
    name = f"{token}.jsonl".encode()
    return _file(token, tasks, promises, name=name, versions=(data,))


def saved(rng: random.Random, token: str) -> File:
    """A file that an editor saves in place, again and again:
    only the last version must be taken.
    """
    # A draft that is taken completes as well.
    task = {"first_prompt": f"{token}/0", "model": rng.choice(LANES)}
    drafts = [
        json.dumps({"tasks": [{**task, "first_prompt": f"{token}/draft-{i}"}]}).encode()
        for i in range(rng.randint(1, 4))
    ]
    last = json.dumps({"tasks": [task]}).encode()
    promises = {task["first_prompt"]: Promise(frozenset({_COMPLETED}))}
    return _file(token, [task], promises, versions=(*drafts, last), how="save")


def named(rng: random.Random, token: str) -> File:
    """A valid file with a name that hurts."""
    odd = (
        f"{token} a b (1).json".encode(),
        f"{token}-\u00fcml\u00e4ut-\U0001f600.json".encode(),
        f"{token}-\n-line.json".encode(),
        token.encode() + b"-\xff\xfe.json",
        f"{token}{'x' * 200}.json".encode(),
        f"-{token}; rm -rf $HOME #.json".encode(),
        f"{token}.JSON.json".encode(),
    )
    return _file(token, *_tasks(rng, token, 2), name=rng.choice(odd))


def big(rng: random.Random, token: str) -> File:
    """A valid file of some megabytes."""
    tasks, promises = _tasks(rng, token, 1)
    tasks[0]["metadata"] = {"text": "x" * rng.randint(1 << 20, 6 << 20)}
    return _file(token, tasks, promises)


def broken(rng: random.Random, token: str) -> File:
    """A file that must be refused, whatever is wrong with it."""
    task = json.dumps({"first_prompt": token})
    bad: tuple[bytes, ...] = (
        f'{{"tasks": [{task}'.encode(),
        f'{{"tasks": [{task}], "taks": "{token}"}}'.encode(),
        f'{{"tasks": [{{"first_prompt": "{token}", "id": "a"}}, {{"first_prompt": "b", "id": "a"}}]}}'.encode(),
        f'[{{"first_prompt": "{token}", "id": "a", "after": ["a"]}}]'.encode(),
        f'[{{"first_prompt": "{token}", "after": ["nowhere"]}}]'.encode(),
        f'{{"first_prompt": "{token}", "first_prompt": "twice"}}'.encode(),
        f'{{"first_prompt": "gr\u00fc\u00dfe {token}"}}'.encode("latin-1"),
        b"[" * 10_000 + token.encode(),
        f'{{"first_prompt": "{token}", "model": "neither"}}'.encode(),
    )
    return File(f"{token}.json".encode(), (rng.choice(bad),))


def poison(rng: random.Random, token: str) -> File:
    """A file that must be refused, and whose refusal is much work for who does not count it."""
    size = rng.choice((500, 2000))
    misspelt = [
        {"first_prompt": f"{token} {i}", "id": f"step-{i}", "after": [f"stop-{i}-{token}"]}
        for i in range(size)
    ]
    keys = ", ".join(f'"k{i}": {i}' for i in range(size * 50))
    twice = f'{{"first_prompt": "{token}", "metadata": {{{keys}, "k1": 1}}}}'
    data = rng.choice((json.dumps(misspelt), twice))
    return File(f"{token}.json".encode(), (data.encode(),))


#: How often each kind comes, beside the others.
KINDS: Mapping[Callable[[random.Random, str], File], int] = {
    plain: 30,
    many: 5,
    chain: 10,
    budget: 8,
    prose: 6,
    lines: 6,
    saved: 6,
    named: 6,
    big: 4,
    broken: 8,
    poison: 3,
}
