"""The names of the weights."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.demo.training.model import new_config, new_model, published_name
from cluster.demo.training.tokenizer import new_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The tokenizer as training makes it."""
    return new_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    """The model before any training."""
    return new_model(new_config(tokenizer), 0)


def test_weights_go_by_published_names(model: Any) -> None:
    """Every weight has a name that Qwen's published checkpoints use."""
    names = {published_name(name) for name in model.state_dict()}
    assert all(
        name.startswith(("visual.", "model.layers.", "model.embed_tokens", "model.norm", "lm_head")) for name in names
    )
