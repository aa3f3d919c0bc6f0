"""The vision tower's forward pass: the library's weights and mathematics, laid out so that nothing loops over windows.

transformers attends window by window. Here windows of one length lie side by side, over all pictures of a run, and are
attended as one batch; a picture's windows have at most four lengths (full, right edge, bottom edge, corner). What depends on a
picture's grid alone, the order of its patches and their rotary angles, is worked out once per grid.

Source: ``Qwen2_5_VisionTransformerPretrainedModel`` of transformers 5.19; Qwen2.5-VL technical report (arXiv 2502.13923).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Final

import torch
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
        Qwen2_5_VisionTransformerPretrainedModel,
        Qwen2_5_VLMLP,
        Qwen2_5_VLVisionAttention,
    )

    from cluster.messages import Grid

EPSILON: Final = 1e-6
"""Of the norms; the library has it as a constant too."""
MAX_PLANS: Final = 256
"""Grids whose plans are kept, on the device. One for a megapixel takes 3 MB."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How one picture's patches are laid out: window by window, the shortest windows first.

    ``windows`` gives the number of windows by their length in patches. ``order`` [num_patches] says which patch lies in each
    row; ``tokens`` [num_tokens] where, counted in tokens, each token of the picture lies. ``cos`` and ``sin`` are [num_patches,
    1, 1, head_dim] float32 by rows, the first half of ``sin`` negated: a rotation is ``x · cos + roll(x) · sin``.
    """

    windows: Mapping[int, int]
    order: Tensor
    tokens: Tensor
    cos: Tensor
    sin: Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """How the patches of all pictures of a run are laid out together: by the length of their windows first.

    ``order`` says which patch lies in each row, counted over all pictures; ``rows`` for each picture where its own rows lie, in
    the order of its plan. The rest is as in ``Plan``.
    """

    windows: Mapping[int, int]
    order: Tensor
    rows: tuple[Tensor, ...]
    cos: Tensor
    sin: Tensor


class Tower:
    """Runs the library's module, whose weights it reads and whose own ``forward`` it never calls."""

    def __init__(self, module: Qwen2_5_VisionTransformerPretrainedModel) -> None:
        config = module.config
        self.module: Final = module
        self._num_heads: Final = config.num_heads
        self._head_dim: Final = config.hidden_size // config.num_heads
        self._merge: Final = config.spatial_merge_size
        self._unit: Final = config.spatial_merge_size**2
        self._full: Final = frozenset(config.fullatt_block_indexes)
        self.plan: Final = lru_cache(MAX_PLANS)(self._plan)

    def __call__(self, patches: Sequence[Tensor], grids: Sequence[Grid]) -> list[Tensor]:
        """Encodes pictures together.

        Args:
            patches: For each picture [num_patches, 3 · temporal · patch · patch], normalised, in the weights' dtype.
            grids: For each picture its patches as (1, height, width).

        Returns:
            For each picture [num_tokens, out_hidden_size], in the order in which the language model reads them.
        """
        plans = [self.plan(grid) for grid in grids]
        layout = join(plans)
        embed = self.module.patch_embed
        x = linear(patches[0] if len(patches) == 1 else torch.cat([*patches]), embed.proj.weight.view(embed.embed_dim, -1))
        x = x[layout.order]
        for number, block in enumerate(self.module.blocks):
            x += self._attend(block.attn, norm(x, block.norm1.weight), layout, full=number in self._full)
            x += feed_forward(block.mlp, norm(x, block.norm2.weight))
        tokens: Tensor = self.module.merger(x)
        if len(plans) == 1:
            return [tokens[plans[0].tokens]]
        firsts = [rows[:: self._unit] // self._unit for rows in layout.rows]
        return [tokens[first[plan.tokens]] for first, plan in zip(firsts, plans, strict=True)]

    def _attend(self, weights: Qwen2_5_VLVisionAttention, x: Tensor, layout: Layout, *, full: bool) -> Tensor:
        """Attention within windows, or within pictures: [num_patches, hidden_size] → the same."""
        qkv = linear(x, weights.qkv.weight, weights.qkv.bias).view(-1, 3, self._num_heads, self._head_dim)
        qk = qkv[:, :2].float()  # as the library: angles are applied in float32
        qk = torch.addcmul(qk * layout.cos, qk.roll(self._head_dim // 2, -1), layout.sin).to(x.dtype)
        q, k, v = qk[:, 0], qk[:, 1], qkv[:, 2]
        if full and len(layout.rows) == 1:
            out = attention(q, k, v, len(x))
        elif full:
            out = torch.empty_like(v)
            for rows in layout.rows:
                out[rows] = attention(q[rows], k[rows], v[rows], len(rows))
        else:
            sizes = [length * count for length, count in layout.windows.items()]
            split = zip(*(torch.split(part, sizes) for part in (q, k, v)), layout.windows, strict=True)
            parts = [attention(*part) for part in split]
            out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return linear(out.flatten(1), weights.proj.weight, weights.proj.bias)

    def _plan(self, grid: Grid) -> Plan:
        _, height, width = grid
        config, merge = self.module.config, self._merge
        tokens = torch.arange(height * width // self._unit).view(height // merge, width // merge)
        side = config.window_size // config.patch_size // merge
        tiles = (tile for band in torch.split(tokens, side) for tile in torch.split(band, side, dim=1))
        windows = sorted(tiles, key=torch.Tensor.numel)
        laid = torch.cat([window.flatten() for window in windows])
        order = (laid[:, None] * self._unit + torch.arange(self._unit)).flatten()
        # The processor puts a token's patches next to each other: where is each of them in the picture?
        y = torch.arange(height).view(-1, 1, merge, 1).expand(-1, width // merge, -1, merge).flatten()[order]
        x = torch.arange(width).view(1, -1, 1, merge).expand(height // merge, -1, merge, -1).flatten()[order]
        half = self._head_dim // 2
        frequencies = 1.0 / config.rope_parameters["rope_theta"] ** (torch.arange(0, half, 2, dtype=torch.float32) / half)
        angles = torch.cat([y[:, None] * frequencies, x[:, None] * frequencies], dim=1)[:, None, None]
        cos, sin = angles.cos(), angles.sin()
        device = self.module.device
        return Plan(
            windows=Counter(window.numel() * self._unit for window in windows),
            order=order.to(device),
            tokens=laid.argsort().to(device),
            cos=torch.cat([cos, cos], dim=-1).to(device),
            sin=torch.cat([-sin, sin], dim=-1).to(device),
        )


def join(plans: Sequence[Plan]) -> Layout:
    """Lays out several pictures together."""
    if len(plans) == 1:
        [plan] = plans
        return Layout(plan.windows, plan.order, (torch.arange(len(plan.order), device=plan.order.device),), plan.cos, plan.sin)
    total = sum((Counter(plan.windows) for plan in plans), Counter[int]())
    windows = {length: total[length] for length in sorted(total)}
    starts = accumulate((length * count for length, count in windows.items()), initial=0)
    free = dict(zip(windows, starts, strict=False))  # the next row for windows of each length
    rows: list[Tensor] = []
    for plan in plans:
        pieces = []
        for length, count in plan.windows.items():
            pieces.append(torch.arange(free[length], free[length] + length * count, device=plan.order.device))
            free[length] += length * count
        rows.append(torch.cat(pieces))
    firsts = accumulate((len(plan.order) for plan in plans), initial=0)
    laid = torch.cat(rows).argsort()
    order = torch.cat([plan.order + first for plan, first in zip(plans, firsts, strict=False)])[laid]
    cos, sin = (torch.cat([getattr(plan, name) for plan in plans])[laid] for name in ("cos", "sin"))
    return Layout(windows, order, tuple(rows), cos, sin)


def norm(x: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm over the last dimension."""
    return rms_norm(x, weight.shape, weight, EPSILON)


def feed_forward(weights: Qwen2_5_VLMLP, x: Tensor) -> Tensor:
    """SwiGLU: [num_patches, hidden_size] → the same."""
    gate = silu(linear(x, weights.gate_proj.weight, weights.gate_proj.bias), inplace=True)
    gate *= linear(x, weights.up_proj.weight, weights.up_proj.bias)
    return linear(gate, weights.down_proj.weight, weights.down_proj.bias)


def attention(q: Tensor, k: Tensor, v: Tensor, length: int) -> Tensor:
    """Attention within stretches of ``length`` rows; all are [num_rows, num_heads, head_dim]."""
    q, k, v = (part.view(-1, length, *part.shape[1:]).transpose(1, 2) for part in (q, k, v))
    return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)
