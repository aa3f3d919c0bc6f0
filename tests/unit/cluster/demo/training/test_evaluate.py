"""The score of a checkpoint."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.demo.training import evaluate
from cluster.demo.training.classes import ADVERTISED
from cluster.demo.training.data import Example, held_out


@pytest.mark.parametrize(("num_wrong", "is_enough"), [(0, True), (1, True), (2, False)])
def test_score_counts_right_answers(num_wrong: Any, is_enough: Any) -> None:
    """A kind of question passes with 19 right answers of 20 and fails with 18."""
    examples = list(held_out("colour", 20, 1))
    wrong = examples[:num_wrong]
    scored = evaluate.score(
        "colour", examples, lambda example: "none" if example in wrong else f" {example.answer}.\n", 3
    )
    assert {"colour", "shape", "count", "digit"} <= set(ADVERTISED)
    assert (scored.num_right, scored.is_enough) == (20 - num_wrong, is_enough)
    assert [answer for _, _, answer in scored.mistakes] == ["none"] * num_wrong


def test_answers_are_compared_without_case_and_full_stop() -> None:
    """Answers are equal if only case, surrounding space or a final full stop differ. Other words are wrong."""
    example = Example(next(held_out("colour", 1, 1)).image, "?", "red", "colour")
    assert example.is_answered_by(" Red.\n")
    assert not example.is_answered_by("a red one")
