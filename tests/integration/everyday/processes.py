"""Works with others: a pool of each kind, queues, shared memory, a manager."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.queues import Queue
from multiprocessing.shared_memory import SharedMemory


def put(queue: "Queue[bytes]") -> None:
    """Send more than a pipe has room for."""
    for _ in range(200):
        queue.put(bytes(1000))


def mark(name: str) -> None:
    """Write where another process looks."""
    memory = SharedMemory(name)
    memory.buf[0] = 7
    memory.close()


def done(how: str, work: Callable[..., None], argument: object) -> None:
    """Have it done by another process."""
    process = multiprocessing.get_context(how).Process(target=work, args=(argument,))  # type: ignore[attr-defined]
    process.start()
    process.join()


if __name__ == "__main__":
    for kind in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(kind)
        with context.Pool(2) as pool:
            assert pool.map(abs, range(-100, 0)) == list(range(100, 0, -1))
        queue = context.Queue()
        sender = context.Process(target=put, args=(queue,))
        sender.start()
        assert sum(len(queue.get()) for _ in range(200)) == 200_000
        sender.join()
        memory = SharedMemory(create=True, size=10 << 20)
        done(kind, mark, memory.name)
        assert memory.buf[0] == 7
        memory.close()
        memory.unlink()
    with multiprocessing.Manager() as manager:
        assert manager.dict(a=1)["a"] == 1
    with ProcessPoolExecutor(2) as executor:
        assert list(executor.map(abs, (-1, -2))) == [1, 2]
