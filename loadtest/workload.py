"""What the load asks: the kinds of chat and their mix, the requests' bodies and pictures, the pause between two
requests.

Locust's users and the probe share this, so that their figures can be compared; how they read and time an answer is
their own.

Every answer has exactly ``max_tokens`` tokens: ``min_tokens`` forbids the model to stop before that. ``ignore_eos``
alone would let it emit end-of-turn tokens, which have no text: time would pass and nothing would be seen. For the same
reason a model with random weights measures badly, whatever the request says: it stops in the middle of UTF-8
characters, and text is held back until one is whole. With such a model restrict the request's ``allowed_token_ids`` to
letters.
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
    """What one run asks for.

    Args:
        model: The served name of the model.
        max_tokens: The length of each answer.
        num_pictures: How many pictures the users of seen pictures share.
        wait_s: The mean pause of a user between an answer and its next request.
    """

    model: str
    max_tokens: int
    num_pictures: int
    wait_s: float

    def body(self, kind: Kind) -> bytes:
        """A request as JSON; a new picture is new in every call, in every process."""
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
        """A user's next pause: even between a half and one and a half of the mean, so that users do not march in step."""
        return self.wait_s * random.uniform(0.5, 1.5)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what is asked, the same for Locust and the probe. Locust shows them on its web page too."""
    parser.add_argument("--model", default="prism-demo", help="served name of the model")
    parser.add_argument("--max-tokens", type=positive, default=32, help="length of each answer in tokens")
    parser.add_argument(
        "--pictures", type=positive, default=8, help="how many pictures the users of seen pictures share"
    )
    parser.add_argument("--wait", type=float, default=0.5, help="mean pause of a user between two requests, in seconds")


def from_options(options: argparse.Namespace) -> Workload:
    """The workload that ``add_options``'s options ask for."""
    return Workload(options.model, options.max_tokens, options.pictures, options.wait)


def positive(text: str) -> int:
    """A whole number from 1 on, for argparse.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def mix(num_users: int) -> list[Kind]:
    """The kind of each user, by weight, dealt as Locust deals its user classes.

    Source: ``locust.dispatch``, where the next user is of the kind that lowers the Kullback-Leibler divergence most.
    """
    dealt: list[Kind] = []
    for _ in range(num_users):
        shares = {kind: WEIGHTS[kind] + dealt.count(kind) for kind in KINDS}
        gains = {kind: WEIGHTS[kind] * math.log2(share / (share + 1)) for kind, share in shares.items()}
        dealt.append(min(KINDS, key=lambda kind: (gains[kind], shares[kind], WEIGHTS[kind], kind)))
    return dealt


def draw_jpeg(rng: random.Random) -> bytes:
    """A coloured shape on light paper, 224×168. Takes 0.2 ms, so that drawing does not hold up the timing of other
    users."""
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
