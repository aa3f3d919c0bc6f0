"""Writes all requests before the clock starts: text, new pictures, and sliding windows of pictures.

An answer has exactly as many tokens as its request asks for, and each token is one letter. Otherwise a model with
random weights would stop in the middle of UTF-8 characters, where servers hold text back, or would end its answer
early.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MODEL: Final = "bench"
"""The name under which every system serves the model."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Args:
        kind: Groups the answers whose figures belong together, for instance ``text`` or ``picture``.
        body: The request as JSON.
        num_tokens: The length of its answer.
        at_s: When an open loop sends it, in seconds from the start; a closed loop ignores this.
        session: The user's name, for a router that keeps each user on one engine.
    """

    kind: str
    body: bytes
    num_tokens: int
    at_s: float = 0.0
    session: str | None = None


def letters(checkpoint: Path) -> list[int]:
    """The ids of the checkpoint's tokens that are one ASCII letter each, in ascending order."""
    vocabulary: dict[str, int] = json.loads((checkpoint / "tokenizer.json").read_text())["model"]["vocab"]
    return sorted(
        number for token, number in vocabulary.items() if len(token) == 1 and token.isascii() and token.isalpha()
    )


def body(
    text: str, pictures: Sequence[bytes], num_tokens: int, allowed: Sequence[int], *, text_first: bool = False
) -> bytes:
    """The JSON of a request for a streamed chat.

    Args:
        text: The user's words.
        pictures: JPEG files.
        num_tokens: The exact length of the answer.
        allowed: The only tokens that the answer may contain.
        text_first: Puts the text before the pictures instead of after them.
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
    """Arrival times in seconds at a fixed rate per second: the first is 0, and all are before ``until_s``."""
    return [number / rate for number in range(int(until_s * rate - 1e-9) + 1)] if until_s > 0 else []


def bursts(starts_s: Sequence[float], count: int, rate: float) -> list[float]:
    """Arrival times in seconds, in bursts: from each start on, ``count`` arrivals at a fixed rate per second."""
    return [start_s + number / rate for start_s in starts_s for number in range(count)]


def windows(items: Sequence[bytes], length: int, num_turns: int) -> list[tuple[bytes, ...]]:
    """The pictures that a user sends in each turn: the last ``length`` of a conversation that gains one picture per
    turn.

    Each request therefore shares all but one picture with the request before it.

    Raises:
        ValueError: There are not exactly ``length + num_turns - 1`` pictures.
    """
    if len(items) != length + num_turns - 1:
        raise ValueError(
            f"{num_turns} turns of {length} pictures take {length + num_turns - 1} pictures, not {len(items)}"
        )
    return [tuple(items[turn : turn + length]) for turn in range(num_turns)]
