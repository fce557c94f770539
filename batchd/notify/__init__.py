"""Notifications: receivers learn that a batch ends, money runs out,
a provider is parked, the daemon starts.

A listener of the daemon's. ``notifications`` hears and keeps, its couriers pace and retry,
``channels`` know the ways.
"""
