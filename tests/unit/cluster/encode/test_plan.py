"""The layout of pictures in the vision tower."""

from __future__ import annotations

import torch
from transformers import Qwen2_5_VLConfig

from cluster.checkpoint import Checkpoint
from cluster.config import ModelConfig
from cluster.encode.plan import join, make_plan

MODEL = ModelConfig(dtype="float32")
CHECKPOINT = Checkpoint(MODEL)


def test_spans_are_the_same_for_kernels_of_fixed_and_of_variable_length() -> None:
    """For any mix of pictures, ``runs`` and ``bounds`` describe the same spans."""
    config = Qwen2_5_VLConfig.from_pretrained(CHECKPOINT.path).vision_config
    grids = [(1, 12, 16), (1, 12, 16), (1, 2, 2), (1, 22, 18), (1, 12, 16)]
    joined = join([make_plan(grid, config, torch.device("cpu")) for grid in grids])
    for spans in (joined.windows, joined.pictures):
        lengths = [length for length, count in spans.runs for _ in range(count)]
        assert spans.bounds.diff().tolist() == lengths
        assert spans.bounds[0] == 0
        assert spans.longest == max(lengths)
    assert joined.pictures.runs == ((192, 2), (4, 1), (396, 1), (192, 1))
