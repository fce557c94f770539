"""Workspaces: what tasks work on instead of a directory in place, and what they have changed there.

The daemon keeps a mirror of each repository, which a child of its own fetches (``mirrors``); a
worker makes a task's clone of it, and at the end its patch (``clones``). Git runs on what a task,
or its dropper, may have written inside the sandbox alone, with nothing of theirs that git would
run (``git``).
"""
