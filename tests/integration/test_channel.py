"""Both ends of the connection between the daemon and a worker, over a real socket pair."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from patience import PATIENCE_S

from batchd import wire
from batchd.pool.channel import Channel


def test_what_was_sent_before_a_close_arrives_in_order() -> None:
    """Messages sent before there is a transport, in one turn of the loop,
    and right before the end: all arrive, then the end is reported.
    """

    async def go() -> list[Any]:
        heard: list[Any] = []
        lost = asyncio.Event()
        ours, theirs = socket.socketpair()
        near = Channel(heard.append, lambda _: None)
        far = Channel(heard.append, lambda _: lost.set())
        near.send(wire.Heartbeat(rss=0))
        await far.attach(theirs)
        await near.attach(ours)
        for rss in range(1, 4):
            near.send(wire.Heartbeat(rss=rss))
        await asyncio.sleep(0)
        near.send(wire.Heartbeat(rss=4))
        near.close()
        near.send(wire.Heartbeat(rss=5))  # it is closed
        await asyncio.wait_for(lost.wait(), PATIENCE_S)
        return heard

    assert [message.rss for message in asyncio.run(go())] == [0, 1, 2, 3, 4]
