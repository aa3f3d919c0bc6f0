"""Counts the prompt tokens that a decoder prefills, for the scaling policy."""

from __future__ import annotations

from typing import Final

from cluster.scaling.work import OfferedWork

HITS_MEMORY: Final = 0.98
"""After about 50 prompts, older ones hardly count for the share of tokens that the prefix cache holds."""

MAX_SPANS: Final = 512
"""Busy spans that are remembered. Spans that touch each other are one."""


class PrefillLog:
    """The prompt tokens that have come and those that have been prefilled, and the time in which prompts were
    prefilled.

    Tokens that the engine finds in its prefix cache are no work. Nobody knows before how many it will find, so those
    of a new prompt are estimated from earlier prompts.
    """

    def __init__(self) -> None:
        self.offered: Final = OfferedWork()
        self.num_tokens = 0
        """The tokens that have been computed."""
        self.busy_s = 0.0
        """The seconds in which at least one prompt was being prefilled."""
        self._prompted, self._computed = 1.0, 1.0
        self._busy: list[tuple[float, float]] = []

    def arrived(self, num_tokens: int) -> None:
        """Counts a prompt that has come, by its tokens."""
        self.offered.arrived(num_tokens * self._computed / self._prompted)

    def done(self, num_tokens: int, num_cached: int, scheduled_s: float, first_token_s: float) -> None:
        """Counts a prompt that has been prefilled.

        Args:
            num_tokens: The tokens of the prompt.
            num_cached: How many of them were found in the prefix cache.
            scheduled_s: The time at which the engine began with it.
            first_token_s: The time of the first token of the answer.
        """
        self.num_tokens += num_tokens - num_cached
        self.busy_s += self._uncovered_s(scheduled_s, first_token_s)
        self._prompted = HITS_MEMORY * self._prompted + num_tokens
        self._computed = HITS_MEMORY * self._computed + num_tokens - num_cached

    def _uncovered_s(self, first_s: float, last_s: float) -> float:
        """Notes a busy span, and returns the part of it that no earlier span covers.

        Answers that are not streamed report at their end, so spans come in any order.
        """
        apart: list[tuple[float, float]] = []
        touched: list[tuple[float, float]] = []
        for span in self._busy:
            (apart if span[1] < first_s or span[0] > last_s else touched).append(span)
        merged = (min([first_s, *(span[0] for span in touched)]), max([last_s, *(span[1] for span in touched)]))
        self._busy = sorted([*apart, merged])[-MAX_SPANS:]
        return (merged[1] - merged[0]) - sum(last - first for first, last in touched)
