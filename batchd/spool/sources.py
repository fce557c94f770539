"""Origins of tasks, for a clone or a copy: the keys ``repo``,
``ref`` and ``workspace``, of a task over its batch.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import cache

from batchd.config import Config
from batchd.config.sections import repository_problem
from batchd.errors import Problem
from batchd.records import Origin
from batchd.spool.decoding import Place
from batchd.spool.task_directories import TaskDirectories
from batchd.spool.taskspec import BatchKeys, Defaults, TaskSpec


def problems(
    config: Config, directories: TaskDirectories, spec: Defaults, *, after: bool
) -> Iterator[tuple[Place, Problem]]:
    """Yield what is wrong with what one task, or a batch, says itself.

    ``after``: its repository may be made first.
    """
    if spec.repo and spec.dir:
        yield ("repo",), Problem("", "a task has a dir or a repo, not both", "leave one out")
    elif spec.repo:
        wrong = _repository_problem(config, directories, spec.repo, must_exist=not after)
        if wrong is None and not _git():
            wrong = Problem("", "git is not installed here", "apt-get install git")
        if wrong:
            yield ("repo",), wrong
    if spec.repo and spec.workspace:
        why = "a repo is always cloned"
        yield ("workspace",), Problem("", why, "leave workspace out")


@cache
def _git() -> bool:
    return shutil.which("git") is not None


def closed(config: Config, origin: Origin, directories: TaskDirectories | None = None) -> str:
    """Return why no task may have a clone, or a copy, of what is stored with one; empty: it may.

    It was asked at the claim: the configuration may be another one since, or the store come from
    elsewhere. ``directories``: remembers what it has looked at.
    """
    directories = directories or TaskDirectories(config)
    if origin.kind == "clone":
        wrong = _repository_problem(config, directories, origin.source, must_exist=True)
        return str(wrong) if wrong else ""
    if directories.real(origin.source) != origin.source:
        return f"{origin.source}: a symbolic link is on the way"
    return directories.problem(origin.source, must_exist=True)


def _repository_problem(
    config: Config, directories: TaskDirectories, repo: str, *, must_exist: bool
) -> Problem | None:
    if "://" in repo or repo.startswith("git@"):
        return repository_problem(repo, config.workspace.repos)
    why = directories.repository_problem(repo, must_exist=must_exist)
    return Problem("", why) if why else None


def contradictions(batch: BatchKeys, spec: TaskSpec) -> Iterator[tuple[Place, Problem]]:
    """Yield what does not go together once the task's keys are laid over its batch's."""
    directory, repo = _places(batch, spec)
    if spec.ref and not repo:
        yield ("ref",), Problem("", "it needs a repo", "name one, or leave ref out")
    if (spec.workspace or batch.workspace) == "copy" and not directory and not repo:
        why = "there is no dir to copy"
        yield ("workspace",), Problem("", why, "name one, or leave workspace out")


def place(
    batch: BatchKeys, spec: TaskSpec, directories: TaskDirectories
) -> tuple[str, Origin | None]:
    """Return the real path of the directory that a task works in,
    empty for a fresh one, and what that begins as.
    """
    directory, repo = _places(batch, spec)
    if repo:
        source = repo if "://" in repo else directories.real(repo)
        return "", Origin(kind="clone", source=source, ref=spec.ref or batch.ref or "")
    if directory and (spec.workspace or batch.workspace) == "copy":
        return "", Origin(kind="copy", source=directories.real(directory))
    return (directories.real(directory) if directory else ""), None


def _places(batch: BatchKeys, spec: TaskSpec) -> tuple[str, str]:
    """Return a task's ``dir`` and ``repo``, one of them empty; its own keys win."""
    if spec.repo is not None or spec.dir is not None:
        return spec.dir or "", spec.repo or ""
    return batch.dir or "", batch.repo or ""
