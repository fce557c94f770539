"""Triggers: what other programs run, or obey, as soon as somebody uses a directory;
which names count, for which programs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from shlex import quote
from typing import Literal, TypeAlias

GIT = "git"
_EDITORS = "editors"
_SHELLS = "shells"
_AGENTS = "agents"
_TOOLS = "tools"

#: Files, in whatever folder, or in one of a name. docs/sandbox.md lists them, which a test holds.
FILES: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *(".gitconfig", "config.worktree", "git-rebase-todo", "hgrc"),
            *(".pre-commit-config.yaml", ".pre-commit-config.yml", "prek.toml"),
            *(f"{dot}lefthook{own}.{kind}" for kind in ("yml", "yaml", "toml", "json", "jsonc") for dot in ("", ".") for own in ("", "-local")),
        ),
        GIT,
    ),
    **dict.fromkeys(
        (
            *(".exrc", ".gvimrc", ".lvimrc", ".nvim.lua", ".nvimrc", ".vimrc"),
            *(".dir-locals.el", ".dir-locals-2.el", ".devcontainer.json", ".project"),
            *(".emacs.desktop", ".mypy.ini", "mypy.ini", ".pylintrc", "pylintrc", ".flake8", ".rubocop.yml"),
            *(f"{name}.{kind}" for kind in ("js", "cjs", "mjs") for name in (".eslintrc", "eslint.config", ".prettierrc", "prettier.config")),
        ),
        _EDITORS,
    ),
    **dict.fromkeys(
        (
            *(".envrc", ".env", ".autoenv", ".autoenv.zsh", ".mise.toml", "mise.toml", "mise.local.toml"),
            *(".bashrc", ".bash_aliases", ".bash_login", ".bash_logout", ".bash_profile", ".inputrc"),
            *(".profile", ".zshrc", ".zshenv", ".zprofile", ".zlogin", ".zlogout", ".cshrc", ".tcshrc", ".rvmrc"),
        ),
        _SHELLS,
    ),
    **dict.fromkeys(
        (
            *("AGENTS.md", "CLAUDE.md", "CLAUDE.local.md", "GEMINI.md", ".mcp.json", ".aider.conf.yml"),
            *(".clinerules", ".cursorrules", ".goosehints", ".windsurfrules", "opencode.json"),
            *("AGENT.md", "QWEN.md", "WARP.md", ".github/copilot-instructions.md"),
        ),
        _AGENTS,
    ),
    **dict.fromkeys(
        (
            *(".npmrc", ".yarnrc", ".yarnrc.yml", ".pnpmfile.cjs", ".bazelrc", "rust-toolchain.toml"),
            *(".gdbinit", ".lldbinit", ".pdbrc", ".irbrc", ".pryrc", ".Rprofile", ".Renviron", ".ghci"),
            *(".byebugrc", ".iex.exs", ".ocamlinit", ".octaverc", "bunfig.toml", "tools/bazel"),
        ),
        _TOOLS,
    ),
}  # fmt: skip
#: Endings of files.
ENDINGS: Mapping[str, str] = {
    ".code-workspace": _EDITORS,
    ".sublime-project": _EDITORS,
    ".sublime-workspace": _EDITORS,
}
#: Folders, with all that lies in them.
FOLDERS: Mapping[str, str] = {
    **dict.fromkeys((".husky", ".githooks", ".lefthook", ".lefthook-local"), GIT),
    **dict.fromkeys(
        (
            *(".vscode", ".idea", ".fleet", ".zed", ".helix", ".devcontainer", ".theia", ".settings"),
            *(".nvim", ".vim"),
        ),
        _EDITORS,
    ),
    **dict.fromkeys((".mise", ".shadowenv.d"), _SHELLS),
    **dict.fromkeys(
        (
            *(".agents", ".amazonq", ".claude", ".codex", ".continue", ".crush", ".cursor", ".gemini"),
            *(".kiro", ".opencode", ".qwen", ".roo", ".windsurf", ".augment", ".junie", ".trae"),
        ),
        _AGENTS,
    ),
    **dict.fromkeys((".bundle", ".cargo", ".mvn"), _TOOLS),
}  # fmt: skip


#: Files that count in certain folders alone, of other programs than git that keep versions:
#: by name, where they lie.
WITHIN: Mapping[str, tuple[str, ...]] = {
    "hgrc-not-shared": (".hg",),
    "sharedpath": (".hg", ".sl"),
    "config": (".sl", ".pijul"),
    "repo": (".jj",),
    "config.toml": (".jj/repo",),
    "workspace-config.toml": (".jj",),
    "git_target": (".jj/repo/store",),
    "branch.conf": (".bzr/branch",),
    "location": (".bzr/branch",),
    "defaults": ("_darcs/prefs",),
    "prefs": ("_darcs/prefs",),
    "Root": ("CVS",),
}
#: The folders of such programs, beside ``.git``.
VERSIONS = frozenset({".hg", ".sl", ".svn", ".jj", ".bzr", "_darcs", ".pijul", "CVS"})

#: The path under which it stands that not all of a directory was looked at.
REST = "."
#: What lies there; ``link``: to what is elsewhere, or no file.
TriggerKind: TypeAlias = Literal["file", "link", "folder"]


@dataclass(frozen=True, slots=True)
class Trigger:
    """A file that others run or obey, as it is at one moment:
    it has changed where this is another one.
    """

    #: Whose programs: one of the words above; empty: what lies there is not known.
    by: str
    #: Inode, size, time of the last change of its content and of all else;
    #: of a link also those of what it leads to.
    stamp: tuple[int, ...] = ()
    kind: TriggerKind = "file"

    @property
    def changed_at(self) -> float:
        """When it, or what it leads to, was last changed: a time that no command can set."""
        return max(self.stamp[3::4], default=0) / 1e9


def changed(
    before: Mapping[str, Trigger], after: Mapping[str, Trigger], since: float
) -> Mapping[str, str]:
    """Return what became of each file that is not as it was,
    ``created`` or ``modified``, by path and sorted.

    What was removed runs no more. Where not all was looked at before, what was not found then
    counts only where it has changed ``since``.
    """
    return {
        path: "modified" if path in before else "created"
        for path, trigger in sorted(after.items())
        if before.get(path) != trigger
        and (path in before or REST not in before or trigger.changed_at >= since)
    }


def run_by_git(patch: bytes) -> Sequence[str]:
    """Return the files that a patch changes and that git,
    or what goes with it, runs or obeys; by their names alone.
    """
    found: dict[str, None] = {}
    for line in patch.split(b"\n"):
        if line.startswith((b"+++ ", b"--- ", b"rename to ", b"diff --git ")):
            for word in line.decode("utf-8", "replace").replace('"', "").split():
                path = word.removeprefix("a/").removeprefix("b/")
                if "/" in word and _of_git(path.split("/")):
                    found[path] = None
    return list(found)


def _of_git(parts: Sequence[str]) -> bool:
    # A folder's name may be a link's, too.
    return FILES.get(parts[-1]) == GIT or any(
        FOLDERS.get(part) == GIT or part.lower() == ".git" for part in parts
    )


def show(directory: str, path: str, trigger: Trigger, since: float) -> str:
    """Return the command that shows what a file holds, and runs nothing;
    ``since``: when the task began.
    """
    if path == REST:
        return f"find {quote(directory)} -newerct @{int(since)}"
    full = quote(f"{directory}/{path}")
    return {"file": f"cat -v {full}", "link": f"readlink {full}"}.get(
        trigger.kind, f"ls -la {full}"
    )
