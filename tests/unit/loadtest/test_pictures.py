"""Pictures for load tests."""

from __future__ import annotations

import io
import random

import pytest
from PIL import Image

from loadtest.pictures import Size, new_picture


@pytest.mark.parametrize("size", [(224, 168), (448, 448)])
def test_new_pictures_are_new_and_the_same_for_a_seed(size: Size) -> None:
    """Fifty pictures are all different, have the requested size, and are the same again for the same seed."""
    rng = random.Random(7)
    pictures = [new_picture(rng, size) for _ in range(50)]
    assert len(set(pictures)) == 50
    assert pictures[0] == new_picture(random.Random(7), size)
    assert Image.open(io.BytesIO(pictures[0])).size == size
