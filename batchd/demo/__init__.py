"""A stand-in for a model provider, for the demo, the tests and the benchmarks.

It speaks OpenAI's chat completions on loopback. ``demo`` replays recorded conversations, other model
names ask for scripts and faults: see ``scripts`` and ``faults``.
"""
