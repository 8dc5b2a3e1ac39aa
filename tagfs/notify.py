"""Notify: what a service manager is told: sd_notify(3), and what it asks for: a watchdog.  Blocking.

Owns: the socket and the protocol.
Does not know: what is told, or whether it is true.
A datagram that cannot be sent is lost: the service manager then acts on what it does not hear.
"""

import logging
import os
import socket
import time
from collections.abc import Mapping

log = logging.getLogger(__name__)

SOCKET, WATCHDOG_TIME, WATCHDOG_PROCESS = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"

READY, STOPPING, ALIVE = "READY=1", "STOPPING=1", "WATCHDOG=1"

STATUS_LIMIT = 500
"""Characters of a status."""


class ServiceManager:
    """The one that has started this process; none where the environment names no socket, and then nothing is told."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        path = environment.get(SOCKET, "")
        # "@": in the abstract namespace (unix(7)); other families are for virtual machines.
        self._address = "\0" + path[1:] if path.startswith("@") else path if path.startswith("/") else None

    def __bool__(self) -> bool:
        return self._address is not None

    def tell(self, *assignments: str) -> None:
        """Send assignments such as READY, in one datagram."""
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                sender.sendto("\n".join(assignments).encode(), self._address)
        except OSError as error:
            log.debug("the service manager was not told %s: %s", assignments, error)


def status(sentence: str) -> str:
    """The assignment of a sentence for a person."""
    return "STATUS=" + " ".join(sentence.split())[:STATUS_LIMIT]


def main_process(process: int) -> str:
    """The assignment that says which process is the service."""
    return f"MAINPID={process}"


def reloading() -> str:
    """The assignments that say that a reload has begun; READY ends it."""
    return f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}"


def watchdog_interval(environment: Mapping[str, str]) -> float | None:
    """Seconds between two signs of life that the service manager waits for; None: it waits for none from this
    process.  A sign every half or third of it is meant to be enough."""
    text = environment.get(WATCHDOG_TIME, "")
    process = environment.get(WATCHDOG_PROCESS, "")
    if not text.isdecimal() or int(text) == 0 or (process and process != str(os.getpid())):
        return None
    return int(text) / 1e6
