"""Command line: arguments -> settings -> sub-commands.  Blocking.

Owns: the parser, the help, the one table error -> exit code, what a failure looks like to a person.
Does not know: how anything works.  What is heavy is imported by the sub-command that needs it: `--help` stays instant.
"""

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn, TextIO

from tagfs import __version__, errors
from tagfs.settings import SETTINGS, MountSettings, from_environment, resolve
from tagfs.settings import check as check_setting

USAGE, PROBLEMS_FOUND = 2, 6
INTERRUPTED, PIPE_CLOSED = 130, 141
"""128 and the number of the signal, as a shell tells it."""


@dataclass(frozen=True, slots=True)
class Ending:
    """One exit code: what it means, and the errors that end in it (the closest class counts)."""

    code: int
    meaning: str
    errors: tuple[type[BaseException], ...] = ()


ENDINGS = (
    Ending(0, "done"),
    Ending(
        1,
        "unexpected: a defect; please report it with what --log-level debug prints",
        (
            Exception,
            errors.TagfsError,
            errors.AlreadyExists,
            errors.DirectoryNotEmpty,
            errors.EmptyingRefused,
            errors.HandlePoisoned,
            errors.ListMissing,
            errors.ListTooLarge,
            errors.NotPermitted,
            errors.OtherDirectory,
            errors.RepositoryMissing,
            errors.StagingFull,
            errors.TagListInvalid,
            errors.VersionGone,
        ),
    ),
    Ending(USAGE, "usage: an argument, option or variable cannot be used", (errors.SettingRefused, errors.NameRefused)),
    Ending(3, "the store was refused: it is none, or not one that this version may touch", (errors.StoreRefused,)),
    Ending(4, "the store is held by another writer", (errors.StoreHeld,)),
    Ending(5, "cannot mount, or unmount: the mount point, /dev/fuse or the rights", (errors.MountRefused,)),
    Ending(PROBLEMS_FOUND, "problems were found in the store", (errors.ListCorrupt,)),
    Ending(7, "the store was not ready within --wait", (errors.StoreWaiting,)),
    Ending(8, "the disk, or the output, failed", (OSError, errors.CommitUncertain)),
    Ending(INTERRUPTED, "interrupted", (KeyboardInterrupt,)),
    Ending(PIPE_CLOSED, "nobody read the output to its end", (BrokenPipeError,)),
)

_log = logging.getLogger(__name__)


def exit_code(error: BaseException) -> int:
    """The exit code of an error, by its closest class in ENDINGS."""
    codes = {kind: ending.code for ending in ENDINGS for kind in ending.errors}
    return next((codes[kind] for kind in type(error).__mro__ if kind in codes), 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; -> the exit code of the process."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        code = _run(argv, os.environ)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes once more when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except Exception as error:
        return _fail(error)


def _run(argv: list[str], environment: Mapping[str, str]) -> int:
    if argv and "/" in argv[0]:
        # mount(8) and fstab(5) run `tagfs STORE MOUNTPOINT -o OPTIONS` and expect an answering mount.
        argv = ["mount", "--background", *argv]
    arguments = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace, Mapping[str, str]], int] = arguments.run
    return run(arguments, environment)


def _fail(error: Exception) -> int:
    code, sentence = exit_code(error), _sentence(error)
    _log.debug("failed", exc_info=error)
    if sys.stderr is not None:
        with suppress(OSError):
            print(f"tagfs: {sentence}", file=sys.stderr, flush=True)
    return code


def _sentence(error: Exception) -> str:
    if isinstance(error, errors.TagfsError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"unexpected {type(error).__name__}: {error}; please report it with what --log-level debug prints"


# -- sub-commands


def _mount(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    flags = {setting.flag: text for setting in SETTINGS if (text := getattr(arguments, setting.field)) is not None}
    flags |= {flag: ",".join(texts) for flag, texts in flags.items() if isinstance(texts, list)}
    store, mountpoint = os.path.abspath(arguments.store), os.path.abspath(arguments.mountpoint)
    settings = resolve(store, mountpoint, flags, arguments.options, environment)
    if settings.background:
        return _mount_in_background(settings, environment)
    _configure(settings.log_level, settings.log_format, environment)
    _serve(settings, lambda line: _print_quietly(line, sys.stdout))
    return 0


def _serve(settings: MountSettings, announce: Callable[[str], None]) -> None:
    try:
        from tagfs.mount import serve
    except ImportError as error:
        raise errors.MountRefused(
            f"FUSE cannot be used ({error}): install libfuse 3 (`apt install fuse3`) and tagfs with pyfuse3"
        ) from error
    serve(settings, announce)


def _mount_in_background(settings: MountSettings, environment: Mapping[str, str]) -> int:
    from tagfs import background, logs

    def is_log() -> bool:
        return background.is_regular(2) or logs.is_journal(sys.stderr, environment)

    def child(reporter: background.Reporter) -> int:
        to_syslog = os.path.exists(logs.SYSLOG_SOCKET) and not is_log()
        logs.configure(settings.log_level, settings.log_format, environment, to_syslog=to_syslog)

        def announce(line: str) -> None:
            if not reporter.send(0, line):
                _log.info("%s", line)

        try:
            _serve(settings, announce)
        except BaseException as error:
            code = exit_code(error)
            sentence = _sentence(error) if isinstance(error, Exception) else type(error).__name__
            if not reporter.send(code, sentence):
                _log.error("%s", sentence, exc_info=error if settings.log_level == "debug" else None)
            return code
        return 0

    inherited = re.fullmatch(r"/dev/fd/([0-9]+)", settings.mountpoint)
    code, sentence = background.start(child, frozenset({int(inherited[1])} if inherited else ()), is_log)
    _print_quietly(sentence if code == 0 else f"tagfs: {sentence}", sys.stdout if code == 0 else sys.stderr)
    return code


def _unmount(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    _configure_plain(arguments, environment)
    from tagfs import mountpoint

    mountpoint.unmount(os.path.abspath(arguments.mountpoint), arguments.lazy)
    return 0


def _help(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    _parser().parse_args([arguments.command, "--help"] if arguments.command else ["--help"])
    return 0


def _configure(level: str, log_format: str, environment: Mapping[str, str]) -> None:
    from tagfs import logs

    logs.configure(level, log_format, environment)


def _configure_plain(arguments: argparse.Namespace, environment: Mapping[str, str]) -> None:
    """The log of the commands that have no other settings."""
    level, variable = arguments.log_level, from_environment("log-level", environment)
    if level is not None:
        check_setting("log-level", "--log-level", level)
    _configure(level or variable or "warning", "text", environment)


def _print_quietly(line: str, stream: TextIO | None) -> None:
    """A mount outlives whoever reads its first line."""
    with suppress(OSError, ValueError):
        print(line, file=stream, flush=True)


# -- the parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        command = self.prog.partition(" ")[2]
        hint = f"`tagfs help {command}`" if command else "`tagfs help`"
        self.exit(USAGE, f"tagfs: {message}; see {hint}\n")


_DESCRIPTION = """\
Container image tag lists as plain text files: compressed and crash-safe in a STORE,
shown at a MOUNTPOINT as imagerepository/<namespace>/<name>/tags.txt, one tag a line."""

_EXAMPLES = """\
examples:
  tagfs mount /var/lib/tags /mnt/tags            serve until unmounted or Ctrl-C
  tagfs mount --read-only /data /mnt/tags        a window on Flux's own directory
  grep -rl '^v2' /mnt/tags                       which images have a v2 tag?
  tagfs status /mnt/tags                         how many, how large, anything wrong?
  tagfs check --repair /var/lib/tags             after the disk was ill
  tagfs unmount /mnt/tags"""

_MOUNT_EXAMPLES = """\
examples:
  tagfs mount /var/lib/tags /mnt/tags
  tagfs mount --background --allow-other /var/lib/tags /mnt/tags
  tagfs mount --read-only --namespace team-a --wait 60 /data /mnt/tags
  mount -t fuse.tagfs /var/lib/tags /mnt/tags -o ro,allow_other
  /etc/fstab:  /var/lib/tags  /mnt/tags  fuse.tagfs  ro,allow_other,nofail  0  0

-o OPTIONS: ro, rw, and every flag above by its name (allow_other, uid=1000, max-list-size=16, …),
comma-separated; what mount(8) gives to every file system (nofail, noatime, x-…) is ignored."""


def _endings() -> str:
    return "exit codes:\n" + "\n".join(f"  {ending.code:<4} {ending.meaning}" for ending in ENDINGS)


def _variables() -> str:
    lines = [f"  {setting.variable:<38} --{setting.flag}" for setting in SETTINGS]
    return "environment (a flag wins; a switch is 1, 0, true or false; lists are comma-separated):\n" + "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tagfs",
        description=_DESCRIPTION,
        epilog=f"{_EXAMPLES}\n\n{_endings()}\n\nEvery flag of a command is also a variable: `tagfs help mount`.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tagfs {__version__}")
    parser.set_defaults(run=lambda arguments, environment: parser.error("name a command"))
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=_Parser)

    def command(
        name: str, run: Callable[[argparse.Namespace, Mapping[str, str]], int], text: str, epilog: str
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        made.set_defaults(run=run)
        return made

    mount = command(
        "mount",
        _mount,
        "show the tag lists of a store at a mount point",
        f"{_MOUNT_EXAMPLES}\n\n{_variables()}\n\n{_endings()}",
    )
    mount.add_argument("store", metavar="STORE", help="the directory that holds the lists; made ready if it is empty")
    mount.add_argument("mountpoint", metavar="MOUNTPOINT", help="an empty directory")
    for setting in SETTINGS:
        if setting.metavar is None:
            mount.add_argument(
                f"--{setting.flag}", dest=setting.field, action="store_const", const="1", help=setting.help
            )
        else:
            action = "append" if setting.is_list else "store"
            mount.add_argument(
                f"--{setting.flag}", dest=setting.field, action=action, metavar=setting.metavar, help=setting.help
            )
    mount.add_argument("-o", dest="options", action="append", default=[], metavar="OPTIONS", help="see below")

    unmount = command(
        "unmount",
        _unmount,
        "end a mount: what is being written is finished first",
        f"examples:\n  tagfs unmount /mnt/tags\n  tagfs unmount --lazy /mnt/tags\n\n{_endings()}",
    )
    unmount.add_argument("mountpoint", metavar="MOUNTPOINT")
    unmount.add_argument("--lazy", action="store_true", help="also when programs still use it: gone for all others")
    _add_log_level(unmount)

    help_ = command("help", _help, "show this help, or that of a command", _endings())
    help_.add_argument("command", metavar="COMMAND", nargs="?", choices=sorted({*commands.choices}))
    return parser


def _add_log_level(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning (default) or error")


if __name__ == "__main__":
    sys.exit(main())
