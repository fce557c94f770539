"""config.toml, defaults and ``BATCHD_SECTION__KEY`` variables become one frozen ``Config``.

``sections`` says what there is, ``loading`` finds it, ``reading`` reads it. Paths are absolute once
loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import msgspec

from batchd import masking, records
from batchd.config import operator_files
from batchd.config.providers import ProviderSection, seconds
from batchd.config.sections import ConfigSections, PathsSection
from batchd.errors import NotPossibleError, UsageError

#: How variables begin that set what may hold secrets: headers, addresses.
_WITH_SECRETS = ("BATCHD_PROVIDERS__", "BATCHD_NOTIFY__", "BATCHD_TRACES__")
#: What helps where no configuration was found.
NO_FILE = "no config.toml counts here: go to your spool, or name it with --config"
#: The sections that say how tasks are worked on.
_CONDITIONS = (
    "agent",
    "providers",
    "models",
    "limits",
    "budget",
    "evaluation",
    "cost",
    "sandbox",
    "workspace",
    "secrets",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(ConfigSections):
    """The configuration as one process sees it."""

    file: str = ""
    """The file that it was read from; empty: built-in defaults."""
    environ: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    """The environment that keys are read from."""
    base: str = ""
    """The folder that relative paths mean: the file's, or the working directory of its reader."""

    def endpoint(self, provider: str) -> records.Endpoint:
        """Return where a provider is reached, its key read now.

        Raises ``UsageError`` for an unknown provider, and ``NotPossibleError`` where its key
        is missing: it names the variable or the file.
        """
        known = self.providers.get(provider)
        if known is None:
            names = ", ".join(self.providers)
            elsewhere = "" if self.file else f"; {NO_FILE}"
            raise UsageError(
                f"no provider {provider!r} is configured; the known ones are {names}{elsewhere}"
            )
        base_url, _, query = known.base_url.partition("?")
        return records.Endpoint(
            base_url=base_url.rstrip("/"),
            query=query,
            api_key=self._key(provider, known),
            headers=known.headers,
            body={k: v for k, v in known.extra_body.items() if any(masking.named({k: v}))},
            max_concurrent=known.max_concurrent,
        )

    def tier(self, model: str) -> tuple[records.Tier, float | None]:
        """Return what a model's calls are sold at where the task does not say it.

        The tier, and after how many seconds without room there they go
        on at the standard price; None: never.
        """
        known = self.models.get(model)
        fallback = known.tier_fallback if known else None
        return (
            (known and known.service_tier) or self.agent.service_tier,
            seconds(self.agent.tier_fallback if fallback is None else fallback),
        )

    def conditions(self) -> str:
        """Return what distinguishes how tasks are worked on, and who pays for it, from other ways;
        no key can be read off it.
        """
        keys = {}
        for name in self.providers:
            with contextlib.suppress(NotPossibleError):
                keys[name] = self.endpoint(name).api_key
        variables = {name: self.environ.get(name, "") for name in self.secrets.env}
        sections = [getattr(self, name) for name in _CONDITIONS]
        text = msgspec.json.encode((sections, keys, variables), order="deterministic")
        return hashlib.sha256(text).hexdigest()

    def _key(self, name: str, provider: ProviderSection) -> str:
        key, place = operator_files.secret(
            f"the key of provider {name}",
            file=provider.api_key_file,
            env=provider.api_key_env,
            environ=self.environ,
        )
        if place and not key:
            where = "" if provider.api_key_file else " where batchd runs, and start it again"
            raise NotPossibleError(f"provider {name} has no key: set {place}{where}")
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise NotPossibleError(
                f"{place} holds no key for provider {name}: put the key there, one word of ASCII"
            )
        return key

    def hidden(self) -> Iterator[str]:
        """Yield what no log line, no result and no command may ever show,
        as far as it can be had now.
        """
        for name in self.providers:
            with contextlib.suppress(NotPossibleError):
                yield from self.endpoint(name).secrets()
        sources = [records.Secret(from_env=name) for name in self.secrets.env]
        sources += [records.Secret(from_file=name) for name in self.secrets.files]
        for source in sources:
            with contextlib.suppress(NotPossibleError):
                yield self.revealed(source)
        for receiver in self.notify.values():
            yield from receiver.hidden(self.environ)
        yield from self.traces.hidden(self.environ)
        with contextlib.suppress(NotPossibleError):
            yield from filter(None, (self.web.token(self.environ),))

    def revealed(self, secret: records.Secret) -> str:
        """Return the value of a task's secret variable, read now where it comes from elsewhere.

        Raises ``NotPossibleError``: it is not there,
        too short to be masked, or no longer to be had.
        """
        if name := secret.from_env:
            what, value = f"the environment variable {name}", self.environ.get(name)
            granted = name in self.secrets.env
        elif name := secret.from_file:
            what, granted = f"the file {name} of [secrets.files]", name in self.secrets.files
            value = _content(self.secrets.files[name]) if granted else None
        else:
            what, value, granted = "a secret of the task", secret.value, True
        if not granted:
            raise NotPossibleError(f"[secrets] does not allow {what}")
        if value is None:
            raise NotPossibleError(f"{what} is not set, or cannot be read")
        if len(value.strip()) < masking.MIN_SECRET_CHARS or "\0" in value:
            raise NotPossibleError(
                f"{what} is too short for a secret: use at least {masking.MIN_SECRET_CHARS} characters"
            )
        return value

    def variables(self) -> set[str]:
        """Return the names of environment variables that hold secrets."""
        return (
            {name for _, name in operator_files.named(self, "_env")}
            | {*self.secrets.env}
            | {name for name in self.environ if name.startswith(_WITH_SECRETS)}
        )

    def key_files(self) -> tuple[str, ...]:
        """Return the paths of all files that hold secrets."""
        return tuple(kept.path for kept in operator_files.secrets(self))

    def sandbox_policy(self) -> records.SandboxPolicy:
        """Return what ``[sandbox]`` says, as workers get it."""
        names = [f.name for f in fields(records.SandboxKeys)]
        return records.SandboxPolicy(**{name: getattr(self.sandbox, name) for name in names})


def _content(path: str) -> str | None:
    """Return a file's one value; None where it cannot be read."""
    try:
        return operator_files.content(path).decode().strip("\n")
    except (OSError, UnicodeDecodeError):
        return None


def load(
    path: Path | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    draft: str = "",
    here: Path = Path(),
) -> Config:
    """Return the configuration; ``draft``: what is to stand in ``path``, and does not yet.

    ``here``: what counts as the working directory.

    Without ``path``: that of BATCHD_CONFIG, else ./config.toml, ~/.config/batchd/config.toml or
    /etc/batchd/config.toml, whichever is there first, else the defaults, in a spool of the user's
    own. Raises ``ConfigError`` with all problems at once,
    and for one that is found and does not count: see ``finding``.
    """
    from batchd.config import loading  # it loads a parser, which who is given one needs not

    # A copy: who holds keys takes them out of the process's own.
    environ = dict(os.environ if environ is None else environ)
    found = loading.tables(path, environ, draft=draft, here=here)
    sections = found.sections()
    parts = {f.name: getattr(sections, f.name) for f in fields(sections)}
    return Config(**parts, file=found.file, environ=environ, base=str(found.base))


def load_paths(path: Path | None = None, environ: Mapping[str, str] | None = None) -> PathsSection:
    """Return where the spool lies, whatever is wrong with the rest of the configuration.

    Raises ``ConfigError`` where that cannot be known:
    the file is no TOML, or ``[paths]`` is wrong itself.
    """
    from batchd.config import loading

    environ = os.environ if environ is None else environ
    return loading.tables(path, environ, section="paths").paths()


def changed(config: Config, changes: Mapping[tuple[str, ...], str]) -> Config:
    """Return the configuration with the values at some places, ``("pool", "processes")``, changed.

    Texts are read as those of variables are. Raises ``ConfigError`` with all problems at once.
    """
    from batchd.config import loading

    sections = loading.changed(config, changes)
    return replace(config, **{f.name: getattr(sections, f.name) for f in fields(sections)})
