"""Patches that are accepted on the page, by a browser over real HTTP: where they go, and which do
not go anywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from attacking import ordinary_user
from chromium import chromium
from repositories import git, give_away, needs_git, repository
from serving import web

from batchd.store.stored_values import pack, unpack
from tests.browser.test_web_orders import _signed_in as signed_in
from tests.conftest import CONFIG, NO_REPORT, Spool
from tests.integration.test_web_orders import Browser, sign_in

pytestmark = [needs_git, pytest.mark.in_turns]


@dataclass(frozen=True)
class Ordinary(Spool):
    """A spool of an ordinary user: as root, page and commands run as somebody else."""

    def command(self, *arguments: str | Path) -> list[str]:
        """Return a command line of that user."""
        return [*ordinary_user(), *super().command(*arguments)]


@pytest.fixture(scope="module")
def patched(model_server: str) -> Iterator[Browser]:
    """A browser on the page of somebody whose tasks left patches for a repository of theirs."""
    with tempfile.TemporaryDirectory(prefix="batchd-", dir="/tmp") as folder:
        yield from _patched(Path(folder), model_server)


def _patched(short: Path, model_server: str) -> Iterator[Browser]:
    spool = Ordinary(short)
    short.chmod(0o755)
    config = NO_REPORT + CONFIG.format(base_url=model_server, model="notes-2")
    (short / "config.toml").write_text(f'{config}[web]\norders = ["apply"]\n')
    repository(short / "work/r", {"a.txt": "one\n"})
    tasks = [{"first_prompt": "Write notes"}] * 3
    path = spool.write("b.json", tasks, repo="work/r")
    give_away(short)
    done = spool.batchd("run", path)
    assert done.returncode == 0, done.stderr
    with web(spool) as page:
        yield sign_in(page)


def offered(browser: Browser, task: str = "001") -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the page says of a patch, and the order to accept it."""
    offer = browser.page.get(f"/api/batches/b/{task}/made")["apply"]
    order = {"verb": "apply", "scope": "task", "name": f"b/{task}", "sha256": offer["sha256"]}
    return offer, order


def test_a_patch_becomes_a_commit_on_a_new_branch(patched: Browser) -> None:
    """Of the very patch that was shown, once; no hook runs, nothing that is checked out changes."""
    folder = patched.page.log.parent
    source = folder / "work/r"
    for name in ("post-commit", "reference-transaction", "pre-commit", "post-checkout"):
        hook = source / ".git/hooks" / name
        hook.write_text(f"#!/bin/sh\necho {name} >> {folder}/outbox/ran\n")
        hook.chmod(0o755)
    with (source / ".git/config").open("a") as config:
        config.write(f"[core]\n\tfsmonitor = echo monitor >> {folder}/outbox/ran\n")
    offer, order = offered(patched, "003")
    assert offer["ours"]
    assert offer["command"] == "batchd apply b/003 --branch batchd/b/003"
    _, asked = patched.post("/api/orders", order)
    assert asked["question"].startswith(
        f"Put this patch into {source}, as a commit on the new branch"
    )
    meant = {**order, "claim": asked["claim"]}
    status, done = patched.post("/api/orders/confirmed", meant)
    assert status == 200, done
    commit = git(source, "rev-parse", "batchd/b/003")
    assert done["lines"] == [f"b/003: commit {commit[:12]} on batchd/b/003 in {source}"]
    assert (
        git(source, "show", "--format=%s", "--name-only", "batchd/b/003")
        == "Write notes\n\nnotes.txt"
    )
    assert git(source, "rev-parse", "HEAD") == git(source, "rev-parse", "batchd/b/003^")
    assert not (source / "notes.txt").exists()
    # The same yes once more: the branch is there, and stays as it is.
    status, refused = patched.post("/api/orders/confirmed", meant)
    assert (status, "batchd/b/003 is there already" in refused["error"]) == (409, True), refused
    assert git(source, "rev-parse", "batchd/b/003") == commit
    assert not (folder / "outbox/ran").exists()


def test_the_page_has_a_button_for_it(patched: Browser) -> None:
    """In a real browser: it asks, and says which commit it made."""

    async def go() -> None:
        async with chromium() as page:
            await signed_in(page, patched.page, "/batches/b/002")
            await page.until("document.querySelector('[data-order=apply]')")
            await page.click("[data-order=apply]")
            await page.until("document.querySelector('dialog.ask [data-yes]')")
            await page.click("dialog.ask [data-yes]")
            said = "document.querySelector('dialog.ask').textContent"
            await page.until(f"{said}.includes('on batchd/b/002 in ')")

    asyncio.run(go())
    source = patched.page.log.parent / "work/r"
    assert git(source, "show", "batchd/b/002:notes.txt") == "1\n2"


def test_what_is_not_the_patch_that_was_shown_goes_nowhere(patched: Browser) -> None:
    """Another hash, a patch that was changed since, one that is withheld, names of no task, a
    repository of somebody else: refused, at both steps, with the command to type.
    """
    folder = patched.page.log.parent
    source = folder / "work/r"
    _, order = offered(patched)
    meant = {**order, "claim": patched.post("/api/orders", order)[1]["claim"]}

    def refused(why: str) -> None:
        for path, given in (("", order), ("/confirmed", meant)):
            status, said = patched.post(f"/api/orders{path}", given)
            assert (status, why in said["error"]) == (409, True), said

    _, other = offered(patched, "002")
    status, said = patched.post("/api/orders", {**order, "sha256": "0" * 64})
    assert (status, "another patch than the page shows" in said["error"]) == (409, True)
    claim = patched.post("/api/orders", other)[1]["claim"]
    assert patched.post("/api/orders/confirmed", {**order, "claim": claim})[0] == 400
    for name in ("b", "b/001/..", "../b/001", "/", "b/../../x", "b/none", "none/001"):
        status, _ = patched.post("/api/orders", {**order, "name": name})
        assert status in {400, 404}, name
    patch = folder / "outbox/b/001.patch"
    data = patch.read_bytes()
    patch.write_bytes(data.replace(b"+1", b"+9"))
    status, said = patched.post("/api/orders/confirmed", meant)
    assert (status, "is gone, or differs" in said["error"]) == (409, True), said
    patch.write_bytes(data)
    if os.geteuid() == 0:
        os.chown(source / ".git", 4801, 4801)
        assert not offered(patched)[0]["ours"]
        refused("type batchd apply b/001 --branch batchd/b/001")
        os.chown(source / ".git", 0, 0)
        assert offered(patched)[0]["command"] == f"git -C {source} apply {patch}"
        refused(f"type git -C {source} apply")
        give_away(source)
    withhold(folder / ".batchd/batchd.db")
    refused("has no patch that is whole, and may be shown")
    assert patched.page.get("/api/batches/b/001/made")["apply"] is None
    assert git(source, "branch", "--list", "batchd/b/001") == ""


def withhold(store: Path) -> None:
    """Have all results say that their patch holds a secret."""
    with contextlib.closing(sqlite3.connect(store)) as db, db:
        for task, seq, body in db.execute("SELECT task, seq, body FROM events").fetchall():
            text = unpack(body).replace(b'\\"withheld\\": false', b'\\"withheld\\": true')
            db.execute(
                "UPDATE events SET body = ? WHERE task = ? AND seq = ?", (pack(text), task, seq)
            )
