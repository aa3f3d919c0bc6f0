"""The verdict on single requests."""

from __future__ import annotations

import pytest

from loadtest.chaos.asking import ChaosAnswer, Ending
from loadtest.chaos.judging import CUT_MARGIN_S, ChaosRecord, judge
from loadtest.chaos.killing import Kill

RIGHT = ChaosAnswer("Yes.", "stop", 2)
ANSWERED = Ending("answer", answer=RIGHT)
WRONG = Ending("answer", answer=ChaosAnswer("Yes", "stop", 2))
CUT = Ending("cut", "ServerDisconnectedError")
HAPROXY = Kill("haproxy", "kill", at_s=10, gone_s=11, whole_s=20)
ENGINE = Kill("engine", "kill", at_s=10, gone_s=11, whole_s=20)


def record(ending: Ending, retried: Ending | None = None, at_s: float = 9) -> ChaosRecord:
    """Returns a request that was sent then and ended two seconds later."""
    return ChaosRecord(0, "text whole", at_s, at_s + 2, ending, retried)


@pytest.mark.parametrize(
    ("ending", "outcome"),
    [
        (ANSWERED, ("right", "")),
        (WRONG, ("lost", "wrong answer")),
        (Ending("typed", "503 stage_unavailable"), ("typed", "503 stage_unavailable")),
        (Ending("hung", "no end by its deadline"), ("lost", "no end by its deadline")),
        (Ending("malformed", "500 without a typed error"), ("lost", "500 without a typed error")),
    ],
)
def test_only_right_answers_and_typed_errors_are_not_lost(ending: Ending, outcome: tuple[str, str]) -> None:
    """A wrong answer, a hang and an error without a code are lost."""
    assert judge(record(ending), RIGHT, [ENGINE]) == outcome


def test_a_cut_connection_needs_a_reason_and_a_retry() -> None:
    """Only a killed HAProxy, Router or node excuses a cut connection, and only if a plain retry is answered rightly."""
    assert judge(record(CUT, ANSWERED), RIGHT, [HAPROXY]) == ("cut", "ServerDisconnectedError")
    for lost in (record(CUT, WRONG), record(CUT, CUT), record(CUT), record(CUT, Ending("typed", "503 gone"))):
        assert judge(lost, RIGHT, [HAPROXY])[0] == "lost"
    assert judge(record(CUT, ANSWERED), RIGHT, [ENGINE])[0] == "lost"
    assert judge(record(CUT, ANSWERED, at_s=7), RIGHT, [HAPROXY])[0] == "lost"
    assert judge(record(CUT, ANSWERED, at_s=20.1 + CUT_MARGIN_S), RIGHT, [HAPROXY])[0] == "lost"
