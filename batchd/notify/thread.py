"""The thread that delivers: a loop of its own, so that no mail server,
name server or disk holds the daemon up.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from batchd.actions import Action
from batchd.config import Config
from batchd.log import get_logger
from batchd.notify.channels.target import targets
from batchd.notify.courier import Courier
from batchd.notify.format import EventV1
from batchd.notify.pending_messages import forget_others

T = TypeVar("T")

#: Makes an event: in the thread, for a summary may be large.
Made: TypeAlias = Callable[[], EventV1]
#: What messages under way get at the end, in seconds.
_GRACE_S = 2.0
#: And the thread itself, after which the daemon does not wait for it.
_PATIENCE_S = 5.0


class Delivery:
    """The delivery: a courier for each receiver, in a thread of its own."""

    def __init__(self, config: Config, happened: queue.Queue[Made]) -> None:
        self._config = config
        self._happened = happened
        self._loop = asyncio.new_event_loop()
        self._wake = asyncio.Event()
        self._stopping = False
        self._ended: Future[None] = Future()
        self._couriers: dict[str, tuple[Courier, asyncio.Task[None]]] = {}
        self._log = get_logger()

    # From other threads

    @property
    def over(self) -> bool:
        """Whether the thread has ended: at the end, or by a bug."""
        return self._ended.done()

    def start(self) -> None:
        """Begin. Raises ``RuntimeError`` where no thread can be started."""
        try:
            threading.Thread(target=self._run, name="notify", daemon=True).start()
        except RuntimeError:
            self._loop.close()
            raise

    def wake(self) -> None:
        """Say that something has happened."""
        self._call(self._wake.set)

    def retune(self, config: Config) -> None:
        """Go on under another configuration."""
        self._call(self._take, config)

    async def stop(self) -> None:
        """Give messages under way a moment; what does not arrive is on disk."""
        self._call(self._stop)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(self._ended), _PATIENCE_S)

    def _call(self, what: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(what, *arguments)

    # In the thread

    def _run(self) -> None:
        self._ended.set_running_or_notify_cancel()  # a caller that gives up waiting must not cancel it
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                self._loop.set_default_executor(_Threads())
                runner.run(self._work())
        except Exception:  # noqa: BLE001 (its outer edge: whatever breaks here, tasks go on)
            self._log.exception(Action.NOTIFY_FAILED, message="no more notifications are sent")
        finally:
            self._ended.set_result(None)

    async def _work(self) -> None:
        self._take(self._config)
        while True:
            self._wake.clear()
            self._hand_out()
            if self._stopping:
                break
            await self._wake.wait()
        await self._end()

    def _hand_out(self) -> None:
        """Give the couriers what has happened."""
        events = []
        while not self._happened.empty():
            made = self._happened.get_nowait()
            try:
                events.append(made())
            except Exception:  # noqa: BLE001 (a bug costs this message, and no other)
                self._log.exception(
                    Action.NOTIFY_FAILED, message="a notification of an event cannot be made"
                )
        for courier, _ in self._couriers.values():
            courier.add(events)

    def _take(self, config: Config) -> None:
        """Make a courier for each receiver;
        one whose receiver has changed begins again, with what waits.
        """
        if self._couriers:
            self._hand_out()  # it happened before
        state = Path(config.paths.state)
        wanted = {target.name: target for target in targets(config)}
        for name, (courier, task) in tuple(self._couriers.items()):
            if task.done() or name not in wanted or not courier.serves(wanted[name]):
                task.cancel()
                del self._couriers[name]
        for name, count in forget_others(state, wanted).items():
            if count:
                why = f"[notify.{name}] is gone: {count:,} messages to it are dropped"
                self._log.warning(Action.NOTIFY_FAILED, receiver=name, message=why)
        for name, target in wanted.items():
            if name not in self._couriers:
                courier = Courier(target, state)
                task = self._loop.create_task(courier.run())
                task.add_done_callback(self._broke)
                self._couriers[name] = courier, task

    def _broke(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            self._log.error(Action.NOTIFY_FAILED, message="a bug", exc_info=error)

    def _stop(self) -> None:
        self._stopping = True
        self._wake.set()

    async def _end(self) -> None:
        tasks = [task for _, task in self._couriers.values()]
        settled = asyncio.gather(*(courier.settle() for courier, _ in self._couriers.values()))
        await asyncio.wait((settled,), timeout=_GRACE_S)
        settled.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, settled, return_exceptions=True)


class _Threads(ThreadPoolExecutor):
    """Runs each job in a thread that is not waited for at the end:
    a name server may be silent for half a minute.
    """

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run it. Raises ``RuntimeError`` where no thread can be started."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 (it is the caller's, who waits for it)
                future.set_exception(error)

        threading.Thread(target=run, name="notify-call", daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for no thread."""
        super().shutdown(wait=False, cancel_futures=cancel_futures)
