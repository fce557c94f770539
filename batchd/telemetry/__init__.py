"""Telemetry for machines: figures for Prometheus, spans for OpenTelemetry.

Listeners of the daemon's. On its loop they only count, or queue a record of a few fields; whatever
takes time, formatting, sockets, is the work of threads of their own.
Where nothing is configured nothing is loaded.
"""

from __future__ import annotations

import importlib.util

from batchd import installation
from batchd.config import Config
from batchd.daemon.listeners import Listener
from batchd.errors import NotPossibleError

#: What each extra brings.
_PACKAGES = {
    "metrics": ("prometheus_client",),
    "traces": ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"),
}


def missing(config: Config) -> dict[str, str]:
    """Return, by section, why what is configured cannot be: its packages are not installed.

    With the fix behind a colon.
    """
    wanted = {"metrics": bool(config.metrics.listen), "traces": bool(config.traces.endpoint)}
    return {
        section: f"[{section}] needs packages that are not installed: {installation.fix(section)}"
        for section, packages in _PACKAGES.items()
        if wanted[section] and not all(map(_there, packages))
    }


def exporters(config: Config) -> list[Listener]:
    """Return the listeners that export what they hear.

    Raises ``NotPossibleError`` where a package or a key is missing.
    """
    for why in missing(config).values():
        raise NotPossibleError(why)
    listeners: list[Listener] = []
    # Loaded here: they bring libraries that no daemon without them should pay for.
    if config.metrics.listen:
        from batchd.telemetry.metrics import Metrics

        listeners.append(Metrics(config.metrics))
    if config.traces.endpoint:
        from batchd.telemetry.traces import Traces

        headers = config.traces.all_headers(config.environ)
        listeners.append(Traces(config.traces, headers))
    return listeners


def _there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:  # of a package above it
        return False
