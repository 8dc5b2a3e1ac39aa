"""The exposition: valid, whole, and named as Prometheus would have it."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as text_metrics

from tagfs.metrics import COUNTER, HISTOGRAM, METRICS, NAMES, PROCESS_METRICS, SUMMARY, Exposition, Figure, Figures
from tagfs.timings import Distribution

PROJECT = Path(__file__).parent.parent


def every_figure() -> Figures:
    """One figure of each metric that there is."""
    spread = Distribution((0.1, 1.0))
    for value in (0.05, 0.5, 5.0):
        spread.note(value)
    found: Figures = {}
    for number, metric in enumerate(METRICS):
        figure: Figure = float(number)
        if metric.kind == HISTOGRAM:
            figure = spread
        elif metric.kind == SUMMARY:
            figure = (2, 3.0)
        found[metric.name] = {tuple(f'{label}"\n' for label in metric.labels): figure} if metric.labels else figure
    return found


def text_of(figures: Figures, accept: str = "") -> str:
    return Exposition(lambda: figures).text(accept)[0].decode()


def test_every_metric_has_a_name_of_its_own_and_a_help() -> None:
    assert len(NAMES) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"tagfs_[a-z_]+", metric.name)
        assert metric.help.endswith(".")
        assert metric.name.endswith("_total") == (metric.kind == COUNTER)


@pytest.mark.parametrize(
    ("accept", "parse", "content_type"),
    [
        ("", text_metrics, "text/plain"),
        ("application/openmetrics-text; version=1.0.0,text/plain;q=0.5", open_metrics, "application/openmetrics-text"),
    ],
)
def test_all_of_them_are_told_in_a_format_that_is_understood(
    accept: str, parse: Callable[[str], object], content_type: str
) -> None:
    body, told_type = Exposition(every_figure).text(accept)
    assert told_type.startswith(content_type)
    families = {family.name: family for family in parse(body.decode())}  # type: ignore[attr-defined]
    for metric in METRICS:
        family = families[metric.name.removesuffix("_total") if metric.kind == COUNTER else metric.name]
        assert family.documentation == metric.help
        assert family.samples


def test_promtool_finds_nothing_to_improve() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("there is no promtool")
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text_of(every_figure()), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_histogram_is_cumulated() -> None:
    text = text_of({"tagfs_loop_lag_seconds": every_figure()["tagfs_loop_lag_seconds"]})
    found = re.findall(r'^tagfs_loop_lag_seconds_(?:bucket\{le="([^"]+)"\}|(?:count|sum)) (\S+)$', text, re.MULTILINE)
    assert found == [("0.1", "1.0"), ("1.0", "2.0"), ("+Inf", "3.0"), ("", "3.0"), ("", "5.55")]


def test_what_is_not_known_is_absent_and_not_zero() -> None:
    assert "tagfs_tags" not in text_of({"tagfs_tags": None, "tagfs_lists": 3})


def test_a_figure_without_a_metric_is_a_defect() -> None:
    with pytest.raises(KeyError, match="tagfs_nothing"):
        text_of({"tagfs_nothing": 1})


def test_the_process_is_told_under_the_usual_names() -> None:
    names = {family.name for family in text_metrics(text_of({}))}
    assert {name.removesuffix("_total") for name in PROCESS_METRICS} <= {name.removesuffix("_total") for name in names}


def test_nothing_is_read_before_somebody_asks() -> None:
    asked: list[int] = []

    def read() -> Figures:
        asked.append(1)
        return {}

    exposition = Exposition(read)
    assert not asked
    exposition.text("")
    exposition.text("")
    assert len(asked) == 2
