"""Encode stage on a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cluster.config import ModelConfig
from cluster.encode import VisionEncoder
from cluster.messages import Picture
from cluster.preprocess import preprocess
from tests.unit.pictures import png

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_embeddings_on_a_gpu_equal_those_on_the_cpu() -> None:
    """In float32 the tower gives the same numbers on both devices to 1e-4."""
    model = ModelConfig(dtype="float32")
    pixels = preprocess(Picture("0", png(224, 168), 224, 168, ""), model.processor)
    rows = [
        VisionEncoder.load(model.path, model.processor, dtype="float32", device=device).encode([pixels])[0].rows
        for device in ("cpu", "cuda")
    ]
    assert np.abs(rows[0].view(np.float32) - rows[1].view(np.float32)).max() < 1e-4
