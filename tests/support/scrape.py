"""What machines see of a daemon: its metrics and its health, read over HTTP as they would."""

import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

import trio
from prometheus_client.parser import text_string_to_metric_families

from tagfs.names import RepositoryKey
from tests.support.daemon import PATIENCE, Daemon
from tests.support.fake_api import FakeCluster, fake_cluster

WATCHED = ("--metrics-addr", "127.0.0.1:0", "--health-addr", "127.0.0.1:0")
"""Flags of a mount that machines look after; the daemon's log says which ports it has."""

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass
class Watched:
    """A daemon with WATCHED."""

    daemon: Daemon

    def port(self, path: str) -> int:
        line = self.daemon.await_message(rf"^listening on port \d+: .*{path}")
        return int(re.findall(r"\d+", line)[0])

    def get(self, path: str, patience: float = PATIENCE) -> tuple[int, str]:
        """(status, body)."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port(path)}{path}", timeout=patience) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def samples(self) -> Samples:
        status, text = self.get("/metrics")
        assert status == 200
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        return self.samples().get((name, frozenset(labels.items())))


class ClusterThread:
    """The fake API server beside a test that is no coroutine; `flags` and `environment` let a daemon use it."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self._directory = directory
        self._thread = Thread(target=trio.run, args=(self._serve,))
        self._is_up = Event()
        self._over: trio.Event
        self._token: trio.lowlevel.TrioToken
        self.cluster: FakeCluster

    flags = ("--inventory", "kubernetes")

    @property
    def environment(self) -> dict[str, str]:
        config = self._directory / "kubeconfig"
        config.write_text(
            f"current-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
            f"clusters: [{{name: c, cluster: {{server: {self.cluster.url!r}}}}}]\n"
            f"users: [{{name: u, user: {{tokenFile: {str(self._directory / 'token')!r}}}}}]\n"
        )
        return {"KUBECONFIG": str(config)}

    def __enter__(self) -> "ClusterThread":
        self._thread.start()
        assert self._is_up.wait(PATIENCE)
        return self

    def __exit__(self, *exc: object) -> None:
        trio.from_thread.run_sync(self._over.set, trio_token=self._token)
        self._thread.join(PATIENCE)

    def create(self, *keys: RepositoryKey) -> None:
        trio.from_thread.run(self.cluster.create, keys, trio_token=self._token)

    def stop(self) -> None:
        """The API server goes."""
        trio.from_thread.run(self.cluster.stop, trio_token=self._token)

    def start(self) -> None:
        trio.from_thread.run(self.cluster.start, trio_token=self._token)

    async def _serve(self) -> None:
        self._over, self._token = trio.Event(), trio.lowlevel.current_trio_token()
        async with fake_cluster(self._directory) as self.cluster:
            self._is_up.set()
            await self._over.wait()
