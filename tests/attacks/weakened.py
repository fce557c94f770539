"""Shows that each attack can succeed:
runs them against a batchd from which one layer at a time is taken away.

    python tests/attacks/weakened.py [LAYER…]        (make attacks-weakened)

For each layer that an attack names a copy of the checkout is changed, and the tests that name it
are run in it. Each of them must fail there, in every form (as root, as an ordinary user, with each
parameter): one that passes claims a layer that does not stop it.
What is no attack must still work. Ends with 1 where that is not so.

Needs root: what is let loose here lives in process and mount namespaces of its own,
over a /usr that forgets.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from layers import Edit, edits, named

HERE = Path(__file__).parents[2]
#: Where what works under every weakening is tested.
_ORDINARY = "test_ordinary"
_LAYER_S = 7200
#: What an attack that succeeds often keeps a test waiting for.
_PATIENCE_S = "60"

#: Nothing of what escapes reaches the machine:
#: its processes are others, and what is written to /usr is forgotten.
_APART = """
mount -t tmpfs none /mnt
mkdir /mnt/upper /mnt/work
mount -t overlay -o lowerdir=/usr,upperdir=/mnt/upper,workdir=/mnt/work overlay /usr
# Not by exec: the first process must be one that buries the others.
"$@"
"""


def weakened(layer: str, copy: Path) -> None:
    """Make a copy of the checkout without a layer.

    Raises ``ValueError`` for a change that does not apply.
    """
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("batchd", "tests"):
        shutil.copytree(HERE / name, copy / name, ignore=ignored)
    shutil.copy(HERE / "pyproject.toml", copy)
    for edit in edits(layer):
        path = copy / "batchd" / edit[0]
        text = changed(path.read_text(), edit)
        if path.suffix == ".py":
            compile(text, str(path), "exec")
        path.write_text(text)
    for path in (copy, *copy.rglob("*")):
        path.chmod(0o755)


def changed(text: str, edit: Edit) -> str:
    """Return a source with a change.

    Raises ``ValueError`` where what it changes does not stand there once.
    """
    name, before, after = edit
    if text.count(before) != 1:
        raise ValueError(f"layers.py: {name} has this {text.count(before)} times: {before!r}")
    return text.replace(before, after)


def outcomes(layer: str, select: Sequence[str] = ()) -> Mapping[str, bool]:
    """Return for each test that names the layer, and each of what must work,
    whether it passed without the layer.
    """
    with tempfile.TemporaryDirectory(prefix="batchd-weak-") as folder:
        copy = Path(folder, "batchd")
        copy.mkdir()
        Path(folder).chmod(0o755)
        weakened(layer, copy)
        report = Path(folder, "report.xml")
        command = [
            *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--mount"),
            *("sh", "-ec", _APART, "sh", sys.executable, "-m", "pytest", "tests/attacks"),
            *("-p", "no:cacheprovider", f"--junitxml={report}", "-o", "junit_family=xunit1", *select),
            *("-n", "4"),
        ]  # fmt: skip
        env = {**os.environ, "LAYER": layer, "PYTHONPATH": str(copy), "PATIENCE_S": _PATIENCE_S}
        done = subprocess.run(
            command, cwd=copy, env=env, capture_output=True, text=True, check=False, timeout=_LAYER_S
        )  # fmt: skip
        if not report.exists():
            raise ValueError(f"{layer}: the tests did not run:\n{done.stdout}{done.stderr}")
        return dict(_read(report))


def _read(report: Path) -> Iterable[tuple[str, bool]]:
    for case in ET.parse(report).iter("testcase"):  # our own pytest's
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        yield name, case.find("failure") is None and case.find("error") is None


def main(layers: Sequence[str]) -> int:
    """Try layers, each by itself, or all that attacks name;
    and hold that each attack that names one succeeds without it.
    """
    if os.geteuid() != 0:
        print("only root can do this, and what is let loose is kept apart: sudo make attacks-weakened", file=sys.stderr)  # fmt: skip
        return 3
    fails: defaultdict[str, list[str]] = defaultdict(list)
    broken: list[str] = []
    for layer in layers or sorted(named()):
        found = outcomes(layer)
        attacks = {name: passed for name, passed in found.items() if not name.startswith(_ORDINARY)}
        ordinary = [name for name in found if name not in attacks and not found[name]]
        broken += [f"{layer}: too weak to try: {name} fails too" for name in ordinary]
        for name, passed in attacks.items():
            fails[name] += [] if passed else [layer]
        idle = [name for name, passed in attacks.items() if passed]
        broken += [f"{layer}: does not stop {name}, which is stopped without it, too" for name in idle]  # fmt: skip
        print(f"{layer}: {len(attacks) - len(idle)} of {len(attacks)} attacks succeed", flush=True)
    print()
    for name, by in sorted(fails.items()):
        print(f"{'succeeds without ' + ', '.join(by) if by else 'NEVER SUCCEEDS':<50} {name}")
    print(*broken, sep="\n")
    print(f"\n{len(fails)} attacks, {sum(map(bool, fails.values()))} of them seen to succeed without a layer that they name")  # fmt: skip
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
