"""Every clause of `docs/semantics.md` has a test that names it, and no test names another."""

import re
from pathlib import Path

HERE = Path(__file__).parent
CLAUSES = re.compile(r"^\*\*S(\d+)\.\*\*", re.MULTILINE)
TESTS = re.compile(r"^(?:async )?def test((?:_s\d+)+)_", re.MULTILINE)


def test_clauses_are_numbered_in_order() -> None:
    numbers = [int(number) for number in CLAUSES.findall((HERE.parent / "docs" / "semantics.md").read_text())]
    assert numbers == list(range(1, len(numbers) + 1)) and numbers


def test_each_clause_has_a_test_and_each_test_a_clause() -> None:
    clauses = set(CLAUSES.findall((HERE.parent / "docs" / "semantics.md").read_text()))
    tested = {
        number
        for path in HERE.glob("test_semantics_*.py")
        for named in TESTS.findall(path.read_text())
        for number in named.split("_s")
        if number
    }
    assert clauses - tested == set(), "clauses without a test"
    assert tested - clauses == set(), "tests of clauses that do not exist"
