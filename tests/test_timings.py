"""What is counted of requests, and that nobody pays who did not ask."""

import errno

import pytest

from tagfs.timings import DONE, Distribution, Timings, result_name


class Adapter:
    """Handlers as an adapter has them."""

    async def lookup(self, name: str) -> str:
        if name == "absent":
            raise OSError(errno.ENOENT, "no such list")
        if name == "defect":
            raise ValueError(name)
        return name.upper()

    async def _quiet(self) -> None: ...

    def stacktrace(self) -> None: ...


def test_a_value_falls_into_the_bucket_whose_bound_it_does_not_exceed() -> None:
    spread = Distribution((1.0, 10.0))
    for value in (0.5, 1.0, 1.5, 10.0, 11.0):
        spread.note(value)
    assert spread.counts == [2, 2, 1]
    assert spread.sum == 24.0


async def test_answers_pass_through_and_are_counted_by_result() -> None:
    adapter, timings = Adapter(), Timings()
    timings.measure(adapter)
    assert await adapter.lookup("web") == "WEB"
    assert await adapter.lookup("api") == "API"
    with pytest.raises(OSError, match="no such list"):
        await adapter.lookup("absent")
    with pytest.raises(ValueError, match="defect"):
        await adapter.lookup("defect")
    timing = timings.seen()["lookup"]
    assert timing.results == {DONE: 2, errno.ENOENT: 1, errno.EIO: 1}
    assert sum(timing.durations.counts) == 4
    assert timing.durations.sum > 0


def test_only_handlers_are_measured_and_only_of_that_adapter() -> None:
    adapter, other = Adapter(), Adapter()
    Timings().measure(adapter)
    assert set(vars(adapter)) == {"lookup"}
    assert not vars(other)


def test_what_was_not_asked_for_is_not_told() -> None:
    timings = Timings()
    timings.measure(Adapter())
    assert timings.seen() == {}
    timings.of("read").note(0.1, errno.EIO)
    assert timings.seen()["read"].results == {DONE: 0, errno.EIO: 1}


def test_a_result_is_called_by_its_errno() -> None:
    assert result_name(DONE) == "ok"
    assert result_name(errno.ENOSPC) == "ENOSPC"
    assert result_name(9999) == "9999"
