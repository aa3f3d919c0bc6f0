"""Carries the scaling policy's last decisions from Serve's controller to the Routers, through Ray's key-value store."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Final

from ray.experimental import internal_kv

if TYPE_CHECKING:
    from collections.abc import Mapping

KEY: Final = b"prism-scaling"
MAX_AGE_S: Final = 30.0
"""Older decisions are not read: the policy is gone or fails."""


def publish(decisions: Mapping[str, Mapping[str, Any]]) -> None:
    """Stores the decisions of all pools, by the names of the deployments, for ``read_decisions``."""
    internal_kv._internal_kv_put(KEY, json.dumps(decisions).encode(), overwrite=True)


def read_decisions() -> dict[str, dict[str, Any]]:
    """Reads what ``publish`` has stored; empty if nothing was stored of late. The call blocks for a millisecond or two.

    Returns:
        Of each deployment the decision (``target``, ``wanted``, ``reason``), ``min_replicas``, ``start_s`` (the seconds
        that a replica takes to start), ``acts`` (whether decisions are carried out) and ``at_s`` (the time of the
        decision in seconds since the epoch).
    """
    stored = internal_kv._internal_kv_get(KEY)
    decisions = json.loads(stored) if stored else {}
    return {name: one for name, one in decisions.items() if time.time() - one["at_s"] < MAX_AGE_S}


def can_start(decision: Mapping[str, Any] | None) -> bool:
    """Returns True if the last decision about a pool allows it to have no replica."""
    return bool(decision and not decision["min_replicas"])
