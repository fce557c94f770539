"""The owner's texts for the agents that work in a directory:
AGENTS.md, and the skills below .agents/skills.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

from batchd.masking import Masker
from batchd.records import FileStamp
from batchd.sandbox import Workplace

_FILE, _SKILLS, _SKILL = "AGENTS.md", ".agents/skills", "SKILL.md"
#: What is quoted at most (bytes), and how many skills are named.
_MAX_QUOTED_BYTES, _MOST_SKILLS = 8 << 10, 20
#: A file that is none, as a FIFO, is not waited for longer (seconds).
_PATIENCE_S = 5.0


async def words(
    place: Workplace, files: Mapping[str, FileStamp] | None, most: int = _MAX_QUOTED_BYTES
) -> str:
    """Return what the owner says, for the system prompt; empty: nothing.

    ``files``: what lies there, None: more than is listed. ``most``: what is quoted of AGENTS.md, in
    bytes, where a small window has no room for more.
    It is read by commands in the sandbox, as all contents are. Raises ``SandboxError``.
    """
    parts = []
    if files is None or _FILE in files:
        argv = ["head", "-c", str(_MAX_QUOTED_BYTES + 1), "--", _FILE]
        ran = await place.run(argv, timeout_s=_PATIENCE_S, max_output_bytes=2 * _MAX_QUOTED_BYTES)
        if ran.exit_code == 0 and ran.output.strip():
            # Where a secret is masked, what was read is shorter than the file;
            # a link is shorter than what it leads to.
            size = max(len(ran.output.encode()), files[_FILE][0] if files else 0)
            parts.append(_quoted(ran.output, size, min(most, _MAX_QUOTED_BYTES), place.masker))
    skills = sorted(path for path in files or () if _is_skill(path))[:_MOST_SKILLS]
    if skills:
        argv = ["grep", "-m1", "-H", "^description:", "--", *skills]
        ran = await place.run(argv, timeout_s=_PATIENCE_S)
        parts.append(_listed(skills, ran.output))
    return "\n\n".join(parts)


def _quoted(text: str, size: int, most: int, masker: Masker) -> str:
    kept, cut = text, ""
    if size > most:
        # Half of a secret may stand where it is cut.
        kept = masker.before_cut(text.encode()[:most].decode("utf-8", "ignore"))
        cut = f"\n[… the rest of {_FILE} is not quoted]"
    return f"The owner of /task says, in {_FILE}:\n<{_FILE}>\n{kept.strip()}{cut}\n</{_FILE}>"


def _is_skill(path: str) -> bool:
    parts = PurePosixPath(path)
    return parts.name == _SKILL and str(parts.parent.parent) == _SKILLS


def _listed(skills: list[str], said: str) -> str:
    """Return the skills with their descriptions; ``grep`` has found one line of each."""
    found = dict(
        line.split(":description:", 1) for line in said.splitlines() if ":description:" in line
    )
    lines = [f"- {path}: {found.get(path, '').strip()[:200]}".rstrip(": ") for path in skills]
    return "Skills that are there to be read:\n" + "\n".join(lines)
