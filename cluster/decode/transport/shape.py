"""The shape of embeddings that the language model accepts, and the check of an embedding against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

import numpy as np
import torch

from cluster.errors import InternalError

if TYPE_CHECKING:
    from torch import Tensor

    from cluster.messages import Embedding, Grid

EXPONENTS: Final = {"float32": (np.uint32, 0x7F800000), "bfloat16": (np.uint16, 0x7F80)}
"""For each dtype: the integer type of its bits, and the bits of its exponent. A number is not finite if all exponent
bits are ones. torch's own test takes 15 times as long."""


@dataclass(frozen=True, slots=True)
class EmbeddingShape:
    """The embeddings that the language model accepts: rows of ``hidden_size`` numbers, one for each ``merge_size``²
    patches."""

    hidden_size: int
    merge_size: int
    dtype: str

    @property
    def row_bytes(self) -> int:
        """The bytes of one row."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return self.hidden_size * dtype.itemsize

    def num_tokens(self, grid: Grid) -> int:
        """The rows of the embedding of a picture with this grid of patches."""
        _, height, width = grid
        return height * width // self.merge_size**2

    def num_bytes(self, grid: Grid) -> int:
        """The bytes of the embedding of a picture with this grid of patches."""
        return self.num_tokens(grid) * self.row_bytes

    def check(self, embedding: Embedding) -> None:
        """Refuses a malformed embedding. It would end the engine, and with it every request in flight.

        Raises:
            InternalError: The grid, the dtype, or the number or width of rows is wrong, or a number is not finite.
        """
        time, height, width = embedding.grid
        if time != 1 or height < 1 or width < 1 or height % self.merge_size or width % self.merge_size:
            self._refuse(embedding, f"grid {embedding.grid} is not one frame of whole merge blocks")
        if embedding.dtype != self.dtype:
            self._refuse(embedding, f"dtype is {embedding.dtype}, the engine runs {self.dtype}")
        expected = (self.num_tokens(embedding.grid), self.row_bytes)
        if embedding.rows.shape != expected or embedding.rows.dtype != "uint8":
            self._refuse(embedding, f"raw shape is {embedding.rows.shape}, grid {embedding.grid} implies {expected}")
        bits, exponent = EXPONENTS[self.dtype]
        numbers = np.ascontiguousarray(embedding.rows).view(bits)
        if (numbers & bits(exponent)).max() == exponent:
            self._refuse(embedding, "it holds numbers that are not finite")

    def tensor(self, embedding: Embedding) -> Tensor:
        """A checked copy of an embedding as a tensor: [num_tokens, hidden_size].

        Raises:
            InternalError: See ``check``.
        """
        self.check(embedding)
        dtype: torch.dtype = getattr(torch, self.dtype)
        return torch.from_numpy(embedding.rows.copy()).view(dtype)

    def _refuse(self, embedding: Embedding, fault: str) -> NoReturn:
        raise InternalError(f"The embedding of picture {embedding.digest[:12]} cannot be used: {fault}.")
