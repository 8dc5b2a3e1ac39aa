"""Metrics: every metric's name and help, and how figures become an exposition.  Pure.

Owns: names, kinds, labels, help; the text that Prometheus scrapes.
Does not know: every other module; who counts what.
Names follow https://prometheus.io/docs/practices/naming/: base units, `_total` for what only grows.

Imported only by a mount that exposes metrics: prometheus_client takes some megabytes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

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
    Description("tagfs_commit_duration_seconds", HISTOGRAM, "In the thread, fsync included; waiting for it is not."),
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
    Description("tagfs_log_messages_total", COUNTER, "Lines that were logged as warning or error.", ("level",)),
)

NAMES = {one.name: one for one in METRICS}

PROCESS_METRICS = (
    "process_virtual_memory_bytes",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_cpu_seconds_total",
    "process_open_fds",
    "process_max_fds",
)
"""What prometheus_client adds, under the names that all exporters share."""


class Spread(Protocol):
    """A histogram's figures; one count more than bounds."""

    bounds: tuple[float, ...]
    counts: list[int]
    sum: float


Figure = float | Spread | tuple[int, float]
"""Of a summary: how many, and their sum."""

Figures = dict[str, Figure | Mapping[tuple[str, ...], Figure] | None]
"""Name -> its figure, or label values -> figure; None: not known now, and so absent."""


class Exposition(Collector):
    """Reads figures when it is scraped.

    Args:
        read: gives them; each is of a metric in METRICS.
    """

    def __init__(self, read: Callable[[], Figures]) -> None:
        self._read = read
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def describe(self) -> Iterator[Metric]:
        """Nothing: figures are not read before they are asked for."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        for name, figure in self._read().items():
            if figure is not None:
                labelled: Mapping[tuple[str, ...], Figure] = figure if isinstance(figure, Mapping) else {(): figure}
                yield _family(NAMES[name], labelled)

    def text(self, accept: str) -> tuple[bytes, str]:
        """The exposition, and its content type, in the format that suits the header Accept best."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


def _family(metric: Description, figures: Mapping[tuple[str, ...], Figure]) -> Metric:
    if metric.kind == HISTOGRAM:
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, figure in figures.items():
            assert not isinstance(figure, int | float | tuple)
            histogram.add_metric(labels, _cumulated(figure), figure.sum)
        return histogram
    if metric.kind == SUMMARY:
        summary = SummaryMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, figure in figures.items():
            assert isinstance(figure, tuple)
            summary.add_metric(labels, figure[0], figure[1])
        return summary
    kind = CounterMetricFamily if metric.kind == COUNTER else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=metric.labels)
    for labels, figure in figures.items():
        assert isinstance(figure, int | float)
        family.add_metric(labels, figure)
    return family


def _cumulated(spread: Spread) -> Sequence[tuple[str, float]]:
    total, buckets = 0, []
    for bound, count in zip((*(repr(bound) for bound in spread.bounds), "+Inf"), spread.counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets
