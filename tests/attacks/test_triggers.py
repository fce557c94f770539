"""What a task leaves for other programs to run, when somebody uses its directory,
is reported, however it is hidden.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from attacking import AS_ROOT, NOBODY
from camp import Camp, does, says

pytestmark = pytest.mark.in_turns

_CONFIG = ".git/config"
#: How a model plants it in the repository of ``_repository``, and where it then is.
PLANTS: Mapping[str, tuple[str, str]] = {
    "a setting of git": ("git config core.fsmonitor 'touch MARK'", _CONFIG),
    "one with the time and size of before": (
        "cp -p .git/config /tmp/c; sed -i s/ignorecase/fsmonitor_/ .git/config; touch -r /tmp/c .git/config",
        _CONFIG,
    ),
    "another file in its place": ("cp .git/config c; mv c .git/config", _CONFIG),
    "a hook": ("echo 'touch MARK' > .git/hooks/post-checkout", ".git/hooks/post-checkout"),
    "a hook by a link": ("echo 'touch MARK' >> tools/pre-commit", ".git/hooks/pre-commit"),
    "folders changed over": ("mv .vscode away; mv other .vscode", ".vscode/tasks.json"),
    "a folder that is a link": ("ln -s other .idea", ".idea/tasks.json"),
    "a repository within": ("git init -q sub/deep", "sub/deep/.git/config"),
    "one without a .git": ("git init -q --bare x", "x/config"),
    "one elsewhere": ("echo 'gitdir: ../x' > sub/.git", "sub/.git"),
    "a submodule's": ("git init -q m && mkdir .git/modules && mv m/.git .git/modules/m", ".git/modules/m/config"),
    "beside what looks like a repository": (
        "mkdir objects refs; echo ref: refs/heads/main > HEAD; echo x > CLAUDE.md",
        "CLAUDE.md",
    ),
    "in what looks like one": (
        "mkdir -p p/objects p/refs p/src/.vscode; echo x > p/HEAD; echo '{}' > p/src/.vscode/tasks.json",
        "p/src/.vscode/tasks.json",
    ),
    "behind an absolute link": ("echo 'touch MARK' > tools/env", ".env"),
    "behind one by the folder above": ("echo '{}' > tools/npmrc", ".npmrc"),
    "Mercurial's": ("echo '[alias]' >> .hg/hgrc", ".hg/hgrc"),
    "direnv's": ("echo 'touch MARK' > sub/.envrc", "sub/.envrc"),
    "an agent's": ("mkdir .claude && echo '{}' > .claude/settings.json", ".claude/settings.json"),
    "beside too many files": (
        "echo x > .envrc; mkdir many; cd many; seq 100001 | xargs touch",
        ".envrc",
    ),
    "behind too many files": ("mkdir many; cd many; seq 100001 | xargs touch", "."),
    "in a folder that is closed": ("mkdir sub/shut; echo x > sub/shut/.envrc; chmod 0 sub/shut", "sub/shut"),
    "in a directory that is closed": ("echo x > .envrc; chmod 0 .", "."),
}  # fmt: skip


def _repository(camp: Camp) -> Path:
    """Make a repository as an operator has it, with settings,
    a hook and an editor's folder that were there before.
    """
    place = camp.workplace(camp.folder / "repo")
    make = """
        git init -q . && git config core.ignorecase true && git config user.name me && git config user.email me@here
        mkdir tools .vscode other sub && echo '#!/bin/sh' > tools/pre-commit && chmod +x tools/pre-commit
        ln -s ../../tools/pre-commit .git/hooks/pre-commit
        touch tools/env tools/npmrc && ln -s "$PWD/tools/env" .env && ln -s ../repo/tools/npmrc .npmrc
        mkdir .hg && touch .hg/hgrc
        echo '{}' > .vscode/tasks.json && echo '{"x": 1}' > other/tasks.json
        git add -A && git commit -qm first
    """
    who = NOBODY if AS_ROOT else []
    subprocess.run([*who, "sh", "-ec", make], cwd=place, check=True, env={"PATH": "/usr/bin:/bin"})
    return place


_ROOT = '[workspace]\nroot = "{}"\n'


@pytest.mark.sampled(2)
@pytest.mark.stopped_by("triggers")
@pytest.mark.parametrize("what", PLANTS)
def test_what_would_run_for_a_user_of_the_directory_is_reported(camp: Camp, what: str) -> None:
    """In the result, `status` and the report,
    with a command that shows it, which itself runs nothing.
    """
    command, path = PLANTS[what]
    place = _repository(camp)
    mark = camp.folder / "mark"
    talks = {"x": [does(command.replace("MARK", str(mark))), says("Done.")]}
    with camp.answering(talks, _ROOT.format(camp.folder)):
        result = camp.play([{"first_prompt": "x", "dir": "repo"}])["001"]
    if closed := "closed" in what and not camp.prefix:
        # Who opens it again sees what is in it.
        (place / path).chmod(0o755)
    if closed and AS_ROOT:
        path = str(Path(path, ".envrc"))  # root looks into it
    found = {each["path"]: each for each in result["runs_code"]}
    assert path in found, result["runs_code"]
    show = found[path]["show"]
    assert str(place) in show
    for target in ("batch", "batch/001"):
        text = camp.batchd("status", target).stdout
        assert "runs code when you use this directory" in text
        assert show in text
    [task] = json.loads(camp.batchd("status", "batch", "--json").stdout)["tasks"]
    assert task["runs_code"] == result["runs_code"]
    report = (camp.folder / "outbox/batch/report.html").read_text("utf-8")
    assert json.dumps(show)[1:-1] in report
    assert (
        subprocess.run(["sh", "-c", show], capture_output=True, check=False, cwd=place).returncode
        == 0
    )
    assert not mark.exists()


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("triggers still")
def test_ordinary_work_is_not_reported(camp: Camp) -> None:
    """Commits, branches, merges,
    new files and a walk through everything change nothing that runs by itself.
    """
    _repository(camp)
    work = """
        echo x > x.py && git add -A && git commit -qm second && git checkout -qb b && echo y >> x.py
        git commit -qam third && git checkout -q - && git merge -q b && git stash list && git gc -q
        mkdir -p src/hooks && echo 1 > src/hooks/a && echo x > src/config && git tag t && git diff HEAD~1 && cat .vscode/*
    """
    with camp.answering({"x": [does(work), says("Done.")]}, _ROOT.format(camp.folder)):
        result = camp.play([{"first_prompt": "x", "dir": "repo"}])["001"]
        assert (result["status"], result["runs_code"]) == ("completed", [])
        assert "runs code" not in camp.batchd("status", "batch").stdout
