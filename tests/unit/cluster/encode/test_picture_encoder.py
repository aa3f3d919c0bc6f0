"""Encode stage against transformers' whole model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

from cluster.checkpoint import Checkpoint
from cluster.config import ModelConfig
from cluster.encode.picture_encoder import PictureEncoder, read_tower_weights
from cluster.messages import Picture, Pixels
from cluster.preprocess import preprocess
from tests.helpers.pictures import png

if TYPE_CHECKING:
    from pathlib import Path
SIZES = [(28, 28), (112, 112), (224, 168), (168, 224), (560, 28), (1000, 1000), (333, 777)]
MODEL = ModelConfig(dtype="float32")
CHECKPOINT = Checkpoint(MODEL)


@pytest.fixture(scope="module")
def encoder() -> PictureEncoder:
    """The demo checkpoint's tower."""
    return PictureEncoder.load(CHECKPOINT.path, CHECKPOINT.processor, dtype="float32")


@pytest.fixture(scope="module")
def batch() -> list[Pixels]:
    """Pictures of many sizes, ready for the tower."""
    pictures = [Picture(str(number), png(*size), *size, "") for number, size in enumerate(SIZES)]
    return [preprocess(picture, CHECKPOINT.processor) for picture in pictures]


def test_embeddings_equal_the_library_tower(encoder: PictureEncoder, batch: list[Pixels]) -> None:
    """The embeddings of one picture, and of several in a batch, equal those of transformers' whole model to a
    millionth of the largest number.

    float32 itself is no finer: the library's own numbers differ as much from what it computes in float64.
    """
    oracle = Qwen2_5_VLForConditionalGeneration.from_pretrained(CHECKPOINT.path, dtype=torch.float32).eval()
    for pixels, together in zip(batch, encoder.encode(batch), strict=True):
        [alone] = encoder.encode([pixels])
        with torch.inference_mode():
            grid = torch.tensor([pixels.grid])
            [expected] = oracle.get_image_features(both_frames(encoder.normalise(pixels)), grid).pooler_output
        for embedding in (alone, together):
            rows = embedding.rows.view(np.float32)
            assert rows.shape == expected.shape
            assert np.abs(rows - expected.numpy()).max() < 1e-6 * np.abs(expected.numpy()).max()


def test_plain_and_fused_layers_give_the_same_numbers(
    encoder: PictureEncoder, batch: list[Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without oneDNN, as on a GPU, the tower gives the same numbers to a few millionths of the largest number."""
    monkeypatch.setattr("cluster.encode.linear.has_onednn", lambda _: False)
    plain = PictureEncoder.load(CHECKPOINT.path, CHECKPOINT.processor, dtype="float32")
    for fused, other in zip(encoder.encode(batch), plain.encode(batch), strict=True):
        expected = other.rows.view(np.float32)
        assert np.abs(fused.rows.view(np.float32) - expected).max() < 5e-6 * np.abs(expected).max()


def both_frames(still: torch.Tensor) -> torch.Tensor:
    """Returns a still picture's patches with both frames, as the library wants them: [num_patches, 3 · temporal · patch
    · patch]."""
    return still.view(len(still), 3, 1, -1).expand(-1, -1, 2, -1).reshape(len(still), -1)


def test_only_vision_weights_are_read(tmp_path: Path) -> None:
    """From a checkpoint in shards, only the files and tensors of the tower are opened."""
    weights = load_file(CHECKPOINT.path / "model.safetensors")
    vision = {name: tensor for name, tensor in weights.items() if name.startswith("visual.")}
    save_file(vision, tmp_path / "model-00001-of-00002.safetensors")
    index = dict.fromkeys(vision, "model-00001-of-00002.safetensors") | {
        "lm_head.weight": "model-00002-of-00002.safetensors"
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    names = [name for name, _ in read_tower_weights(tmp_path)]  # the second shard does not even exist
    assert sorted(names) == sorted(name.removeprefix("visual.") for name in vision)


def test_a_checkpoint_without_weights_is_refused(tmp_path: Path) -> None:
    """A folder without weights is named in the error."""
    with pytest.raises(FileNotFoundError, match="no vision weights"):
        list(read_tower_weights(tmp_path))


def test_bfloat16_rows_keep_their_bytes(batch: list[Pixels]) -> None:
    """The raw bytes of a bfloat16 embedding are those of its tensor, two bytes per number."""
    encoder = PictureEncoder.load(CHECKPOINT.path, CHECKPOINT.processor, dtype="bfloat16")
    [embedding] = encoder.encode(batch[:1])
    numbers = torch.from_numpy(embedding.rows).view(torch.bfloat16)
    exact = (
        PictureEncoder.load(CHECKPOINT.path, CHECKPOINT.processor, dtype="float32")
        .encode(batch[:1])[0]
        .rows.view(np.float32)
    )
    assert embedding.dtype == "bfloat16"
    assert numbers.shape == exact.shape
    assert np.abs(numbers.float().numpy() - exact).max() < 0.05 * np.abs(exact).max()


def test_a_kept_embedding_keeps_no_other(encoder: PictureEncoder, batch: list[Pixels]) -> None:
    """Each embedding has its own memory, so that a cached one does not keep its whole batch alive."""
    assert len(batch) > 1
    for embedding in encoder.encode(batch):
        owner: Any = embedding.rows
        while isinstance(owner, np.ndarray):
            owner = owner.base
        assert owner.untyped_storage().nbytes() == embedding.rows.nbytes
