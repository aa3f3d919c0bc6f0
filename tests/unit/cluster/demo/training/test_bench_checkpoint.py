"""The bench geometry: what it is made of, and that the encoder takes it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from cluster.checkpoint import ProcessorSettings
from cluster.demo.training.bench_checkpoint import TEXT, VISION, make
from cluster.encode.picture_encoder import PictureEncoder
from cluster.messages import Pixels

if TYPE_CHECKING:
    from pathlib import Path


def test_a_square_of_448_pixels_is_encoded_to_256_tokens(tmp_path: Path) -> None:
    """A 448×448 picture becomes 256 tokens in the bench checkpoint, and making the checkpoint twice gives the same
    bytes."""
    make(tmp_path / "first")
    make(tmp_path / "second")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second")]
    assert weights[0] == weights[1]
    config = json.loads((tmp_path / "first" / "config.json").read_text())
    assert VISION.items() <= config["vision_config"].items()
    assert TEXT.items() <= config["text_config"].items()
    settings = ProcessorSettings.from_checkpoint(tmp_path / "first")
    assert settings.max_pixels == 448 * 448
    encoder = PictureEncoder.load(tmp_path / "first", settings, dtype="float32", device="cpu")
    [embedding] = encoder.encode([Pixels("0" * 64, np.zeros((1024, 588), np.uint8), (1, 32, 32))])
    assert embedding.grid == (1, 32, 32)
    assert len(embedding.rows) == 256
