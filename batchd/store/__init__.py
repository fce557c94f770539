"""The durable state: batches, tasks, events and money in SQLite.

``store.Store`` is the daemon's, the only one that writes; ``queries.StoreReader`` is for everybody
else: `batchd status` only reads, and need not wait for asyncio to load.
"""
