"""Examples for training and for measuring."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.demo.training.classes import CLASSES, KINDS
from cluster.demo.training.data import grid_of, held_out
from cluster.demo.training.settings import SETTINGS
from cluster.preprocess import patchify


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_examples_fit_the_processor(kind: Any) -> None:
    """Held-out pictures have many sizes, and each of their answers is on the closed list."""
    examples = list(held_out(kind, 20, 3))
    assert {example.answer for example in examples} <= set(CLASSES[kind])
    assert len({grid_of(example.image.size) for example in examples}) >= 8
    assert all(16 <= len(patchify(example.image, SETTINGS)[0]) / 4 <= 48 for example in examples)
