"""The duties that all replicas share: heap, settings that change, metrics, their log, and the end."""

from __future__ import annotations

import gc
import logging
import os
import signal
from contextlib import contextmanager
from dataclasses import dataclass
from logging.handlers import MemoryHandler
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from prometheus_client import generate_latest
from pydantic import ValidationError
from ray import serve

from cluster.errors import PrismError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cluster.config import Frozen

Settings = TypeVar("Settings", bound="Frozen")

log: Final = logging.getLogger("ray.serve")


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


@contextmanager
def log_file_kept() -> Iterator[None]:
    """Lets Serve's log of this replica survive a library that configures logging inside the block.

    vLLM does so when it configures an engine, and ``logging.config.dictConfig`` closes every handler of the process.
    Serve's handler would have no file any more: nothing would be logged. A controller that starts again asks each
    replica for its file; it would get an exception and stop the replica.
    """
    targets = {each: each.target for each in log.handlers if isinstance(each, MemoryHandler)}
    try:
        yield
    finally:
        for handler, target in targets.items():
            handler.setTarget(target)  # a file that was closed is opened again by the next line


def end_replica(reason: str) -> None:
    """Ends this replica's process at once.

    Serve replaces a process that has ended at its next check. A check that fails would have to do so three times, and
    Serve would then wait for the requests of the replica, which are stuck, for as long as any request may take.

    Args:
        reason: A sentence for the log.
    """
    log.error("this replica ends, to be replaced: %s", reason)
    logging.shutdown()
    os.kill(os.getpid(), signal.SIGKILL)


class UserConfig(Generic[Settings]):
    """The settings of a replica that Serve may change while it runs: the ``user_config`` of its deployment.

    Args:
        defaults: The settings until the first ``take``.
    """

    def __init__(self, defaults: Settings) -> None:
        self.settings = defaults
        self._has_taken = False

    def take(self, raw: dict[str, Any]) -> Settings:
        """Reads a ``user_config`` and returns the settings that apply from now on.

        A replica that starts with wrong values fails, so that the deployment fails and says why. A replica that serves
        keeps its settings and logs the error. Serve would otherwise stop it, and with it all the others, because they
        get the same values.

        Args:
            raw: What the application file has below ``user_config``.

        Raises:
            ValidationError: The replica is starting, and a key is unknown or a value is out of range.
        """
        try:
            self.settings = type(self.settings).model_validate(raw)
        except ValidationError as error:
            if not self._has_taken:
                raise
            log.error("the new user_config is wrong, the old one stays: %s", error)
        self._has_taken = True
        return self.settings


def log_refusals_briefly() -> None:
    """Makes Serve log a client's mistake on one line. By default Serve logs a traceback for every exception."""
    log.addFilter(_Refusals())


class _Refusals(logging.Filter):
    """Removes the traceback from log records about errors with a status below 500."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, PrismError) and error.status < 500:
            record.levelno, record.levelname = logging.INFO, "INFO"
            record.msg, record.args, record.exc_info = "Request refused: %s %s", (error.status, error.code), None
        return True
