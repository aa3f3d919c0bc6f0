"""A fast forward pass for training: it gives the library's numbers without the library's loops over pictures.

In: uint8 patches of pictures of one grid, and token ids. Out: picture embeddings and logits.
``tests/unit/cluster/demo`` compares both with the library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn.functional import linear, rms_norm, silu
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from cluster.demo.training.settings import PROCESSOR

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Qwen2_5_VLForConditionalGeneration

NORM_EPS: Final = 1e-6


def encode(visual: Any, patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Embeds a batch of pictures of one grid.

    Args:
        visual: The library's vision tower; its weights are used, its forward is not.
        patches: [num_pictures, num_patches, 588] uint8, in Qwen's merge-block order.
        grid: Patches as (height, width).

    Returns:
        [num_pictures, num_patches / 4, out_hidden_size].
    """
    cos, sin, forbidden = _layout(visual, grid)
    hidden = _embed_patches(visual, patches)
    for index, block in enumerate(visual.blocks):
        mask = None if index in visual.fullatt_block_indexes else forbidden
        hidden = hidden + _vision_attention(block.attn, rms_norm_(hidden, block.norm1), cos, sin, mask)
        hidden = hidden + _mlp(block.mlp, rms_norm_(hidden, block.norm2))
    merged = rms_norm_(hidden, visual.merger.ln_q).reshape(len(hidden), -1, visual.merger.hidden_size)
    embeddings: Tensor = visual.merger.mlp(merged)
    return embeddings


def answer_logits(
    model: Qwen2_5_VLForConditionalGeneration, ids: Tensor, positions: Tensor, pictures: Tensor | None, asked: Tensor
) -> Tensor:
    """The logits of the next token at chosen positions of right-padded conversations.

    Args:
        model: The library's model; its weights are used, its forward is not.
        ids: [batch, length] token ids; padding is at the end, so a causal mask is enough.
        positions: [3, batch, length] rotary positions along time, height and width.
        pictures: [num_picture_tokens, hidden] embeddings in the order of the picture tokens, or none.
        asked: [batch, length] bool; True where logits are wanted.

    Returns:
        [asked.sum(), vocabulary].
    """
    text = model.model.language_model
    hidden = text.embed_tokens(ids)
    if pictures is not None:
        places = (ids == model.config.image_token_id)[..., None].expand_as(hidden)
        hidden = hidden.masked_scatter(places, pictures.to(hidden.dtype))
    cos, sin = (turn[:, None] for turn in text.rotary_emb(hidden, positions))
    length = ids.shape[1]
    forbidden = torch.full((length, length), -torch.inf).triu(1)
    for layer in text.layers:
        hidden = hidden + _text_attention(
            layer.self_attn, rms_norm_(hidden, layer.input_layernorm), cos, sin, forbidden
        )
        hidden = hidden + _mlp(layer.mlp, rms_norm_(hidden, layer.post_attention_layernorm))
    with torch.autocast("cpu", enabled=False):  # the number of rows is new each time
        logits: Tensor = model.lm_head(rms_norm_(hidden[asked], text.norm))
    return logits


def rms_norm_(hidden: Tensor, norm: Any) -> Tensor:
    """The library's RMSNorm. Under autocast the residual stream stays float32, and only a layer's input is bfloat16."""
    normed = rms_norm(hidden, (hidden.shape[-1],), norm.weight, NORM_EPS)
    return normed.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else normed


def _embed_patches(visual: Any, patches: Tensor) -> Tensor:
    """Embeds normalised patches: [num_pictures, num_patches, 588] uint8 to [num_pictures, num_patches, hidden] float32.

    Both frames of a still picture are equal, so one frame with the kernel summed over time gives the same result.
    """
    kernel = visual.patch_embed.proj.weight.sum(2).flatten(1)
    mean, std = (255 * torch.tensor(PROCESSOR[key]).repeat_interleave(14 * 14) for key in ("image_mean", "image_std"))
    return linear((patches - mean) / std, kernel).float()


def _vision_attention(attn: Any, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
    query, key, value = attn.qkv(hidden).reshape(*hidden.shape[:2], 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
    mixed = _attend(query, key, value, mask)
    out: Tensor = attn.proj(mixed.transpose(1, 2).flatten(2))
    return out


def _text_attention(attn: Any, hidden: Tensor, cos: Tensor, sin: Tensor, forbidden: Tensor) -> Tensor:
    query, key, value = (
        layer(hidden).unflatten(-1, (-1, attn.head_dim)).transpose(1, 2)
        for layer in (attn.q_proj, attn.k_proj, attn.v_proj)
    )
    query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
    key, value = (part.repeat_interleave(attn.num_key_value_groups, 1) for part in (key, value))
    mixed = _attend(query, key, value, forbidden)
    out: Tensor = attn.o_proj(mixed.transpose(1, 2).flatten(2))
    return out


def _attend(query: Tensor, key: Tensor, value: Tensor, forbidden: Tensor | None) -> Tensor:
    """Plain attention over [batch, heads, length, head_dim]. Sequences are so short that torch's fused kernel would be
    slower in the backward pass."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    scores = scores if forbidden is None else scores + forbidden.to(scores.dtype)
    return torch.softmax(scores, -1, dtype=scores.dtype) @ value.to(scores.dtype)


def _mlp(mlp: Any, hidden: Tensor) -> Tensor:
    out: Tensor = mlp.down_proj(silu(mlp.gate_proj(hidden)) * mlp.up_proj(hidden))
    return out


def _rotate(vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of [batch, heads, length, head_dim]."""
    half = vectors.shape[-1] // 2  # the library's tables hold every angle twice
    cos, sin = cos[..., :half].to(vectors.dtype), sin[..., :half].to(vectors.dtype)
    first, second = vectors.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


_layouts: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}


def _layout(visual: Any, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """The layout of a grid: rotary tables cos and sin, each [num_patches, head_dim], and the mask of the windows,
    [num_patches, num_patches], which is 0 inside a window and -inf between windows."""
    if grid not in _layouts:
        whole = torch.tensor([[1, *grid]])
        merge, window = visual.spatial_merge_size, visual.window_size
        cos, sin = visual.rotary_pos_emb(torch.empty(0), get_vision_position_ids(whole, merge))
        order, bounds = get_vision_window_index(whole, merge, window, visual.patch_size)
        window_of = torch.empty(len(order), dtype=torch.long)
        window_of[order] = torch.bucketize(torch.arange(len(order)) * merge**2, bounds[1:], right=True)
        window_of = window_of.repeat_interleave(merge**2)
        apart = window_of[:, None] != window_of[None, :]
        _layouts[grid] = cos, sin, torch.zeros(apart.shape).masked_fill(apart, -torch.inf)
    return _layouts[grid]
