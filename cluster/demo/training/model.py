"""The demo model's geometry and checkpoint, whose weights have the names of Qwen's published checkpoints."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from cluster.demo.training.settings import PROCESSOR

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

MAX_POSITION: Final = 8192
"""The largest total length of a prompt and its answer, in tokens."""


def new_config(tokenizer: PreTrainedTokenizerBase) -> Qwen2_5_VLConfig:
    """A small model of unchanged Qwen2.5-VL architecture; all head counts are even, for tensor parallelism."""
    ids = dict(zip(_SPECIAL, tokenizer.convert_tokens_to_ids(list(_SPECIAL.values())), strict=True))
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_POSITION,
        "max_window_layers": 4,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]},
        "tie_word_embeddings": True,
        "bos_token_id": ids["pad_token_id"],
        "eos_token_id": ids["eos_token_id"],
        "pad_token_id": ids["pad_token_id"],
    }
    vision = {
        "depth": 4,
        "hidden_size": 192,
        "num_heads": 4,
        "intermediate_size": 512,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [1, 3],
        "out_hidden_size": 256,
    }
    return Qwen2_5_VLConfig(
        architectures=["Qwen2_5_VLForConditionalGeneration"],
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        bos_token_id=ids["pad_token_id"],
        **ids,
    )


def new_model(config: Qwen2_5_VLConfig, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """Untrained float32 weights, the same for the same seed."""
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config).float()
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and "embed_tokens" not in name:
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)  # the library's 0.02 is meant for wide models
    return model


def save_checkpoint(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    processor: Mapping[str, Any] = PROCESSOR,
) -> None:
    """Writes the weights rounded to bfloat16, the configurations and the tokenizer, for ``from_pretrained`` and
    vLLM."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.dtype = torch.bfloat16
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
    generation = {
        "bos_token_id": model.config.text_config.bos_token_id,
        "eos_token_id": [model.config.text_config.eos_token_id, model.config.text_config.pad_token_id],
        "pad_token_id": model.config.text_config.pad_token_id,
        "do_sample": False,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    weights = {
        published_name(name): tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the token embedding
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors lets only the owner read it


def round_weights(model: nn.Module) -> None:
    """Rounds float32 weights to bfloat16 values, so that the measured model equals the stored one."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(torch.bfloat16).float())


def published_name(name: str) -> str:
    """A weight's name in Qwen's published checkpoints: ``model.visual.x`` is ``visual.x`` there.

    >>> published_name("model.language_model.layers.0.input_layernorm.weight")
    'model.layers.0.input_layernorm.weight'
    """
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


_SPECIAL: Final = {
    "pad_token_id": "<|endoftext|>",
    "eos_token_id": "<|im_end|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
