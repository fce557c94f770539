"""What people do inside the sandbox works there:
git, a virtual environment, a compiler, node; each with the real tool.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE_S

from batchd.records import SandboxPolicy
from batchd.sandbox import CommandEnd, Sandbox

pytestmark = pytest.mark.in_turns

AS_ROOT = os.geteuid() == 0


def needs(tool: str) -> Any:
    """Skip a test only where its tool is not on this machine."""
    return pytest.mark.skipif(not shutil.which(tool, path="/usr/bin:/bin"), reason=f"no {tool}")


def runs(folder: Path, *commands: str, fresh: bool = True) -> list[CommandEnd]:
    """Run commands of one task; each must end well."""

    async def main() -> list[CommandEnd]:
        sandbox = Sandbox(SandboxPolicy())
        opening = sandbox.open(
            str(folder), fresh=fresh, network=False, env={}, tmp=f"{folder}.state/b.1"
        )
        async with await opening as place:
            return [await place.shell(command, timeout_s=PATIENCE_S) for command in commands]

    ends = asyncio.run(main())
    for command, end in zip(commands, ends, strict=True):
        assert end.exit_code == 0, f"{command}: {end.output}"
    return ends


@needs("git")
def test_git_has_an_identity_and_knows_clones_and_worktrees(tmp_path: Path) -> None:
    """A repository is made, committed to, branched, cloned, and worked on in two trees at once."""
    tmp_path.chmod(0o755)
    *_, log = runs(
        tmp_path / "task",
        "git init -q . && echo x > a && git add a && git commit -qm first",
        "git clone -q . /tmp/clone && cd /tmp/clone && echo y > a && git commit -qam second && git push -q origin HEAD:other",
        "git worktree add -q ../tmp/tree other && cd /tmp/tree && cat a && git stash list && git status --short",
        "git merge -q --no-edit other && git gc -q && git log --format='%an <%ae> %s'",
    )
    assert log.output == "batchd <batchd@localhost> second\nbatchd <batchd@localhost> first\n"


@needs("git")
@pytest.mark.skipif(not AS_ROOT, reason="only root can give a repository away")
def test_git_works_in_a_repository_of_another_owner(tmp_path: Path) -> None:
    """What another user, or root, has put into a task's directory is a repository too;
    so are those below it.
    """
    tmp_path.chmod(0o755)
    task = tmp_path / "task"
    for folder in (task, task / "below"):
        subprocess.run(["git", "init", "-q", folder], check=True)
    os.chown(task, 65534, 65534)
    subprocess.run(["chown", "-R", "12345:12345", task / "below"], check=True)
    runs(task, "git status --short && git log 2>&1 | grep -q 'any commits'", fresh=False)
    runs(task, "git -C below status --short && git clone -q below /tmp/copy", fresh=False)


@needs("git")
def test_a_repositorys_own_identity_wins(tmp_path: Path) -> None:
    """What the user has set for a repository is what its commits bear."""
    tmp_path.chmod(0o755)
    *_, who = runs(
        tmp_path / "task",
        "git init -q . && git config user.name Ada && git config user.email ada@example.com",
        "git commit -q --allow-empty -m x && git log --format='%an <%ae>'",
    )
    assert who.output == "Ada <ada@example.com>\n"


@needs("python3")
def test_a_virtual_environment_is_made_and_used(tmp_path: Path) -> None:
    """``python3 -m venv`` with pip in it;
    a package of one's own is installed, and another command finds both.
    """
    ensured = subprocess.run(["/usr/bin/python3", "-c", "import ensurepip, venv"], check=False)
    if ensured.returncode:
        pytest.skip("this system's python3 has no venv")
    tmp_path.chmod(0o755)
    *_, said = runs(
        tmp_path / "task",
        "python3 -m venv .venv && .venv/bin/pip --version",
        "mkdir -p /tmp/wheel/mine-1.dist-info && cd /tmp/wheel && echo 'print(42)' > mine.py"
        " && printf 'Metadata-Version: 2.1\\nName: mine\\nVersion: 1\\n' > mine-1.dist-info/METADATA"
        " && printf 'Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n' > mine-1.dist-info/WHEEL"
        " && printf 'mine.py,,\\nmine-1.dist-info/METADATA,,\\nmine-1.dist-info/WHEEL,,\\nmine-1.dist-info/RECORD,,\\n'"
        " > mine-1.dist-info/RECORD && python3 -m zipfile -c ../mine-1-py3-none-any.whl mine.py mine-1.dist-info",
        ".venv/bin/pip install -q --no-index /tmp/mine-1-py3-none-any.whl",
        ".venv/bin/python -m mine",
    )
    assert said.output == "42\n"


@needs("gcc")
def test_a_program_is_compiled_and_run(tmp_path: Path) -> None:
    """A compiler finds its headers and its temporary files,
    and what it makes runs, from /task and from /tmp.
    """
    tmp_path.chmod(0o755)
    source = '#include <stdio.h>\\nint main(void) { puts("hello"); }\\n'
    *_, said = runs(
        tmp_path / "task",
        f"printf '{source}' > a.c && gcc -pipe -o a a.c && gcc -o /tmp/a a.c",
        "./a && /tmp/a",
    )
    assert said.output == "hello\nhello\n"


@needs("node")
def test_node_and_npm_work_offline(tmp_path: Path) -> None:
    """Node runs; npm makes a package, installs one from the directory,
    and keeps its cache at home.
    """
    tmp_path.chmod(0o755)
    commands = ["node -e 'console.log([1,2].map(x => x * 2).join())'"]
    if shutil.which("npm", path="/usr/bin:/bin"):
        commands += [
            "mkdir lib && cd lib && npm init -y >/dev/null && echo 'module.exports = 7' > index.js",
            "npm init -y >/dev/null && npm install --offline --no-audit --no-fund ./lib >/dev/null",
            "node -e 'console.log(require(\"lib\"))' && test -d /tmp/.npm",
        ]
    *_, said = runs(tmp_path / "task", *commands)
    assert said.output in {"7\n", "2,4\n"}
