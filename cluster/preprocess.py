"""Preprocess stage: turns a picture's bytes into patches for the vision tower.

In: ``Picture`` (bytes). Out: ``Pixels`` (uint8 patches). Pure computation on one core; runs in a pool of processes.
"""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.nn.functional import interpolate

from cluster.errors import InvalidPicture
from cluster.messages import MAX_ASPECT_RATIO, PICTURE_FORMATS, Grid, Picture, Pixels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cluster.checkpoint import ProcessorSettings

PILLOW_FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""The formats that are read; all other decoders of Pillow's stay closed. JPEG covers MPO, which many phones write as
.jpg."""


def preprocess(picture: Picture, settings: ProcessorSettings) -> Pixels:
    """Decodes, orients, resizes and patchifies one picture.

    Raises:
        InvalidPicture: The bytes do not decode, or the picture is too elongated.
    """
    try:
        image = decode(picture.data, (picture.width, picture.height))
        patches, grid = patchify(image, settings)
    except InvalidPicture as error:
        error.param = picture.param
        raise
    return Pixels(picture.digest, patches, grid)


def decode(data: bytes, size: tuple[int, int]) -> Image.Image:
    """Decodes a picture's first frame to upright RGB, with transparency on white and 16-bit greys scaled to 8.

    Args:
        data: The file.
        size: Its (width, height) as the media stage read and bounded them. A file in which Pillow finds another size is
            refused before anything is allocated for it; which side is which does not count, for Pillow turns TIFFs at
            once.

    Raises:
        InvalidPicture: The bytes are not a whole picture in one of ``PILLOW_FORMATS``, or in a mode without a known
            white.
    """
    try:
        with Image.open(io.BytesIO(data), formats=PILLOW_FORMATS) as image:
            if sorted(image.size) != sorted(size):
                raise InvalidPicture("The picture's header contradicts itself; save the picture anew.")
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except InvalidPicture:
        raise
    except UnidentifiedImageError:
        raise InvalidPicture(f"The bytes are not a whole picture; send a {PICTURE_FORMATS}.") from None
    except Image.DecompressionBombError:
        raise InvalidPicture("The picture's header announces more pixels than are decoded.") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on broken bytes
        message = f"The picture is broken or cut short ({error}); send the whole file."
        raise InvalidPicture(message) from error


def patchify(image: Image.Image, settings: ProcessorSettings) -> tuple[NDArray[np.uint8], Grid]:
    """Resizes an RGB picture as Qwen's processor does and cuts it into patches.

    Returns:
        [num_patches, 3 · patch · patch] uint8 in Qwen's order (merge blocks together), and the grid that they form.
        Qwen's processor repeats a still frame along time; here it stands once.

    Raises:
        InvalidPicture: One side is over 200 times as long as the other.

    Source: ``Qwen2VLImageProcessor`` of transformers 5.19. Its resize on uint8 is torch's antialiased bicubic, which
    differs from Pillow's own by up to five levels, so the same call is made here.
    """
    height, width = smart_resize(image.height, image.width, settings)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    if (height, width) != (image.height, image.width):
        tensor = interpolate(tensor[None], size=(height, width), mode="bicubic", antialias=True)[0]
    patch, merge = settings.patch_size, settings.merge_size
    rows, columns = height // patch, width // patch
    blocks = tensor.reshape(3, rows // merge, merge, patch, columns // merge, merge, patch)
    return blocks.permute(1, 4, 2, 5, 0, 3, 6).reshape(rows * columns, -1).numpy(), (1, rows, columns)


def smart_resize(height: int, width: int, settings: ProcessorSettings) -> tuple[int, int]:
    """The size to bring a picture to: sides divisible by patch · merge, area within the settings, aspect kept.

    Raises:
        InvalidPicture: One side is over 200 times as long as the other.

    Source: ``smart_resize`` of Qwen2-VL (arXiv 2409.12191, section 2.1), as in transformers 5.19.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        message = (
            f"The picture is {width} x {height} pixels; its sides may differ by a factor of at most {MAX_ASPECT_RATIO}."
        )
        raise InvalidPicture(message)
    factor = settings.patch_size * settings.merge_size
    new_height = round(height / factor) * factor
    new_width = round(width / factor) * factor
    if new_height * new_width > settings.max_pixels:
        shrink = math.sqrt(height * width / settings.max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < settings.min_pixels:
        grow = math.sqrt(settings.min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):
        raise InvalidPicture(
            "The picture's greys have 32 bits, for which no white is agreed; save it with 8 or 16 bits."
        )
    if image.mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.uint16)
        if isinstance(transparent := image.info.get("transparency"), int):
            levels[levels == transparent] = 0xFFFF
        image = Image.fromarray((levels >> 8).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", image.size, (255, 255, 255))
        image.paste(rgba, mask=rgba.getchannel("A"))
    return image if image.mode == "RGB" else image.convert("RGB")
