"""The demo model tells what is on held-out pictures, through the HTTP API."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import httpx
import pytest

from cluster.demo.training.answer import HELD_OUT_SEED
from cluster.demo.training.classes import ADVERTISED
from cluster.demo.training.data import held_out
from cluster.demo.training.evaluate import ask_over_http, score

if TYPE_CHECKING:
    from deployments.local.launch import Cluster

NUM_ASKED = 60
REQUIRED = 0.9
"""Lower than what the evaluation of hundreds requires: of so few, one more or less is nearly two hundredths."""


@pytest.mark.parametrize("kind", ADVERTISED)
def test_advertised_kinds_are_answered_right(kind: str, cluster: Cluster) -> None:
    """Nearly all of the first held-out pictures of each advertised kind get their true answer."""
    with httpx.Client(base_url=cluster.url, timeout=60) as client:
        result = score(kind, held_out(kind, NUM_ASKED, HELD_OUT_SEED), partial(ask_over_http, client, "prism-demo"), 4)
    assert result.accuracy >= REQUIRED, result.mistakes
