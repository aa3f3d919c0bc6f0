"""The demo model's training code agrees with the library, with our processor and with itself."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.demo.training import evaluate, forward, scans
from cluster.demo.training.answer import _normalise, answer
from cluster.demo.training.batches import IGNORED, Batches
from cluster.demo.training.classes import ADVERTISED, CLASSES, KINDS
from cluster.demo.training.data import Example, grid_of, held_out, sizes_by_grid
from cluster.demo.training.model import new_config, new_model, published_name
from cluster.demo.training.questions import PHRASINGS
from cluster.demo.training.settings import SETTINGS
from cluster.demo.training.tokenizer import new_tokenizer
from cluster.preprocess import patchify

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


def test_batched_vision_is_the_library_s(model: Any) -> None:
    """Every grid that training uses gives the library's embeddings, whole and partial windows alike."""
    rng = np.random.default_rng(0)
    for grid in sizes_by_grid():
        patches = torch.from_numpy(rng.integers(0, 256, (2, grid[0] * grid[1], 588), np.uint8))
        with torch.no_grad():
            ours = forward.encode(model.model.visual, patches, grid).flatten(0, 1)
            whole = torch.tensor([[1, *grid]] * 2)
            theirs = model.model.visual(_normalise(patches.flatten(0, 1)), whole).pooler_output
        assert (ours - theirs).abs().max() < 1e-4, grid


def test_batched_conversations_are_the_library_s(model: Any, tokenizer: Any) -> None:
    """Conversations about no, one and two pictures give the library's logits at every answer."""
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


def test_training_tokens_are_the_chat_template_s(tokenizer: Any) -> None:
    """What training reads is what the chat template writes for the same conversation."""
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
    """Batch number n is the same whichever batches were drawn before it."""
    first, second = (Batches(tokenizer, "same", 0, 3, conversations=True) for _ in range(2))
    first[0]
    assert np.array_equal(first[2].ids, second[2].ids)
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(first[2].pictures, second[2].pictures, strict=True))


def test_ranks_draw_other_pictures_of_the_same_grids(tokenizer: Any) -> None:
    """Two ranks never learn from the same pictures, and neither waits for the other's larger ones."""
    first, second = (Batches(tokenizer, "ranks", rank, 1, conversations=True)[0] for rank in range(2))
    assert [grid for _, grid in first.pictures] == [grid for _, grid in second.pictures]
    assert all(not np.array_equal(a[0], b[0]) for a, b in zip(first.pictures, second.pictures, strict=True))


def test_held_out_scans_are_never_trained_on() -> None:
    """The scans put aside and the scans trained on are different pictures."""
    aside, trained = ({scan.tobytes() for scan, _ in scans.scans(side)} for side in (True, False))
    assert len(aside) == scans.NUM_HELD_OUT
    assert not aside & trained


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_examples_fit_the_processor(kind: Any) -> None:
    """Held-out pictures come at many sizes, with answers from the closed list."""
    examples = list(held_out(kind, 20, 3))
    assert {example.answer for example in examples} <= set(CLASSES[kind])
    assert len({grid_of(example.image.size) for example in examples}) >= 8
    assert all(16 <= len(patchify(example.image, SETTINGS)[0]) / 4 <= 48 for example in examples)


def test_every_kind_has_a_dozen_phrasings() -> None:
    """Each kind of question is asked in at least twelve ways."""
    assert all(len(set(PHRASINGS[kind])) >= 12 for kind in KINDS)


@pytest.mark.parametrize("text", ["naïve café 東京 🙂\n\ttabs", "What colour is the shape?", "x = {'a': [1, 2]}  # ok"])
def test_any_text_survives_the_tokenizer(tokenizer: Any, text: Any) -> None:
    """Decoding what was encoded gives the text back."""
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_template_writes_parts_in_any_order_and_role(tokenizer: Any) -> None:
    """Pictures may stand before or after text, in system messages too."""
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


def test_weights_go_by_published_names(model: Any) -> None:
    """No weight keeps a name that Qwen's published checkpoints do not use."""
    names = {published_name(name) for name in model.state_dict()}
    assert all(
        name.startswith(("visual.", "model.layers.", "model.embed_tokens", "model.norm", "lm_head")) for name in names
    )


@pytest.mark.parametrize(("num_wrong", "is_enough"), [(0, True), (1, True), (2, False)])
def test_score_counts_right_answers(num_wrong: Any, is_enough: Any) -> None:
    """An advertised kind passes with nineteen right answers in twenty, and not with eighteen."""
    examples = list(held_out("colour", 20, 1))
    wrong = examples[:num_wrong]
    scored = evaluate.score(
        "colour", examples, lambda example: "none" if example in wrong else f" {example.answer}.\n", 3
    )
    assert {"colour", "shape", "count", "digit"} <= set(ADVERTISED)
    assert (scored.num_right, scored.is_enough) == (20 - num_wrong, is_enough)
    assert [answer for _, _, answer in scored.mistakes] == ["none"] * num_wrong


def test_answers_are_compared_without_case_and_full_stop() -> None:
    """Case, surrounding space and a last full stop do not matter; words do."""
    example = Example(next(held_out("colour", 1, 1)).image, "?", "red", "colour")
    assert example.is_answered_by(" Red.\n")
    assert not example.is_answered_by("a red one")


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
    """The committed weights read each of the README's pictures right."""
    question, expected = SAMPLES[name]
    with Image.open(FOLDER / "samples" / name) as image:
        model, tokenizer = trained
        assert answer(model, tokenizer, [image.convert("RGB")], question) == expected


def test_committed_tokenizer_is_the_one_that_training_makes(trained: Any, tokenizer: Any) -> None:
    """Training makes the tokenizer anew; it comes out as committed."""
    assert trained[1].get_vocab() == tokenizer.get_vocab()
    text = random.Random(1).choice(PHRASINGS["colour"])
    assert trained[1](text).input_ids == tokenizer(text).input_ids
