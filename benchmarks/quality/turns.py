"""An older batchd and this one with a real model, in turns, on cases that were fixed before.

    python benchmarks/quality/turns.py --config CONFIG --model PROVIDER/MODEL
        --old COMMIT --out DIR [--hours 3] [--parts] [--only NAME…]

``CONFIG`` has the provider. Each case of ``sight`` runs under two seeds with either version; then
the model judges the endings of ``endings.json``, half of them bad, which the stand-in replays.
``--parts`` runs the cases again, under the first seed, with this version less each of its parts.
Nothing begins when the hours are over. ``DIR`` keeps every result and transcript, and what is there
is not run again: the same command goes on.
It prints what was solved, what was claimed falsely, and what that took.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import quality
from quality import HERE, Outcome

from batchd.demo.recordings import Recording
from batchd.records import Answer, ToolCall

sys.path.insert(0, str(HERE.parent))

from harness import Server
from standin.record import save

SEEDS = (1, 2)
#: What this version is without: in a file of ``batchd``, what stands there once, and what instead.
PARTS: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "without diffs": (
        ("agent/seen.py", ", *_differences(modified, before, after))", ",)"),
        ("agent/seen.py", "return False, prompts.unchanged(path, self._first_lines(path))", 'return False, ""'),
    ),
    "without opening": (("agent/seen.py", '    if not files:\n        return "", ()', '    if True:\n        return "", ()'),),
    "without hints": (
        ("agent/tools.py", "instead(ran.output if ran.timed_out else failed)", '""'),
        ("agent/tools.py", '"" if found else _nearest(', '"" if True else _nearest('),
    ),
}  # fmt: skip
_JUDGED = """\
[agent]
model = "standin/demo"
[evaluation]
by = "judge"
judge_model = "{model}"
[report]
enabled = false
[pool]
processes = 1
agents_per_process = 1
[providers.standin]
api = "chat"
base_url = "{base_url}"
tools = "native"
"""


def sources(folder: Path, old: str, *, parts: bool) -> dict[str, Path]:
    """Make the trees that run, beside this one. Raises ``SystemExit`` for a part that has moved."""
    found = {"old": folder / "old", "new": HERE.parents[1]}
    found["old"].mkdir()
    packed = subprocess.run(
        ["git", "archive", old, "batchd"], cwd=found["new"], check=True, stdout=subprocess.PIPE
    )
    subprocess.run(["tar", "-x"], cwd=found["old"], input=packed.stdout, check=True)
    for name, edits in PARTS.items() if parts else ():
        found[name] = tree = folder / name.replace(" ", "-")
        shutil.copytree(found["new"] / "batchd", tree / "batchd")
        for path, there, instead in edits:
            file = tree / "batchd" / path
            if (text := file.read_text("utf-8")).count(there) != 1:
                raise SystemExit(f"{path}: {there!r} stands there {text.count(there)} times")
            file.write_text(text.replace(there, instead), "utf-8")
    folder.chmod(0o755)
    return found


def seeded(config: Path, seed: int, folder: Path) -> Path:
    """Write a configuration whose providers are asked with a seed."""
    found = tomllib.loads(config.read_text("utf-8"))
    for provider in found["providers"].values():
        provider.setdefault("api", "chat")
        provider["extra_body"] = {**provider.get("extra_body", {}), "seed": seed}
    made = folder / f"seed-{seed}.toml"
    made.write_text("\n".join(quality.tables(found)) + "\n")
    return made


def worked(case: quality.Case, options: argparse.Namespace, kept: Path) -> Outcome:
    """Have a version do a case, and keep its result and its transcript."""
    with tempfile.TemporaryDirectory(prefix="batchd-quality-") as folder:
        Path(folder).chmod(0o755)
        (work := Path(folder, "work")).mkdir()
        outcome = quality.by_batchd(case, quality.prepared(case, work), options)
        kept.parent.mkdir(parents=True, exist_ok=True)
        for file in Path(folder, "outbox", case.name).glob(f"{case.name}.json*"):
            shutil.copy(file, kept.parent)
    kept.write_text(json.dumps(asdict(outcome)))
    return outcome


def judged(endings: list[dict[str, Any]], options: argparse.Namespace, kept: Path) -> None:
    """Have a version's judge look at all endings, and keep what it says of each."""
    with tempfile.TemporaryDirectory(prefix="batchd-quality-") as folder:
        talks, spool = Path(folder, "talks"), Path(folder, "spool")
        talks.mkdir()
        spool.mkdir()
        Path(folder).chmod(0o755)
        spool.chmod(0o755)
        for end in endings:
            calls = (ToolCall("call", "shell", json.dumps({"command": c})) for c in end["commands"])
            does = (Answer(content="", tool_calls=(c,), finish_reason="tool_calls") for c in calls)
            answers = (*does, Answer(content=end["answer"]))
            recorded = Recording(first_prompt=end["first_prompt"], model="demo", answers=answers)
            save(talks, recorded)
        server = Server("--recordings", str(talks))
        try:
            config = _JUDGED.format(model=options.model, base_url=server.base_url)
            config += options.config.read_text("utf-8")
            (spool / "config.toml").write_text(config)
            tasks = [{"id": e["name"], "first_prompt": e["first_prompt"]} for e in endings]
            limits = {"max_iterations": 1, "timeout_s": 600}
            (spool / "ends.json").write_text(json.dumps({"tasks": tasks, "limits": limits}))
            quality.batchd(spool, "ends.json", options.source)
        finally:
            server.process.kill()
            server.process.wait()
        kept.mkdir(parents=True, exist_ok=True)
        for file in (spool / "outbox/ends").glob("*.json*"):
            shutil.copy(file, kept)


def run_cases(
    options: argparse.Namespace,
    names: Sequence[str],
    seeds: Sequence[int],
    *,
    trees: Mapping[str, Path],
    configs: Mapping[int, Path],
    deadline: float,
) -> None:
    """Run what is missing, each case in a line and beginning with another version, until the
    deadline.
    """
    for seed in seeds:
        for at, case in enumerate(quality.cases(HERE / "sight", options.only)):
            for name in (*names[at % len(names) :], *names[: at % len(names)]):
                kept = options.out / name / str(seed) / f"{case.name}.outcome"
                if kept.exists() or time.monotonic() >= deadline:
                    continue
                options.config, options.source = configs[seed], trees[name]
                o = worked(case, options, kept)
                print(f"{case.name:<20} {name:<16} {seed}  {'claimed' if o.claimed else o.ended:<14} {'right' if o.right else 'WRONG':<6} {o.calls:>4} {o.tokens:>8,} {o.seconds:>5.0f} s", flush=True)  # fmt: skip


def main() -> None:
    """Run what is missing, as long as there is time, and print the tables."""
    add = (
        parser := argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    ).add_argument
    add("--config", type=Path, required=True, help="a config.toml with the provider")
    add("--model", required=True, metavar="PROVIDER/MODEL")
    add("--old", required=True, metavar="COMMIT")
    add("--out", type=Path, required=True, metavar="DIR", help="keeps results and transcripts")
    add("--hours", type=float, default=3.0, help="no case begins later")
    add("--parts", action="store_true", help="this version without each part, too")
    add("--only", nargs="*", default=[], metavar="NAME")
    options = parser.parse_args()
    options.by = "none"
    ends = json.loads((HERE / "endings.json").read_text("utf-8"))
    deadline = time.monotonic() + options.hours * 3600
    with tempfile.TemporaryDirectory(prefix="batchd-turns-") as folder:
        trees = sources(Path(folder), options.old, parts=options.parts)
        configs = {seed: seeded(options.config, seed, Path(folder)) for seed in SEEDS}
        run_cases(options, ("old", "new"), SEEDS, trees=trees, configs=configs, deadline=deadline)
        for seed in SEEDS:
            for name in ("old", "new") if seed % 2 else ("new", "old"):
                kept = options.out / name / str(seed) / "endings"
                if not kept.exists() and time.monotonic() < deadline:
                    options.config, options.source = configs[seed], trees[name]
                    judged(ends, options, kept)
        if options.parts:
            run_cases(
                options, list(PARTS), SEEDS[:1], trees=trees, configs=configs, deadline=deadline
            )
        report(options.out, list(trees), ends)


def report(out: Path, names: list[str], ends: list[dict[str, Any]]) -> None:
    """Print what came of all that was run."""
    for name in names:
        found = [Outcome(**json.loads(f.read_text())) for f in sorted((out / name).glob("*/*.outcome"))]  # fmt: skip
        if found:
            quality.shown(name, found)
            print(f"  {sum(o.tokens for o in found) / len(found):,.0f} tokens a case")
    print(f"\n{'judge':<8} {'good, accepted':>16} {'bad, refused':>14} {'right verdicts':>16}")
    for name in names:
        good = bad = count = 0
        for end in ends:
            for file in (out / name).glob(f"*/endings/{end['name']}.json"):
                verdict = json.loads(file.read_text("utf-8"))["evaluation"]
                if verdict and verdict["by"] == "judge":
                    count += 1
                    good += end["done"] and verdict["done"]
                    bad += not end["done"] and not verdict["done"]
        if count:
            print(f"{name:<8} {good:>16} {bad:>14} {good + bad:>9} of {count:>3}")


if __name__ == "__main__":
    main()
