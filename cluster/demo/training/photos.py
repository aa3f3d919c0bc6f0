"""Real photographs that ship inside the scikit-image, scikit-learn and matplotlib wheels, and random views of them."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import matplotlib as mpl
import skimage
import sklearn
from PIL import Image, ImageEnhance, ImageOps

if TYPE_CHECKING:
    import random

    from cluster.demo.training.draw import Size

_SKIMAGE: Final = Path(skimage.__file__).parent / "data"
_SKLEARN: Final = Path(sklearn.__file__).parent / "datasets" / "images"
_MATPLOTLIB: Final = Path(mpl.get_data_path()) / "sample_data"

FILES: Final[dict[str, tuple[Path, ...]]] = {
    "astronaut": (_SKIMAGE / "astronaut.png",),
    "bricks": (_SKIMAGE / "brick.png",),
    "photographer": (_SKIMAGE / "camera.png",),
    "cat": (_SKIMAGE / "chelsea.png",),
    "coffee": (_SKIMAGE / "coffee.png",),
    "coins": (_SKIMAGE / "coins.png",),
    "grass": (_SKIMAGE / "grass.png",),
    "gravel": (_SKIMAGE / "gravel.png",),
    "moon": (_SKIMAGE / "moon.png",),
    "motorcycle": (_SKIMAGE / "motorcycle_left.png", _SKIMAGE / "motorcycle_right.png"),
    "rocket": (_SKIMAGE / "rocket.jpg",),
    "temple": (_SKLEARN / "china.jpg",),
    "flower": (_SKLEARN / "flower.jpg",),
    "galaxies": (_SKIMAGE / "hubble_deep_field.jpg",),
    "retina": (_SKIMAGE / "retina.jpg",),
    "tissue": (_SKIMAGE / "ihc.png",),
    "horse": (_SKIMAGE / "horse.png",),
    "officer": (_MATPLOTLIB / "grace_hopper.jpg",),
    "page": (_SKIMAGE / "page.png",),
}
"""The photographs of each subject. china.jpg and flower.jpg are CC BY 2.0, the others are free of conditions; none is
part of this repository."""

_LONGEST_PIXELS: Final = 640


@cache
def load(path: Path) -> Image.Image:
    """A photograph as RGB on white, its longer side at most 640 pixels."""
    with Image.open(path) as image:
        rgba = image.convert("RGBA")
    flat = Image.new("RGB", rgba.size, (255, 255, 255))
    flat.paste(rgba, mask=rgba.getchannel("A"))
    flat.thumbnail((_LONGEST_PIXELS, _LONGEST_PIXELS))
    return flat


def view(size: Size, rng: random.Random) -> tuple[Image.Image, dict[str, str]]:
    """A view of a random subject: the whole photograph or a crop, sometimes mirrored, brighter, darker or recoloured.

    Args:
        size: The size of the result, in pixels; its proportions differ from the photograph's by at most about a
            quarter.
        rng: The source of randomness.
    """
    subject = rng.choice(tuple(FILES))
    whole = load(rng.choice(FILES[subject]))
    image = _crop(whole, size, rng).resize(size, rng.choice((Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)))
    if rng.random() < 0.4:
        image = ImageOps.mirror(image)
    for enhancer, spread in ((ImageEnhance.Brightness, 0.3), (ImageEnhance.Contrast, 0.25), (ImageEnhance.Color, 0.4)):
        if rng.random() < 0.4:
            image = enhancer(image).enhance(rng.uniform(1 - spread, 1 + spread))
    return image, {"photo": subject}


def backdrop(size: Size, rng: random.Random) -> Image.Image:
    """A part of a photograph, blended with a grey tone, as the background of a shape."""
    image = _crop(load(rng.choice(FILES[rng.choice(tuple(FILES))])), size, rng).resize(size, Image.Resampling.BILINEAR)
    tone = rng.choice((0, 255, rng.randrange(256)))
    return Image.blend(image, Image.new("RGB", size, (tone, tone, tone)), rng.uniform(0.35, 0.75))


def compressed(image: Image.Image, rng: random.Random) -> Image.Image:
    """The picture, encoded as JPEG of random quality and decoded again."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=rng.randint(40, 95))
    with Image.open(buffer) as decoded:
        return decoded.convert("RGB")


def _crop(whole: Image.Image, size: Size, rng: random.Random) -> Image.Image:
    """A random crop of about the wanted proportions, or the whole; a crop has at least 60 % of the largest possible
    sides."""
    if rng.random() < 0.25 and 0.75 < (whole.width / whole.height) / (size[0] / size[1]) < 1.33:
        return whole
    proportion = size[0] / size[1] * rng.uniform(0.85, 1.18)
    width = min(whole.width, whole.height * proportion)
    height = width / proportion
    part = rng.uniform(0.6, 1)
    width, height = width * part, height * part
    left, top = rng.uniform(0, whole.width - width), rng.uniform(0, whole.height - height)
    return whole.crop((round(left), round(top), round(left + width), round(top + height)))
