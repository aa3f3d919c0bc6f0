"""The one retry of a call that a replica could not serve, on another replica of the pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cluster.metrics import RETRIES

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster.errors import PoolUnavailable
    from cluster.messages import Replica


class Attempts:
    """The replicas that could not serve a call.

    A caller makes one object for each call and passes it with every try, as the argument ``attempts``. The pool's
    request router in the caller's process reads it and writes to it. The replica gets None in its place.

    Args:
        pool: The pool that is called.
    """

    def __init__(self, pool: str) -> None:
        self.failed: Final[set[Replica]] = set()
        self._pool: Final = pool
        self._at: Replica | None = None
        self._has_other = False
        self._suspect: Callable[[], object] = lambda: None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    def sent(self, replica: Replica, *, has_other: bool, suspect: Callable[[], object]) -> None:
        """Called by the request router when it has chosen a replica.

        Args:
            replica: The replica.
            has_other: Another replica can be tried after this one.
            suspect: Makes the request router avoid this replica until it has passed its health check.
        """
        self._at, self._has_other, self._suspect = replica, has_other, suspect

    def can_retry(self, error: PoolUnavailable) -> bool:
        """Notes the error of a try. Returns True if the caller should try once more.

        An error of a pool further on is not the fault of the replica that was called. It is not retried here, because
        that replica has done so.
        """
        if error.pool != self._pool or self._at is None:
            return False
        self._suspect()
        self.failed.add(self._at)
        if len(self.failed) > 1 or not self._has_other:
            return False
        RETRIES.labels(self._pool).inc()
        return True
