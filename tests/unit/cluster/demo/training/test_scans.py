"""Scans of handwritten digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.demo.training import scans

FOLDER = Path(__file__).parents[5] / "cluster" / "demo"


def test_held_out_scans_are_never_trained_on() -> None:
    """The held-out scans and the training scans are different pictures."""
    aside, trained = ({scan.tobytes() for scan, _ in scans.scans(side)} for side in (True, False))
    assert len(aside) == scans.NUM_HELD_OUT
    assert not aside & trained


@pytest.fixture(scope="module")
def trained() -> Any:
    """The committed weights and tokenizer."""
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    folder = FOLDER / "checkpoint"
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32
    ), AutoTokenizer.from_pretrained(folder)
