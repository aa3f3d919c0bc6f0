"""The record of a request."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from cluster.access_log import AccessRecord, ClientGone
from cluster.errors import InternalError, Overloaded
from cluster.messages import TokenCounts
from tests.helpers.http_surface import logged

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("end", "status", "code", "level"),
    [
        (lambda: None, 200, "ok", logging.INFO),
        (lambda: Overloaded("Full."), 429, "overloaded", logging.INFO),
        (lambda: InternalError("A defect."), 500, "internal_error", logging.WARNING),
        (lambda: ValueError("secret"), 500, "internal_error", logging.WARNING),
        (ClientGone, 499, "client_gone", logging.INFO),
        (asyncio.CancelledError, 499, "client_gone", logging.INFO),
    ],
)
def test_an_end_is_a_line_with_status_code_and_level(
    end: Callable[[], BaseException | None], status: int, code: str, level: int
) -> None:
    """A line has the status and the code of the end. Its level tells Prism's failures from the clients' mistakes."""
    with logged() as records:
        AccessRecord("chat", "7").end(end())
    [line] = records
    assert (line["status"], line["code"], line["levelno"]) == (status, code, level)
    assert "secret" not in str(line)


def test_a_fact_that_is_not_known_is_no_field() -> None:
    """A request that was refused before its body was read has no pictures, no call and no decoders in its line."""
    with logged() as records:
        AccessRecord("chat", "7").end(Overloaded("Full."))
    assert not {"pictures", "call_id", "decoders", "failed_replica", "cause"} & records[0].keys()


def test_tokens_that_are_known_are_fields() -> None:
    """The line has the tokens that the decoder has told. A stream's answers are not counted at its first piece."""
    lines = []
    for tokens in (TokenCounts(60, 48, 16), TokenCounts(60, 48, None)):
        record = AccessRecord("chat", "7")
        record.tokens = tokens
        with logged() as records:
            record.end(None)
        lines += records
    assert [(line["prompt_tokens"], line["picture_tokens"]) for line in lines] == [(60, 48)] * 2
    assert lines[0]["completion_tokens"] == 16
    assert "completion_tokens" not in lines[1]
