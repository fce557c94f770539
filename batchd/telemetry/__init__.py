"""Telemetry for machines: figures for Prometheus, spans for OpenTelemetry.

Listeners of the daemon's. On its loop they only count, or queue a record of a few fields; whatever
takes time, formatting, sockets, is the work of threads of their own.
Where nothing is configured nothing is loaded.
"""

from batchd.telemetry.exporting import exporters, missing

__all__ = ["exporters", "missing"]
