"""Settings: what a mount is asked to do, from flags, `-o` options and the environment.  Pure.

Owns: every setting of a mount, its flag, its variable, its values, and which of them contradict each other.
Does not know: argparse, what a setting does.
Precedence: a flag, then `-o`, then the environment variable, then the default.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from tagfs.errors import NameRefused, SettingRefused
from tagfs.names import check_namespace

CODEC_CHOICES = ("auto", "gzip", "zstd")
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")

VARIABLE_PREFIX = "TAGFS_"

_TRUE = ("1", "true")
_FALSE = ("0", "false")
_ID_LIMIT = (1 << 32) - 2
"""The largest user or group: 2^32 - 1 means "none" to chown(2)."""


@dataclass(frozen=True, slots=True)
class MountSettings:
    """What one mount is asked to do.

    `threshold` and `list_limit` are bytes (their flags are in KiB and MiB); `namespaces` None shows all; `wait` is in
    seconds, None where the flag was not given: a read-only mount then waits for ever, a writer refuses at once.
    """

    store: str
    mountpoint: str
    read_only: bool = False
    codec: str = "auto"
    threshold: int = 4096
    list_limit: int = 64 << 20
    namespaces: frozenset[str] | None = None
    allow_other: bool = False
    uid: int | None = None
    gid: int | None = None
    wait: float | None = None
    wipe_foreign: bool = False
    log_level: str = "info"
    log_format: str = "text"
    background: bool = False


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as a person gives it.

    `parse` turns the text of a flag, an option or a variable into the value of `field`, and raises ValueError with
    what to give instead.  A switch has no `metavar`.
    """

    flag: str
    field: str
    parse: Callable[[str], object]
    metavar: str | None
    help: str
    is_list: bool = False

    @property
    def variable(self) -> str:
        return VARIABLE_PREFIX + self.flag.upper().replace("-", "_")


def _switch(text: str) -> bool:
    if text.lower() not in _TRUE + _FALSE:
        raise ValueError("1, 0, true or false")
    return text.lower() in _TRUE


def _choice(choices: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return text

    return parse


def _size(unit: int, called: str) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and int(text) > 0):
            raise ValueError(f"a whole number of {called}, at least 1")
        return int(text) * unit

    return parse


def _id(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= _ID_LIMIT):
        raise ValueError("a numeric id (`id -u NAME` and `id -g NAME` tell it)")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError("a number of seconds, at least 0")
    return seconds


def _namespaces(text: str) -> frozenset[str]:
    names = text.split(",")
    for name in names:
        try:
            check_namespace(name)
        except NameRefused as error:
            raise ValueError(f"namespaces ({error})") from None
    return frozenset(names)


SETTINGS = (
    Setting("read-only", "read_only", _switch, None, "never write to the store, take no lock, show what changes in it"),
    Setting(
        "codec",
        "codec",
        _choice(CODEC_CHOICES),
        "CODEC",
        "how lists are stored: auto (default; zstd in a new store, what a store's format allows in another), "
        "gzip (keeps a store that Flux can share), zstd (upgrades a store of Flux's to format 3)",
    ),
    Setting(
        "storage-compression-threshold",
        "threshold",
        _size(1 << 10, "KiB"),
        "KIB",
        "store lists of at least this size compressed (default 4; Flux's flag of this name has 64)",
    ),
    Setting("max-list-size", "list_limit", _size(1 << 20, "MiB"), "MIB", "refuse lists larger than this (default 64)"),
    Setting("namespace", "namespaces", _namespaces, "NS", "show only this namespace; repeat it for more", is_list=True),
    Setting("allow-other", "allow_other", _switch, None, "let other users read the mount"),
    Setting("uid", "uid", _id, "UID", "numeric owner of what is shown (default: who runs tagfs)"),
    Setting("gid", "gid", _id, "GID", "numeric group of what is shown (default: who runs tagfs)"),
    Setting(
        "wait",
        "wait",
        _seconds,
        "SECONDS",
        "how long to wait for the store: --read-only waits until it is prepared (default: for ever), a writer until "
        "another one lets go of it (default: 0)",
    ),
    Setting(
        "wipe-foreign",
        "wipe_foreign",
        _switch,
        None,
        "DELETE whatever is in STORE where it is no tag store, and make one of it",
    ),
    Setting("log-level", "log_level", _choice(LOG_LEVELS), "LEVEL", "debug, info (default), warning or error"),
    Setting("log-format", "log_format", _choice(LOG_FORMATS), "FORMAT", "text (default) or json"),
    Setting("background", "background", _switch, None, "return once the mount answers, log to the system's log"),
)

_BY_FLAG = {setting.flag: setting for setting in SETTINGS}

_WITHOUT_EFFECT = ("codec", "storage-compression-threshold", "wipe-foreign")
"""Flags of writers: with --read-only each would have no effect."""

_GENERIC = (
    "defaults auto noauto user users nouser owner group nofail _netdev exec noexec suid nosuid dev nodev "
    "atime noatime diratime nodiratime relatime norelatime strictatime nostrictatime lazytime nolazytime "
    "sync async dirsync mand nomand iversion noiversion silent loud symfollow nosymfollow comment"
)
"""What mount(8) and fstab(5) hand to every file system (mount(8), "filesystem-independent mount options")."""
_GENERIC_OPTIONS = frozenset(_GENERIC.split())


def resolve(
    store: str,
    mountpoint: str,
    flags: Mapping[str, str],
    options: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
) -> MountSettings:
    """The settings of a mount.

    Args:
        flags: the flags that were given, without their dashes -> their text; of a switch, "1".
        options: the text of each `-o`.
        environment: of the process; variables that are no setting are left alone.

    Raises:
        SettingRefused: a value cannot be used, or would have no effect.
    """
    # INVARIANT: flag -> (where the text was given, as a person wrote it; the text), the strongest source last.
    given = {
        setting.flag: (setting.variable, text)
        for setting in SETTINGS
        if (text := (environment or {}).get(setting.variable)) is not None
    }
    given |= _options(options)
    given |= {flag: (f"--{flag}", text) for flag, text in flags.items()}
    values: dict[str, object] = {}
    for flag, (source, text) in given.items():
        values[_BY_FLAG[flag].field] = _parsed(flag, source, text)
    if values.get("read_only"):
        for flag in _WITHOUT_EFFECT:
            if values.get(_BY_FLAG[flag].field):
                raise SettingRefused(f"{given[flag][0]} has no effect on a read-only mount: leave one of the two out")
    return MountSettings(store, mountpoint, **values)  # type: ignore[arg-type]


def value_of(flag: str, text: str | None, environment: Mapping[str, str]) -> Any:
    """The value of one setting for a command beside `mount`: its flag's `text`, its variable, or the default."""
    setting = _BY_FLAG[flag]
    if text is not None:
        return _parsed(flag, f"--{flag}", text)
    if setting.variable in environment:
        return _parsed(flag, setting.variable, environment[setting.variable])
    return next(field.default for field in fields(MountSettings) if field.name == setting.field)


def _parsed(flag: str, source: str, text: str) -> object:
    """The value of one setting; SettingRefused names its `source`."""
    try:
        return _BY_FLAG[flag].parse(text)
    except ValueError as error:
        raise SettingRefused(f"{source}: {text!r} cannot be used; give {error}") from None


def _options(options: Iterable[str]) -> dict[str, tuple[str, str]]:
    given: dict[str, tuple[str, str]] = {}
    for option in _split(options):
        name, equals, text = option.partition("=")
        if name in _GENERIC_OPTIONS or name[:2] in ("x-", "X-"):
            continue
        flag = name.replace("_", "-")
        if option in ("ro", "rw"):
            flag, text = "read-only", "1" if option == "ro" else "0"
        elif flag not in _BY_FLAG:
            raise SettingRefused(f"-o {name}: there is no such option; `tagfs help mount` names them")
        elif not equals:
            if _BY_FLAG[flag].metavar is not None:
                raise SettingRefused(f"-o {name}: it needs a value, {name}={_BY_FLAG[flag].metavar}")
            text = "1"
        if _BY_FLAG[flag].is_list and flag in given:
            text = f"{given[flag][1]},{text}"
        given[flag] = (f"-o {name}", text)
    return given


def _split(options: Iterable[str]) -> Iterator[str]:
    for text in options:
        yield from (option for option in text.split(",") if option)
