"""A stand-in for a model provider, for the demo, the tests and the benchmarks.

It speaks chat completions, OpenAI's Responses and Anthropic's Messages on loopback, a module each
in ``dialects``. ``demo`` replays recorded conversations, other model names ask for scripts, faults
and the rules of real models: see ``scripts``, ``faults`` and ``families``.
"""
