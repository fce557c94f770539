"""What people look at: how things stand, what a task did, and the words for it.

Faces draw it (`status`, `top`, `logs`, the report, the web page). It reads the store and asks the
daemon over the control socket; nothing here writes.
"""
