"""Writes requests, all before the clock starts: text, pictures nobody has seen, windows of pictures that slide.

An answer has exactly as many tokens as asked for, and each is one letter. A model with random weights would otherwise
stop in the middle of UTF-8 characters, where servers hold text back, and one that may end its turn would end it.
"""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from PIL import Image

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence
    from pathlib import Path

MODEL: Final = "bench"
"""The name under which every system serves."""
BLOTCH_PIXELS: Final = 28
MAX_BLOTCHES: Final = 48
"""Pictures are smooth: their colours change every so many pixels, and no more than so often from edge to edge. They
compress as photographs do, or better."""

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Args:
        kind: Whose figures its answer goes to.
        at_s: When to send it, from the start of an open loop; a closed loop sends it when its turn comes.
        session: Its user, for a router that keeps a user on one engine.
    """

    kind: str
    body: bytes
    num_tokens: int
    at_s: float = 0.0
    session: str | None = None


def letters(checkpoint: Path) -> list[int]:
    """The tokens that are one ASCII letter each."""
    vocabulary: dict[str, int] = json.loads((checkpoint / "tokenizer.json").read_text())["model"]["vocab"]
    return sorted(
        number for token, number in vocabulary.items() if len(token) == 1 and token.isascii() and token.isalpha()
    )


def new_picture(rng: random.Random, size: Size) -> bytes:
    """A JPEG of smooth noise; no two are alike."""
    width, height = (min(max(2, pixels // BLOTCH_PIXELS), MAX_BLOTCHES) for pixels in size)
    noise = Image.frombytes("RGB", (width, height), rng.randbytes(3 * width * height))
    file = io.BytesIO()
    noise.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def body(
    text: str, pictures: Sequence[bytes], num_tokens: int, allowed: Sequence[int], *, text_first: bool = False
) -> bytes:
    """A streamed chat as JSON: the pictures, then the text, or the other way round.

    Args:
        allowed: The only tokens that the answer may have.
    """
    urls = ("data:image/jpeg;base64," + base64.b64encode(picture).decode() for picture in pictures)
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    words = {"type": "text", "text": text}
    content = [words, *parts] if text_first else [*parts, words]
    request = {
        "model": MODEL,
        "messages": [{"role": "user", "content": content if parts else text}],
        "max_tokens": num_tokens,
        "min_tokens": num_tokens,
        "ignore_eos": True,
        "allowed_token_ids": [*allowed],
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return json.dumps(request).encode()


def steady(rate: float, until_s: float) -> list[float]:
    """Arrivals at a fixed rate per second, the first at 0, before ``until_s``."""
    return [number / rate for number in range(int(until_s * rate - 1e-9) + 1)] if until_s > 0 else []


def bursts(starts_s: Sequence[float], count: int, rate: float) -> list[float]:
    """Arrivals in bursts: ``count`` at a fixed rate per second from each start."""
    return [start_s + number / rate for start_s in starts_s for number in range(count)]


def windows(items: Sequence[bytes], length: int, num_turns: int) -> list[tuple[bytes, ...]]:
    """What a user sends turn by turn: the last ``length`` pictures of a conversation that gains one with each turn.

    So each request shares all but one picture with the one before it; ``len(items)`` must be ``length + num_turns -
    1``.
    """
    if len(items) != length + num_turns - 1:
        raise ValueError(
            f"{num_turns} turns of {length} pictures take {length + num_turns - 1} pictures, not {len(items)}"
        )
    return [tuple(items[turn : turn + length]) for turn in range(num_turns)]
