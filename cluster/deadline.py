"""The time by which a request must have ended, from the arrival of its first byte to its last byte to the client."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cluster.errors import DeadlineExceeded


@dataclass(frozen=True, slots=True)
class Deadline:
    """The arrival of a request, in seconds of the event loop's clock, and the seconds that it may take from then on."""

    arrived_s: float
    timeout_s: float

    @property
    def at_s(self) -> float:
        """The end of the request's time, on the event loop's clock."""
        return self.arrived_s + self.timeout_s

    def within(self, timeout_s: float | None) -> Deadline:
        """The deadline of a request that asks for a time of its own. A longer time than ``self.timeout_s`` has no
        effect, and None asks for nothing."""
        return self if timeout_s is None else replace(self, timeout_s=min(timeout_s, self.timeout_s))

    def exceeded(self, *, cause: str | None = None) -> DeadlineExceeded:
        """The error of a request whose time ran out.

        Args:
            cause: What it waited for, for the log.
        """
        message = (
            f"The request did not finish within {self.timeout_s:g} s; "
            "ask for fewer tokens or allow more with prism.timeout_s."
        )
        return DeadlineExceeded(message, timeout_s=self.timeout_s).because(cause)
