"""The vision tower's forward pass: the library's weights and mathematics, in a layout that needs no loop over windows.

transformers attends window by window. Here the rows of a picture are sorted by window, so windows of one length are
neighbours and are attended as one batch. The windows of a picture have at most four lengths (full, right edge, bottom
edge, corner). On a GPU all windows of all pictures are one call; so are all pictures in the layers with full attention.
The order of the patches and their rotary angles depend on the picture's grid alone, and are computed once per grid.

The weights are rearranged once, when they are loaded. A picture counts as two equal frames, so the two halves of the
patch embedding's weights are added up, and one frame is multiplied. The two numbers that a rotary angle rotates are put
next to each other, so that the rotation is one multiplication of complex numbers. Queries and keys are reordered in the
same way, so their products do not change.

Source: ``Qwen2_5_VisionTransformerPretrainedModel`` of transformers 5.19; Qwen2.5-VL technical report (arXiv
    2502.13923).
"""

from __future__ import annotations

from functools import cache, lru_cache, partial
from importlib import import_module
from typing import TYPE_CHECKING, Final, cast

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import rms_norm, scaled_dot_product_attention

from cluster.encode.linear import make_linear
from cluster.encode.plan import join, make_plan

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from torch import Tensor
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
        Qwen2_5_VisionTransformerPretrainedModel,
        Qwen2_5_VLVisionBlock,
    )

    from cluster.encode.plan import AttentionSpans
    from cluster.messages import Grid

EPSILON: Final = 1e-6
"""The epsilon of the norms. The library has it as a constant too."""
MAX_PLANS: Final = 64
"""The most grids whose plans are kept, on the device. A plan takes 350 bytes per patch: 2 MB for a megapixel, 20 MB
for the 12.8 megapixels that published settings allow."""


class Tower:
    """Runs the weights of the library's module. It keeps nothing of the module but what it has rearranged."""

    def __init__(self, module: Qwen2_5_VisionTransformerPretrainedModel) -> None:
        config = module.config
        self._unit: Final = config.spatial_merge_size**2
        self._full: Final = frozenset(config.fullatt_block_indexes)
        still = module.patch_embed.proj.weight.detach().float().sum(2).flatten(1)  # [hidden_size, 3 · patch · patch]
        self._embed: Final = make_linear(still.to(module.dtype), None)
        self._blocks: Final = [Block(block, config.num_heads) for block in module.blocks]
        self._last_norm: Final = module.merger.ln_q.weight.detach()
        first, _, second = module.merger.mlp
        self._merge: Final = make_linear(first.weight.detach(), first.bias.detach())
        self._out: Final = make_linear(second.weight.detach(), second.bias.detach())
        self._plan: Final = lru_cache(MAX_PLANS)(partial(make_plan, config=config, device=module.device))

    def __call__(self, patches: Sequence[Tensor], grids: Sequence[Grid]) -> list[Tensor]:
        """Encodes several pictures in one pass.

        Args:
            patches: For each picture [num_patches, 3 · patch · patch], normalised, in the dtype of the weights.
            grids: For each picture its patches as (1, height, width).

        Returns:
            For each picture [num_tokens, out_hidden_size], in the order in which the language model reads the tokens.
        """
        layout = join([self._plan(grid) for grid in grids])
        x = self._embed(patches[0] if len(patches) == 1 else torch.cat([*patches]))
        x = x[layout.order]  # [num_patches, hidden_size]
        for number, block in enumerate(self._blocks):
            x = block(x, layout.angles, layout.pictures if number in self._full else layout.windows)
        x = norm(x, self._last_norm).view(-1, self._unit * x.shape[1])  # [num_tokens, unit · hidden_size]
        tokens = self._out(self._merge.gelu(x))[layout.tokens]  # [num_tokens, out_hidden_size]
        return [*torch.split(tokens, [len(picture) // self._unit for picture in patches])]


class Block:
    """One layer: attention, then SwiGLU. Each works on normalised rows, and its result is added to them."""

    def __init__(self, block: Qwen2_5_VLVisionBlock, num_heads: int) -> None:
        weights = {name: weight.detach() for name, weight in block.named_parameters()}
        self._num_heads: Final = num_heads
        self._norms: Final = (weights["norm1.weight"], weights["norm2.weight"])
        self._qkv: Final = make_linear(
            *(in_pairs(weights[f"attn.qkv.{kind}"], num_heads) for kind in ("weight", "bias"))
        )
        self._proj, self._gate, self._up, self._down = (
            make_linear(weights[f"{name}.weight"], weights[f"{name}.bias"])
            for name in ("attn.proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
        )

    def __call__(self, x: Tensor, angles: Tensor, spans: AttentionSpans) -> Tensor:
        """[num_patches, hidden_size] → the same shape. Rows attend to each other within the given spans."""
        x = self._proj.plus(self._attend(norm(x, self._norms[0]), angles, spans), x)
        return self._down.plus(self._gated(norm(x, self._norms[1])), x)

    def _attend(self, x: Tensor, angles: Tensor, spans: AttentionSpans) -> Tensor:
        qkv = self._qkv(x).view(len(x), 3, self._num_heads, -1)  # [num_patches, 3, num_heads, head_dim]
        rotate(qkv[:, :2], angles)
        return attend(qkv, spans).flatten(1)

    def _gated(self, x: Tensor) -> Tensor:
        if x.is_cuda:
            return cast("Tensor", kernels().silu_times(self._gate(x), self._up(x)))
        return self._up.times(x, self._gate.silu(x))


@cache
def kernels() -> ModuleType:
    """The GPU kernels. They need Triton, which a machine without a GPU may lack."""
    return import_module("cluster.encode.kernels")


def rotate(qk: Tensor, angles: Tensor) -> None:
    """Applies the rotary embedding to queries and keys in place, in float32 as the library does.

    Args:
        qk: [num_rows, 2, num_heads, head_dim].
        angles: [num_rows, 1, 1, head_dim / 2] complex64.
    """
    if qk.is_cuda:
        kernels().rotate(qk, angles)
        return
    rotated = qk.float()  # the same tensor, if it is float32
    torch.view_as_complex(rotated.view(*rotated.shape[:-1], -1, 2)).mul_(angles)
    if rotated is not qk:
        qk.copy_(rotated)


def attend(qkv: Tensor, spans: AttentionSpans) -> Tensor:
    """Attention within spans of rows: [num_rows, 3, num_heads, head_dim] → [num_rows, num_heads, head_dim]."""
    if qkv.is_cuda and qkv.dtype != torch.float32:  # the kernel takes no float32
        q, k, v = qkv.unbind(1)
        bounds, longest = spans.bounds, spans.longest
        return cast("Tensor", varlen_attn(q, k, v, bounds, bounds, longest, longest))
    runs = torch.split(qkv, [length * count for length, count in spans.runs])
    parts = [attend_run(run, length) for run, (length, _) in zip(runs, spans.runs, strict=True)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def attend_run(qkv: Tensor, length: int) -> Tensor:
    """Attention within spans of one length, with the same shapes as ``attend``."""
    # each [num_spans, num_heads, length, head_dim]
    q, k, v = qkv.view(-1, length, *qkv.shape[1:]).permute(2, 0, 3, 1, 4)
    return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)


def norm(x: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm over the last dimension."""
    return rms_norm(x, weight.shape, weight, EPSILON)


def in_pairs(qkv: Tensor, num_heads: int) -> Tensor:
    """Reorders the rows of a weight so that the two numbers of a query or key that one angle rotates are neighbours.
    They are half a head apart in the checkpoint.

    Args:
        qkv: The weight [3 · hidden_size, hidden_size] or bias [3 · hidden_size] of queries, keys and values.
        num_heads: The number of heads that hidden_size consists of.

    Returns:
        The same shape. The rows of the values (v) stay as they are.
    """
    # [3, num_heads, 2, head_dim / 2, ...]
    heads = qkv.view(3, num_heads, 2, -1, *qkv.shape[1:])
    qk, v = heads[:2], heads[2:]
    return torch.cat([qk.transpose(2, 3).flatten(0, 3), v.flatten(0, 3)])
