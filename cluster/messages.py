"""The messages between processes: one frozen dataclass per edge of the path.

    Router ──Call, Picture──> Decoder ──Picture──> VisionEncoder ──Picture──> Preprocessor
    Router <──Begun, FirstPiece, Piece── Decoder <──Embedding── VisionEncoder <──Pixels── Preprocessor

Encoders ask each other about a ``Digest``. An encoder may answer ``Elsewhere`` instead of an ``Embedding``.

Arrays are numpy arrays: Ray's object store passes them on without a copy, which it cannot do for torch tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

Digest = str
"""The name of a picture everywhere in Prism: 64 hex digits. It covers the picture's bytes, the processor's settings,
the encoder's revision and the request's ``cache_salt``."""

Replica = str
"""The name of one replica of a pool: Serve's unique id."""

Grid = tuple[int, int, int]
"""The shape of a picture's patches as (time, height, width). Time is always 1, because pictures have one frame."""

Spent = dict[str, float]
"""Seconds by stage of ``cluster.waterfall``."""

Endpoint = Literal["chat", "completions", "tokenize", "detokenize"]

PICTURE_FORMATS: Final = "PNG, JPEG, WebP, GIF, BMP or TIFF"
"""The accepted picture formats, in words for a client."""

MAX_ASPECT_RATIO: Final = 200
"""The most that the longer side of a picture may be, in multiples of the shorter. Qwen's processor refuses more."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as the client sent it. Its size in bytes is bounded and its header has been read; nothing is decoded
    yet.

    ``width`` and ``height`` are in pixels as stored, before EXIF orientation. ``param`` is the path of the request's
    field that held the picture, so that an error found later can name it.
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
    """A picture that is ready for the vision tower.

    ``patches`` is [num_patches, 3 · 14 · 14] uint8, not normalised. Qwen's processor repeats a picture as two equal
    frames; here it stands once. ``ran_s`` is the time in seconds that the preprocessor worked on it.
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
    """The output of the vision tower for one picture.

    ``rows`` is [num_tokens, hidden_size · itemsize] uint8. It holds the raw bytes of the tensor, because numpy has no
    bfloat16; ``dtype`` is the torch name of the numbers. ``spent`` says where the time of the call went that this
    embedding answers.
    """

    digest: Digest
    rows: NDArray[np.uint8] = field(repr=False)
    dtype: str
    grid: Grid
    spent: Spent = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """An encoder's answer that another replica makes the embedding of this picture; the caller must ask that one."""

    replica: Replica


@dataclass(frozen=True, slots=True)
class Call:
    """One request to a decoder.

    ``body`` is the client's JSON with ``picture_part(digest)`` in place of every picture; all other fields are as the
    client wrote them. ``request_id`` is Prism's own, never the client's. ``num_pixels`` gives the stored size of each
    picture. ``replay`` is set if another decoder has begun this stream. ``traceparent`` makes vLLM's span a child of
    the Router's.
    """

    endpoint: Endpoint
    request_id: str
    body: dict[str, Any] = field(repr=False)
    num_pixels: Mapping[Digest, int] = field(default_factory=dict, repr=False)
    replay: Replay | None = None
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Begun:
    """A decoder's word that it has the embeddings of a call's pictures. It comes before the ``FirstPiece`` of a call
    with pictures, and once more if an embedding is lost and pulled again."""


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """The tokens of a request: its prompts with their pictures, its pictures alone, and its answers.

    ``completion`` is None if the answers are not complete yet.
    """

    prompt: int
    picture: int
    completion: int | None


@dataclass(frozen=True, slots=True)
class Replay:
    """The part of a stream that the client has got from a decoder that failed. The next decoder goes on behind it.

    ``created`` is the stream's own time stamp, in seconds of the epoch. The client has got the first ``num_events``
    events whole, and ``num_chars`` characters of the next one. ``steps`` joins the ``steps`` of all pieces.
    """

    created: int
    num_events: int
    num_chars: int
    steps: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class FirstPiece:
    """The beginning of an answer, with the time that its pictures and its decoder took until then, and its tokens if
    they are known. The other fields are those of a ``Piece``, and ``created`` of a ``Replay``."""

    text: str
    spent: Spent
    num_events: int = 0
    steps: bytes = b""
    created: int = 0
    tokens: TokenCounts | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer: SSE text of a stream, or a part of one JSON text.

    ``num_events`` counts the chunks of vLLM's API layer that end in this piece. ``steps`` are the engine's outputs that
    the decoder has taken since the last piece (``cluster/decode/steps.py``); only decoders read them. A stream's text
    is never ahead of its steps.
    """

    text: str
    num_events: int = 0
    steps: bytes = b""

    def __reduce__(self) -> tuple[Any, ...]:
        """A shorter way than a dataclass has. There is a piece for each token."""
        return Piece, (self.text, self.num_events, self.steps)


PICTURE_PART: Final = "prism_picture"


def picture_part(digest: Digest) -> dict[str, str]:
    """The content part that stands for a picture on its way from the Router to a decoder."""
    return {"type": PICTURE_PART, "digest": digest}


def is_picture(part: object) -> bool:
    """Returns True if a content part was made by ``picture_part``."""
    return isinstance(part, dict) and part.get("type") == PICTURE_PART


def cache_salt(body: Mapping[str, Any]) -> bytes:
    """The request's ``cache_salt``, a field of vLLM, as bytes. Requests with different salts share no cached data,
    neither KV cache nor embeddings.

    A value that is not a string counts as no salt here; vLLM refuses it later.
    """
    salt = body.get("cache_salt")
    return salt.encode("utf-8", "surrogatepass") if isinstance(salt, str) else b""
