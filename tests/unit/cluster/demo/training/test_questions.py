"""The phrasings of questions."""

from __future__ import annotations

from cluster.demo.training.classes import KINDS
from cluster.demo.training.questions import PHRASINGS


def test_every_kind_has_a_dozen_phrasings() -> None:
    """Each kind of question has at least twelve phrasings."""
    assert all(len(set(PHRASINGS[kind])) >= 12 for kind in KINDS)
