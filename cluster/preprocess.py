"""Preprocess stage: turns the bytes of a picture into patches for the vision tower.

In: a ``Picture`` (bytes). Out: ``Pixels`` (uint8 patches). The work is pure computation on one core; each process of
    the preprocessor pool does it for one picture at a time.
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
"""The formats that Pillow may decode. All its other decoders stay unused. JPEG includes MPO, which many phones write
as .jpg."""


def preprocess(picture: Picture, settings: ProcessorSettings) -> Pixels:
    """Decodes, orients, resizes and cuts up one picture.

    Raises:
        InvalidPicture: The bytes do not decode, or the picture is too elongated. The error names the request's field.
    """
    try:
        image = decode_image(picture.data, (picture.width, picture.height))
        patches, grid = patchify(image, settings)
    except InvalidPicture as error:
        error.param = picture.param
        raise
    return Pixels(picture.digest, patches, grid)


def decode_image(data: bytes, size: tuple[int, int]) -> Image.Image:
    """Decodes the first frame of a picture file to upright RGB. Transparent parts become white, and 16-bit greys 8-bit.

    Args:
        data: The file.
        size: The (width, height) that the media stage has read from the header and checked. If Pillow finds another
            size, the file is refused before memory is allocated for it. The order of the two sides does not matter,
            because Pillow applies the orientation of TIFF files itself.

    Raises:
        InvalidPicture: The bytes are not a whole picture in one of ``PILLOW_FORMATS``, or have a mode without a known
            white.
    """
    try:
        with Image.open(io.BytesIO(data), formats=PILLOW_FORMATS) as image:
            if sorted(image.size) != sorted(size):
                raise InvalidPicture("The picture's header contradicts itself; save the picture again.")
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except (InvalidPicture, MemoryError):
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
        [num_patches, 3 · patch · patch] uint8 in Qwen's order (the patches of a merge block are neighbours), and the
        grid of the patches. Qwen's processor repeats a picture as two equal frames; here it stands once.

    Raises:
        InvalidPicture: One side is more than 200 times as long as the other.

    Source: ``Qwen2VLImageProcessor`` of transformers 5.19. It resizes uint8 with torch's antialiased bicubic filter,
        which differs from Pillow's by up to five levels, so this function calls torch too.
    """
    height, width = smart_resize(image.height, image.width, settings)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # [3, height, width]
    if (height, width) != (image.height, image.width):
        tensor = interpolate(tensor[None], size=(height, width), mode="bicubic", antialias=True)[0]
    patch, merge = settings.patch_size, settings.merge_size
    rows, columns = height // patch, width // patch
    # [3, block_rows, merge_y, patch_y, block_columns, merge_x, patch_x]
    blocks = tensor.reshape(3, rows // merge, merge, patch, columns // merge, merge, patch)
    # [block_rows, block_columns, merge_y, merge_x, 3, patch_y, patch_x], flattened to [num_patches, 3 · patch · patch]
    patches = blocks.permute(1, 4, 2, 5, 0, 3, 6).reshape(rows * columns, -1)
    return patches.numpy(), (1, rows, columns)


def smart_resize(height: int, width: int, settings: ProcessorSettings) -> tuple[int, int]:
    """The height and width to resize a picture to, in pixels.

    Both are multiples of patch · merge, the area is within the settings, and the aspect ratio is kept as far as
    possible.

    Raises:
        InvalidPicture: One side is more than 200 times as long as the other.

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
