"""Triton kernels for the GPU steps between the tower's matrix products.

The time of such a step is the time of moving its numbers. So each kernel reads and writes them only once.

This module is imported only if the tower runs on a GPU, because only torch's builds for GPUs contain Triton.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
import triton
from triton import language as tl

if TYPE_CHECKING:
    from torch import Tensor

BLOCK: Final = 1024
"""The number of elements for each program: pairs of numbers in ``_rotate``, single numbers in ``_silu_times``."""


def rotate(qk: Tensor, angles: Tensor) -> None:
    """Rotates each pair of neighbouring numbers by the angle of its row and pair, in place. It computes in float32.

    Args:
        qk: Queries and keys, [num_patches, 2, num_heads, head_dim] float32 or bfloat16. The numbers of one row must be
            contiguous.
        angles: [num_patches, 1, 1, head_dim / 2] complex64: cosine and sine of each angle.
    """
    num_rows, num_pairs = len(qk), qk[0].numel() // 2  # num_pairs = num_heads · head_dim, for queries and keys
    grid = (num_rows, triton.cdiv(num_pairs, BLOCK))
    parts = torch.view_as_real(angles)  # [num_patches, 1, 1, head_dim / 2, 2] float32
    _rotate[grid](qk, parts, num_pairs, qk.stride(0), qk.shape[-1] // 2, BLOCK)


def silu_times(gate: Tensor, other: Tensor) -> Tensor:
    """Computes ``silu(gate) · other`` in float32, writes it into ``gate`` and returns ``gate``.

    Args:
        gate: [num_patches, intermediate_size] float32 or bfloat16, contiguous.
        other: The same shape and dtype, contiguous.
    """
    num = gate.numel()
    _silu_times[(triton.cdiv(num, BLOCK),)](gate, other, num, BLOCK)
    return gate


@triton.jit  # type: ignore[untyped-decorator]
def _rotate(qk, angles, num_pairs, row_stride, half: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * block
    numbers = qk + row * row_stride + 2 * first + tl.arange(0, 2 * block)  # [2 · block] addresses
    in_row = 2 * first + tl.arange(0, 2 * block) < 2 * num_pairs  # [2 · block]
    pairs = tl.reshape(tl.load(numbers, mask=in_row, other=0.0), (block, 2))  # [block, 2]
    real, imaginary = tl.split(pairs.to(tl.float32))  # each [block]
    angle = angles + 2 * (row * half + (first + tl.arange(0, block)) % half)  # [block] addresses
    cos, sin = tl.load(angle), tl.load(angle + 1)  # each [block]
    rotated = tl.join(real * cos - imaginary * sin, real * sin + imaginary * cos)  # [block, 2]
    tl.store(numbers, tl.reshape(rotated, (2 * block,)).to(qk.dtype.element_ty), mask=in_row)


@triton.jit  # type: ignore[untyped-decorator]
def _silu_times(gate, other, num, block: tl.constexpr):  # type: ignore[no-untyped-def]
    offsets = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)  # [block]
    in_tensor = offsets < num  # [block]
    left = tl.load(gate + offsets, mask=in_tensor, other=0.0).to(tl.float32)  # [block]
    right = tl.load(other + offsets, mask=in_tensor, other=0.0).to(tl.float32)  # [block]
    tl.store(gate + offsets, (left * tl.sigmoid(left) * right).to(gate.dtype.element_ty), mask=in_tensor)
