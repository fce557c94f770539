"""How good the agent is with a model: what it solves, what it only claims, and what that takes.

    python benchmarks/quality/quality.py --config CONFIG --model
    PROVIDER/MODEL [--cases DIR] [--only NAME…] [--runs N]
        [--by none|judge|check] [--rival PYTHON]

A case is a folder ``NAME`` with what the agent finds, ``NAME.prompt``, which it is asked, and
``NAME.check``, a script that it never sees and that ends with 0 where the work is right; it runs in
a copy of the directory, in a sandbox. Of ``CONFIG`` the providers and models count. ``--by`` is who
says to the agent that it is done: by default its own word. ``--rival``: a Python with
mini-swe-agent, which does the same beside it (``make rivals`` makes one).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from batchd.records import SandboxPolicy
from batchd.sandbox import Sandbox

HERE = Path(__file__).parent
_NOBODY = 65534
_CHECK_S = 120.0
#: Of one case (seconds at work, model calls).
_LIMITS = {"timeout_s": 1800, "max_calls": 30}
_CONFIG = """\
[agent]
model = "{model}"
[workspace]
root = "{work}"
[evaluation]
by = "none"
[cost]
compare = []
[report]
enabled = false
[pool]
processes = 1
agents_per_process = 1
"""


@dataclass(frozen=True)
class Case:
    """One piece of work."""

    name: str
    folder: Path
    prompt: str
    check: str


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    #: Whether who did it says that it is done.
    claimed: bool
    #: Whether it is.
    right: bool
    calls: int
    tokens: int
    #: None: no price is known.
    usd: float | None
    seconds: float
    ended: str


def cases(folder: Path, only: Sequence[str]) -> list[Case]:
    """Return the cases of a folder, by name. Raises ``SystemExit`` where there is none."""
    names = sorted(path.stem for path in folder.glob("*.prompt"))
    if unknown := set(only) - set(names):
        raise SystemExit(
            f"{folder}: no case {', '.join(sorted(unknown))}: it has {', '.join(names)}"
        )
    found = [
        Case(
            name,
            folder / name,
            (folder / f"{name}.prompt").read_text("utf-8").strip(),
            (folder / f"{name}.check").read_text("utf-8"),
        )
        for name in only or names
    ]
    if not found:
        raise SystemExit(f"{folder}: no NAME.prompt there")
    return found


def prepared(case: Case, folder: Path) -> Path:
    """Copy what the agent finds, for a user who is not root."""
    place = folder / case.name
    shutil.copytree(case.folder, place, ignore=shutil.ignore_patterns(".gitkeep"))
    owned(place)
    return place


def owned(place: Path) -> None:
    """Give a directory to a user who is not root."""
    if os.geteuid() == 0:
        for path in (place, *place.rglob("*")):
            os.chown(path, _NOBODY, _NOBODY)


def right(case: Case, place: Path) -> bool:
    """Run the check in a copy of what was left."""
    with tempfile.TemporaryDirectory(prefix="batchd-quality-") as folder:
        Path(folder).chmod(0o755)
        copy = Path(folder, "work")
        shutil.copytree(place, copy, symlinks=True)
        owned(copy)
        return asyncio.run(_passes(case.check, str(copy)))


async def _passes(check: str, path: str) -> bool:
    sandbox = Sandbox(SandboxPolicy())
    async with await sandbox.open(path, fresh=False, network=False, env={}) as place:
        return (await place.shell(check, timeout_s=_CHECK_S)).exit_code == 0


def tables(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the providers and models of a configuration, as TOML."""
    for kind in ("providers", "models"):
        for name, keys in found.get(kind, {}).items():
            yield f"[{kind}.{json.dumps(name)}]"
            yield from (f"{key} = {_value(value)}" for key, value in keys.items())


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{json.dumps(k)} = {_value(v)}' for k, v in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value, ensure_ascii=False)


def batchd(spool: Path, file: str, source: Path) -> None:
    """Have the batchd of a source tree run a task file of a spool, to its end."""
    command = [sys.executable, "-m", "batchd", "--config", str(spool / "config.toml")]
    # Its workers look there too, before what is installed.
    env = {**os.environ, "PYTHONPATH": str(source)}
    command += ["run", str(spool / file)]
    subprocess.run(command, check=False, stdout=sys.stderr, cwd=source, env=env)


def by_batchd(case: Case, place: Path, options: argparse.Namespace) -> Outcome:
    """Have batchd do it."""
    spool = place.parents[1]
    config = spool / "config.toml"
    config.write_text(
        _CONFIG.format(model=options.model, work=place.parent)
        + "\n".join(tables(tomllib.loads(options.config.read_text("utf-8"))))
        + "\n"
    )
    task = {"id": case.name, "dir": str(place), "first_prompt": case.prompt, "limits": _LIMITS}
    task |= {"check": case.check} if options.by == "check" else {"evaluator": options.by}
    (spool / f"{case.name}.json").write_text(json.dumps({"tasks": [task]}))
    began = time.monotonic()
    batchd(spool, f"{case.name}.json", getattr(options, "source", HERE.parents[1]))
    took = time.monotonic() - began
    result = json.loads((spool / "outbox" / case.name / f"{case.name}.json").read_text("utf-8"))
    usage = result["usage"]
    cost = result["cost"] and result["cost"]["total"]
    ended = result["reason"] or result["status"]
    claimed = result["status"] == "completed"
    found = right(case, place)
    return Outcome(claimed, found, usage["calls"], usage["total_tokens"], cost, took, ended)


def by_rival(case: Case, place: Path, options: argparse.Namespace) -> Outcome:
    """Have mini-swe-agent do it, as the user who owns the directory."""
    provider = tomllib.loads(options.config.read_text("utf-8"))["providers"]
    name, _, model = options.model.partition("/")
    asked = {
        "base_url": provider[name]["base_url"],
        "key": os.environ.get(provider[name].get("api_key_env", ""), "none"),
        "model": model,
        "calls": _LIMITS["max_calls"],
        "prompt": case.prompt,
    }
    user = [] if os.geteuid() else ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]  # fmt: skip
    began = time.monotonic()
    done = subprocess.run(
        [*user, options.rival, HERE / "rival.py"],
        input=json.dumps(asked),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        cwd=place,
        env={"PATH": os.environ["PATH"], "HOME": str(place.parent)},
        timeout=_LIMITS["timeout_s"],
    )
    took = time.monotonic() - began
    said = json.loads(done.stdout.strip().rpartition("\n")[2] or "{}")
    found = right(case, place)
    claimed = said.get("ended") == "Submitted"
    return Outcome(
        claimed, found, said.get("calls", 0), said.get("tokens", 0), None, took, said.get("ended", "failed")
    )  # fmt: skip


def shown(name: str, outcomes: Sequence[Outcome]) -> None:
    """Print the sums."""
    count = len(outcomes)
    known = [o.usd for o in outcomes if o.usd is not None]
    money = f"${sum(known):.4f}" if len(known) == count else "no price"
    wrong = sum(o.claimed and not o.right for o in outcomes)
    refused = sum(o.right and not o.claimed for o in outcomes)
    print(f"\n{name}: {sum(o.right and o.claimed for o in outcomes)} of {count} solved")
    print(f"  claimed done but wrong {wrong}, right but not claimed {refused}")
    print(
        f"  {sum(o.calls for o in outcomes):,} calls, {sum(o.tokens for o in outcomes):,} tokens,"
        f" {money}, {sum(o.seconds for o in outcomes):,.0f} s"
    )


def main() -> None:
    """Run all cases, each so many times, and print what came of them."""
    add = (
        parser := argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    ).add_argument
    add("--config", type=Path, required=True, help="a config.toml with the provider")
    add("--model", required=True, metavar="PROVIDER/MODEL")
    add("--cases", type=Path, default=HERE / "cases")
    add("--only", nargs="*", default=[], metavar="NAME")
    add("--runs", type=int, default=1)
    add("--by", choices=("none", "judge", "check"), default="none")
    add("--rival", metavar="PYTHON", help="has mini-swe-agent do the same beside it")
    options = parser.parse_args()
    entrants = {"batchd": by_batchd} | ({"mini-swe-agent": by_rival} if options.rival else {})
    found: dict[str, list[Outcome]] = {name: [] for name in entrants}
    print(
        f"{'case':<16} {'by':<15} {'claimed':<8} {'right':<6} {'calls':>5} {'tokens':>8} {'s':>6}  ended"
    )
    for case in cases(options.cases, options.only):
        for _ in range(options.runs):
            for name, entrant in entrants.items():
                with tempfile.TemporaryDirectory(prefix="batchd-quality-") as folder:
                    Path(folder).chmod(0o755)
                    (work := Path(folder, "work")).mkdir()
                    o = entrant(case, prepared(case, work), options)
                found[name].append(o)
                print(
                    f"{case.name:<16} {name:<15} {'yes' if o.claimed else 'no':<8} {'yes' if o.right else 'NO':<6}"
                    f" {o.calls:>5} {o.tokens:>8,} {o.seconds:>6.0f}  {o.ended}",
                    flush=True,
                )
    for name, outcomes in found.items():
        shown(name, outcomes)


if __name__ == "__main__":
    main()
