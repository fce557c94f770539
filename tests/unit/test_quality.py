"""The cases of the quality benchmark:
each check passes right work, and not what the agent finds.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

CASES = Path(__file__).parents[2] / "benchmarks/quality/cases"
#: A right solution of each: a script for a shell.
RIGHT: Mapping[str, str] = {
    "adder": """cat > index.html <<'END'
<input id="a"><input id="b"><button onclick="s.textContent = Number(a.value) + Number(b.value)">=</button><b id="s"></b>
END""",
    "bank-races": """cat > account.py <<'END'
class Account:
    def __init__(self, balance=0):
        self.balance = balance
    def withdraw(self, amount):
        if not 0 < amount <= self.balance:
            raise ValueError("not enough money")
        self.balance -= amount
    def transfer(self, other, amount):
        self.withdraw(amount)
        other.balance += amount
END""",
    "csv-quotes": """cat > report.py <<'END'
import csv, sys
print(sum(float(row["amount"]) for row in csv.DictReader(open(sys.argv[1]))))
END""",
    "fizzbuzz": """cat > fizzbuzz.py <<'END'
for n in range(1, 101):
    print("Fizz" * (n % 3 == 0) + "Buzz" * (n % 5 == 0) or n)
END""",
    "guess": """cat > guess.py <<'END'
import random
n = random.randint(1, 10)
while (guess := int(input("? "))) != n:
    print("大了" if guess > n else "小了")
print("猜中")
END""",
    "leap-years": "sed -i 's/ and year % 100 != 0/ and (year % 100 != 0 or year % 400 == 0)/' calendar_tools.py",
    "log-counts": """cat > counts.py <<'END'
import collections, sys
found = collections.Counter(line.split()[2] for line in open(sys.argv[1]))
for level, n in sorted(found.items(), key=lambda pair: (-pair[1], pair[0])):
    print(level, n)
END""",
    "off-by-one": "sed -i 's/len(items) - 1/len(items)/' pages.py; echo 'assert pages([1], 2) == [[1]]' >> test_pages.py",
    "rename": "sed -i 's/circumference/perimeter/g' main.py lib/geometry.py",
    "shared-default": "sed -i 's/items=\\[\\]/items=()/; s/self.items = items/self.items = list(items)/' basket.py",
}


#: Cases that have their right solution beside them.
SIGHT = CASES.with_name("sight")


def _passes(case: str, folder: Path, cases: Path = CASES) -> bool:
    check = (cases / f"{case}.check").read_text("utf-8")
    return (
        subprocess.run(
            ["bash", "-c", check], cwd=folder, capture_output=True, check=False
        ).returncode
        == 0
    )


def test_every_case_is_whole() -> None:
    """A folder, a prompt and a check each."""
    assert {path.stem for path in CASES.glob("*.prompt")} == RIGHT.keys()
    assert {path.stem for path in CASES.glob("*.check")} == RIGHT.keys()
    assert {path.name for path in CASES.iterdir() if path.is_dir()} == RIGHT.keys()


@pytest.mark.parametrize("case", RIGHT)
def test_a_check_distinguishes_right_from_wrong(tmp_path: Path, case: str) -> None:
    """It fails on what the agent finds, and passes a right solution."""
    work = tmp_path / "work"
    shutil.copytree(CASES / case, work)
    assert not _passes(case, work)
    subprocess.run(["bash", "-ec", RIGHT[case]], cwd=work, check=True)
    assert _passes(case, work)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("case", sorted(path.stem for path in SIGHT.glob("*.prompt")))
def test_so_does_each_check_of_what_an_agent_sees(tmp_path: Path, case: str) -> None:
    """The same, of the cases by which an older version is compared."""
    work = tmp_path / "work"
    shutil.copytree(SIGHT / case, work)
    assert not _passes(case, work, SIGHT)
    solution = (SIGHT / f"{case}.right").read_text("utf-8")
    subprocess.run(["bash", "-ec", solution], cwd=work, check=True)
    assert _passes(case, work, SIGHT)


def test_half_of_the_endings_are_bad() -> None:
    """Of twenty, each with a prompt of its own, by which the stand-in knows them."""
    ends = json.loads((CASES.parent / "endings.json").read_text("utf-8"))
    assert [end["done"] for end in ends].count(True) == len(ends) / 2 == 10
    assert len({end["first_prompt"] for end in ends}) == len({end["name"] for end in ends}) == 20
