"""The agent: decide (pure), perform (the only I/O), record."""
