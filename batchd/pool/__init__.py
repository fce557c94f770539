"""The processes that agents run in: ``supervisor`` in the daemon, ``worker`` in the child."""
