"""The exposition: valid, whole, and named as Prometheus would have it."""

import re
import shutil
import subprocess

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tagfs.metrics import COUNTER, HISTOGRAM, METRICS, NAMES, SUMMARY, Exposition, Figure, Figures
from tagfs.timings import Distribution

ODD = 'a "path\\n"\n of é, {x="1"}'
"""A label's value that has to be escaped."""


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
        found[metric.name] = {tuple(ODD + label for label in metric.labels): figure} if metric.labels else figure
    return found


def text_of(figures: Figures) -> str:
    return Exposition(lambda: figures).text().decode()


def test_every_metric_has_a_name_of_its_own_and_a_help() -> None:
    assert len(NAMES) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"(tagfs|process)_[a-z_]+", metric.name)
        assert metric.help.endswith(".")
        assert metric.name.endswith("_total") == (metric.kind == COUNTER)


def test_prometheus_own_parser_reads_all_of_them() -> None:
    families = {family.name: family for family in text_string_to_metric_families(text_of(every_figure()))}
    assert len(families) == len(METRICS)
    for metric in METRICS:
        family = families[metric.name.removesuffix("_total") if metric.kind == COUNTER else metric.name]
        assert (family.type, family.documentation) == (metric.kind, metric.help)
        for sample in family.samples:
            assert {name: value for name, value in sample.labels.items() if name != "le"} == {
                label: ODD + label for label in metric.labels
            }


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
    assert found == [("0.1", "1"), ("1", "2"), ("+Inf", "3"), ("", "3"), ("", "5.55")]


def test_what_is_not_known_is_absent_and_not_zero() -> None:
    assert "tagfs_tags" not in text_of({"tagfs_tags": None, "tagfs_lists": 3})


def test_a_path_that_is_no_utf_8_is_told_as_far_as_it_is() -> None:
    exposition = Exposition(lambda: {"tagfs_mount_info": {("/st\udcffore", "/mnt", "ro"): 1}})
    assert b'store="/st?ore"' in exposition.text()


def test_a_figure_without_a_metric_is_a_defect() -> None:
    with pytest.raises(KeyError, match="tagfs_nothing"):
        text_of({"tagfs_nothing": 1})


def test_nothing_is_read_before_somebody_asks() -> None:
    asked: list[int] = []

    def read() -> Figures:
        asked.append(1)
        return {}

    exposition = Exposition(read)
    assert not asked
    exposition.text()
    exposition.text()
    assert len(asked) == 2
