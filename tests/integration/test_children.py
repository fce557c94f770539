"""Programs of batchd's own in a Python of their own:
what lies around them has no say in what they load.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from batchd import processes

_SHOWS = """
import json, msgspec, sys
flags = sys.flags.isolated, sys.flags.no_site
print(json.dumps([json.__file__, *flags, sys.prefix, sys.argv[1:]]))
"""


def test_nothing_planted_is_loaded(tmp_path: Path) -> None:
    """Neither from the working directory, nor from the folder of the program,
    nor by a variable; what batchd needs is found.
    """
    for name in ("json.py", "msgspec.py", "sitecustomize.py", "usercustomize.py", "runpy.py"):
        (tmp_path / name).write_text("raise SystemExit('planted')")
    script = tmp_path / "shows.py"
    script.write_text(_SHOWS)
    environ = {"PYTHONPATH": str(tmp_path), "PYTHONSTARTUP": str(tmp_path / "json.py")}
    for command in (processes.script(script, "a b"), processes.module("batchd.spool", "1")):
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
            input="",
        )
        assert "planted" not in done.stdout + done.stderr
    done = subprocess.run(
        processes.script(script, "a b"),
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    found, *rest = json.loads(done.stdout)
    assert not found.startswith(str(tmp_path))
    assert rest == [1, 1, sys.prefix, ["a b"]]
