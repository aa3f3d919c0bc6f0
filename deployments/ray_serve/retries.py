"""The one retry of a call that a replica could not serve, on another replica of the pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cluster.metrics import RETRIES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cluster.errors import PoolUnavailable
    from cluster.messages import Replica


class Attempts:
    """The replicas that could not serve a call.

    A caller makes one object for each call and passes it with every try, as the argument ``attempts``. The pool's
    request router in the caller's process reads it and writes to it. The replica gets None in its place.

    Args:
        pool: The pool that is called.
        tried: Gets the name of each replica that the call is sent to.
    """

    def __init__(self, pool: str, tried: list[Replica] | None = None) -> None:
        self.failed: Final[set[Replica]] = set()
        self._pool: Final = pool
        self._tried: Final = tried if tried is not None else []
        self._at: Replica | None = None
        self._has_other = False
        self._has_retried = False
        self._suspect: Callable[[], object] = lambda: None
        self._trusted: Callable[[], Iterable[Replica]] = tuple

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    def sent(
        self,
        replica: Replica,
        *,
        has_other: bool,
        suspect: Callable[[], object],
        trusted: Callable[[], Iterable[Replica]] = tuple,
    ) -> None:
        """Called by the request router when it has chosen a replica.

        Args:
            replica: The replica.
            has_other: The pool has another replica.
            suspect: Makes the request router avoid this replica until it has passed its health check.
            trusted: Gives the replicas of the pool that are not avoided now.
        """
        self._trusted = trusted
        self._at, self._has_other, self._suspect = replica, has_other, suspect
        self._tried.append(replica)

    def answered(self) -> None:
        """Notes that the replica has answered. A later error is not its fault."""
        self._at = None

    def note(self, error: PoolUnavailable) -> None:
        """Notes the error of a try. If the pool's own replica failed, it is avoided from now on.

        An error of a pool further on is not the fault of the replica that was called.
        """
        at, self._at = self._at, None
        if error.pool == self._pool and at is not None:
            error.replica = f"{self._pool}/{at}"
            self._suspect()
            self.failed.add(at)

    def has_untried(self) -> bool:
        """Returns True if the pool has a replica now that has not failed this call, and that nobody avoids."""
        return any(name not in self.failed for name in self._trusted())

    def can_retry(self) -> bool:
        """Returns True once, after the failure of a replica, if the pool has another one."""
        if self._has_retried or not self.failed or not self._has_other:
            return False
        self._has_retried = True
        RETRIES.labels(self._pool).inc()
        return True
