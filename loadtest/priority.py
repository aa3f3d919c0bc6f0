"""Schedules the client of a load test before all other processes of its machine."""

from __future__ import annotations

import os


def go_first() -> bool:
    """Schedules this process, the client, before all others.

    A client usually runs on another machine. On this one, engines that spin would keep the client from reading its
    clock and from sending in time. Threads and processes that the client starts do not inherit the priority.

    Returns:
        Whether the machine allowed it. It does for root.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except PermissionError:
        return False
    return True
