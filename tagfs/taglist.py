"""Tag list: the tags of one repository key, in order, as bytes.  Pure.

Owns: what a valid list is, judged whole and judged write by write; its revision.
Does not know: where the bytes come from.

Format: one tag a line, LF after each, an empty list is no bytes.  A tag is `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`
(OCI distribution specification, "Pulling manifests").
"""

import re
from collections.abc import Iterable, Iterator

from tagfs.errors import TagListInvalid

TAG_LIMIT = 128
"""Bytes in a tag, at most (OCI distribution specification)."""

_ALPHABET = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"
_LIST_BYTES = _ALPHABET + b"\n"
_NO_FIRST = b".-"
_LINE = rb"[^\n.-].{0,127}+"
_LINES = re.compile(rb"(?:%b\n)*+(?:%b)?" % (_LINE, _LINE))
"""The lines of a list without a foreign byte, of which the last one need not be finished; possessive, so that it never
goes back."""
_PART = 1 << 18
"""Bytes: matched within a millisecond."""


def encode(tags: Iterable[str]) -> bytes:
    """Tags -> the bytes of their list.

    Raises:
        TagListInvalid: a tag is not of the grammar.
    """
    lines = [*tags]
    plain = "\n".join([*lines, ""]).encode("utf-8", "backslashreplace")
    if count(plain) != len(lines):
        broken = next(number for number, line in enumerate(lines, 1) if "\n" in line)
        raise TagListInvalid(broken, _foreign(b"\n"))
    validate(plain)
    return plain


def decode(plain: bytes) -> list[str]:
    """The bytes of a list -> its tags, not validated."""
    tags = plain.decode("ascii", "replace").split("\n")
    if not tags[-1]:
        tags.pop()
    return tags


def count(plain: bytes) -> int:
    return plain.count(b"\n")


def revision(plain: bytes) -> str:
    """`sha256:` and the hex digest, as Flux's `internal/storage/filesystem.go` returns it from SetTags."""
    import hashlib  # brings OpenSSL, 3.5 MiB, and few mounts are ever asked for a revision

    return f"sha256:{hashlib.sha256(plain).hexdigest()}"


def validate(plain: bytes) -> None:
    """Raise TagListInvalid, with the line of the first fault, unless `plain` is a whole list."""
    if _is_sound(plain) and (not plain or plain.endswith(b"\n")):
        return
    raise next(faults(plain))


def faults(plain: bytes) -> Iterator[TagListInvalid]:
    """Every fault of a list, in the order of its lines."""
    lines = plain.split(b"\n")
    last = lines.pop()
    for number, line in enumerate(lines, 1):
        fault = _fault(line)
        if fault:
            yield TagListInvalid(number, fault)
    if last:
        number = len(lines) + 1
        yield TagListInvalid(number, _fault(last) or f"no newline at the end of {_quote(last)}: is the list whole?")


class Screen:
    """Judges a list write by write: refuses at once what can never become part of one.

    Writes in sequence from offset 0 are judged by all rules but the final newline; after a write elsewhere only the
    alphabet is, because the lines are not known any more.
    """

    __slots__ = ("_carry", "_line", "_next")

    def __init__(self) -> None:
        self._next: int | None = 0
        self._line = 1
        # INVARIANT: the bytes of the unfinished line before `_next`, at most TAG_LIMIT of them.
        self._carry = b""

    def resume(self, text: bytes) -> None:
        """Take `text`, from offset 0, as judged already: the next write in sequence is at its end."""
        self._next = len(text)
        self._line = text.count(b"\n") + 1
        self._carry = text[text.rfind(b"\n") + 1 :]

    def check(self, offset: int, data: bytes) -> None:
        """Judge `data` written at `offset`.

        Raises:
            TagListInvalid: no later write can make a list of it, unless it is overwritten.
        """
        if offset == 0:
            self.resume(b"")
        if offset != self._next:
            self._next = None
            foreign = data.translate(None, _LIST_BYTES)
            if foreign:
                raise TagListInvalid(None, _foreign(foreign[:1]))
            return
        text = self._carry + data
        lines = text.split(b"\n")
        last = lines.pop()
        if not _is_sound(text) or len(last) > TAG_LIMIT:
            # Nothing after the last newline is no blank line: the next write goes on there.
            for number, line in enumerate([*lines, last] if last else lines, self._line):
                fault = _fault(line)
                if fault:
                    raise TagListInvalid(number, fault)
        self._next += len(data)
        self._line += len(lines)
        self._carry = last


def _is_sound(text: bytes) -> bool:
    """Whether no line of `text` has a fault.

    In parts, because other threads stand still while a part is matched.
    """
    start = 0
    while len(text) - start > _PART:
        end = text.find(b"\n", start + _PART - TAG_LIMIT - 1, start + _PART) + 1
        if not end or not _is_sound(text[start:end]):
            return False
        start = end
    rest = text[start:]
    return not rest.translate(None, _LIST_BYTES) and _LINES.fullmatch(rest) is not None


def _fault(line: bytes) -> str | None:
    if not line:
        return "a blank line"
    foreign = line.translate(None, _ALPHABET)
    if foreign:
        return _foreign(foreign[:1])
    if line[0] in _NO_FIRST:
        return f"tag {_quote(line)} starts with {chr(line[0])!r}"
    if len(line) > TAG_LIMIT:
        return f"tag {_quote(line)} has {len(line)} characters, at most {TAG_LIMIT} are allowed"
    return None


def _foreign(byte: bytes) -> str:
    told = {
        b" ": "a space",
        b"\t": "a tab",
        b"\r": "a carriage return (a Windows line ending?)",
        b"\0": "a NUL",
        b"\n": "a newline",
    }
    return f"{told.get(byte, f'byte 0x{byte.hex()}')} cannot be part of a tag"


def _quote(line: bytes) -> str:
    text = line.decode("ascii", "backslashreplace")
    return repr(text if len(text) <= 40 else text[:40] + "…")
