"""The answers of the committed checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cluster.demo.training.answer import answer
from cluster.demo.training.model import new_config, new_model
from cluster.demo.training.tokenizer import new_tokenizer

FOLDER = Path(__file__).parents[5] / "cluster" / "demo"
SAMPLES = {
    "digit.png": ("What digit is this?", "7"),
    "shape.png": ("What colour is the shape?", "red"),
    "photo.jpg": ("What is in the photograph?", "cat"),
    "word.png": ("What does the word say?", "stop"),
    "count.png": ("How many shapes are there?", "4"),
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The tokenizer as training makes it."""
    return new_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    """The model before any training."""
    return new_model(new_config(tokenizer), 0)


@pytest.fixture(scope="module")
def trained() -> Any:
    """The committed weights and tokenizer."""
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    folder = FOLDER / "checkpoint"
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32
    ), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", SAMPLES)
def test_checkpoint_answers_the_samples(trained: Any, name: Any) -> None:
    """The committed weights answer the README's picture questions correctly."""
    question, expected = SAMPLES[name]
    with Image.open(FOLDER / "samples" / name) as image:
        model, tokenizer = trained
        assert answer(model, tokenizer, [image.convert("RGB")], question) == expected
