"""Arguments: what the command line looks like: sub-commands, flags, help.  Pure.

Owns: the parser, its texts and examples.
Does not know: what a sub-command does, what its flags' values may be.
"""

import argparse
from collections.abc import Callable, Mapping
from typing import NoReturn

from tagfs import __version__
from tagfs.endings import USAGE, table
from tagfs.resolving import SWEEP_FLAGS
from tagfs.settings import CODEC_CHOICES, SETTINGS, Setting

Run = Callable[[argparse.Namespace, Mapping[str, str]], int]

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

_MOUNT = """\
examples:
  tagfs mount /var/lib/tags /mnt/tags
  tagfs mount --background --allow-other /var/lib/tags /mnt/tags
  tagfs mount --read-only --namespace team-a --wait 60 /data /mnt/tags
  mount -t fuse.tagfs /var/lib/tags /mnt/tags -o ro,allow_other
  /etc/fstab:  /var/lib/tags  /mnt/tags  fuse.tagfs  ro,allow_other,nofail  0  0

-o OPTIONS: ro, rw, and every flag above by its name (allow_other, uid=1000, max-list-size=16, …),
comma-separated; what mount(8) gives to every file system (nofail, noatime, x-…) is ignored."""

_UNMOUNT = """\
examples:
  tagfs unmount /mnt/tags
  tagfs unmount --lazy /mnt/tags                 also a dead mount, or one in use"""

_STATUS = """\
Reads every list, beside whoever writes them. Ends with 6 where it found a problem.

examples:
  tagfs status /var/lib/tags
  tagfs status /mnt/tags | grep ^tags:
  tagfs status --json /mnt/tags | jq .ratio"""

_CHECK = """\
Without --repair nothing is written, and a mount may go on. With it the store must not be mounted for writing:
lists that cannot be decoded are moved to STORE/.tagfs-quarantine, what a later list has replaced is removed, a list
that a program renamed away is put back. A list with bad tags is told and left. Ends with 6 while problems are left.

examples:
  tagfs check /var/lib/tags
  tagfs check --repair /var/lib/tags
  tagfs check --json /var/lib/tags | jq '.findings[] | select(.severity == "problem")'"""

_CONVERT = """\
zstd makes it a store of format 3, gzip one of format 2, which Flux can share. The store must not be mounted for
writing; readers may go on. What cannot be read or may not be entered is named, left as it is, and costs the others
nothing; ends with 6 then. Cut short at any point, run it again.

examples:
  tagfs convert /var/lib/tags --codec zstd
  tagfs convert /var/lib/tags --codec gzip       before Flux takes the directory over"""


_IMPORT = """\
SOURCE is a directory, a tar archive (also compressed), or - for an archive from standard input. Lists in it are
[imagerepository/]<namespace>/<name>/tags.txt, or <namespace>/<name>.txt. What is no list is refused, with its line, and
so is what may not be entered; it costs the others nothing; ends with 6 then. Lists of the store that SOURCE does not
have stay. The store must not be mounted for writing; readers may go on. Cut short at any point, run it again: it
passes over what is there.

examples:
  tagfs import /var/lib/tags lists/
  tagfs import /var/lib/tags /data                  the store of a Flux, all of it
  tar c -C /mnt/tags . | ssh host tagfs import /var/lib/tags -
  tagfs import /var/lib/tags lists.tar.zst --dry-run"""


_SWEEP = """\
Deletes the lists that the inventory does not have, in a store that no mount holds; a mount sweeps by itself. What a
guard holds stays: an inventory that is not complete deletes nothing, an empty one neither, and of more than 20 lists
no more than --sweep-max-percent go. With --dry-run nothing is written, and a mount may go on.

examples:
  tagfs sweep /var/lib/tags --inventory kubernetes --dry-run
  tagfs sweep /var/lib/tags --inventory manifests:clusters/prod --manifests-ignore templates
  kustomize build clusters/prod | tagfs sweep /var/lib/tags --inventory manifests:-"""

_WATCH = """\
Tells each list that changes from now on, until Ctrl-C. A mount may be unmounted and come back meanwhile, a store be
wiped; what nobody could tell is said to be missed. --json prints the events that docs/changes.md describes, one a line.

examples:
  tagfs watch /mnt/tags
  tagfs watch --namespace team-a /var/lib/tags
  tagfs watch --json /mnt/tags | jq -r 'select(.subject and .data.added != []) | .subject'"""

_DOCTOR = """\
Looks at this machine, or pod, and at a store and a mount point where they are named, and changes nothing. What is
wrong comes with its cure. Name a mount alone where it is only read; with --inventory the cluster is asked as a mount
would ask it. Ends with 6 where something fails.

examples:
  tagfs doctor                                   could this user mount here?
  tagfs doctor /var/lib/tags /mnt/tags
  tagfs doctor --inventory kubernetes /var/lib/tags
  kubectl exec POD -c tagfs -- tagfs doctor --json /data /mnt/tags"""


class Parser(argparse.ArgumentParser):
    """Complains in one line that says where to look."""

    def error(self, message: str) -> NoReturn:
        command = self.prog.partition(" ")[2]
        self.exit(USAGE, f"tagfs: {message}; see `tagfs help{' ' if command else ''}{command}`\n")


def parser(runs: Mapping[str, Run]) -> argparse.ArgumentParser:
    """The parser of `tagfs`; in what it parses, `run` is the one of `runs` for the sub-command."""
    endings = table()
    top = Parser(
        prog="tagfs",
        description=_DESCRIPTION,
        epilog=f"{_EXAMPLES}\n\n{endings}\n\nMost flags are variables too: `tagfs help mount` has the list.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"tagfs {__version__}")
    top.set_defaults(run=lambda arguments, environment: top.error("name a command"))
    commands = top.add_subparsers(metavar="COMMAND", parser_class=Parser)

    def command(name: str, text: str, epilog: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"{epilog}\n\n{endings}" if epilog else endings,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        made.set_defaults(run=runs[name])
        return made

    mount = command("mount", "show the tag lists of a store at a mount point", f"{_MOUNT}\n\n{_variables()}")
    mount.add_argument("store", metavar="STORE", help="the directory that holds the lists; made ready if it is empty")
    mount.add_argument("mountpoint", metavar="MOUNTPOINT", help="an empty directory")
    for setting in SETTINGS:
        _add(mount, setting)
    mount.add_argument("-o", dest="options", action="append", default=[], metavar="OPTIONS", help="see below")

    unmount = command("unmount", "end a mount, when what is being written has been finished", _UNMOUNT)
    unmount.add_argument("mountpoint", metavar="MOUNTPOINT")
    unmount.add_argument("--lazy", action="store_true", help="out of sight at once, gone when its last user is")

    status = command("status", "tell how many lists there are, how large, and what is wrong", _STATUS)
    status.add_argument("path", metavar="PATH", help="a store, or a mount or what is in it")
    status.add_argument("--json", action="store_true", help="one object with stable keys, sizes in bytes")

    check = command("check", "read every list of a store and tell all that is out of order", _CHECK)
    check.add_argument("store", metavar="STORE")
    check.add_argument("--repair", action="store_true", help="mend what can be mended without losing a list")
    check.add_argument("--json", action="store_true", help="one object with stable keys")

    convert = command("convert", "store every list in another codec, in place", _CONVERT)
    convert.add_argument("store", metavar="STORE")
    convert.add_argument("--codec", required=True, choices=CODEC_CHOICES[1:], help="gzip (format 2) or zstd (format 3)")

    import_ = command("import", "write the lists of a directory or an archive into a store", _IMPORT)
    import_.add_argument("store", metavar="STORE", help="made ready if it is empty")
    import_.add_argument("source", metavar="SOURCE", help="a directory, a tar archive, or - for standard input")
    import_.add_argument("--dry-run", action="store_true", help="tell what would be written, and write nothing")
    import_.add_argument("--json", action="store_true", help="one object with stable keys")

    sweep = command("sweep", "delete the lists of images that nobody declares any more", _SWEEP)
    sweep.add_argument("store", metavar="STORE")
    sweep.add_argument("--dry-run", action="store_true", help="tell what would go, and delete nothing")
    sweep.add_argument("--json", action="store_true", help="one object with stable keys, sizes in bytes")

    watch = command("watch", "tell what changes, as it changes", _WATCH)
    watch.add_argument("path", metavar="PATH", help="a store, or a mount or what is in it")
    watch.add_argument("--json", action="store_true", help="one object a line, as a mount's .changes has them")

    doctor = command("doctor", "tell what is wrong with this machine or pod, and how to mend it", _DOCTOR)
    doctor.add_argument("store", metavar="STORE", nargs="?", help="or, alone, a mount")
    doctor.add_argument("mountpoint", metavar="MOUNTPOINT", nargs="?")
    doctor.add_argument("--json", action="store_true", help="one object with stable keys")

    by_flag = {setting.flag: setting for setting in SETTINGS}
    for flag in SWEEP_FLAGS:
        _add(sweep, by_flag[flag])
    _add(import_, by_flag["codec"])
    for made in (convert, import_):
        _add(made, by_flag["storage-compression-threshold"])
    _add(watch, by_flag["namespace"])
    for flag in ("inventory", "kube-context", "watch-all-namespaces", "watch-namespace"):
        _add(doctor, by_flag[flag])
    for made in (status, check, convert, import_, sweep, watch):
        _add(made, by_flag["max-list-size"])
    for made in (unmount, status, check, convert, import_, sweep, watch, doctor):
        _add(made, by_flag["log-level"])

    help_ = command("help", "show this help, or that of a command", "")
    help_.add_argument("command", metavar="COMMAND", nargs="?", choices=[*commands.choices])
    return top


def _add(made: argparse.ArgumentParser, setting: Setting) -> None:
    flag = f"--{setting.flag}"
    if setting.metavar is None:
        names = (flag, "--allow-mass-deletion") if setting.flag == "sweep-allow-mass-deletion" else (flag,)
        made.add_argument(*names, dest=setting.field, action="store_const", const="1", help=setting.help)
        if setting.is_on:
            made.add_argument(f"--no-{setting.flag}", dest=setting.field, action="store_const", const="0")
    else:
        action = "append" if setting.is_list else "store"
        made.add_argument(flag, dest=setting.field, action=action, metavar=setting.metavar, help=setting.help)


def _variables() -> str:
    lines = [f"  {setting.variable:<38} --{setting.flag}" for setting in SETTINGS]
    return "environment (a flag wins; a switch is 1, 0, true or false; lists are comma-separated):\n" + "\n".join(lines)
