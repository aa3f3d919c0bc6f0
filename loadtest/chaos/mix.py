"""The requests of chaos: texts and pictures, half of them streams, all greedy, each with one right answer."""

from __future__ import annotations

import base64
import random
from dataclasses import dataclass, replace
from typing import Any, Final

from loadtest.bodies import WORDS
from loadtest.pictures import new_picture

PICTURE_PIXELS: Final = (168, 112)
TEXT_WORDS: Final = 12
STREAM_TOKENS: Final = 64
WHOLE_TOKENS: Final = 24
MIN_TOKENS: Final = 4
"""No right answer is empty, so that every empty one is a fault."""


@dataclass(frozen=True, slots=True)
class ChaosRequest:
    """One chat request.

    Args:
        index: Its number. The same seed and number give the same body.
        kind: ``text`` or ``picture``, and ``stream`` or ``whole``, such as ``text stream``.
        body: The JSON body.
    """

    index: int
    kind: str
    body: dict[str, Any]

    @property
    def is_stream(self) -> bool:
        """Returns True if the answer comes as a stream."""
        return bool(self.body["stream"])

    def salted(self, salt: str) -> ChaosRequest:
        """The same request, for which nothing that is cached may be used. The right answer is the same."""
        return replace(self, body={**self.body, "cache_salt": salt})


def make_requests(num: int, *, seed: int, model: str, timeout_s: float) -> list[ChaosRequest]:
    """So many different requests. Every second one is a stream, and two of four have one picture or two.

    Args:
        num: How many.
        seed: The seed of words and pictures.
        model: The served name of the model.
        timeout_s: The deadline that each request asks for, in seconds.
    """
    return [_request(index, random.Random(f"{seed} {index}"), model, timeout_s) for index in range(num)]


def _request(index: int, draw: random.Random, model: str, timeout_s: float) -> ChaosRequest:
    is_stream, num_pictures = index % 2 == 1, (0, 0, 1, 1, 0, 0, 2, 2)[index % 8]
    content: list[dict[str, Any]] = [_picture(draw) for _ in range(num_pictures)]
    content.append({"type": "text", "text": f"{index} " + " ".join(draw.choices(WORDS, k=TEXT_WORDS))})
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": STREAM_TOKENS if is_stream else WHOLE_TOKENS,
        "min_tokens": MIN_TOKENS,
        "ignore_eos": index % 3 > 0,  # some answers end by themselves, and the others are long
        "stream": is_stream,
        "prism": {"timeout_s": timeout_s},
    }
    if is_stream:
        body["stream_options"] = {"include_usage": True}
    kind = f"{'picture' if num_pictures else 'text'} {'stream' if is_stream else 'whole'}"
    return ChaosRequest(index, kind, body)


def _picture(draw: random.Random) -> dict[str, Any]:
    jpeg = base64.b64encode(new_picture(draw, PICTURE_PIXELS)).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{jpeg}"}}
