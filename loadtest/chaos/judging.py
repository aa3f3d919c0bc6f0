"""The verdict on each request: right, typed error, cut, or lost.

A request is *lost* if it got no result and no typed error, or a wrong answer. *Cut* is counted apart: a killed HAProxy,
Router or node closed the connection, and a plain retry was answered rightly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadtest.chaos.asking import ChaosAnswer, Ending
    from loadtest.chaos.killing import Kill

Outcome = Literal["right", "typed", "cut", "lost"]
WAYS_IN: Final = ("haproxy", "router", "raylet")
"""The parts of a cluster whose death may close the connections of clients."""
CUT_MARGIN_S: Final = 5.0
"""A connection may be cut so long after the cluster is whole again: HAProxy learns of its Routers a moment later."""


@dataclass(frozen=True, slots=True)
class ChaosRecord:
    """One request of the load. Times are in seconds of ``time.monotonic``.

    Args:
        index: The number of the request in the mix.
        kind: Its kind, as in the mix.
        started_s: When it was sent first.
        ended_s: When its first try ended.
        ending: How its first try ended.
        retried: How its last plain retry ended, if the first try was cut.
        back_s: When this retry ended.
    """

    index: int
    kind: str
    started_s: float
    ended_s: float
    ending: Ending
    retried: Ending | None = None
    back_s: float = 0.0


def judge(record: ChaosRecord, expected: ChaosAnswer, kills: Sequence[Kill]) -> tuple[Outcome, str]:
    """The outcome of a request and its cause in a few words.

    Args:
        record: The request.
        expected: The answer of the undisturbed run.
        kills: All kills of the run.
    """
    ending = record.ending
    match ending.kind:
        case "answer":
            return ("right", "") if ending.answer == expected else ("lost", "wrong answer")
        case "typed":
            return "typed", ending.cause
        case "cut":
            return _judge_cut(record, expected, kills)
    return "lost", ending.cause


def _judge_cut(record: ChaosRecord, expected: ChaosAnswer, kills: Sequence[Kill]) -> tuple[Outcome, str]:
    cause = record.ending.cause
    if not any(
        kill.part in WAYS_IN
        and record.ended_s >= kill.at_s
        and (kill.whole_s is None or record.started_s <= kill.whole_s + CUT_MARGIN_S)
        for kill in kills
    ):
        return "lost", f"cut without a reason: {cause}"
    if record.retried is None or record.retried.kind != "answer":
        how = record.retried.cause if record.retried else "none"
        return "lost", f"cut ({cause}), and the retry failed: {how}"
    return ("cut", cause) if record.retried.answer == expected else ("lost", "wrong answer to the retry")
