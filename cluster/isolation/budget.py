"""The CPU time and the memory that decoding one picture may use, by the size of the picture and of its file.

Only the time in which the child computes counts, so a busy machine costs no picture its answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cluster.errors import PictureTooExpensive

if TYPE_CHECKING:
    from cluster.messages import Picture

USUAL_S: Final = 0.25
USUAL_S_PER_PIXEL: Final = 80e-9
USUAL_S_PER_BYTE: Final = 30e-9
"""CPU seconds that ordinary pictures stay below. Measured (two shared cores of an AMD EPYC, noisy pictures of 4096 x
3072 pixels at 9 other processes, 2026-11-30): seconds of this bound → seconds used: progressive JPEG at quality 95
1.6 → 0.85, RGBA PNG 2.3 → 1.1, lossless RGBA WebP 2.3 → 0.81, WebP 1.4 → 0.88."""
TOLERANCE: Final = 3
"""A picture may use this many times its usual CPU time before it is refused."""

MEMORY_BYTES: Final = 256 * 2**20
MEMORY_BYTES_PER_PIXEL: Final = 32
MEMORY_BYTES_PER_FILE_BYTE: Final = 4
"""Bytes of memory that ordinary pictures stay below. Measured (49 megapixels, 2026-11-30): an RGBA PNG, a grey PNG with
alpha and a progressive CMYK JPEG all fit into 64 MiB and 22 bytes for each pixel."""

ADVICE: Final = "save it again as a baseline JPEG or as a PNG"


@dataclass(frozen=True, slots=True)
class Budget:
    """The CPU time and the memory that one picture may use.

    ``usual_cpu_s`` is the CPU time that ordinary pictures of this size stay below, in seconds. A picture that uses
    ``max_cpu_s`` is refused. ``max_bytes`` is the memory that a child may add to what it had before.
    """

    usual_cpu_s: float
    max_cpu_s: float
    max_bytes: int

    @classmethod
    def of(cls, picture: Picture) -> Budget:
        """The budget of a picture."""
        num_bytes = len(picture.data)
        usual_cpu_s = USUAL_S + USUAL_S_PER_PIXEL * picture.num_pixels + USUAL_S_PER_BYTE * num_bytes
        max_bytes = MEMORY_BYTES + MEMORY_BYTES_PER_PIXEL * picture.num_pixels + MEMORY_BYTES_PER_FILE_BYTE * num_bytes
        return cls(usual_cpu_s, TOLERANCE * usual_cpu_s, max_bytes)


def too_slow(picture: Picture, budget: Budget) -> PictureTooExpensive:
    """The refusal of a picture that has used too much CPU time."""
    message = f"The picture takes far longer to decode than others of its size; {ADVICE}."
    return PictureTooExpensive(message, param=picture.param, limit_cpu_s=round(budget.max_cpu_s, 3))


def too_big(picture: Picture, max_bytes: int) -> PictureTooExpensive:
    """The refusal of a picture that needs too much memory."""
    message = f"The picture takes far more memory to decode than others of its size; {ADVICE}."
    return PictureTooExpensive(message, param=picture.param, limit_memory_bytes=max_bytes)
