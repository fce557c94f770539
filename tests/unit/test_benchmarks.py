"""The programs of ``benchmarks/``, which nothing else runs from one month to the next."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    "program", sorted(_BENCHMARKS.glob("bench_*.py")), ids=lambda path: path.stem
)
def test_a_benchmark_finds_all_that_it_uses(program: Path) -> None:
    """Each loads on its own, as `make bench` starts it, without what pytest adds to the path."""
    loads = f"import runpy; runpy.run_path({str(program)!r}, run_name='loaded')"
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {str(_BENCHMARKS)!r}); {loads}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_what_measures_scale_still_speaks_the_protocol() -> None:
    """A few tasks of two steps each end, with a line of figures."""
    command = [sys.executable, _BENCHMARKS / "scale/scale.py", "--agents", "4", "--steps", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "a second" in done.stdout
