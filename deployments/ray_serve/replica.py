"""The duties that all replicas share: freezing the heap, reporting metrics, and logging refusals on one line."""

from __future__ import annotations

import gc
import logging
from dataclasses import dataclass

from prometheus_client import generate_latest
from ray import serve

from cluster.errors import PrismError


@dataclass(frozen=True, slots=True)
class ProcessMetrics:
    """The metrics of one replica as Prometheus text, with the name of the replica."""

    replica: str
    text: bytes

    @classmethod
    def of_this_replica(cls) -> ProcessMetrics:
        """The metrics of this process."""
        return cls(serve.get_replica_context().replica_id.unique_id, generate_latest())


def freeze_heap() -> None:
    """Excludes all objects that exist now from garbage collection. Call it at the end of a replica's start.

    A full collection takes half a second in a decoder, and no stream continues while it runs. vLLM's server does the
    same.
    """
    gc.collect()
    gc.freeze()


def log_refusals_briefly() -> None:
    """Makes Serve log a client's mistake on one line. By default Serve logs a traceback for every exception."""
    logging.getLogger("ray.serve").addFilter(_Refusals())


class _Refusals(logging.Filter):
    """Removes the traceback from log records about errors with a status below 500."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, PrismError) and error.status < 500:
            record.levelno, record.levelname = logging.INFO, "INFO"
            record.msg, record.args, record.exc_info = "Request refused: %s %s", (error.status, error.code), None
        return True
