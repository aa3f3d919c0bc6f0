"""A linear layer and what follows it at once, in one step where the CPU's kernels can.

On x86 torch multiplies float32 matrices with MKL, which takes half the vector width on AMD's processors; oneDNN, also
part of torch, takes all of it everywhere, and applies what follows the product while the numbers are still in cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor


def make_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """The layer in the fastest form for the weight's device and dtype: ``weight`` [num_out, num_in], ``bias``
    [num_out]."""
    return (
        OneDnnLinear(weight, bias) if weight.device.type == "cpu" and has_onednn(weight.dtype) else Linear(weight, bias)
    )


def has_onednn(dtype: torch.dtype) -> bool:
    """Whether this CPU has oneDNN's own kernels for a dtype; where it has none, oneDNN refuses the dtype or crawls."""
    if not (torch._C._has_mkldnn and torch.backends.cpu.get_cpu_capability().startswith("AVX")):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Linear:
    """Plain torch. ``x`` is always [num_rows, num_in], the result [num_rows, num_out]."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight: Final = weight
        self._bias: Final = bias

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self._weight, self._bias)

    def silu(self, x: Tensor) -> Tensor:
        """``silu(linear(x))``."""
        return functional.silu(self(x), inplace=True)

    def gelu(self, x: Tensor) -> Tensor:
        """``gelu(linear(x))``, by the error function."""
        return functional.gelu(self(x))

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """``linear(x) · other``."""
        return self(x).mul_(other)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """``linear(x) + other``."""
        return self(x).add_(other)


class OneDnnLinear(Linear):
    """The operators that torch's own compiler calls, with the weight in oneDNN's order: the weight given may be let go.

    Source: ``torch._inductor.fx_passes.mkldnn_fusion`` of torch 2.13.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(torch.ops.mkldnn._reorder_linear_weight(weight.contiguous()), bias)

    def __call__(self, x: Tensor) -> Tensor:
        return self._unary(x, "none")

    def silu(self, x: Tensor) -> Tensor:
        return self._unary(x, "swish")

    def gelu(self, x: Tensor) -> Tensor:
        return self._unary(x, "gelu", "none")

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        return self._binary(x, other, "mul")

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        return self._binary(x, other, "add")

    def _unary(self, x: Tensor, name: str, algorithm: str = "") -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self._weight, self._bias, name, [], algorithm)
        return result

    def _binary(self, x: Tensor, other: Tensor, name: str) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self._weight, self._bias, name)
        return result
