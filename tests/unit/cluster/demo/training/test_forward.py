"""The trainer's forward pass against the library's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cluster.demo.training import forward
from cluster.demo.training.answer import _normalise
from cluster.demo.training.batches import IGNORED, Batches
from cluster.demo.training.data import sizes_by_grid
from cluster.demo.training.model import new_config, new_model
from cluster.demo.training.tokenizer import new_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The tokenizer as training makes it."""
    return new_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    """The model before any training."""
    return new_model(new_config(tokenizer), 0)


def test_batched_vision_is_the_library_s(model: Any) -> None:
    """For every grid of the training, the tower's embeddings equal the library's, in whole and in partial attention
    windows."""
    rng = np.random.default_rng(0)
    for grid in sizes_by_grid():
        patches = torch.from_numpy(rng.integers(0, 256, (2, grid[0] * grid[1], 588), np.uint8))
        with torch.no_grad():
            ours = forward.encode(model.model.visual, patches, grid).flatten(0, 1)
            whole = torch.tensor([[1, *grid]] * 2)
            theirs = model.model.visual(_normalise(patches.flatten(0, 1)), whole).pooler_output
        assert (ours - theirs).abs().max() < 1e-4, grid


def test_batched_conversations_are_the_library_s(model: Any, tokenizer: Any) -> None:
    """The logits at every answer equal the library's, in conversations about no, one and two pictures."""
    batches = Batches(tokenizer, "test", 0, 60, conversations=True)
    seen: dict[Any, Any] = {}
    for number in range(60):
        batch = batches[number]
        seen.setdefault(len(batch.pictures), batch)
        if len(seen) == 3:
            break
    assert set(seen) == {0, 1, 2}
    for batch in seen.values():
        ids, positions, targets = (torch.from_numpy(part) for part in (batch.ids, batch.positions, batch.targets))
        asked = targets != IGNORED
        with torch.no_grad():
            embedded = [forward.encode(model.model.visual, torch.from_numpy(p), g) for p, g in batch.pictures]
            pictures = torch.cat(embedded, 1).flatten(0, 1) if embedded else None
            ours = forward.answer_logits(model, ids, positions, pictures, asked)
            theirs = model(
                input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long(), **_inputs(batch, ids, model)
            )
        assert (ours - theirs.logits[asked]).abs().max() < 1e-4


def _inputs(batch: Any, ids: Any, model: Any) -> Any:
    if not batch.pictures:
        return {}
    rows = [torch.from_numpy(patches[row]) for row in range(len(ids)) for patches, _ in batch.pictures]
    grids = [(1, *grid) for _ in range(len(ids)) for _, grid in batch.pictures]
    kinds = (ids == model.config.image_token_id).int()
    return {
        "pixel_values": _normalise(torch.cat(rows)),
        "image_grid_thw": torch.tensor(grids),
        "mm_token_type_ids": kinds,
    }
