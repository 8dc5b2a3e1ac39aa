"""Alerts and dashboard: they ask for metrics that exist, promtool agrees, and a real Prometheus fires them."""

import json
import re
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tagfs.metrics import HISTOGRAM, METRICS, SUMMARY
from tests.conftest import MakeDaemon
from tests.support.daemon import PATIENCE, eventually
from tests.support.programs import tags
from tests.support.scrape import WATCHED, ClusterThread, Watched
from tests.support.volumes import tmpfs

PROJECT = Path(__file__).parent.parent
RULES = PROJECT / "deploy" / "monitoring" / "tagfs.rules.yaml"
DASHBOARD = PROJECT / "deploy" / "monitoring" / "grafana-dashboard.json"
SCRAPING = PROJECT / "deploy" / "monitoring" / "prometheus.yaml"
PROMTOOL_TESTS = PROJECT / "tests" / "monitoring" / "alerts.yaml"

SCRAPED = {"up"}
"""What Prometheus itself adds to each target."""

_METRIC = re.compile(r"\b(?:tagfs|process)_[a-z_]+\b|\bup\b")


def series() -> set[str]:
    """Every name under which Prometheus keeps what a mount tells."""
    found = set(SCRAPED)
    for metric in METRICS:
        parts = {HISTOGRAM: ("_bucket", "_sum", "_count"), SUMMARY: ("_sum", "_count")}.get(metric.kind, ("",))
        found |= {metric.name + part for part in parts}
    return found


def labels_of(name: str) -> set[str]:
    base = {"job", "instance", "le"}
    for metric in METRICS:
        if name in (metric.name, *(f"{metric.name}_{part}" for part in ("bucket", "sum", "count"))):
            return base | set(metric.labels)
    return base


def alerts() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def expressions() -> dict[str, str]:
    """Where it is asked -> the query."""
    found = {name: rule["expr"] for name, rule in alerts().items()}
    for panel in panels():
        for target in panel["targets"]:
            found[f"panel {panel['title']} {target['refId']}"] = target["expr"]
    for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]:
        if variable["type"] == "query":
            found[f"variable {variable['name']}"] = variable["query"]["query"]
    return found


@pytest.mark.parametrize("where", sorted(expressions()))
def test_what_is_asked_for_exists(where: str) -> None:
    expression = expressions()[where]
    named = set(_METRIC.findall(expression))
    assert named, expression
    assert named <= series(), named - series()
    for name, selector in re.findall(r"([a-z_]+)\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)\s*[=!]", selector)) <= labels_of(name), expression


def test_every_metric_is_asked_for() -> None:
    """What nobody looks at need not be told."""
    asked = {name for expression in expressions().values() for name in _METRIC.findall(expression)}
    for metric in METRICS:
        if metric.name.startswith("tagfs_"):
            assert any(name.startswith(metric.name) for name in asked), metric.name


def test_every_alert_is_a_page_or_a_ticket_with_a_summary() -> None:
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in ("page", "ticket"), name
        assert "$labels.instance" in rule["annotations"]["summary"], name
        path, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert f"## {anchor.capitalize()}\n" in (PROJECT / path).read_text(), name


def test_every_alert_has_its_row_in_operations() -> None:
    text = (PROJECT / "docs" / "operations.md").read_text()
    assert sorted(re.findall(r"^\| `(Tagfs\w+)` \| (?:page|ticket) \|", text, re.MULTILINE)) == sorted(alerts())
    for name, rule in alerts().items():
        assert f"| `{name}` | {rule['labels']['severity']} |" in text


def test_panels_do_not_overlap_and_are_told_apart() -> None:
    titles = [panel["title"] for panel in panels()]
    assert len(set(titles)) == len(titles)
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


# -- promtool and Prometheus


def require(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"there is no {program}")
    return path


@pytest.mark.parametrize("arguments", [("check", "rules", RULES), ("test", "rules", PROMTOOL_TESTS)])
def test_promtool_agrees(arguments: tuple[str | Path, ...]) -> None:
    done = subprocess.run([require("promtool"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


def test_promtool_agrees_with_how_it_is_scraped(tmp_path: Path) -> None:
    config = yaml.safe_load(SCRAPING.read_text())
    for job in config["scrape_configs"]:
        assert re.fullmatch("tagfs.*", job["job_name"]), "TagfsDown asks for it"
        # Debian builds its Prometheus without the discovery of pods; of that job the rest is checked.
        job.pop("kubernetes_sd_configs", None)
    (tmp_path / RULES.name).write_text(RULES.read_text())
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
    command = [require("promtool"), "check", "config", str(tmp_path / "prometheus.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_ports_that_are_scraped_are_those_of_the_manifests() -> None:
    [named] = re.findall(r"container_port_name\], regex: ([\w-]+)", SCRAPING.read_text())
    manifests = [path.read_text() for path in (PROJECT / "deploy").rglob("*.yaml") if path.parent != RULES.parent]
    exposing = [text for text in manifests if "--metrics-addr=" in text]
    assert exposing
    assert all(f"name: {named}, containerPort: 9180" in text for text in exposing)


def test_every_alert_is_tested_by_promtool() -> None:
    tests = yaml.safe_load(PROMTOOL_TESTS.read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} >= set(alerts())
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == set(alerts())


class Prometheus:
    """A real one, which scrapes each second and does not wait before it fires."""

    def __init__(self, directory: Path, watched: Watched) -> None:
        directory.mkdir()
        self._directory = directory
        rules = yaml.safe_load(RULES.read_text())
        for group in rules["groups"]:
            for rule in group["rules"]:
                # How long each has to hold is promtool's part; here seconds have to do.
                rule["for"] = "0s"
                rule["expr"] = re.sub(r"\[\d+[mh]\]", "[10s]", rule["expr"])
        (directory / "rules.yaml").write_text(yaml.safe_dump(rules))
        target = f"127.0.0.1:{watched.port('/metrics')}"
        config = {
            "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [{"job_name": "tagfs", "static_configs": [{"targets": [target]}]}],
        }
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.port = 0

    @contextmanager
    def running(self) -> Iterator["Prometheus"]:
        with (self._directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    require("prometheus"),
                    "--config.file=prometheus.yml",
                    "--storage.tsdb.path=tsdb",
                    "--web.listen-address=127.0.0.1:0",
                    "--log.level=debug",
                ],
                cwd=self._directory,
                stderr=log,
                stdout=log,
            )
        try:
            eventually(lambda: self._is_ready(process), "Prometheus to be ready", patience=60)
            yield self
        finally:
            process.terminate()
            process.wait()

    def _is_ready(self, process: "subprocess.Popen[bytes]") -> bool:
        text = (self._directory / "log").read_text()
        assert process.poll() is None, text
        found = re.search(r'msg="Listening on" address=127\.0\.0\.1:(\d+)', text)
        if found is None:
            return False
        self.port = int(found[1])
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=PATIENCE) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as error:
            error.close()
            return False

    def ask(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/{path}?{query}", timeout=PATIENCE) as answer:
            return json.load(answer)["data"]

    def firing(self) -> set[str]:
        return {one["labels"]["alertname"] for one in self.ask("alerts")["alerts"] if one["state"] == "firing"}

    def value(self, expression: str) -> float | None:
        result = self.ask("query", query=expression)["result"]
        return float(result[0]["value"][1]) if result else None


@pytest.mark.mount
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_real_prometheus_fires_when_the_disk_is_full_and_the_cluster_gone(
    daemons: MakeDaemon, tmp_path: Path
) -> None:
    require("prometheus")
    with tmpfs(tmp_path, "size=512k") as volume, ClusterThread(tmp_path / "cluster") as cluster:
        daemon = daemons(
            *WATCHED,
            *cluster.flags,
            "--gc-interval",
            "0",
            store=volume / "store",
            start=False,
            expected=("No space left", "cannot be followed", "not committed"),
        )
        daemon.environment = cluster.environment
        watched = Watched(daemon.start())
        with Prometheus(tmp_path / "prometheus", watched).running() as prometheus:
            eventually(lambda: prometheus.value("tagfs_inventory_synced") == 1, patience=60)
            eventually(lambda: prometheus.value("tagfs_lists") == 0)
            for number in range(20):
                daemon.make(f"web{number}").write_text(tags(100))
            eventually(lambda: prometheus.value("tagfs_tags") == 2000)
            assert prometheus.firing() == set()

            (volume / "ballast").write_bytes(bytes(volume_left(volume)))
            eventually(lambda: "TagfsDiskFull" in prometheus.firing(), "the disk is full", patience=60)
            with pytest.raises(OSError, match="No space left"):
                daemon.make("large").write_text(tags(3000))
            eventually(lambda: "TagfsErrorsLogged" in prometheus.firing(), patience=60)
            assert daemon.list_path("web1").read_text() == tags(100)
            (volume / "ballast").unlink()
            daemon.make("large").write_text(tags(3000))
            eventually(lambda: not prometheus.firing() & {"TagfsDiskFull", "TagfsErrorsLogged"}, patience=60)

            cluster.stop()
            eventually(lambda: "TagfsInventoryLost" in prometheus.firing(), "the cluster is gone", patience=60)
            cluster.start()
            eventually(lambda: "TagfsInventoryLost" not in prometheus.firing(), patience=60)

            daemon.kill()
            eventually(lambda: "TagfsDown" in prometheus.firing(), "the daemon is gone", patience=60)


def volume_left(path: Path) -> int:
    """Bytes that fill it."""
    return shutil.disk_usage(path).free
