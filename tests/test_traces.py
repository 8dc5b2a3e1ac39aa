"""Traces: touched things are remembered for as long as somebody needs it, and no longer."""

from tagfs.traces import KEPT, Traces


def test_what_was_touched_since_is_told() -> None:
    traces: Traces[str] = Traces()
    traces.touch("a", 1.0)
    traces.touch("b", 2.0)
    assert traces.is_touched("a", 1.0)
    assert not traces.is_touched("a", 1.5)
    assert not traces.is_touched("c", 0.0)
    traces.touch("a", 3.0)
    assert traces.is_touched("a", 2.5)


def test_old_traces_are_forgotten() -> None:
    traces: Traces[int] = Traces()
    for number in range(1000):
        traces.touch(number, float(number))
    assert len(traces) == KEPT + 1
    assert traces.is_touched(999 - int(KEPT), 0.0)


def test_a_sweep_forgets_nothing_since_its_begin() -> None:
    traces: Traces[int] = Traces()
    traces.touch(-1, 0.0)
    with traces.kept(5.0):
        for number in range(5, 1000):
            traces.touch(number, float(number))
        assert all(traces.is_touched(number, 5.0) for number in range(5, 1000))
        assert not traces.is_touched(-1, 0.0)
    traces.touch(2000, 2000.0)
    assert len(traces) == 1
