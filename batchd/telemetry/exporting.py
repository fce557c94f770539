"""Which exporters the configuration asks for, and their life around the daemon's."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator

from batchd.config import Config
from batchd.daemon.listener import Listener
from batchd.errors import NotPossibleError

#: What each extra brings.
_PACKAGES = {
    "metrics": ("prometheus_client",),
    "traces": ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"),
}


def missing(config: Config) -> dict[str, str]:
    """Return, by section, why what is configured cannot be: its packages are not installed. With the mend behind a colon."""
    wanted = {"metrics": config.metrics.wanted, "traces": bool(config.traces.endpoint)}
    return {
        section: f"[{section}] needs packages that are not installed: pip install 'batchd[{section}]'"
        for section, packages in _PACKAGES.items()
        if wanted[section] and not all(map(_there, packages))
    }


@contextlib.contextmanager
def exporting(config: Config) -> Iterator[list[Listener]]:
    """Yield the daemon's listeners that export what they hear, and end their threads behind it, within two seconds.

    Raises ``NotPossibleError`` where a package or a key is missing.
    """
    for why in missing(config).values():
        raise NotPossibleError(why)
    with contextlib.ExitStack() as ends:
        listeners: list[Listener] = []
        # Loaded here: they bring libraries that no daemon without them should pay for.
        if config.metrics.wanted:
            from batchd.telemetry.metrics import Metrics  # noqa: PLC0415

            metrics = Metrics(config.metrics)
            ends.callback(metrics.close)
            listeners.append(metrics)
        if config.traces.endpoint:
            from batchd.telemetry.traces import Traces  # noqa: PLC0415

            traces = Traces(config.traces, config.traces.all_headers(config.environ))
            ends.callback(traces.close)
            listeners.append(traces)
        yield listeners


def _there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:  # of a package above it
        return False
