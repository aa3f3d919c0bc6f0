"""The tables of chaos."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from loadtest.chaos.asking import ChaosAnswer, Ending
from loadtest.chaos.judging import ChaosRecord
from loadtest.chaos.killing import Kill
from loadtest.chaos.results import ChaosTally, met, read, write
from loadtest.chaos.running import ChaosRun

if TYPE_CHECKING:
    from pathlib import Path

RIGHT = ChaosAnswer("Yes.", "stop", 2)
KILL = Kill("engine", "kill", at_s=10, gone_s=11, whole_s=20)


def record(ending: Ending, start_s: float, end_s: float) -> ChaosRecord:
    """Returns a request that took this time."""
    return ChaosRecord(0, "text whole", start_s, end_s, ending)


def run_of(*records: ChaosRecord, kill: Kill = KILL) -> ChaosRun:
    """Returns a run with one kill."""
    return ChaosRun({0: RIGHT}, list(records), [kill], began_s=0)


GOOD = record(Ending("answer", answer=RIGHT), 9, 12)
TYPED = record(Ending("typed", "503 stage_unavailable"), 12, 13)
LOST = record(Ending("hung", "no end by its deadline"), 12, 90)


@pytest.mark.parametrize(
    ("start_s", "end_s", "kill"),
    [(1, 9, "none"), (9, 11, "engine:kill"), (19, 30, "engine:kill"), (21, 30, "none")],
)
def test_a_request_meets_the_kill_that_it_overlaps(start_s: float, end_s: float, kill: str) -> None:
    """A request counts for a kill if it ran between the kill and the moment when the cluster was whole again."""
    assert met(record(TYPED.ending, start_s, end_s), [KILL]) == kill


def test_a_run_is_good_if_nothing_is_lost_and_all_is_whole() -> None:
    """One lost request, a cluster that stays broken, a replica replaced unasked, or no answer at all is not good."""
    assert ChaosTally.of(run_of(GOOD, TYPED)).is_good
    assert not ChaosTally.of(run_of(GOOD, LOST)).is_good
    assert not ChaosTally.of(run_of(TYPED)).is_good
    assert not ChaosTally.of(run_of(GOOD, kill=Kill("engine", "kill", 10, 11, is_given_up=True))).is_good
    replaced = run_of(GOOD)
    replaced.was_replaced = True
    assert not ChaosTally.of(replaced).is_good


def test_runs_are_written_and_added_up(tmp_path: Path) -> None:
    """The sum of two files has twice the figures of each, and the table names every figure."""
    run = run_of(GOOD, TYPED)
    write(tmp_path, run, ChaosTally.of(run), {"command": []})
    total = ChaosTally()
    for _ in range(2):
        total.add(read(tmp_path / "verdict.json"))
    assert (total.total(), total.whole_s) == ({"right": 2, "typed": 2}, {"engine:kill": [10, 10]})
    assert "2 x typed: 503 stage_unavailable" in total.text()
    assert total.text().endswith("nothing was lost")
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 2
