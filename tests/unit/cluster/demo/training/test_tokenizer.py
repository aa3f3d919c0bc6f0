"""The tokenizer and the chat template of the demo."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.demo.training.questions import PHRASINGS
from cluster.demo.training.tokenizer import new_tokenizer

FOLDER = Path(__file__).parents[5] / "cluster" / "demo"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The tokenizer as training makes it."""
    return new_tokenizer()


@pytest.mark.parametrize("text", ["naïve café 東京 🙂\n\ttabs", "What colour is the shape?", "x = {'a': [1, 2]}  # ok"])
def test_any_text_survives_the_tokenizer(tokenizer: Any, text: Any) -> None:
    """Decoding encoded text gives the same text."""
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_template_writes_parts_in_any_order_and_role(tokenizer: Any) -> None:
    """The chat template accepts pictures before and after text, and in system messages."""
    messages = [
        {"role": "system", "content": [{"type": "image"}, {"type": "text", "text": "Look."}]},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Why?"}, {"type": "image_url", "image_url": {"url": "x"}}],
        },
    ]
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        f"<|im_start|>system\n{picture}Look.<|im_end|>\n<|im_start|>user\nWhy?{picture}<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.fixture(scope="module")
def trained() -> Any:
    """The committed weights and tokenizer."""
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    folder = FOLDER / "checkpoint"
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32
    ), AutoTokenizer.from_pretrained(folder)


def test_committed_tokenizer_is_the_one_that_training_makes(trained: Any, tokenizer: Any) -> None:
    """Training the tokenizer again gives the committed one."""
    assert trained[1].get_vocab() == tokenizer.get_vocab()
    text = random.Random(1).choice(PHRASINGS["colour"])
    assert trained[1](text).input_ids == tokenizer(text).input_ids
