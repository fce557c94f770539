"""Notifications: receivers learn that a batch ends, money runs out,
a provider is parked, the daemon starts.

A listener of the daemon's. ``notifications`` hears, ``thread`` delivers apart from all else, a
``courier`` for each receiver gathers, keeps, paces and retries, and ``channels`` know the ways.
"""
