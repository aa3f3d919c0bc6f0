"""The workload of a load test: the kinds of chat, their mix, the requests, and the pauses between them.

Locust's users and the probe share this, so that their figures can be compared. Each reads and times answers with its
own code.

Every answer has exactly ``max_tokens`` tokens, because ``min_tokens`` forbids the model to stop earlier. ``ignore_eos``
alone would let the model emit end-of-turn tokens, which have no text, so their time could not be seen. A model with
random weights has a similar problem: it emits incomplete UTF-8 characters, and servers hold text back until a character
is complete. With such a model restrict the request's ``allowed_token_ids`` to letters.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import math
import random
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from PIL import Image, ImageDraw

Kind = Literal["new picture", "seen picture", "text"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
WEIGHTS: Final[dict[Kind, int]] = {"new picture": 1, "seen picture": 1, "text": 2}

PATH: Final = "/v1/chat/completions"
SMALL_TALK: Final = ("Tell me about yourself.", "Hello, who are you?", "What can you do?", "How can you help me?")
QUESTIONS: Final = ("What colour is the shape?", "What shape is it?", "How many shapes are there?")
COLOURS: Final = ("red", "green", "blue", "yellow", "orange", "purple", "black")
SIZE_PIXELS: Final = (224, 168)


@dataclass(frozen=True, slots=True)
class Workload:
    """The requests of one run.

    Args:
        model: The served name of the model.
        max_tokens: The length of each answer, in tokens.
        num_pictures: How many pictures are shared by the users who ask about seen pictures.
        wait_s: The mean pause of a user between an answer and its next request.
    """

    model: str
    max_tokens: int
    num_pictures: int
    wait_s: float

    def body(self, kind: Kind) -> bytes:
        """A request of this kind as JSON; a new picture differs in every call and in every process."""
        content: str | list[dict[str, Any]]
        if kind == "text":
            content = random.choice(SMALL_TALK)
        else:
            rng = random.Random() if kind == "new picture" else random.Random(random.randrange(self.num_pictures))
            url = "data:image/jpeg;base64," + base64.b64encode(draw_jpeg(rng)).decode()
            content = [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": random.choice(QUESTIONS)},
            ]
        request = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.max_tokens,
            "min_tokens": self.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return json.dumps(request).encode()

    def pause_s(self) -> float:
        """A random pause in seconds, from 0.5 to 1.5 times the mean, so that users do not send at the same time."""
        return self.wait_s * random.uniform(0.5, 1.5)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a workload, the same for Locust and the probe; Locust also shows them on its web page."""
    parser.add_argument("--model", default="prism-demo", help="served name of the model")
    parser.add_argument("--max-tokens", type=positive, default=32, help="length of each answer in tokens")
    parser.add_argument(
        "--pictures", type=positive, default=8, help="how many pictures the users of seen pictures share"
    )
    parser.add_argument("--wait", type=float, default=0.5, help="mean pause of a user between two requests, in seconds")


def from_options(options: argparse.Namespace) -> Workload:
    """The workload that the options of ``add_options`` describe."""
    return Workload(options.model, options.max_tokens, options.pictures, options.wait)


def positive(text: str) -> int:
    """Reads a whole number of at least 1, for argparse.

    Raises:
        argparse.ArgumentTypeError: The text is not such a number.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def mix(num_users: int) -> list[Kind]:
    """The kind of each user, distributed by weight in the same order as Locust's user classes.

    Source: ``locust.dispatch``; the next user gets the kind that lowers the Kullback-Leibler divergence most.
    """
    dealt: list[Kind] = []
    for _ in range(num_users):
        shares = {kind: WEIGHTS[kind] + dealt.count(kind) for kind in KINDS}
        gains = {kind: WEIGHTS[kind] * math.log2(share / (share + 1)) for kind, share in shares.items()}
        dealt.append(min(KINDS, key=lambda kind: (gains[kind], shares[kind], WEIGHTS[kind], kind)))
    return dealt


def draw_jpeg(rng: random.Random) -> bytes:
    """A JPEG of a coloured shape on light paper, 224×168 pixels. Drawing takes only 0.2 ms, so it does not disturb the
    timing of other users."""
    width, height = SIZE_PIXELS
    image = Image.new("RGB", SIZE_PIXELS, (rng.randrange(200, 256), rng.randrange(200, 256), rng.randrange(200, 256)))
    radius = rng.randrange(20, 60)
    x, y = rng.randrange(radius, width - radius), rng.randrange(radius, height - radius)
    pen = ImageDraw.Draw(image)
    shape = pen.ellipse if rng.random() < 0.5 else pen.rectangle
    shape((x - radius, y - radius, x + radius, y + radius), fill=rng.choice(COLOURS))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()
