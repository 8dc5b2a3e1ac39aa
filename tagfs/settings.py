"""Settings: what a mount can be asked to do, and how it is asked.  Pure.

Owns: every setting of a mount, its flag, its variable, its values, its help.
Does not know: argparse, what was given, what a setting does.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tagfs import values

CODEC_CHOICES = ("auto", "gzip", "zstd")
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")

VARIABLE_PREFIX = "TAGFS_"


@dataclass(frozen=True, slots=True)
class MountSettings:
    """What one mount is asked to do.

    `threshold` and `list_limit` are bytes (their flags are in KiB and MiB); `namespaces` None shows all; `wait` is in
    seconds, None where the flag was not given: a read-only mount then waits for ever, a writer refuses at once.
    `gc_interval` is in seconds (its flag in minutes).  `tagfs sweep` has those from `inventory` on too.
    """

    store: str
    mountpoint: str
    read_only: bool = False
    codec: str = "auto"
    threshold: int = 4096
    list_limit: int = 64 << 20
    namespaces: frozenset[str] | None = None
    allow_other: bool = False
    make_mountpoint: bool = False
    uid: int | None = None
    gid: int | None = None
    wait: float | None = None
    wipe_foreign: bool = False
    fast_path: bool = True
    log_level: str = "info"
    log_format: str = "text"
    background: bool = False
    inventory: tuple[str, ...] = ()
    manifests_include: tuple[str, ...] = ()
    manifests_ignore: tuple[str, ...] = ()
    watch_all_namespaces: bool = True
    watch_namespaces: frozenset[str] = frozenset()
    watch_label_selector: str = ""
    kube_context: str | None = None
    kube_qps: float = 50.0
    kube_burst: int = 300
    gc_interval: float = 600.0
    max_percent: int = 50
    allow_empty_inventory: bool = False
    allow_mass_deletion: bool = False
    sweep_suspend: bool = False
    metrics_address: tuple[str, int] | None = None
    health_address: tuple[str, int] | None = None
    drop_privileges: bool = False
    drop_user: str | None = None
    device: int | None = None
    """A descriptor of /dev/fuse that somebody else has mounted, and will unmount; no setting."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as a person gives it.

    `parse` turns the text of a flag, an option or a variable into the value of `field`, and raises ValueError with
    what to give instead.  A switch has no `metavar`; one that `is_on` by default has a flag with `no-` before it, too.
    """

    flag: str
    field: str
    parse: Callable[[str], object]
    metavar: str | None
    help: str
    is_list: bool = False
    is_on: bool = False

    @property
    def variable(self) -> str:
        return VARIABLE_PREFIX + self.flag.upper().replace("-", "_")


SETTINGS = (
    Setting(
        "read-only", "read_only", values.switch, None, "never write to the store, take no lock, show what changes in it"
    ),
    Setting(
        "codec",
        "codec",
        values.choice(CODEC_CHOICES),
        "CODEC",
        "how lists are stored: auto (default; zstd in a new store, what a store's format allows in another), "
        "gzip (keeps a store that Flux can share), zstd (upgrades a store of Flux's to format 3)",
    ),
    Setting(
        "storage-compression-threshold",
        "threshold",
        values.size(1 << 10, "KiB"),
        "KIB",
        "store lists of at least this size compressed (default 4; Flux's flag of this name has 64)",
    ),
    Setting(
        "max-list-size", "list_limit", values.size(1 << 20, "MiB"), "MIB", "refuse lists larger than this (default 64)"
    ),
    Setting(
        "namespace", "namespaces", values.namespaces, "NS", "show only this namespace; repeat it for more", is_list=True
    ),
    Setting("allow-other", "allow_other", values.switch, None, "let other users read the mount"),
    Setting(
        "make-mountpoint",
        "make_mountpoint",
        values.switch,
        None,
        "make MOUNTPOINT where it is missing; it stays when the mount has ended",
    ),
    Setting("uid", "uid", values.numeric_id, "UID", "numeric owner of what is shown (default: who runs tagfs)"),
    Setting("gid", "gid", values.numeric_id, "GID", "numeric group of what is shown (default: who runs tagfs)"),
    Setting(
        "wait",
        "wait",
        values.seconds,
        "SECONDS",
        "how long to wait for the store: --read-only waits until it is prepared (default: for ever), a writer until "
        "another one lets go of it (default: 0)",
    ),
    Setting(
        "wipe-foreign",
        "wipe_foreign",
        values.switch,
        None,
        "DELETE whatever is in STORE where it is no tag store, and make one of it",
    ),
    Setting(
        "fast-path",
        "fast_path",
        values.switch,
        None,
        "answer the kernel directly (default), or through libfuse, which is slower",
        is_on=True,
    ),
    Setting("log-level", "log_level", values.choice(LOG_LEVELS), "LEVEL", "debug, info (default), warning or error"),
    Setting("log-format", "log_format", values.choice(LOG_FORMATS), "FORMAT", "text (default) or json"),
    Setting("background", "background", values.switch, None, "return once the mount answers, log to the system's log"),
    Setting(
        "inventory",
        "inventory",
        values.sources,
        "SOURCE",
        "what ought to exist, so that other lists are swept away: kubernetes (the ImageRepository objects of a "
        "cluster), or manifests:PATH (those in a tree of YAML files; repeat it for more trees)",
        is_list=True,
    ),
    Setting(
        "manifests-include",
        "manifests_include",
        values.patterns,
        "GLOB",
        "of the manifests, only files that match; relative to PATH, repeat it for more",
        is_list=True,
    ),
    Setting(
        "manifests-ignore",
        "manifests_ignore",
        values.patterns,
        "GLOB",
        "of the manifests, no file or directory that matches, such as templates",
        is_list=True,
    ),
    Setting(
        "watch-all-namespaces",
        "watch_all_namespaces",
        values.switch,
        "BOOL",
        "of the cluster, objects in all namespaces (default true); false: in that of the variable RUNTIME_NAMESPACE",
    ),
    Setting(
        "watch-namespace",
        "watch_namespaces",
        values.namespaces,
        "NS",
        "of the cluster, objects in this namespace only; repeat it for more",
        is_list=True,
    ),
    Setting(
        "watch-label-selector",
        "watch_label_selector",
        values.selector,
        "SELECTOR",
        "of the cluster, objects with these labels only, as Flux shards: sharding.fluxcd.io/key=shard1",
    ),
    Setting(
        "kube-context",
        "kube_context",
        values.name,
        "NAME",
        "the context of the kubeconfig (default: of a pod its own cluster, else the current context)",
    ),
    Setting("kube-api-qps", "kube_qps", values.rate, "QPS", "requests a second to the cluster (default 50)"),
    Setting("kube-api-burst", "kube_burst", values.count, "N", "requests at once to the cluster (default 300)"),
    Setting(
        "gc-interval",
        "gc_interval",
        values.minutes,
        "MINUTES",
        "how often to sweep (default 10); 0 disables it; SIGUSR1 sweeps now",
    ),
    Setting(
        "sweep-max-percent",
        "max_percent",
        values.percent,
        "PERCENT",
        "hold a mass deletion: at most this share of a store of more than 20 lists goes within an hour (default 50)",
    ),
    Setting(
        "sweep-allow-empty-inventory",
        "allow_empty_inventory",
        values.switch,
        None,
        "delete every list where nothing at all ought to exist",
    ),
    Setting("sweep-allow-mass-deletion", "allow_mass_deletion", values.switch, None, "hold no mass deletion"),
    Setting("sweep-suspend", "sweep_suspend", values.switch, None, "say what would be swept, and delete nothing"),
    Setting(
        "metrics-addr",
        "metrics_address",
        values.address,
        "HOST:PORT",
        "tell Prometheus figures there, at /metrics (default: not at all; :9180 is every interface)",
    ),
    Setting(
        "health-addr",
        "health_address",
        values.address,
        "HOST:PORT",
        "tell there, at /healthz and /readyz, whether the mount answers and shows its store (default: not at all)",
    ),
    Setting(
        "drop-privileges",
        "drop_privileges",
        values.switch,
        None,
        "mount, and let a process that may nothing else serve: as nobody, without capabilities",
    ),
    Setting(
        "drop-user",
        "drop_user",
        values.name,
        "USER",
        "serve as this user instead: a name, UID or UID:GID, whose store it is (-o setuid=USER, too)",
    ),
)
