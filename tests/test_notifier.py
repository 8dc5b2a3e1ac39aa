"""The notifier: order, errors, its end."""

import logging
import threading

import pytest

from tagfs.notifier import Notifier
from tagfs.view import Invalidation


class Kernel:
    """Takes notifications, and answers some with errors."""

    def __init__(self) -> None:
        self.told: list[tuple[int, bytes | None]] = []
        self.threads: set[int] = set()
        self.errors: dict[int, Exception] = {}
        self.gate = threading.Event()
        self.gate.set()

    def entry(self, id_: int, name: bytes) -> None:
        self._take(id_, name)

    def attributes(self, id_: int) -> None:
        self._take(id_, None)

    def _take(self, id_: int, name: bytes | None) -> None:
        assert self.gate.wait(timeout=60)
        self.threads.add(threading.get_ident())
        self.told.append((id_, name))
        if id_ in self.errors:
            raise self.errors[id_]


def notifier(kernel: Kernel) -> Notifier:
    return Notifier(kernel.entry, kernel.attributes)


async def test_all_is_sent_in_order_from_another_thread() -> None:
    kernel = Kernel()
    one = notifier(kernel)
    kernel.gate.clear()
    one.send([Invalidation(2, b"a"), Invalidation(2)])  # does not wait for the kernel
    one.send(Invalidation(3, b"%d" % number) for number in range(100))
    kernel.gate.set()
    await one.close()
    assert kernel.told == [(2, b"a"), (2, None), *((3, b"%d" % number) for number in range(100))]
    assert threading.get_ident() not in kernel.threads


async def test_it_says_how_much_is_yet_to_be_sent() -> None:
    kernel = Kernel()
    kernel.errors = {3: FileNotFoundError(2, "No such file")}
    one = notifier(kernel)
    kernel.gate.clear()
    one.send([Invalidation(2, b"a"), Invalidation(3)])
    one.send([])
    one.send([Invalidation(2)])
    assert (one.waiting, one.sent) == (3, 0)
    kernel.gate.set()
    await one.close()
    assert (one.waiting, one.sent) == (0, 2)


async def test_what_the_kernel_does_not_know_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    kernel = Kernel()
    kernel.errors = {2: FileNotFoundError(2, "No such file"), 3: OSError(107, "not connected")}
    one = notifier(kernel)
    one.send([Invalidation(2, b"a"), Invalidation(3), Invalidation(4)])
    await one.close()
    assert [id_ for id_, _ in kernel.told] == [2, 3, 4]
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


async def test_a_defect_does_not_silence_the_notifications_after_it(caplog: pytest.LogCaptureFixture) -> None:
    kernel = Kernel()
    kernel.errors = {2: ValueError("a defect")}
    one = notifier(kernel)
    one.send([Invalidation(2), Invalidation(3)])
    await one.close()
    assert kernel.told == [(2, None), (3, None)]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert caplog.records[0].exc_info is not None


async def test_closing_twice_or_unused_is_no_error_and_it_can_be_used_again() -> None:
    kernel = Kernel()
    one = notifier(kernel)
    await one.close()
    one.send([Invalidation(2)])
    await one.close()
    await one.close()
    one.send([Invalidation(3)])
    await one.close()
    assert kernel.told == [(2, None), (3, None)]
