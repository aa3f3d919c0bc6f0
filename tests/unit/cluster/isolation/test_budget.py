"""Budgets leave room for every ordinary picture."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from cluster.checkpoint import ProcessorSettings
from cluster.isolation.budget import Budget, too_big, too_slow
from cluster.messages import Picture
from cluster.preprocess import preprocess
from tests.helpers.bombs import PARAM
from tests.helpers.pictures import SAMPLES, encoded

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIZE = 1280, 960
SLOWEST = ProcessorSettings(max_pixels=28 * 28 * 16384)
"""Makes the most patches, so that nothing is saved by a smaller picture."""

FORMATS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 75, "progressive": True},
    "WEBP": {"lossless": True, "quality": 0, "method": 0},
    "GIF": {},
    "BMP": {},
    "TIFF": {"compression": "tiff_lzw"},
}


def noise() -> NDArray[np.uint8]:
    """Returns a picture that compresses badly."""
    return np.random.default_rng(3).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)


@pytest.mark.parametrize("name", FORMATS)
def test_ordinary_pictures_stay_within_their_budget(name: str) -> None:
    """Pictures of noise, which no format packs well, use less CPU time than they may, in every format."""
    image: Any = Image.fromarray(noise())
    data = encoded(image.convert("P") if name == "GIF" else image, name, **FORMATS[name])
    picture = Picture("0" * 64, data, *SIZE, param=PARAM)
    started_s = time.process_time()
    preprocess(picture, SLOWEST)
    assert time.process_time() - started_s < Budget.of(picture).max_cpu_s


def test_budgets_grow_with_pixels_and_bytes() -> None:
    """More pixels and more bytes may cost more. The limit is above what is usual."""
    data = SAMPLES["png-RGB"].data
    small = Budget.of(Picture("0" * 64, data, 10, 10, param=PARAM))
    wide = Budget.of(Picture("0" * 64, data, 10_000, 10, param=PARAM))
    long = Budget.of(Picture("0" * 64, data * 1000, 10, 10, param=PARAM))
    for larger in (wide, long):
        assert small.usual_cpu_s < larger.usual_cpu_s < larger.max_cpu_s
        assert small.max_bytes < larger.max_bytes


def test_refusals_name_the_field_and_the_limit() -> None:
    """Both refusals say which field is at fault, what the limit is, and what would be right."""
    picture = Picture("0" * 64, b"", 10, 10, param=PARAM)
    budget = Budget.of(picture)
    slow, big = too_slow(picture, budget), too_big(picture, budget.max_bytes)
    assert slow.figures == {"limit_cpu_s": round(budget.max_cpu_s, 3)}
    assert big.figures == {"limit_memory_bytes": budget.max_bytes}
    for error in (slow, big):
        assert error.param == PARAM
        assert error.message.endswith("save it again as a baseline JPEG or as a PNG.")
