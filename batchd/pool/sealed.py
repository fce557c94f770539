"""The seal of the fork server, which it loads first:
it closes itself to other processes of its user.

Who could write into its memory could keep the workers that it forks,
which hold keys, from sealing themselves.
"""

from __future__ import annotations

from batchd import processes

processes.seal()
