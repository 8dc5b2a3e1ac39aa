"""Metrics: every metric's name and help, and how figures become an exposition.  Pure.

Owns: names, kinds, labels, help; the text that Prometheus scrapes.
Does not know: every other module; who counts what.
Names follow https://prometheus.io/docs/practices/naming/: base units, `_total` for what only grows.

Format: the text format 0.0.4, which every Prometheus reads
(https://prometheus.io/docs/instrumenting/exposition_formats/).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

COUNTER, GAUGE, HISTOGRAM, SUMMARY = "counter", "gauge", "histogram", "summary"


@dataclass(frozen=True, slots=True)
class Description:
    """One metric: what it is called and what it tells."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()


METRICS = (
    # -- the mount
    Description(
        "tagfs_build_info", GAUGE, "Always 1; which tagfs this is, and on what it runs.", ("version", "python", "trio")
    ),
    Description(
        "tagfs_mount_info",
        GAUGE,
        "Always 1; what is mounted where. Mode is ro or rw.",
        ("store", "mountpoint", "mode"),
    ),
    Description(
        "tagfs_store_ready", GAUGE, "Whether the store is shown (1), or every name is answered with EAGAIN (0)."
    ),
    Description("tagfs_store_size_bytes", GAUGE, "Size of the file system beneath."),
    Description("tagfs_store_available_bytes", GAUGE, "What tagfs may still write there."),
    Description("tagfs_store_files", GAUGE, "Inodes of the file system beneath; 0 where it has no fixed number."),
    Description("tagfs_store_available_files", GAUGE, "Inodes that are free there."),
    # -- requests
    Description(
        "tagfs_requests_total",
        COUNTER,
        "Requests of the kernel that were answered; result is ok or an errno's name.",
        ("operation", "result"),
    ),
    Description(
        "tagfs_request_duration_seconds",
        HISTOGRAM,
        "From the start of a request's handler to its answer.",
        ("operation",),
    ),
    Description(
        "tagfs_notifications_total",
        COUNTER,
        "Changes that were pushed to the kernel, which forgets what it kept of them.",
    ),
    Description("tagfs_notifications_waiting", GAUGE, "Changes that are yet to be pushed to the kernel."),
    # -- commits
    Description(
        "tagfs_commits_total",
        COUNTER,
        "Steps that changed the store, or tried: done, refused (by what they found), failed (by the disk; the old list"
        " stays) or uncertain (readers see the new list, and it may not be durable).",
        ("result",),
    ),
    Description("tagfs_commit_duration_seconds", HISTOGRAM, "From its turn to its end, fsync included."),
    Description("tagfs_commits_in_flight", GAUGE, "Commits that threads are at work on."),
    Description("tagfs_commits_waiting", GAUGE, "Commits that wait for a thread, or for earlier ones of their list."),
    Description("tagfs_commits_pending_bytes", GAUGE, "Plain bytes of the lists in both."),
    Description("tagfs_staged_bytes", GAUGE, "What open writers and scratch files hold in memory."),
    Description("tagfs_staged_limit_bytes", GAUGE, "What they may hold; beyond it a write is answered with ENOSPC."),
    # -- what is stored: absent until it was counted
    Description("tagfs_lists", GAUGE, "Tag lists in the store; absent until they were counted, as are the next four."),
    Description("tagfs_tags", GAUGE, "Tags in them."),
    Description("tagfs_plain_bytes", GAUGE, "Size of the lists as the mount shows them."),
    Description("tagfs_stored_bytes", GAUGE, "Size of the lists as they are stored."),
    Description("tagfs_corrupt_lists", GAUGE, "Lists that cannot be read; counted, without tags, in tagfs_lists."),
    Description("tagfs_counted_timestamp_seconds", GAUGE, "When the store was last counted from end to end."),
    # -- the sweep
    Description(
        "tagfs_sweeps_total",
        COUNTER,
        "Sweeps: done, incomplete (the inventory could not be told, so nothing was deleted) or failed.",
        ("result",),
    ),
    Description("tagfs_sweep_duration_seconds", SUMMARY, "Of the sweeps that were done."),
    Description("tagfs_sweep_interval_seconds", GAUGE, "How often to sweep; 0: only when asked."),
    Description("tagfs_sweep_last_success_timestamp_seconds", GAUGE, "When a sweep last did all that it had to."),
    Description("tagfs_sweep_deletions_total", COUNTER, "Orphans that were deleted, by sweeps and as they departed."),
    Description("tagfs_sweep_departures_total", COUNTER, "Objects whose deletion was told as it happened."),
    Description("tagfs_sweep_left_total", COUNTER, "Orphans that were left for later, because they were written."),
    Description("tagfs_sweep_errors_total", COUNTER, "Orphans and namespaces that could not be deleted."),
    Description("tagfs_sweep_held_orphans", GAUGE, "Orphans that stay because a guard holds them."),
    Description("tagfs_inventory_synced", GAUGE, "Whether objects that depart are told as it happens."),
    Description(
        "tagfs_inventory_last_complete_timestamp_seconds", GAUGE, "When what ought to exist was last told completely."
    ),
    Description("tagfs_inventory_watch_restarts_total", COUNTER, "How often a watch of the cluster was begun again."),
    Description(
        "tagfs_api_throttled_total",
        COUNTER,
        "Requests that had to wait: by the client's own limit, or because the server asked for it.",
        ("by",),
    ),
    # -- the process
    Description(
        "tagfs_loop_lag_seconds",
        HISTOGRAM,
        "How much later than due the loop woke up, looked at once a second: what every request may wait.",
    ),
    Description("process_cpu_seconds_total", COUNTER, "Time on a processor, of the program and of the kernel for it."),
    Description("process_resident_memory_bytes", GAUGE, "Memory that is in use."),
    Description("process_virtual_memory_bytes", GAUGE, "Addresses that are in use."),
    Description("process_start_time_seconds", GAUGE, "When the process began, since 1970."),
    Description("process_open_fds", GAUGE, "Descriptors that are open."),
    Description("process_max_fds", GAUGE, "Descriptors that may be open."),
    Description("tagfs_log_messages_total", COUNTER, "Lines that were logged as warning or error.", ("level",)),
)

NAMES = {one.name: one for one in METRICS}

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Spread(Protocol):
    """A histogram's figures; one count more than bounds."""

    bounds: tuple[float, ...]
    counts: list[int]
    sum: float


Figure = float | Spread | tuple[int, float]
"""Of a summary: how many, and their sum."""

Figures = dict[str, Figure | Mapping[tuple[str, ...], Figure] | None]
"""Name -> its figure, or label values -> figure; None: not known now, and so absent."""


class Exposition:
    """Reads figures when it is scraped.

    Args:
        read: gives them; each is of a metric in METRICS.
    """

    def __init__(self, read: Callable[[], Figures]) -> None:
        self._read = read

    def text(self) -> bytes:
        """What Prometheus reads."""
        lines: list[str] = []
        for name, figure in self._read().items():
            if figure is not None:
                labelled: Mapping[tuple[str, ...], Figure] = figure if isinstance(figure, Mapping) else {(): figure}
                lines += _family(NAMES[name], labelled)
        # A path may be no UTF-8.
        return "\n".join([*lines, ""]).encode(errors="replace")


def _family(metric: Description, figures: Mapping[tuple[str, ...], Figure]) -> Iterator[str]:
    yield f"# HELP {metric.name} {_escaped(metric.help)}"
    yield f"# TYPE {metric.name} {metric.kind}"
    for values, figure in figures.items():
        labels = [f'{name}="{_escaped(value, quote=True)}"' for name, value in zip(metric.labels, values, strict=True)]
        for suffix, more, value in _samples(figure):
            shown = ",".join(labels + more)
            yield (
                f"{metric.name}{suffix}{{{shown}}} {_number(value)}"
                if shown
                else f"{metric.name}{suffix} {_number(value)}"
            )


def _samples(figure: Figure) -> Iterator[tuple[str, list[str], float]]:
    """(what follows the name, further labels, value) of each sample."""
    if isinstance(figure, int | float):
        yield "", [], figure
    elif isinstance(figure, tuple):
        yield "_count", [], figure[0]
        yield "_sum", [], figure[1]
    else:
        total = 0
        for bound, count in zip((*map(_number, figure.bounds), "+Inf"), figure.counts, strict=True):
            total += count
            yield "_bucket", [f'le="{bound}"'], total
        yield "_count", [], total
        yield "_sum", [], figure.sum


def _number(value: float) -> str:
    return repr(float(value)) if value % 1 else str(int(value))


def _escaped(text: str, quote: bool = False) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quote else text
