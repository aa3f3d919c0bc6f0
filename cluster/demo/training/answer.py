"""Asks a model in this process, with the library's own forward pass, and counts the right answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from cluster.demo.training.classes import KINDS
from cluster.demo.training.data import held_out
from cluster.demo.training.settings import SETTINGS
from cluster.preprocess import patchify

if TYPE_CHECKING:
    from PIL import Image
    from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

HELD_OUT_SEED: Final = 7


def accuracy(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, num: int, seed: int = HELD_OUT_SEED
) -> dict[str, float]:
    """Asks ``num`` held-out questions of each kind, and returns the share of right answers for each kind."""
    rates = {}
    for kind in KINDS:
        outcomes = [
            example.is_answered_by(answer(model, tokenizer, [example.image], example.question))
            for example in held_out(kind, num, seed)
        ]
        rates[kind] = sum(outcomes) / len(outcomes)
    return rates


def answer(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    images: list[Image.Image],
    question: str,
    max_tokens: int = 16,
) -> str:
    """The greedy answer to a question about RGB pictures; in the prompt the pictures come before the question."""
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    inputs: dict[str, list[torch.Tensor]] = {}
    for image in images:
        patches, grid = patchify(image, SETTINGS)
        prompt = str(prompt).replace("<|image_pad|>", "<|image|>" * (len(patches) // 4), 1)
        inputs.setdefault("pixel_values", []).append(_normalise(torch.from_numpy(patches)))
        inputs.setdefault("image_grid_thw", []).append(torch.tensor([grid]))
    encoded = tokenizer(
        str(prompt).replace("<|image|>", "<|image_pad|>"), return_tensors="pt", add_special_tokens=False
    )
    kinds = (encoded.input_ids == model.config.image_token_id).int()
    pictures = {name: torch.cat(parts) for name, parts in inputs.items()}
    with torch.no_grad():
        generated = model.generate(
            input_ids=encoded.input_ids,
            attention_mask=encoded.attention_mask,
            **({"mm_token_type_ids": kinds, **pictures} if images else {}),
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    return str(tokenizer.decode(generated[0, encoded.input_ids.shape[1] :], skip_special_tokens=True))


def _normalise(patches: torch.Tensor) -> torch.Tensor:
    """Normalises patches as the Hugging Face processor does: [num_patches, 588] uint8 to [num_patches, 1176] float32.

    The result is twice as wide, because it repeats a still picture as two frames.
    """
    mean, std = (255 * torch.tensor(values)[:, None, None] for values in (SETTINGS.image_mean, SETTINGS.image_std))
    return ((patches.view(-1, 3, 1, 14 * 14) - mean) / std).expand(-1, -1, 2, -1).flatten(1)
