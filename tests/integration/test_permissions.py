"""What batchd makes is closed to others; what it finds open,
it reports, and where that is dangerous, does not start.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loglines import logged

from tests.conftest import Spool

pytestmark = pytest.mark.in_turns


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def open_spool(spool: Spool) -> Iterator[Spool]:
    """A spool with a key file and all its folders, with ordinary modes, where others may look."""
    folder = Path(tempfile.mkdtemp(prefix="batchd-open-"))
    folder.chmod(0o755)
    config = Path(shutil.copy(spool.folder / "config.toml", folder))
    spool = Spool(folder)
    config.write_text(config.read_text() + '[providers.openai]\napi_key_file = "key"\n')
    for name, mode in {".batchd": 0o700, "inbox": 0o755, "outbox": 0o755}.items():
        (spool.folder / name).mkdir(mode=mode)
    key = spool.folder / "key"
    key.write_text("sk-some-key")
    key.chmod(0o600)
    yield spool
    shutil.rmtree(folder)


def test_what_batchd_makes_is_its_own(spool: Spool) -> None:
    """The state, its files and the folder of claims are open to no other user,
    under an open umask too.
    """
    before = os.umask(0)
    try:
        with spool.serving():
            spool.batchd("submit", "--prompt", "x", "--wait")
            state = spool.folder / ".batchd"
            assert _mode(state) == 0o700
            assert _mode(state / "claimed") == 0o700
            modes = {path.name: _mode(path) for path in state.iterdir()}
        assert {"batchd.db", "batchd.db-wal", "control.sock", "lock"} <= modes.keys()
        assert {modes.pop(name) for name in ("tmp", "pool", "claimed")} == {0o700}
        assert {name for name, mode in modes.items() if mode != 0o600} == set()
    finally:
        os.umask(before)


def test_a_one_shot_run_makes_a_private_state(spool: Spool) -> None:
    """Its own state lies within the daemon's, which may not be there yet."""
    spool.batchd("run", spool.write("b.json", [{"first_prompt": "x"}]))
    assert _mode(spool.folder / ".batchd") == 0o700


def test_an_ordinary_spool_is_no_cause_for_alarm(open_spool: Spool) -> None:
    """Neither the check nor the log says anything of permissions."""
    assert "permissions" not in open_spool.batchd("check", "--offline").stdout
    with open_spool.serving():
        pass
    assert "exposed" not in (open_spool.folder / "daemon.log").read_text()


def _put_a_key_into_config(folder: Path) -> None:
    config = folder / "config.toml"
    config.write_text(config.read_text() + 'headers = { X-Token = "s3cret-value" }\n')
    config.chmod(0o644)


def _lead(folder: Path, name: str) -> None:
    """Have a link of another user in the place of a folder."""
    (folder / name).rename(folder / "real")
    (folder / name).symlink_to("real")
    os.chown(folder / name, 65534, -1, follow_symlinks=False)


#: What opens something to others, what is then reported,
#: and whether the daemon starts all the same.
OPENED: dict[str, tuple[Callable[[Path], None], str, bool]] = {
    "state-read": (lambda f: (f / ".batchd").chmod(0o755), "others can look into it", True),
    "state-written": (lambda f: (f / ".batchd").chmod(0o777), "others can change what", False),
    "inbox": (lambda f: (f / "inbox").chmod(0o777), "everybody can take away and replace", True),
    "inbox-sticky": (lambda f: (f / "inbox").chmod(0o1777), "every user of this machine can", True),
    "inbox-group": (lambda f: (f / "inbox").chmod(0o770), "members of its group can take", True),
    "state-group": (lambda f: (f / ".batchd").chmod(0o770), "others can change what", False),
    "outbox": (lambda f: (f / "outbox").chmod(0o1777), "put links", os.geteuid() != 0),
    "key": (lambda f: (f / "key").chmod(0o644), "it holds a key, and others can read it", True),
    "key-written": (
        lambda f: (f / "key").chmod(0o602),
        "everybody can write it: a user who writes it",
        True,
    ),
    "config": (lambda f: (f / "config.toml").chmod(0o666), "decides what runs here", True),
    "config-keys": (_put_a_key_into_config, "it holds keys, and others can read it", True),
    "above": (lambda f: f.chmod(0o777), "everybody can replace what lies in it", True),
}
if os.geteuid() == 0:
    OPENED |= {
        "state-owned": (
            lambda f: os.chown(f / ".batchd", 65534, -1),
            "belongs to user 65534",
            False,
        ),
        "outbox-owned": (
            lambda f: os.chown(f / "outbox", 65534, -1),
            "belongs to user 65534, who can put links where results",
            False,
        ),
        "outbox-linked": (lambda f: _lead(f, "outbox"), "could have it lead elsewhere", False),
        "inbox-linked": (lambda f: _lead(f, "inbox"), "could have it lead elsewhere", False),
        "above-owned": (
            lambda f: os.chown(f, 65534, -1),
            "belongs to user 65534, who can replace what leads to",
            False,
        ),
        "key-owned": (lambda f: os.chown(f / "key", 65534, -1), "belongs to user 65534", True),
    }


@pytest.mark.sampled(4)
@pytest.mark.parametrize("case", OPENED)
def test_what_is_open_to_others_is_reported_with_the_fix(open_spool: Spool, case: str) -> None:
    """By ``batchd check`` and in the log;
    where others could take over what batchd does, it does not start.
    """
    opens, why, starts = OPENED[case]
    opens(open_spool.folder)
    done = open_spool.batchd("check", "--offline")
    assert why in done.stdout
    assert (done.returncode == 3) is not starts
    if starts:
        with open_spool.serving():
            pass
        assert why in (open_spool.folder / "daemon.log").read_text()
    else:
        refused = open_spool.batchd("serve")
        assert refused.returncode == 3
        assert why in refused.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away")
def test_no_reload_has_root_write_where_another_user_rules(open_spool: Spool) -> None:
    """An outbox of theirs, or behind a link of theirs,
    is refused as at a start; the old one stays.
    """
    config, log = open_spool.folder / "config.toml", open_spool.folder / "daemon.log"
    theirs = open_spool.folder / "theirs"
    theirs.mkdir()
    os.chown(theirs, 65534, -1)
    text = config.read_text().replace('outbox = "outbox"', "")
    assert "[paths]" not in text
    with open_spool.serving() as daemon:
        config.write_text(f'{text}[paths]\noutbox = "{theirs}"\n')
        daemon.send_signal(signal.SIGHUP)

        def reloads() -> list[dict[str, Any]]:
            return [line for line in logged(log) if line["event"] == "config_reloaded"]

        open_spool.eventually(reloads)
        assert reloads()[0]["kept_old"] is True
        assert "belongs to user 65534, who can put links" in reloads()[0]["message"]
