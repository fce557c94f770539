"""``[metrics]`` and ``[traces]``: what machines may look at;
with what no single key shows, and the secrets in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated
from urllib.parse import unquote

from annotated_types import Ge, Le

from batchd import masking
from batchd.config import operator_files
from batchd.config.values import Name, Section, is_place, loopback, parted
from batchd.errors import NotPossibleError, Problem

#: What a receiver of traces listens for, below its address.
_PATH = "/v1/traces"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSection(Section):
    """``[metrics]``: figures for Prometheus."""

    listen: str = ""
    """``HOST:PORT`` where it may fetch them, ``127.0.0.1:9464``; empty: nowhere."""
    hosts: tuple[Name, ...] = ()
    """Names that it may be fetched by, beside addresses, localhost and this machine's own name."""

    @property
    def address(self) -> tuple[str, int]:
        """Where to listen, as sockets want it."""
        return parted(self.listen)

    @property
    def exposed(self) -> bool:
        """Whether other machines may look."""
        return bool(self.listen) and not loopback(self.address[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class TracesSection(Section):
    """``[traces]``: spans for an OpenTelemetry receiver."""

    endpoint: str = ""
    """Where it takes OTLP over HTTP, ``http://127.0.0.1:4318``; empty: nowhere."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent along with every request."""
    headers_env: str = ""
    """The environment variable that holds more of them, ``NAME=VALUE,NAME=VALUE``: keys."""
    headers_file: str = ""
    """Or a file that holds them; a relative one is looked for among systemd's credentials first."""
    service: Name = "batchd"
    """``service.name``."""
    ratio: Annotated[float, Ge(0), Le(1)] = 1.0
    """The part of all tasks that is traced."""
    content: bool = False
    """Whether prompts, answers, commands and their outputs go into spans."""

    @property
    def address(self) -> str:
        """The whole address that spans are sent to."""
        base = self.endpoint.rstrip("/")
        return base if base.endswith(_PATH) else base + _PATH

    def all_headers(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return all headers, those of the variable or the file read now.

        Raises ``NotPossibleError``.
        """
        if not (self.headers_file or self.headers_env):
            return dict(self.headers)
        text, place = operator_files.secret(
            "[traces]: the headers", file=self.headers_file, env=self.headers_env, environ=environ
        )
        if not text:
            raise NotPossibleError(f"[traces]: {place} holds no headers: set it")
        return {**self.headers, **_parsed(text, place)}

    def hidden(self, environ: Mapping[str, str]) -> Iterator[str]:
        """Yield what no text may show, as far as it can be had now."""
        try:
            headers = self.all_headers(environ)
        except NotPossibleError:
            headers = dict(self.headers)
        for name, value in headers.items():
            # What came from a variable or a file was put there because it is a secret.
            if name not in self.headers or masking.names_secret(name) or masking.looks(value):
                yield value
                yield from value.split()[1:]  # behind `Bearer`


def problems(
    metrics: MetricsSection, traces: TracesSection
) -> Iterator[tuple[tuple[str, str], Problem]]:
    """Yield what is wrong with addresses and names, each with its place."""
    if metrics.listen and not is_place(metrics.listen):
        hint = "as in 127.0.0.1:9464 or [::1]:9464"
        yield ("metrics", "listen"), Problem("", "it must be HOST:PORT", hint)
    if traces.endpoint and not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s?#]*)?", traces.endpoint):
        hint = "as in http://127.0.0.1:4318"
        yield ("traces", "endpoint"), Problem("", "it must be http(s)://HOST[:PORT][/PATH]", hint)


def _parsed(text: str, place: str) -> dict[str, str]:
    """Return headers as OTEL_EXPORTER_OTLP_HEADERS writes them,
    values in percent-encoding where need be.
    """
    headers = {}
    for pair in filter(None, (pair.strip() for pair in text.split(","))):
        name, found, value = pair.partition("=")
        name, value = name.strip(), unquote(value.strip())
        # Not quoted: it is a secret.
        if not (found and re.fullmatch(r"[!#$%&'*+.^`|~\w-]+", name, re.ASCII)):
            raise NotPossibleError(f"[traces]: {place} holds no headers: NAME=VALUE,NAME=VALUE")
        if not (value.isascii() and value.isprintable()):
            raise NotPossibleError(
                f"[traces]: the value of {name} in {place} cannot be sent: use ASCII alone"
            )
        headers[name] = value
    return headers
