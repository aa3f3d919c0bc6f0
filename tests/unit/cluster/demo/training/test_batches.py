"""Training batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cluster.demo.training.batches import Batches
from cluster.demo.training.tokenizer import new_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The tokenizer as training makes it."""
    return new_tokenizer()


def test_training_tokens_are_the_chat_template_s(tokenizer: Any) -> None:
    """The tokens of a training conversation equal those of the chat template."""
    batch = Batches(tokenizer, "template", 0, 1, conversations=True)[0]
    for row in range(8):
        ids = [int(token) for token in batch.ids[row] if token != tokenizer.pad_token_id]
        picture = "<|vision_start|>" + "<|image_pad|>" * list(ids).count(
            tokenizer.convert_tokens_to_ids("<|image_pad|>")
        )
        text = tokenizer.decode(ids)
        turns = [part.split("<|im_end|>")[0].partition("\n") for part in text.split("<|im_start|>")[1:]]
        messages = [{"role": role, "content": content} for role, _, content in turns]
        assert picture in text
        assert tokenizer.apply_chat_template(messages, tokenize=False) == text
        assert tokenizer(text).input_ids == ids


def test_batch_depends_on_its_number_only(tokenizer: Any) -> None:
    """Batch number n is the same, whichever batches were drawn before it."""
    first, second = (Batches(tokenizer, "same", 0, 3, conversations=True) for _ in range(2))
    first[0]
    assert np.array_equal(first[2].ids, second[2].ids)
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(first[2].pictures, second[2].pictures, strict=True))


def test_ranks_draw_other_pictures_of_the_same_grids(tokenizer: Any) -> None:
    """Two ranks draw different pictures in the same batch, and their pictures have the same grids, so that neither
    waits for the other."""
    first, second = (Batches(tokenizer, "ranks", rank, 1, conversations=True)[0] for rank in range(2))
    assert [grid for _, grid in first.pictures] == [grid for _, grid in second.pictures]
    assert all(not np.array_equal(a[0], b[0]) for a, b in zip(first.pictures, second.pictures, strict=True))
