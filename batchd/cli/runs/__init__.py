"""What works on task files for as long as a command waits:
``run``, ``submit --wait`` and ``demo``.
"""
