"""Values: the text of a flag, an option or a variable -> its value.  Pure.

Owns: what each kind of value may be, and what to give instead.
Does not know: which setting it is.
Each function takes the text, or makes one that does, and raises ValueError with what to give instead.
"""

import math
import posixpath
from collections.abc import Callable

from tagfs.errors import NameRefused
from tagfs.names import check_namespace

_TRUE = ("1", "true")
_FALSE = ("0", "false")
_ID_LIMIT = (1 << 32) - 2
"""The largest user or group: 2^32 - 1 means "none" to chown(2)."""

MANIFESTS = "manifests:"
STANDARD_INPUT = "-"
KUBERNETES = "kubernetes"


def switch(text: str) -> bool:
    if text.lower() not in _TRUE + _FALSE:
        raise ValueError("1, 0, true or false")
    return text.lower() in _TRUE


def choice(choices: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return text

    return parse


def size(unit: int, called: str) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and int(text) > 0):
            raise ValueError(f"a whole number of {called}, at least 1")
        return int(text) * unit

    return parse


def numeric_id(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= _ID_LIMIT):
        raise ValueError("a numeric id (`id -u NAME` and `id -g NAME` tell it)")
    return int(text)


def seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not (math.isfinite(number) and number >= 0):
        raise ValueError("a number of seconds, at least 0")
    return number


def namespaces(text: str) -> frozenset[str]:
    names = text.split(",")
    for name in names:
        try:
            check_namespace(name)
        except NameRefused as error:
            raise ValueError(f"namespaces ({error})") from None
    return frozenset(names)


def minutes(text: str) -> float:
    """Minutes -> seconds."""
    try:
        return seconds(text) * 60
    except ValueError:
        raise ValueError("a number of minutes, at least 0") from None


def percent(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 100):
        raise ValueError("a whole number from 0 to 100")
    return int(text)


def address(text: str) -> tuple[str, int]:
    """`HOST:PORT`; host "" is every interface."""
    host, colon, port = text.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    if (
        not colon
        or not (port.isascii() and port.isdigit() and int(port) < 65536)
        or (not is_bracketed and (":" in host or not host.isprintable() or " " in host))
    ):
        raise ValueError("HOST:PORT, such as 127.0.0.1:9180, [::1]:9180 or, for every interface, :9180")
    return (host[1:-1] if is_bracketed else host), int(port)


def rate(text: str) -> float:
    """A number a second; 0 or less: any."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("a number; 0 sets no limit")
    return number


def count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 1_000_000):
        raise ValueError("a whole number, at least 1")
    return int(text)


def name(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError("a name")
    return text


def patterns(text: str) -> tuple[str, ...]:
    globs = tuple(text.split(","))
    if not all(glob.strip("./") for glob in globs):
        raise ValueError("patterns such as templates or clusters/prod/**")
    return globs


def selector(text: str) -> str:
    """A label selector; the cluster judges it."""
    if not text.strip() or not text.isprintable():
        raise ValueError("a label selector such as sharding.fluxcd.io/key=shard1")
    return text


def sources(text: str) -> tuple[str, ...]:
    """`kubernetes`, or one or more `manifests:PATH`."""
    given = tuple(dict.fromkeys(text.split(",")))
    trees = [one for one in given if one.startswith(MANIFESTS) and len(one) > len(MANIFESTS) and "\0" not in one]
    if given != (KUBERNETES,) and len(trees) != len(given):
        raise ValueError("kubernetes, or manifests:PATH (as often as there are trees), or manifests:-")
    return given


def absolute_source(source: str) -> str:
    """A source whose path, if it has one, is good in any directory."""
    if not source.startswith(MANIFESTS) or source == MANIFESTS + STANDARD_INPUT:
        return source
    return MANIFESTS + posixpath.abspath(source.removeprefix(MANIFESTS))
