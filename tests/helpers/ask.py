"""Short ways to write a chat request."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

SAMPLES = Path(__file__).resolve().parents[2] / "cluster" / "demo" / "samples"

Part = dict[str, Any]


def text(words: str) -> Part:
    """Returns a content part with text."""
    return {"type": "text", "text": words}


def image(data: bytes, kind: str = "png") -> Part:
    """Returns a content part with a picture as a data: URL."""
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{base64.b64encode(data).decode()}"}}


def picture(name: str) -> Part:
    """Returns a content part with one of the demo checkpoint's sample pictures."""
    return image((SAMPLES / name).read_bytes(), Path(name).suffix.lstrip("."))


def random_png(width: int, height: int, seed: int) -> bytes:
    """A PNG of random blocks of colour, the same for the same seed."""
    blocks = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def square(colour: str, side: int) -> Part:
    """Returns a content part with a coloured square on white. A side that no test has used before makes a picture that
    no encoder has cached."""
    drawn, file = Image.new("RGB", (150, 130), "white"), io.BytesIO()
    ImageDraw.Draw(drawn).rectangle((20, 15, 20 + side, 15 + side), fill=colour)
    drawn.save(file, "PNG")
    return image(file.getvalue())


def chat(content: list[Part], **options: Any) -> dict[str, Any]:
    """Returns the body of a greedy chat request with one user turn."""
    body = {
        "model": "prism-demo",
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": 16,
    }
    return {**body, **options}
