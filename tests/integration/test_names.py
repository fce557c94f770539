"""Names of batches: found and reserved in the outbox before a batch is stored."""

import asyncio
import contextlib
import itertools
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from batchd.daemon.batch_names import BatchNames
from batchd.daemon.main_loop import MainLoop
from batchd.daemon.outboxes import Outboxes
from batchd.daemon.troubles import TroubleLog
from batchd.daemon.writes import DaemonStore
from batchd.log import get_logger
from batchd.records import Batch, BatchNaming, Task
from batchd.spool import claims, outbox
from batchd.store import operations
from batchd.store.store import Store

pytestmark = pytest.mark.in_turns


@dataclass
class Spool:
    """What a daemon names and stores batches with."""

    folder: Path
    store: Store
    names: BatchNames

    def batch(self, name: str, claim: str, outbox: str = "outbox") -> Batch:
        """Return a batch that is not named yet."""
        return Batch(
            name=name,
            claim=claim,
            outbox=str(self.folder / outbox),
            request="request.json",
            received_at=1.0,
        )

    async def add(self, name: str, claim: str, outbox: str = "outbox") -> str:
        """Name and store a batch; return its name."""
        named = await self.names.reserve(self.batch(name, claim, outbox))
        task = Task(id="001", first_prompt="x", model="p/m")
        return (await self.store.write(operations.add_batch, named, [task])).name

    def folders(self, outbox: str = "outbox") -> list[str]:
        """Return what lies in the outbox."""
        return sorted(path.name for path in (self.folder / outbox).glob("[!.]*"))


@contextlib.asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Spool]:
    """Give a spool, its outbox made."""
    (folder / "outbox").mkdir(exist_ok=True)
    loop, state = MainLoop(), folder / "state"
    troubles = TroubleLog(get_logger())
    store = DaemonStore(state / "batchd.db", troubles)
    outboxes = Outboxes(troubles, outbox.OwnOutboxes(state, claims.mark(state)))
    try:
        yield Spool(folder, store, BatchNames(store, outboxes))
        assert await loop.idle(lambda: ()) == ()
    finally:
        store.close()
        outboxes.close()


def test_a_name_is_never_used_twice(tmp_path: Path) -> None:
    """Taken by a batch or by a file in the outbox,
    a name gets a number, and stays within its length.
    """
    long = "n" * 100
    wanted = [("b", "C1"), ("b", "C2"), ("b", "C3"), (long, "C4"), (long, "C5"), ("b-3", "C6")]

    async def names() -> list[str]:
        async with opened(tmp_path) as spool:
            (tmp_path / "outbox/b-2").symlink_to("nowhere")
            return [await spool.add(name, claim) for name, claim in wanted]

    assert asyncio.run(names()) == ["b", "b-3", "b-4", long, f"{long[:98]}-2", "b-3-2"]


def test_a_thousand_files_of_one_name_at_once(tmp_path: Path) -> None:
    """However many batches want a name at once, each gets its own,
    in their order, and no folder is left over.
    """

    async def add() -> list[str]:
        async with opened(tmp_path) as spool:
            return await asyncio.gather(*(spool.add("b", f"C{i}") for i in range(1000)))

    names = ["b", *(f"b-{i}" for i in range(2, 1001))]
    assert asyncio.run(add()) == names
    assert sorted(path.name for path in (tmp_path / "outbox").glob("[!.]*")) == sorted(names)


def test_a_claim_that_is_named_twice_at_once_has_one_name(tmp_path: Path) -> None:
    """An order is given again where its answer was lost:
    both have the same folder, and are one batch.
    """

    async def add() -> list[str]:
        async with opened(tmp_path) as spool:
            return await asyncio.gather(*(spool.add("b", claim) for claim in ("C1", "C1", "C2")))

    assert asyncio.run(add()) == ["b", "b", "b-2"]
    assert sorted(path.name for path in (tmp_path / "outbox").glob("[!.]*")) == ["b", "b-2"]


def test_a_name_that_is_given_back_is_free(tmp_path: Path) -> None:
    """The folder goes, and the next batch has the name; one that is stored keeps it."""

    async def scenario() -> None:
        async with opened(tmp_path) as spool:
            first = await spool.names.reserve(spool.batch("b", "C1"))
            await spool.names.give_back(first)
            assert spool.folders() == []
            assert await spool.add("b", "C2") == "b"
            await spool.names.give_back(spool.batch("b", "C2"))
            assert spool.folders() == ["b"]

    asyncio.run(scenario())


@pytest.mark.parametrize("order", [*itertools.permutations(("C1", "C2", "C3", "C4"))])
def test_a_name_reserved_before_a_crash_is_found_again(
    tmp_path: Path, order: Sequence[str]
) -> None:
    """Whichever claim comes first afterwards,
    and one without a name too, no folder is left over.
    """
    reserved = {"C1": "b", "C2": "b-2", "C3": "b-3"}

    async def names() -> dict[str, str]:
        async with opened(tmp_path) as spool:
            for claim, name in reserved.items():
                assert outbox.reserve(spool.batch("b", claim), name) is BatchNaming.OURS
            return {claim: await spool.add("b", claim) for claim in order}

    assert asyncio.run(names()) == {**reserved, "C4": "b-4"}
    assert {path.name for path in (tmp_path / "outbox").glob("[!.]*")} == {"b", "b-2", "b-3", "b-4"}


#: A daemon that is killed once the folder of a batch is made, and before it is stored.
_KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
sys.path.insert(0, os.path.dirname({here!r}))
from test_names import opened

async def main(folder):
    async with opened(Path(folder)) as spool:
        await spool.names.reserve(spool.batch("b", "c"))
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main(sys.argv[1]))
"""


def test_a_crash_between_folder_and_journal_wastes_no_name(tmp_path: Path) -> None:
    """The claim that is taken up again finds its own folder,
    under the number that it had; another's does not.
    """
    (tmp_path / "outbox/b").mkdir(parents=True)
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED.format(here=__file__), str(tmp_path)], check=False
    )
    assert killed.returncode == -signal.SIGKILL

    async def names() -> list[str]:
        async with opened(tmp_path) as spool:
            return [await spool.add("b", claim) for claim in ("c", "d")]

    assert asyncio.run(names()) == ["b-2", "b-3"]
    assert sorted(p.name for p in (tmp_path / "outbox").glob("[!.]*")) == ["b", "b-2", "b-3"]


def test_an_outbox_that_takes_nothing_fails_its_own_batches_alone(tmp_path: Path) -> None:
    """Where a file stands in the place of an outbox the error says so,
    and other outboxes name what is theirs.
    """
    (tmp_path / "broken").write_text("")

    async def scenario() -> None:
        async with opened(tmp_path) as spool:
            broken, sound = await asyncio.gather(
                spool.add("b", "C1", "broken"), spool.add("b", "C2"), return_exceptions=True
            )
            assert isinstance(broken, OSError)
            assert sound == "b-2"
            (tmp_path / "broken").unlink()
            (tmp_path / "broken").mkdir()
            assert await spool.add("b", "C1", "broken") == "b"

    asyncio.run(scenario())
