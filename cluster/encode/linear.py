"""Linear layers that also do the operation after them, in the same step where the CPU's kernels can.

In: rows [num_rows, num_in] float. Out: rows [num_rows, num_out] of the same dtype.

On x86, torch multiplies float32 matrices with MKL, which uses half the vector width of AMD's processors. oneDNN is also
part of torch and uses the full width on all of them. It also applies the operation that follows the product while the
numbers are still in the CPU's cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor


def make_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """Makes the layer in the fastest form for the weight's device and dtype.

    Args:
        weight: [num_out, num_in] float32 or bfloat16.
        bias: [num_out] of the same dtype, or None for a layer without bias.
    """
    return (
        OneDnnLinear(weight, bias) if weight.device.type == "cpu" and has_onednn(weight.dtype) else Linear(weight, bias)
    )


def has_onednn(dtype: torch.dtype) -> bool:
    """Returns True if this CPU has oneDNN's own kernels for a dtype.

    Without them, oneDNN refuses the dtype or is very slow.
    """
    if not (torch._C._has_mkldnn and torch.backends.cpu.get_cpu_capability().startswith("AVX")):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Linear:
    """A linear layer in plain torch.

    In all methods ``x`` is [num_rows, num_in]; ``other`` and the result are [num_rows, num_out]. All of them have the
    weight's dtype.

    Args:
        weight: [num_out, num_in].
        bias: [num_out], or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight: Final = weight
        self._bias: Final = bias

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self._weight, self._bias)

    def silu(self, x: Tensor) -> Tensor:
        """Returns ``silu(linear(x))``."""
        return functional.silu(self(x), inplace=True)

    def gelu(self, x: Tensor) -> Tensor:
        """Returns ``gelu(linear(x))``, with the exact form of GELU that uses the error function."""
        return functional.gelu(self(x))

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """Returns ``linear(x) · other``, multiplied number by number."""
        return self(x).mul_(other)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """Returns ``linear(x) + other``."""
        return self(x).add_(other)


class OneDnnLinear(Linear):
    """A linear layer in oneDNN, with the operators that torch's own compiler uses.

    It keeps a copy of the weight in oneDNN's order, so the caller may free the original.

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
