"""docs/operations.md: what it must name is found in the code, so that nothing is missing."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tagfs.endings import ENDINGS

PROJECT = Path(__file__).parent.parent
DOCUMENT = PROJECT / "docs" / "operations.md"

LOUD = {"warning", "error", "exception", "critical", "log"}

SPOKEN_ELSEWHERE = {
    ("cli", "%s"): "the sentence that a terminal would have shown: a mount in the background",
    ("errnos", "%s"): "a damaged list, an uncertain commit, a refused store, or `the disk failed`",
    ("mount", "%s"): "why the mount waits for its store",
    ("session", "%s"): "why it cannot be unmounted",
    ("supervisor", "%s"): "why it cannot be unmounted",
}
"""Messages whose words are those of an error; the document tells of them as the value says."""

SHOWN = 60
"""Characters of a message that the document has at least."""


def messages() -> Iterator[tuple[str, str]]:
    """(module, message) of whatever is logged above INFO."""
    for path in sorted((PROJECT / "tagfs").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOUD):
                continue
            if not (isinstance(node.func.value, ast.Name) and node.func.value.id in ("log", "_log")):
                continue
            text = node.args[1 if node.func.attr == "log" else 0]
            assert isinstance(text, ast.Constant) and isinstance(text.value, str), f"{path.name}: {ast.unparse(node)}"
            yield path.stem, text.value


def telling(message: str) -> str:
    """The longest part of a message that is always the same: what a person would look for."""
    return max(re.split(r"%(?:\.\d+)?[sdfr]", message.replace("`", "")), key=len).strip(" :;")[:SHOWN]


@pytest.mark.parametrize(("module", "message"), sorted(set(messages()) - set(SPOKEN_ELSEWHERE)))
def test_every_message_is_in_the_document(module: str, message: str) -> None:
    assert telling(message) in DOCUMENT.read_text().replace("`", ""), "docs/operations.md says what to do about it"


def test_the_messages_without_words_are_those_that_are_known() -> None:
    assert {(module, message) for module, message in messages() if message == "%s"} == set(SPOKEN_ELSEWHERE)


def test_exit_codes_are_those_of_the_command_line() -> None:
    told = DOCUMENT.read_text().partition("## Exit codes")[2]
    known = {ending.code for ending in ENDINGS}
    assert {int(code) for code in re.findall(r"(?<![\w.])(\d+) (?:the|it|problems|orphans)", told)} <= known


def test_flags_exist() -> None:
    from tagfs.settings import SETTINGS

    ours = {setting.flag for setting in SETTINGS} | {"repair", "dry-run", "lazy", "no-fast-path", "fast-path"}
    foreign = {"delete", "exclude"}
    flags = set(re.findall(r"(?<![\w-])--([a-z][a-z-]+)", DOCUMENT.read_text()))
    assert flags <= ours | foreign, flags - ours - foreign


def test_links_lead_somewhere() -> None:
    text = DOCUMENT.read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        assert (DOCUMENT.parent / path).exists() if path else True, target
        if anchor and not path:
            headings = [
                line.lstrip("# ").lower().replace(" ", "-") for line in text.splitlines() if line.startswith("#")
            ]
            assert anchor in headings, target
