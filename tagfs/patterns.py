"""Patterns: which paths of a tree are meant.  Pure.

Owns: glob patterns as .gitignore has them, without its exceptions.
Does not know: what is in a file.
"""

import re
from collections.abc import Iterable


class Patterns:
    """`*` and `?` match within a name, `**` across directories; a pattern with a `/` inside begins at the root of the
    tree, any other one matches a name at any depth; what matches a directory matches all below it."""

    def __init__(self, globs: Iterable[str]) -> None:
        self._expressions = [re.compile(_expression(glob)) for glob in globs]

    def __bool__(self) -> bool:
        return bool(self._expressions)

    def match(self, path: str) -> bool:
        """Whether a path, relative to the root of the tree, is meant."""
        return any(expression.fullmatch(path) for expression in self._expressions)


def _expression(glob: str) -> str:
    trimmed = glob.removeprefix("./").strip("/")
    is_anchored = "/" in trimmed or glob.startswith("/")
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", trimmed)
    known = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    # Every other part is one of those that the expression splits at.
    text = "".join(
        (known.get(part) or _class(part)) if number % 2 else re.escape(part) for number, part in enumerate(parts)
    )
    return f"{'' if is_anchored else '(?:.*/)?'}{text}(?:/.*)?"


def _class(part: str) -> str:
    inner = part[1:-1]
    negated = inner[0] in "!^" and len(inner) > 1
    members = (inner[1:] if negated else inner).replace("\\", r"\\").replace("[", r"\[").replace("^", r"\^")
    try:
        re.compile(f"[{members}]")
    except re.error:
        return re.escape(part)
    return f"[^/{members}]" if negated else f"[{members}]"
