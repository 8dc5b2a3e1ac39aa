"""Resolving: what was given by flags, `-o` and variables -> the settings of a mount, a sweep, a command.  Pure.

Owns: which of them counts, which contradict each other or have no effect, which options of mount(8) are ignored.
Does not know: argparse, what a setting does.
Precedence: a flag, then `-o`, then the environment variable, then the default.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from tagfs import values
from tagfs.errors import SettingRefused
from tagfs.settings import SETTINGS, MountSettings

_BY_FLAG = {setting.flag: setting for setting in SETTINGS}

_OF_MANIFESTS = ("manifests-include", "manifests-ignore")
_OF_CLUSTERS = (
    *("watch-all-namespaces", "watch-namespace", "watch-label-selector"),
    *("kube-context", "kube-api-qps", "kube-api-burst"),
)
_OF_GUARDS = ("sweep-max-percent", "sweep-allow-empty-inventory", "sweep-allow-mass-deletion", "sweep-suspend")
_OF_INVENTORIES = (*_OF_MANIFESTS, *_OF_CLUSTERS, *_OF_GUARDS)

_OF_WRITERS = ("codec", "storage-compression-threshold", "wipe-foreign", "inventory", "gc-interval", *_OF_INVENTORIES)

SWEEP_FLAGS = ("inventory", *(flag for flag in _OF_INVENTORIES if flag != "sweep-suspend"))
"""Those that `tagfs sweep` has too."""

_GENERIC = (
    "defaults auto noauto user users nouser owner group nofail _netdev exec noexec suid nosuid dev nodev "
    "atime noatime diratime nodiratime relatime norelatime strictatime nostrictatime lazytime nolazytime "
    "sync async dirsync mand nomand iversion noiversion silent loud symfollow nosymfollow comment"
)
"""What mount(8) and fstab(5) hand to every file system (mount(8), "filesystem-independent mount options")."""
_GENERIC_OPTIONS = frozenset(_GENERIC.split())

_SETUID = "setuid"
"""What mount.fuse(8) calls --drop-user; there it runs the daemon as that user, with --drop-privileges or without."""


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
    found: dict[str, Any] = {}
    for flag, (source, text) in given.items():
        found[_BY_FLAG[flag].field] = _parsed(flag, source, text)
    for flags_, why in _without_effect(found):
        for flag in flags_:
            if flag in given and (_BY_FLAG[flag].metavar is not None or found[_BY_FLAG[flag].field]):
                raise SettingRefused(f"{given[flag][0]} has no effect {why}")
    return MountSettings(store, mountpoint, **found)


def resolve_sweep(store: str, flags: Mapping[str, str], environment: Mapping[str, str]) -> MountSettings:
    """The settings of a sweep by itself: only those of SWEEP_FLAGS, other variables are not looked at."""
    known = {_BY_FLAG[flag].variable for flag in SWEEP_FLAGS}
    settings = resolve(store, "", flags, (), {name: environment[name] for name in known & environment.keys()})
    if not settings.inventory:
        raise SettingRefused("say by --inventory what ought to exist: kubernetes, manifests:PATH or manifests:-")
    return settings


def _without_effect(found: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """The flags that have no effect beside those that were given, and why."""
    if found.get("read_only"):
        yield _OF_WRITERS, "on a read-only mount: leave one of the two out"
    if not found.get("drop_privileges"):
        yield ("drop-user",), "without --drop-privileges"
    inventory = found.get("inventory", ())
    if not inventory:
        yield _OF_INVENTORIES, "without --inventory"
    if inventory == (values.KUBERNETES,):
        yield _OF_MANIFESTS, "with --inventory kubernetes"
    elif inventory:
        yield _OF_CLUSTERS, "with --inventory manifests"


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
        if flag == _SETUID:
            flag = "drop-user"
            given["drop-privileges"] = (f"-o {name}", "1")
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
