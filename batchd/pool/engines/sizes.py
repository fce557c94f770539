"""Sizes: what the nodes of a cluster have in all, held against what workers take. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from batchd.pool.engines.launcher_messages import NodeSize
from batchd.records import Needs


@dataclass(frozen=True, slots=True)
class Takes:
    """What a worker takes of its node, whatever its tasks need beside that."""

    cpus: float
    memory_bytes: int

    def of(self, nodes: Sequence[NodeSize]) -> Iterator[NodeSize]:
        """Yield the nodes that have so much."""
        for node in nodes:
            if node.cpus >= self.cpus and node.memory_bytes >= self.memory_bytes:
                yield node


def possible(nodes: Sequence[NodeSize], takes: Takes, needs: Needs) -> bool:
    """Whether some node has what a worker takes, and what its tasks need, in use or not."""
    return any(node.has.covers(needs) for node in takes.of(nodes))


def lacking(nodes: Sequence[NodeSize], takes: Takes) -> str:
    """Return what a worker takes that no node has; empty: one has it."""
    if not nodes:
        return "the Ray cluster has no node"
    if any(takes.of(nodes)):
        return ""
    wanted = f"{takes.cpus:g} CPUs and {takes.memory_bytes >> 20:,} MB"
    largest = max(nodes, key=lambda each: (each.cpus, each.memory_bytes))
    has = f"{largest.cpus:g} and {largest.memory_bytes >> 20:,} MB"
    return f"a worker takes {wanted}, and the largest node of the Ray cluster has {has}"
