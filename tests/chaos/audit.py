"""Holds what a gust has done against what has come of it."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import books
from books import Outcome, Promise
from files import File
from ground import MAX_ATTEMPTS, PRICE, Ground
from progress import INBOX
from record import Dropped, Record
from tampering import POOR_USD
from witness import Folder, Witness

_DAY = 86400
#: The time around a move of the clock in which it is not known what day it was.
_UNSURE_S = 1.0


class Audit:
    """Finds the folders of a gust's files, what is still to come of them,
    and what is wrong with them.
    """

    def __init__(self, ground: Ground, witness: Witness) -> None:
        self._ground = ground
        self._witness = witness
        #: Folders that belong to gusts before this one.
        self._before: set[Path] = set()

    def work(self, record: Record) -> Iterator[tuple[str, str]]:
        """Yield the lane and the batch of whatever is not done yet."""
        folders = self._folders(record)
        for dropped in record.dropped:
            file = dropped.file
            made = folders[file.versions[-1]]
            if not made:
                yield INBOX, file.batch
            for folder in made:
                if folder.summary is not None:
                    continue
                left = file.lanes.keys() - folder.results.keys()
                # A batch that was run again has some of its tasks alone.
                for prompt in left if folder is made[0] else [*file.lanes][:1]:
                    yield file.lanes[prompt], file.batch
                if not left:
                    yield INBOX, file.batch  # its summary is to come

    def complaints(self, record: Record) -> Iterator[str]:
        """Yield all that is wrong with a gust that has come to its end."""
        folders = self._folders(record)
        known = {id(folder) for made in folders.values() for folder in made}
        for path, folder in self._witness.folders.items():
            if path not in self._before and id(folder) not in known:
                yield f"{path}: no file like its request was ever dropped; there are {[file.name for file in path.iterdir()]}"
        for dropped in record.dropped:
            drafts = [f for v in dropped.file.versions[:-1] for f in folders[v]]
            yield from self._file(dropped, folders[dropped.file.versions[-1]], record)
            yield from self._outcomes(dropped, drafts, record)
        yield from self._reruns(record)
        yield from self._days(record)
        folder, inbox = self._ground.arena.folder, self._ground.arena.folder / "inbox"
        states = (folder / ".batchd", folder / "disk-state/state")
        claims = [path for state in states for path in state.glob("claimed/*")]
        there = (*inbox.iterdir(), *inbox.glob(".claimed/*"), *claims)
        if left := [path.name for path in there if path.is_file()]:
            yield f"the inbox still has {left}"

    def close(self) -> None:
        """Put the folders behind us: later gusts have others."""
        self._before |= self._witness.folders.keys()

    def statuses(self, record: Record) -> Counter[str]:
        """Return how often tasks of a gust ended in which way."""
        made = [folder for those in self._folders(record).values() for folder in those]
        return Counter(r["status"] for folder in made for r in folder.results.values())

    def drafts(self, record: Record) -> tuple[int, int]:
        """Return how many drafts were saved before a file's last version,
        and how many of them were taken.
        """
        drafts = [v for dropped in record.dropped for v in dropped.file.versions[:-1]]
        folders = self._folders(record)
        return len(drafts), sum(bool(folders[v]) for v in drafts)

    def _folders(self, record: Record) -> dict[bytes, list[Folder]]:
        """Return the folders by what was dropped, in the order in which they came."""
        found = defaultdict(list)
        versions = {v for dropped in record.dropped for v in dropped.file.versions}
        for path, folder in self._witness.folders.items():
            if path not in self._before and folder.request in versions:
                found[folder.request].append(folder)
        return found

    def _file(self, dropped: Dropped, made: list[Folder], record: Record) -> Iterator[str]:
        file = dropped.file
        first = [f for f in made if f.summary is not None and not f.summary["retry_of"]]
        if len(first) != 1:
            yield f"{file.name!r}: was taken {len(first)} times: {[str(f.path) for f in first]}"
        for folder in made:
            summary = folder.summary
            if summary is None:
                yield f"{folder.path}: has no summary"
            elif (summary["status"] == "rejected") == bool(file.promises):
                # A model of a provider that is not configured is an error of the file's.
                if not (file.promises and record.without_provider):
                    yield f"{folder.path}: is {summary['status']}: {summary['errors']}"
            elif file.promises:
                rerun = bool(summary["retry_of"])
                yield from self._folder(
                    folder, [t["task"] for t in summary["tasks"]] if rerun else file.ids
                )
                yield from self._budget(folder, file)
        if file.promises:
            yield from self._outcomes(dropped, made, record)

    def _folder(self, folder: Folder, ids: list[str]) -> Iterator[str]:
        assert folder.summary is not None
        lines = (folder.path / "results.jsonl").read_text()
        yield from books.whole(folder.summary, [*folder.results.values()], lines, ids)
        expected = {"results.jsonl", "summary.json", folder.summary["request"]}
        expected |= {f"{name}{end}" for name in ids for end in ("", ".json", ".jsonl")}
        if odd := sorted({p.name for p in folder.path.iterdir()} - expected):
            yield f"{folder.path}: has {odd} left over"

    def _budget(self, folder: Folder, file: File) -> Iterator[str]:
        spent = math.fsum(o.spent_usd for o in self._witness.outcomes(folder))
        if file.budget_usd and spent > file.budget_usd + 1e-9:
            yield f"{folder.path}: ${spent} of its ${file.budget_usd} were spent"

    def _outcomes(self, dropped: Dropped, made: list[Folder], record: Record) -> Iterator[str]:
        """Judge the results of a file's tasks, those of each prompt together."""
        more = {"cancelled/user", "cancelled/dependency"} if dropped.cancelled else set()
        if record.killed_workers >= MAX_ATTEMPTS:
            more.add("error/worker_crashed")
        by_prompt = defaultdict[str, list[Outcome]](list)
        failed = set[str]()
        for folder in made:
            for outcome in self._witness.outcomes(folder):
                by_prompt[outcome.result["first_prompt"]].append(outcome)
                if outcome.end not in {"completed", "cancelled/dependency"}:
                    failed.add(outcome.result["batch"])
        for prompt, those in by_prompt.items():
            promise = dropped.file.promises.get(prompt, Promise(frozenset({"completed"})))
            for outcome in those:
                # How the one before it ended is judged by itself.
                after = {"cancelled/dependency"} if outcome.result["batch"] in failed else set()
                ends = promise.ends | more | after
                yield from books.kept(outcome, Promise(ends, promise.max_usd))
                yield from books.money(outcome, PRICE)
                notes = Path(outcome.result["dir"]) / "notes.txt"
                yield from books.commands(outcome, notes.read_text() if notes.exists() else "")
            yield from books.settled(prompt, those, self._witness.asked[prompt])

    def _reruns(self, record: Record) -> Iterator[str]:
        for batch in {name for name, _ in record.reruns}:
            orders = [order for name, order in record.reruns if name == batch]
            made = [
                f
                for f in self._witness.folders.values()
                if (f.summary or {}).get("retry_of") == batch
            ]
            done = sum(order.code == 0 for order in orders)
            unsure = sum(order.in_doubt for order in orders)
            yield from books.orders_done(batch, len(made), done, unsure)

    def spent(self, record: Record) -> dict[int, float]:
        """Return what was spent on each day that had a budget all along,
        by the servers' logs and the spool's clock.
        """
        spent = dict.fromkeys(sorted(record.poor_days), 0.0)
        moves = self._ground.moves
        for entry in (e for those in self._witness.asked.values() for e in those if e["usage"]):
            at = entry["at"]
            ahead_s = next(ahead for moved, ahead in reversed(moves) if moved <= at)
            number = int((at + ahead_s) // _DAY)
            unsure = any(abs(at - moved) < _UNSURE_S for moved, _ in moves)
            if number in spent and not unsure:
                usage = entry["usage"]
                price = usage["input_tokens"] * PRICE[0] + usage["output_tokens"] * PRICE[1]
                spent[number] += price / 1e6
        return spent

    def _days(self, record: Record) -> Iterator[str]:
        for number, dollars in self.spent(record).items():
            yield from books.day(f"day {number}", dollars, POOR_USD)
