"""Command line: arguments -> settings -> sub-commands.  Blocking.

Owns: what each sub-command calls, with what, and how the process ends.
Does not know: how anything works.  What is heavy is imported by the sub-command that needs it: `--help` stays instant.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from typing import TextIO

from tagfs import errors
from tagfs.arguments import Run, parser
from tagfs.endings import DISK_FAILED, INTERRUPTED, PIPE_CLOSED, PROBLEMS_FOUND, USAGE, judged
from tagfs.resolving import resolve, resolve_sweep, value_of
from tagfs.settings import SETTINGS, MountSettings
from tagfs.values import absolute_source

_log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; -> the exit code of the process."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        try:
            code = _run(argv, os.environ)
        except SystemExit as ending:  # argparse, after help or a complaint
            code = ending.code if isinstance(ending.code, int) else USAGE
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        _drop_output()
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return PIPE_CLOSED
    except Exception as error:
        code = _fail(error)
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError:  # the output itself is what failed
            _drop_output()
        return code


def _run(argv: list[str], environment: Mapping[str, str]) -> int:
    if argv and "/" in argv[0]:
        # mount(8) and fstab(5) run `tagfs STORE MOUNTPOINT -o OPTIONS` and expect an answering mount.
        argv = ["mount", "--background", *argv]
    arguments = parser(_RUNS).parse_args(argv)
    run: Callable[[argparse.Namespace, Mapping[str, str]], int] = arguments.run
    return run(arguments, environment)


def _drop_output() -> None:
    """Nobody waits for what is still buffered, and the interpreter would write it when it exits."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(error: Exception) -> int:
    code, sentence = judged(error)
    _log.debug("failed", exc_info=error)
    if sys.stderr is not None:
        with suppress(OSError):
            print(f"tagfs: {sentence}", file=sys.stderr, flush=True)
    return code


# -- sub-commands


def _mount(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    store, mountpoint = os.path.abspath(arguments.store), os.path.abspath(arguments.mountpoint)
    settings = _absolute(resolve(store, mountpoint, _given(arguments), arguments.options, environment))
    if mountpoint.startswith("/dev/fd/"):
        settings = _handed_over(settings)
    if settings.background:
        return _mount_in_background(settings, environment)
    _configure(settings.log_level, settings.log_format, environment)
    _serve(settings, lambda line: _print_quietly(line, sys.stdout), environment)
    return 0


def _handed_over(settings: MountSettings) -> MountSettings:
    """For a mount that somebody else has made, whose device we have been given."""
    from tagfs import device

    descriptor = device.inherited(settings.mountpoint)
    if descriptor is None:
        return settings
    device.require_inherited(descriptor)
    return replace(settings, device=descriptor, mountpoint=device.point_of(descriptor) or settings.mountpoint)


def _absolute(settings: MountSettings) -> MountSettings:
    """With paths that are good in any directory: a mount in the background leaves that of its starter."""
    return replace(settings, inventory=tuple(absolute_source(source) for source in settings.inventory))


def _serve(settings: MountSettings, announce: Callable[[str], None], environment: Mapping[str, str]) -> None:
    if not settings.drop_privileges:
        _server(settings)(settings, announce)
        return
    from tagfs import privileges, supervisor

    if settings.device is None:
        supervisor.serve(settings, announce, lambda: _server(settings), judged, environment)
        return
    serve = _server(settings)
    privileges.drop(privileges.account(settings.drop_user))
    serve(settings, announce)


def _server(settings: MountSettings) -> Callable[[MountSettings, Callable[[str], None]], None]:
    is_to_change_user = settings.drop_privileges and os.geteuid() == 0
    if not is_to_change_user:
        from tagfs.postponed import postpone

        postpone()
    try:
        from tagfs.mount import load, serve

        load(settings)
    except ImportError as error:
        raise errors.MountRefused(
            f"FUSE cannot be used ({error}): install libfuse 3 (`apt install fuse3`) and tagfs with pyfuse3"
        ) from error
    return serve


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
            _serve(settings, announce, environment)
        except BaseException as error:
            code, sentence = judged(error)
            if not reporter.send(code, sentence):
                _log.error("%s", sentence, exc_info=error if settings.log_level == "debug" else None)
            return code
        return 0

    kept = frozenset(() if settings.device is None else (settings.device,))
    code, sentence = background.start(child, kept, is_log)
    _print_quietly(sentence if code == 0 else f"tagfs: {sentence}", sys.stdout if code == 0 else sys.stderr)
    return code


def _unmount(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    _configure_plain(arguments, environment)
    from tagfs import holder, mountpoint

    there = mountpoint.unmount(os.path.abspath(arguments.mountpoint), arguments.lazy)
    if not arguments.lazy and not there.is_read_only:
        holder.await_end(there.source)
    return 0


def _status(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    _configure_plain(arguments, environment)
    from tagfs import report
    from tagfs.page import Page, progress
    from tagfs.survey import surveyor

    counting = surveyor(os.path.abspath(arguments.path), _list_limit(arguments, environment))
    progress(counting.run(), counting.total, "reading lists", sys.stderr)
    if arguments.json:
        print(report.survey_json(counting.survey))
    else:
        report.show_survey(counting.survey, Page())
    return PROBLEMS_FOUND if counting.survey.problem_count else 0


def _check(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    _configure_plain(arguments, environment)
    from tagfs import report
    from tagfs.check import Check
    from tagfs.page import Page, progress

    limit = _list_limit(arguments, environment)
    with closing(Check(os.path.abspath(arguments.store), limit, arguments.repair)) as checking:
        progress(checking.run(), checking.total, "checking lists", sys.stderr)
    if arguments.json:
        print(report.findings_json(checking.findings))
    else:
        report.show_findings(checking.findings, Page(), arguments.repair)
    return PROBLEMS_FOUND if checking.findings.remaining else 0


def _convert(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    _configure_plain(arguments, environment)
    from tagfs import report
    from tagfs.convert import Convert
    from tagfs.page import Page, progress

    threshold = value_of("storage-compression-threshold", arguments.threshold, environment)
    limit = _list_limit(arguments, environment)
    with closing(Convert(os.path.abspath(arguments.store), arguments.codec, threshold, limit)) as converting:
        try:
            progress(converting.run(), converting.total, "converting lists", sys.stderr)
        finally:
            report.show_conversion(converting.conversion, Page())
    return PROBLEMS_FOUND if converting.conversion.unreadable_count else 0


def _import(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    _configure_plain(arguments, environment)
    from tagfs import report
    from tagfs.importing import Import
    from tagfs.page import Page, progress

    source = arguments.source if arguments.source == "-" else os.path.abspath(arguments.source)
    codec = value_of("codec", arguments.codec, environment)
    threshold = value_of("storage-compression-threshold", arguments.threshold, environment)
    limit = _list_limit(arguments, environment)
    store = os.path.abspath(arguments.store)
    with closing(Import(store, source, codec, threshold, limit, arguments.dry_run)) as importing:
        try:
            progress(importing.run(), importing.total, "importing lists", sys.stderr)
        finally:
            if arguments.json:
                print(report.import_json(importing.imported))
            else:
                report.show_import(importing.imported, Page())
    return PROBLEMS_FOUND if importing.imported.refused_count else 0


def _sweep(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    _configure_plain(arguments, environment)
    from tagfs import report
    from tagfs.inventories import inventory_of
    from tagfs.page import Page
    from tagfs.plan import Rules
    from tagfs.sweeping import sweep_store

    settings = resolve_sweep(os.path.abspath(arguments.store), _given(arguments), environment)
    inventory = inventory_of(settings, environment, is_mount=False)
    assert inventory is not None
    rules = Rules(settings.max_percent, settings.allow_empty_inventory, settings.allow_mass_deletion)
    limit = _list_limit(arguments, environment)
    found = sweep_store(settings.store, inventory, rules, limit, arguments.dry_run)
    if arguments.json:
        print(report.sweep_json(found))
    else:
        report.show_sweep(found, Page())
    if found.refusal:
        sys.stdout.flush()
        raise errors.SweepHeld(found.refusal)
    return DISK_FAILED if found.count("failed") else 0


def _watch(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    _configure_plain(arguments, environment)
    from tagfs.watching import Output, watch

    output = Output(
        lambda line: print(line, flush=True),
        lambda line: _print_quietly(line, sys.stderr),
        arguments.json,
        value_of("namespace", None if arguments.namespaces is None else ",".join(arguments.namespaces), environment),
    )
    watch(os.path.abspath(arguments.path), output, _list_limit(arguments, environment))
    return 0


def _doctor(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    _configure_plain(arguments, environment)
    from tagfs import doctor, report
    from tagfs.mountpoint import showing
    from tagfs.page import Page
    from tagfs.remarks import Level, count

    store, point = (path and os.path.abspath(path) for path in (arguments.store, arguments.mountpoint))
    if store is not None and point is None and (there := showing(store)) is not None:
        store, point = None, there.point
    settings = resolve(store or "", point or "", _given(arguments), (), environment)
    remarks = list(doctor.examine(store, point))
    if settings.inventory:
        from tagfs import rights

        remarks += rights.examine(settings, environment)
    if arguments.json:
        print(report.remarks_json(remarks))
    else:
        report.show_remarks(remarks, Page())
    return PROBLEMS_FOUND if count(remarks, Level.FAIL) else 0


def _given(arguments: argparse.Namespace) -> dict[str, str]:
    """The settings that were given as flags: flag -> text."""
    flags = {
        setting.flag: text for setting in SETTINGS if (text := getattr(arguments, setting.field, None)) is not None
    }
    return {flag: ",".join(text) if isinstance(text, list) else text for flag, text in flags.items()}


def _list_limit(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    limit: int = value_of("max-list-size", arguments.list_limit, environment)
    return limit


def _help(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    parser(_RUNS).parse_args([arguments.command, "--help"] if arguments.command else ["--help"])
    return 0


def _configure(level: str, log_format: str, environment: Mapping[str, str]) -> None:
    from tagfs import logs

    logs.configure(level, log_format, environment)


def _configure_plain(arguments: argparse.Namespace, environment: Mapping[str, str]) -> None:
    """The log of the commands that have no other settings."""
    _configure(value_of("log-level", arguments.log_level, environment), "text", environment)


def _print_quietly(line: str, stream: TextIO | None) -> None:
    """A mount outlives whoever reads its first line."""
    with suppress(OSError, ValueError):
        print(line, file=stream, flush=True)


_RUNS: Mapping[str, Run] = {
    "mount": _mount,
    "unmount": _unmount,
    "status": _status,
    "check": _check,
    "convert": _convert,
    "import": _import,
    "sweep": _sweep,
    "watch": _watch,
    "doctor": _doctor,
    "help": _help,
}


if __name__ == "__main__":
    sys.exit(main())
