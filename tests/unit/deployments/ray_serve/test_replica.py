"""The log of refused calls, and the frozen heap of a replica."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from cluster.errors import InternalError, InvalidPicture, PoolUnavailable
from deployments.ray_serve.replica import freeze_heap, log_refusals_briefly
from loadtest.servers import ROOT

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("error", "has_traceback"),
    [
        (InvalidPicture("No."), False),
        (PoolUnavailable("Gone."), True),
        (InternalError("Oh."), True),
        (ValueError("?"), True),
    ],
)
def test_refusals_are_one_line(error: Exception, has_traceback: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A client's mistake is logged in one line without a traceback. A defect is logged with its traceback."""
    log = logging.getLogger("ray.serve")
    before = list(log.filters)
    log_refusals_briefly()
    try:
        with caplog.at_level(logging.INFO, "ray.serve"):
            try:
                raise error
            except type(error):
                log.exception("Request failed.")
    finally:
        log.filters[:] = before
    [record] = caplog.records
    assert bool(record.exc_info) is has_traceback
    assert ("400 invalid_image" in record.getMessage()) is not has_traceback


LOGGED = """
import logging, logging.config, sys
from logging.handlers import MemoryHandler
from deployments.ray_serve.replica import log_file_kept

log = logging.getLogger("ray.serve")
handler = MemoryHandler(capacity=1, target=logging.FileHandler(sys.argv[1]))
log.addHandler(handler)
with log_file_kept():
    log.error("before")
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})
    assert handler.target is None
log.error("after")
"""


def test_the_log_of_a_replica_survives_a_library_that_configures_logging(tmp_path: Path) -> None:
    """``dictConfig`` takes the file from Serve's handler. It is given back, and what is logged later is in it."""
    file = tmp_path / "log"
    subprocess.run([sys.executable, "-c", LOGGED, str(file)], check=True, cwd=ROOT)
    assert file.read_text().split() == ["before", "after"]


def test_a_heap_is_frozen_and_what_comes_after_it_is_collected() -> None:
    """Objects of the start are excluded from garbage collection. Later garbage is still collected."""
    try:
        freeze_heap()
        assert gc.get_freeze_count() > 10_000
        assert len(gc.get_objects()) < 10_000
        circle: list[object] = []
        circle.append(circle)
        del circle
        assert gc.collect() >= 1
    finally:
        gc.unfreeze()
