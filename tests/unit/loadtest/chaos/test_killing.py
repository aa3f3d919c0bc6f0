"""The schedule of kills."""

from __future__ import annotations

from collections import Counter

from loadtest.chaos.killing import KINDS, plan_kills


def test_each_round_has_every_kind_once() -> None:
    """After any number of whole rounds each kind has come equally often, and the seed decides the order."""
    planned = list(plan_kills(3, KINDS, 5 * len(KINDS)))
    assert Counter(planned) == dict.fromkeys(KINDS, 5)
    assert planned == list(plan_kills(3, KINDS, 5 * len(KINDS)))
    assert planned != list(plan_kills(4, KINDS, 5 * len(KINDS)))
