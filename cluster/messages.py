"""What travels along each edge of the path: one frozen message per edge.

    Router ──Call, Picture──> Decoder ──Picture──> VisionEncoder ──Picture──> Preprocessor
    Router <──FirstPiece, text── Decoder <──Embedding── VisionEncoder <──Pixels── Preprocessor

Encoders ask each other about a ``Digest``, and the answer to that, or to a decoder, may be ``Elsewhere``.

Arrays are numpy: Ray's object store hands them on without a copy, which it cannot do for torch tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

Digest = str
"""Names a picture everywhere: 64 hex digits over its bytes, the processor's settings, the encoder's revision and the
request's ``cache_salt``."""

Replica = str
"""Names one replica of a pool, everywhere."""

Grid = tuple[int, int, int]
"""A picture's patches as (time, height, width); time is 1 for pictures."""

Spent = dict[str, float]
"""Seconds by stage of ``cluster.waterfall``."""

Endpoint = Literal["chat", "completions", "tokenize", "detokenize"]

PICTURE_FORMATS: Final = "PNG, JPEG, WebP, GIF, BMP or TIFF"
"""What a picture may be, in words for a client."""

MAX_ASPECT_RATIO: Final = 200
"""Longer side by shorter: Qwen's processor refuses pictures that are more elongated."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as the client sent it: bounded bytes, its header read, nothing decoded.

    ``width`` and ``height`` are pixels as stored, before EXIF orientation. ``param`` is the field of the request that
    it came from, so that an error found later still names it.
    """

    digest: Digest
    data: bytes = field(repr=False)
    width: int
    height: int
    param: str

    @property
    def num_pixels(self) -> int:
        return self.width * self.height


@dataclass(frozen=True, slots=True)
class Pixels:
    """A picture ready for the vision tower: ``patches`` is [num_patches, 3 · 14 · 14] uint8, not normalised: one of its
    equal frames.

    ``ran_s`` is how long it was worked on.
    """

    digest: Digest
    patches: NDArray[np.uint8] = field(repr=False)
    grid: Grid
    ran_s: float = 0.0

    @property
    def num_patches(self) -> int:
        return len(self.patches)


@dataclass(frozen=True, slots=True)
class Embedding:
    """What the vision tower made of a picture.

    ``rows`` holds [num_tokens, hidden_size · itemsize] uint8: the raw bytes of the tensor, because numpy has no
    bfloat16; ``dtype`` is the torch name of the numbers within. ``spent`` is where the time went of the call that it
    answers.
    """

    digest: Digest
    rows: NDArray[np.uint8] = field(repr=False)
    dtype: str
    grid: Grid
    spent: Spent = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """An encoder's word that another, by its replica's name, makes a picture's embedding: it is to be had there."""

    replica: Replica


@dataclass(frozen=True, slots=True)
class Call:
    """One request to a decoder.

    ``body`` is the client's JSON with every picture part replaced by ``picture_part(digest)``; all else is as the
    client wrote it. ``request_id`` is ours, never the client's. ``num_pixels`` gives each picture's, as stored.
    """

    endpoint: Endpoint
    request_id: str
    body: dict[str, Any] = field(repr=False)
    num_pixels: Mapping[Digest, int] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class FirstPiece:
    """The beginning of an answer, with the time that its pictures and its decoder took up to there."""

    text: str
    spent: Spent


PICTURE_PART: Final = "prism_picture"


def picture_part(digest: Digest) -> dict[str, str]:
    """The content part that stands for a picture between Router and Decoder."""
    return {"type": PICTURE_PART, "digest": digest}


def is_picture(part: object) -> bool:
    """Whether a content part is one made by ``picture_part``."""
    return isinstance(part, dict) and part.get("type") == PICTURE_PART


def cache_salt(body: Mapping[str, Any]) -> bytes:
    """vLLM's field in a body: requests with different ones share nothing that is kept, neither KV cache nor embeddings.

    Not validated: what is no text counts as none here, and vLLM refuses it.
    """
    salt = body.get("cache_salt")
    return salt.encode("utf-8", "surrogatepass") if isinstance(salt, str) else b""
