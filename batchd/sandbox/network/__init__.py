"""The way out for tasks that may reach some hosts:
a proxy of ours on the loopback of their own, empty network.

A sandbox's network namespace has nothing but loopback. The helper that enters it makes a listening
socket there and hands it out; what connects to it is read (``http_heads``, by h11), held to the
list (``destinations``) and carried by this process (``proxy``).
"""

from __future__ import annotations

from batchd.sandbox.network.destinations import AllowedHosts
from batchd.sandbox.network.door import RefusedHosts, described, opened, variables

__all__ = ["AllowedHosts", "RefusedHosts", "described", "opened", "variables"]
