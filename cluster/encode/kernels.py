"""What a GPU does between the tower's matrix products, each in one pass over memory: such steps cost what they move.

Imported on a GPU alone: Triton comes with torch's builds for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
import triton
from triton import language as tl

if TYPE_CHECKING:
    from torch import Tensor

BLOCK: Final = 1024
"""Pairs of a row, or numbers, that one program takes at once."""


def turn(qk: Tensor, angles: Tensor) -> None:
    """Turns each pair of neighbouring numbers by its row's angle, in place and in float32.

    Args:
        qk: [num_rows, 2, num_heads, head_dim]; a row's numbers lie side by side.
        angles: [num_rows, 1, 1, head_dim / 2] complex64.
    """
    num_rows, num_pairs = len(qk), qk[0].numel() // 2
    grid = (num_rows, triton.cdiv(num_pairs, BLOCK))
    _turn[grid](qk, torch.view_as_real(angles), num_pairs, qk.stride(0), qk.shape[-1] // 2, BLOCK)


def silu_times(gate: Tensor, other: Tensor) -> Tensor:
    """``silu(gate) · other``, in place of ``gate``; both are contiguous and of one shape."""
    num = gate.numel()
    _silu_times[(triton.cdiv(num, BLOCK),)](gate, other, num, BLOCK)
    return gate


@triton.jit  # type: ignore[untyped-decorator]
def _turn(qk, angles, num_pairs, row_stride, half: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * block
    numbers = qk + row * row_stride + 2 * first + tl.arange(0, 2 * block)
    is_there = 2 * first + tl.arange(0, 2 * block) < 2 * num_pairs
    pairs = tl.reshape(tl.load(numbers, mask=is_there, other=0.0), (block, 2))
    real, imaginary = tl.split(pairs.to(tl.float32))
    angle = angles + 2 * (row * half + (first + tl.arange(0, block)) % half)
    cos, sin = tl.load(angle), tl.load(angle + 1)
    turned = tl.join(real * cos - imaginary * sin, real * sin + imaginary * cos)
    tl.store(numbers, tl.reshape(turned, (2 * block,)).to(qk.dtype.element_ty), mask=is_there)


@triton.jit  # type: ignore[untyped-decorator]
def _silu_times(gate, other, num, block: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    is_there = place < num
    left = tl.load(gate + place, mask=is_there, other=0.0).to(tl.float32)
    right = tl.load(other + place, mask=is_there, other=0.0).to(tl.float32)
    tl.store(gate + place, (left * tl.sigmoid(left) * right).to(gate.dtype.element_ty), mask=is_there)
