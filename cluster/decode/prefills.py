"""Counts the prompt tokens that a decoder prefills, for the scaling policy."""

from __future__ import annotations

from typing import Final

from cluster.scaling.work import OfferedWork

HITS_MEMORY: Final = 0.98
"""After about 50 prompts, older ones hardly count for the share of tokens that the prefix cache holds."""


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
        self._ended_s = 0.0

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
        # Prompts that overlap in time count once. The engine begins with them in the order in which they come.
        self.busy_s += max(0.0, first_token_s - max(scheduled_s, self._ended_s))
        self._ended_s = max(self._ended_s, first_token_s)
        self._prompted = HITS_MEMORY * self._prompted + num_tokens
        self._computed = HITS_MEMORY * self._computed + num_tokens - num_cached
