"""What every replica does for itself: it freezes its heap, reports its metrics, and logs refusals on one line."""

from __future__ import annotations

import gc
import logging
from dataclasses import dataclass

from prometheus_client import generate_latest
from ray import serve

from cluster.errors import PrismError


@dataclass(frozen=True, slots=True)
class ProcessMetrics:
    """One replica's metrics, as Prometheus text, under the replica's own name."""

    replica: str
    text: bytes

    @classmethod
    def of_this_replica(cls) -> ProcessMetrics:
        """What this process has counted."""
        return cls(serve.get_replica_context().replica_id.unique_id, generate_latest())


def freeze_heap() -> None:
    """Takes all that a replica has made by the end of its start out of the garbage collector's sight, as vLLM's server
    does.

    To go through it takes half a second in a decoder, and no stream goes on meanwhile.
    """
    gc.collect()
    gc.freeze()


def log_refusals_briefly() -> None:
    """Serve logs every exception of a call with its traceback; for a request's typed end, one line is enough."""
    logging.getLogger("ray.serve").addFilter(_Refusals())


class _Refusals(logging.Filter):
    """Takes the traceback from records about errors that are a client's."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, PrismError) and error.status < 500:
            record.levelno, record.levelname = logging.INFO, "INFO"
            record.msg, record.args, record.exc_info = "Request refused: %s %s", (error.status, error.code), None
        return True
