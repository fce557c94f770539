"""Decoders of msgspec are made by one thread at a time."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import batchd

_PACKAGE = Path(batchd.__file__).parent
#: Fifty threads that are the first to read a class.
#: With msgspec's own ``convert`` three of four such processes crash.
_RACE = """
import sys, threading
from batchd import control
from batchd.control import requests

sys.setswitchinterval(1e-6)
start = threading.Barrier(50)
answers = []

def ask():
    start.wait()
    answers.append(requests.answer(control.Check(), {"process": {"pid": 1, "version": "1", "uid": 0}}))

threads = [threading.Thread(target=ask) for _ in range(50)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(answers))
"""


def test_threads_that_are_the_first_to_read_a_class_at_once_all_have_their_value() -> None:
    """None of eight processes is ended by a signal."""
    racing = [
        subprocess.Popen([sys.executable, "-c", _RACE], stdout=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    ends = [(process.communicate()[0].strip(), process.returncode) for process in racing]
    assert ends == [("50", 0)] * 8


def test_nothing_else_makes_a_decoder_or_converts() -> None:
    """One that is made past ``decoders`` brings the crash back."""
    found = [
        f"{path.relative_to(_PACKAGE)}:{call.lineno}: {ast.unparse(call)[:60]}"
        for path in _PACKAGE.rglob("*.py")
        if path.name != "decoders.py"
        for call in _calls(path)
        if _makes(call)
    ]
    assert found == []


def _calls(path: Path) -> Iterator[ast.Call]:
    tree = ast.parse(path.read_text())
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def _makes(call: ast.Call) -> bool:
    called = ast.unparse(call.func)
    typed = any(keyword.arg == "type" for keyword in call.keywords)
    return called in {"msgspec.json.Decoder", "msgspec.convert"} or (
        called == "msgspec.json.decode" and typed
    )
