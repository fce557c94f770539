"""Workspaces: what tasks work on instead of a directory in place, and what they have changed there.

The daemon keeps a mirror of each repository (``mirrors``), which a child of its own fetches
(``fetching``); a worker makes a task's clone of it (``clones``), and at the end
its patch (``patches``). Git runs on what a task, or its dropper, may have written inside the
sandbox alone, with nothing of theirs that git would run (``git``).
"""

from batchd.workspace.clones import make
from batchd.workspace.mirrors import Mirror
from batchd.workspace.patches import changed

__all__ = ["Mirror", "changed", "make"]
