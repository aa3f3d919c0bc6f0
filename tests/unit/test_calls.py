"""What Serve logs when a call ends in one of Prism's errors."""

from __future__ import annotations

import logging

import pytest

from cluster.errors import InternalError, InvalidPicture, StageUnavailable
from deployments.calls import log_refusals_briefly


@pytest.mark.parametrize(
    ("error", "has_traceback"),
    [
        (InvalidPicture("No."), False),
        (StageUnavailable("Gone."), True),
        (InternalError("Oh."), True),
        (ValueError("?"), True),
    ],
)
def test_refusals_are_one_line(error: Exception, has_traceback: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A client's mistake leaves one line without a traceback; a defect keeps its own."""
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
