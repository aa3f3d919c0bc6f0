"""The preprocess stage against the Hugging Face processor, and against pixels computed with numpy."""

from __future__ import annotations

import json
import random
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl import image_processing_qwen2_vl as reference

from cluster.checkpoint import ProcessorSettings
from cluster.errors import InvalidPicture
from cluster.messages import Picture
from cluster.preprocess import decode_image, patchify, preprocess, smart_resize
from tests.helpers.pictures import BROKEN, NO_PICTURES, SAMPLES, encoded, png, scene

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

PARAM = "messages[0].content[1].image_url.url"
QWEN = ProcessorSettings()

RANDOM = random.Random(20)
SIZES = [
    *((28, 28), (56, 56), (28, 560), (560, 28), (1, 1), (3, 5), (27, 29), (41, 43), (1, 200), (200, 1), (13, 2600)),
    *((1024, 1024), (1280, 800), (997, 1009), (1400, 70), (70, 1400), (640, 480), (336, 336), (1920, 96)),
    *((RANDOM.randint(8, 320), RANDOM.randint(8, 320)) for _ in range(45)),
]


def picture(data: bytes, size: tuple[int, int]) -> Picture:
    """Returns the message that the media stage would send for ``data``."""
    return Picture("0" * 64, data, *size, param=PARAM)


def normalised(patches: NDArray[np.uint8], settings: ProcessorSettings) -> torch.Tensor:
    """Normalises pixels as the encoder does and repeats them for both frames as the library does: [num_patches, 3 ·
    temporal · patch · patch] float32."""
    mean = torch.tensor(settings.image_mean)[None, :, None] * 255
    std = torch.tensor(settings.image_std)[None, :, None] * 255
    values = torch.from_numpy(patches).reshape(len(patches), 3, -1).float()
    return ((values - mean) / std)[:, :, None].expand(-1, -1, 2, -1).reshape(len(patches), -1)


def assert_like_reference(image: Image.Image, settings: ProcessorSettings, processor: Any) -> None:
    """Checks that Prism's patches, once normalised, equal the library's pixel values."""
    patches, grid = patchify(image, settings)
    expected = processor(images=[image], return_tensors="pt")
    assert grid == tuple(expected["image_grid_thw"][0].tolist())
    assert patches.dtype == np.uint8
    torch.testing.assert_close(normalised(patches, settings), expected["pixel_values"], rtol=0, atol=1e-6)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Runs torch with one thread, as the preprocessor does."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def processor() -> Any:
    """The library's image processor with Qwen's own settings."""
    return reference.Qwen2VLImageProcessor()


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_patches_equal_the_hugging_face_processors(size: tuple[int, int], processor: Any) -> None:
    """Prism's patches, once normalised, equal the library's pixel values to 1e-6, from one pixel to a megapixel and
    at 200:1."""
    noise = np.random.default_rng(sum(size)).integers(0, 256, (size[1], size[0], 3), np.uint8)
    assert_like_reference(Image.fromarray(noise), QWEN, processor)


@pytest.mark.parametrize("name", [name for name in SAMPLES if name.endswith("-RGB")])
def test_files_give_the_hugging_face_processors_patches(name: str, processor: Any) -> None:
    """An opaque file of any format gives the patches of the Hugging Face processor."""
    sample = SAMPLES[name]
    assert_like_reference(decode_image(sample.data, sample.size), QWEN, processor)


@pytest.mark.parametrize(
    "budget",
    [{"min_pixels": 15680, "max_pixels": 47040}, {"size": {"shortest_edge": 3136, "longest_edge": 7056}}],
    ids=["old spelling", "new spelling"],
)
def test_settings_of_a_checkpoint_reach_the_patches(budget: dict[str, Any], tmp_path: Path) -> None:
    """A checkpoint's patch budget and colour statistics, in either spelling, give the patches that the library makes
    with them."""
    file = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
        **budget,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(file))
    settings = ProcessorSettings.from_checkpoint(tmp_path)
    library = reference.Qwen2VLImageProcessor.from_pretrained(tmp_path)
    for size in ((300, 200), (90, 1500), (20, 20)):
        assert_like_reference(Image.fromarray(scene(*size)), settings, library)


def test_smart_resize_equals_the_librarys() -> None:
    """For thousands of random sizes and budgets, the new size equals the library's."""
    draw = random.Random(3)
    for _ in range(5000):
        height, width = (int(10 ** draw.uniform(0, 4.2)) for _ in range(2))
        low = 28 * 28 * draw.randint(1, 64)
        settings = ProcessorSettings(min_pixels=low, max_pixels=low * draw.randint(1, 400))
        try:
            expected = reference.smart_resize(height, width, 28, settings.min_pixels, settings.max_pixels)
        except ValueError:
            with pytest.raises(InvalidPicture, match="factor of at most 200"):
                smart_resize(height, width, settings)
        else:
            assert smart_resize(height, width, settings) == expected, (height, width, settings)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_format_and_mode_decodes_to_what_a_viewer_shows(name: str) -> None:
    """Greys, palettes, CMYK, 16 bits and transparency become the RGB on white that numpy computes."""
    sample = SAMPLES[name]
    image = decode_image(sample.data, sample.size)
    assert image.mode == "RGB"
    assert image.size == sample.size
    off = np.abs(np.asarray(image).astype(int) - sample.rgb)
    assert off.max() <= sample.tolerance


TURNS: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_exif_orientation_turns_the_picture_upright(name: str, orientation: int) -> None:
    """Each of the eight EXIF orientations is undone, in every format that has them."""
    stored = scene()
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if name == "WEBP" else {"quality": 95} if name == "JPEG" else {}
    image = decode_image(encoded(stored, name, exif=exif, **options), (stored.shape[1], stored.shape[0]))
    upright = TURNS[orientation](stored)
    assert image.size == (upright.shape[1], upright.shape[0])
    off = np.abs(np.asarray(image).astype(int) - upright)
    assert off.max() <= (12 if name == "JPEG" else 0)


@pytest.mark.parametrize("orientation", [6, 8])
def test_a_deep_grey_is_turned_too(orientation: int) -> None:
    """The EXIF orientation of a 16-bit grey picture is undone as well."""
    stored = scene()[..., 0].astype(np.uint16) << 8
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(encoded(Image.fromarray(stored), "PNG", exif=exif), (stored.shape[1], stored.shape[0]))
    np.testing.assert_array_equal(np.asarray(image)[..., 0], TURNS[orientation]((stored >> 8).astype(np.uint8)))


@pytest.mark.parametrize("data", [*BROKEN.values(), *NO_PICTURES.values()], ids=[*BROKEN, *NO_PICTURES])
def test_what_is_no_whole_picture_is_refused(data: bytes) -> None:
    """Broken, truncated, empty and foreign files, and greys without a known white level, are refused with the
    field's name."""
    with pytest.raises(InvalidPicture) as caught:
        preprocess(picture(data, SAMPLES["png-RGB"].size), QWEN)
    assert caught.value.param == PARAM
    assert caught.value.message.endswith(".")


def test_pillow_formats_that_are_not_ours_stay_closed() -> None:
    """A format that Pillow can read but Prism does not list is not opened."""
    with pytest.raises(InvalidPicture, match="PNG, JPEG, WebP, GIF, BMP or TIFF"):
        decode_image(NO_PICTURES["ppm"], (46, 34))


def test_a_second_header_is_refused_before_it_is_believed() -> None:
    """A file in which Pillow finds another size than the media stage did is refused before it is decoded."""
    honest = png(20, 10)
    huge = b"\0\0\0\x0dIHDR" + struct.pack(">IIBBBBB", 9000, 9000, 8, 0, 0, 0, 0)
    forged = honest[:33] + huge + struct.pack(">I", zlib.crc32(huge[4:])) + honest[33:]
    with pytest.raises(InvalidPicture, match="contradicts itself"):
        preprocess(picture(forged, (20, 10)), QWEN)


def test_a_picture_that_is_too_elongated_is_refused() -> None:
    """A picture beyond 200:1 is refused, and the error states its size."""
    with pytest.raises(InvalidPicture, match="201 x 1 pixels") as caught:
        preprocess(picture(png(201, 1), (201, 1)), QWEN)
    assert caught.value.param == PARAM


def test_pixels_carry_the_digest_and_a_grid_of_all_patches() -> None:
    """The output message has the picture's digest and a grid that counts its patches."""
    sample = SAMPLES["jpeg-RGB"]
    pixels = preprocess(picture(sample.data, sample.size), QWEN)
    time, rows, columns = pixels.grid
    assert pixels.digest == "0" * 64
    assert pixels.patches.shape == (time * rows * columns, 3 * 14 * 14)
