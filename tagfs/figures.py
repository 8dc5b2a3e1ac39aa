"""Figures: which figure is read from where, at the moment when somebody asks.  Async.

Owns: the names of metrics, each beside the owner of its figure.
Does not know: how an owner counts, what a metric's help says, HTTP.
"""

import os
import platform
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import trio

from tagfs import __version__
from tagfs.channel import Channel
from tagfs.commits import Commits
from tagfs.counting import Counting
from tagfs.errors import TagfsError
from tagfs.metrics import Figures
from tagfs.replacing import WritableTree
from tagfs.session import Session
from tagfs.settings import MountSettings
from tagfs.sweeper import Sweeper
from tagfs.timings import Distribution, Timings, result_name


@dataclass(slots=True)
class Owners:
    """Who has the figures of one mount; `counting` is there while a store is shown."""

    settings: MountSettings
    operations: Channel
    commits: Commits
    session: Session
    sweeper: Sweeper | None
    lag: Distribution
    timings: Timings = field(default_factory=Timings)
    logged: Mapping[str, int] = field(default_factory=dict)
    counting: Counting | None = None

    def figures(self) -> Figures:
        settings, session, commits = self.settings, self.session, self.commits
        timings = self.timings.seen()
        mode = "ro" if settings.read_only else "rw"
        found: Figures = {
            "tagfs_build_info": {(__version__, platform.python_version(), trio.__version__): 1},
            "tagfs_mount_info": {(settings.store, settings.mountpoint, mode): 1},
            "tagfs_store_ready": float(self.operations.waiting is None),
            "tagfs_requests_total": {
                (name, result_name(number)): count
                for name, timing in timings.items()
                for number, count in timing.results.items()
            },
            "tagfs_request_duration_seconds": {(name,): timing.durations for name, timing in timings.items()},
            "tagfs_notifications_total": session.notifier.sent,
            "tagfs_notifications_waiting": session.notifier.waiting,
            "tagfs_loop_lag_seconds": self.lag,
            "tagfs_log_messages_total": {(level,): count for level, count in self.logged.items()},
        }
        if not settings.read_only:
            found.update(
                {
                    "tagfs_commits_total": {(outcome,): count for outcome, count in commits.outcomes.items()},
                    "tagfs_commit_duration_seconds": commits.durations,
                    "tagfs_commits_in_flight": commits.in_flight,
                    "tagfs_commits_waiting": max(0, commits.depth - commits.in_flight),
                    "tagfs_commits_pending_bytes": commits.pending_bytes,
                }
            )
        for more in (self._space(), self._held(), self._swept(), _process()):
            found.update(more)
        return found

    def _space(self) -> Figures:
        tree = self.operations.tree
        found: Figures = {}
        if isinstance(tree, WritableTree):
            found = {"tagfs_staged_bytes": tree.budget.used, "tagfs_staged_limit_bytes": tree.budget.limit}
        if tree is None or self.operations.waiting is not None:
            return found
        try:
            space = tree.store.space()
        except (OSError, TagfsError):
            return found
        found.update(
            {
                "tagfs_store_size_bytes": space.f_blocks * space.f_frsize,
                "tagfs_store_available_bytes": space.f_bavail * space.f_frsize,
                "tagfs_store_files": space.f_files,
                "tagfs_store_available_files": space.f_favail,
            }
        )
        return found

    def _held(self) -> Figures:
        held = self.counting.figures if self.counting is not None else None
        if self.counting is None or held is None:
            return {}
        return {
            "tagfs_lists": held.lists,
            "tagfs_tags": held.tags,
            "tagfs_plain_bytes": held.plain_bytes,
            "tagfs_stored_bytes": held.stored_bytes,
            "tagfs_corrupt_lists": held.corrupt_lists,
            "tagfs_counted_timestamp_seconds": self.counting.counted_at,
        }

    def _swept(self) -> Figures:
        if self.sweeper is None:
            return {}
        counters, inventory = self.sweeper.counters, self.sweeper.inventory
        found: Figures = {
            "tagfs_sweeps_total": {
                ("done",): counters.sweeps,
                ("incomplete",): counters.incomplete,
                ("failed",): counters.failed,
            },
            "tagfs_sweep_duration_seconds": (counters.sweeps, counters.seconds),
            "tagfs_sweep_interval_seconds": self.settings.gc_interval,
            "tagfs_sweep_last_success_timestamp_seconds": _wall(counters.last_success),
            "tagfs_sweep_deletions_total": counters.deleted,
            "tagfs_sweep_departures_total": counters.departures,
            "tagfs_sweep_left_total": counters.left,
            "tagfs_sweep_errors_total": counters.errors,
            "tagfs_sweep_held_orphans": counters.held,
        }
        if inventory is not None:
            found.update(
                {
                    "tagfs_inventory_synced": float(inventory.is_synced),
                    "tagfs_inventory_last_complete_timestamp_seconds": _wall(inventory.last_complete),
                    "tagfs_inventory_watch_restarts_total": inventory.restarts,
                    "tagfs_api_throttled_total": {(by,): count for by, count in inventory.throttled.items()},
                }
            )
        return found


def _process() -> Figures:
    """This process, under the names that all exporters share (proc(5))."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    pages = Path("/proc/self/statm").read_text().split()
    # The name in parentheses may have spaces; the start is the 22nd field, in ticks since the machine began.
    begun = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return {
        "process_cpu_seconds_total": used.ru_utime + used.ru_stime,
        "process_resident_memory_bytes": int(pages[1]) * resource.getpagesize(),
        "process_virtual_memory_bytes": int(pages[0]) * resource.getpagesize(),
        "process_start_time_seconds": round(time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + begun, 1),
        "process_open_fds": _open_descriptors(),
        "process_max_fds": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }


def _open_descriptors() -> int:
    """Counted by the kernel since Linux 6.2: a read-only mount may have one for each list."""
    return os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd")) - 1


def _wall(at: float | None) -> float | None:
    """A moment of trio's clock, as seconds since 1970."""
    return None if at is None else round(time.time() - (trio.current_time() - at), 1)
