"""The threat model names tests; each of them exists, and is no other by mistake."""

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
TEXT = (PROJECT / "docs/security.md").read_text()
NAMED = sorted(set(re.findall(r"`(test_\w+)`", TEXT)))
EXISTING = {
    name
    for path in (PROJECT / "tests").glob("test_*.py")
    for name in re.findall(r"^(?:async )?def (test_\w+)\(", path.read_text(), re.MULTILINE)
}


def test_the_document_names_tests() -> None:
    assert len(NAMED) >= 40


@pytest.mark.parametrize("name", NAMED)
def test_a_test_that_is_named_exists(name: str) -> None:
    assert name in EXISTING


def test_every_attack_has_a_test() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and line.count("|") == 4]
    attacks = [row for row in rows if not row.startswith(("| tries", "| holds", "| unit", "| ---", "| `tagfs"))]
    assert len(attacks) >= 25
    for row in attacks:
        assert "`test_" in row.split("|")[3], row
