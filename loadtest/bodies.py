"""Builds the bodies of requests from the sizes of a schedule.

A text of n tokens is n common English words. Qwen's tokenizer mostly has one token per such word, and the demo's has
one and a half. The chat template adds a few more, so the sizes are approximate.

An answer has exactly ``output_tokens`` tokens, because ``min_tokens`` forbids the model to stop earlier. ``ignore_eos``
alone would let the model emit end-of-turn tokens, which have no text, so their time could not be seen. A model with
random weights has a similar problem: it emits incomplete UTF-8 characters, and servers hold text back until a character
is complete.
"""

from __future__ import annotations

import base64
import json
import random
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from loadtest.pictures import new_picture

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loadtest.schedule import LoadPicture, PlannedRequest

MAX_KEPT_BYTES: Final = 64 * 2**20
"""How many bytes of drawn pictures are kept for requests that send them again."""
COMMON: Final = (
    "the of and to in is that for it with be on not he but at are this have from or an they one you all there would "
    "their we been who will out so said what its about than into them can other time these two may first do like over "
    "me after many before must well through way people little good world life day part number place water house"
)
WORDS: Final = COMMON.split()


class BodyBuilder:
    """Builds the JSON of requests as bytes, and keeps drawn pictures within ``MAX_KEPT_BYTES``.

    Args:
        model: The served name of the model.
    """

    def __init__(self, model: str) -> None:
        self._model: Final = json.dumps(model).encode()
        self._kept: Final[OrderedDict[LoadPicture, bytes]] = OrderedDict()
        self._kept_bytes = 0

    def message(self, request: PlannedRequest) -> bytes:
        """The user's message of one request. The same schedule gives the same bytes.

        This is the slow part, because it draws: 70 ms for a page of 1240 × 1754 pixels.
        """
        arrival = request.arrival
        draw = random.Random(f"{request.index} {arrival.conversation}")
        words = " ".join(draw.choices(WORDS, k=arrival.text_tokens))
        text = json.dumps({"type": "text", "text": words}).encode()
        parts = [*map(self._picture, arrival.pictures), text]
        return b'{"role": "user", "content": [' + b", ".join(parts) + b"]}"

    def body(self, messages: Iterable[bytes], num_tokens: int) -> bytes:
        """The body of a request for a streamed chat. It only joins bytes, which is quick.

        Args:
            messages: All messages of the conversation, the new one last.
            num_tokens: The length of the answer in tokens.
        """
        return (
            b'{"model": %s, "max_tokens": %d, "min_tokens": %d, "temperature": 0, "stream": true, '
            b'"stream_options": {"include_usage": true}, "messages": [%s]}'
            % (self._model, num_tokens, num_tokens, b", ".join(messages))
        )

    def _picture(self, picture: LoadPicture) -> bytes:
        part = self._kept.pop(picture, None)
        if part is None:
            jpeg = new_picture(random.Random(picture.name), (picture.width, picture.height))
            url = b"data:image/jpeg;base64," + base64.b64encode(jpeg)
            part = b'{"type": "image_url", "image_url": {"url": "%s"}}' % url
            self._kept_bytes += len(part)
        self._kept[picture] = part
        while self._kept_bytes > MAX_KEPT_BYTES and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._kept_bytes -= len(dropped)
        return part


def answer_message(text: str) -> bytes:
    """The message that sends an earlier answer again."""
    return json.dumps({"role": "assistant", "content": text}).encode()
