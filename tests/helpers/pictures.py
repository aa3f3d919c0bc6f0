"""Pictures of every format and mode that Prism reads, with what a viewer shows of them, and files that it refuses.

The expected pixels are computed here with numpy from what was written, and never read back through Pillow.
"""

from __future__ import annotations

import base64
import io
import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Array = NDArray[Any]
    Pixels = NDArray[np.uint8]

WIDTH: Final = 46
HEIGHT: Final = 34


@dataclass(frozen=True)
class Sample:
    """A picture file, and the [height, width, 3] RGB levels that a viewer shows for it on a white page. Levels of lossy
    formats may differ by ``tolerance``."""

    name: str
    data: bytes = field(repr=False)
    rgb: Pixels = field(repr=False)
    tolerance: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """Returns (width, height) in pixels."""
        return self.rgb.shape[1], self.rgb.shape[0]


def scene(width: int = WIDTH, height: int = HEIGHT) -> Pixels:
    """Returns a smooth [height, width, 3] picture without any symmetry."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    x, y = x / max(width - 1, 1), y / max(height - 1, 1)
    channels = (220 * x + 20, 200 * y + 30, 128 + 100 * np.cos(2 * x + 3 * y))
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def encoded(image: Image.Image | Pixels, file_format: str, **options: Any) -> bytes:
    """Returns the bytes of a picture file."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def png(width: int, height: int) -> bytes:
    """Returns a small PNG file of any width and height, filled with one grey. Its header states its true size."""
    return encoded(Image.new("L", (width, height), 99), "PNG")


def bare_png(width: int, height: int) -> bytes:
    """Returns a PNG file that has a header and an end but no pixels. Tests use it for sizes that are too large to hold
    in memory."""
    return png_file(width, height, 8, 2, b"")


def data_url(data: bytes, media_type: str = "image/png") -> str:
    """Returns the file as a data: URL."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def on_white(levels: Array, alpha: Array) -> Pixels:
    """Lays [height, width, 3] levels with [height, width] alpha, both 0 to 255, on a white page."""
    share = alpha[..., None].astype(float) / 255
    return (levels * share + 255 * (1 - share)).round().astype(np.uint8)


def _samples() -> Iterator[Sample]:
    rgb = scene()
    grey = rgb[..., 0]
    greys = _as_rgb(grey)
    alpha = rgb[..., 2]
    bits = grey > 100
    indices = (rgb[..., 0] // 64 + 4 * (rgb[..., 1] // 64)).astype(np.uint8)
    palette = np.random.default_rng(7).integers(0, 256, (16, 3), np.uint8)
    paletted = Image.fromarray(indices)
    paletted.putpalette(palette.tobytes())
    key = int(indices[HEIGHT // 2, WIDTH // 2])
    keyed = on_white(palette[indices], np.where(indices == key, 0, 255))
    deep = (grey.astype(np.uint16) << 8) + rgb[..., 1]
    rgba = np.dstack([rgb, alpha])
    grey_alpha = np.dstack([grey, alpha])
    cmyk = np.dstack([255 - rgb, np.full_like(grey, 30)])
    printed = (rgb.astype(float) * (255 - 30) / 255).round().astype(np.uint8)

    for name, options in PLAIN_FORMATS.items():
        file_format = name.split("-")[0].upper()
        yield Sample(f"{name}-RGB", encoded(rgb, file_format, **options), rgb, 0 if name in LOSSLESS else 12)
    for file_format in ("PNG", "JPEG", "BMP", "TIFF", "GIF"):
        yield Sample(f"{file_format.lower()}-L", encoded(grey, file_format), greys, 4 if file_format == "JPEG" else 0)
    for file_format in ("PNG", "BMP", "TIFF", "GIF"):
        name = file_format.lower()
        yield Sample(f"{name}-1", encoded(Image.fromarray(bits), file_format), _as_rgb(np.where(bits, 255, 0)))
        yield Sample(f"{name}-P", encoded(paletted, file_format), palette[indices])
    yield Sample("png-P-transparent", encoded(paletted, "PNG", transparency=key), keyed)
    yield Sample("gif-P-transparent", encoded(paletted, "GIF", transparency=key), keyed)
    shades = np.arange(0, 256, 16, np.uint8)
    shaded = on_white(palette[indices], shades[indices])
    yield Sample("png-P-alpha", encoded(paletted, "PNG", transparency=shades.tobytes()), shaded)
    yield Sample(
        "png-RGB-transparent", encoded(rgb, "PNG", transparency=tuple(map(int, rgb[0, 0]))), _keyed(rgb, rgb[0, 0])
    )
    yield Sample("png-L-transparent", encoded(grey, "PNG", transparency=int(grey[0, 0])), _keyed(greys, greys[0, 0]))
    for name, options in {"png": {}, "tiff": {}, "webp": {"lossless": True, "exact": True}}.items():
        yield Sample(f"{name}-RGBA", encoded(rgba, name.upper(), **options), on_white(rgb, alpha))
    yield Sample("png-LA", encoded(grey_alpha, "PNG"), on_white(greys, alpha))
    yield Sample("tiff-LA", encoded(grey_alpha, "TIFF"), on_white(greys, alpha))
    yield Sample("jpeg-CMYK", encoded(Image.fromarray(cmyk, "CMYK"), "JPEG", quality=95), printed, 12)
    yield Sample("tiff-CMYK", encoded(Image.fromarray(cmyk, "CMYK"), "TIFF"), printed, 1)
    yield Sample("png-16", encoded(Image.fromarray(deep), "PNG"), greys)
    hidden = on_white(greys, np.where(deep == deep[0, 0], 0, 255))
    yield Sample("png-16-transparent", _png_16(deep, int(deep[0, 0])), hidden)
    yield Sample("tiff-16", encoded(Image.fromarray(deep), "TIFF"), greys)
    yield Sample("tiff-16-big-endian", _tiff_16(deep), greys)
    yield Sample("tiff-deflate", encoded(rgb, "TIFF", compression="tiff_deflate"), rgb)
    yield Sample("tiff-big", encoded(rgb, "TIFF", big_tiff=True), rgb)
    frames = [Image.fromarray(255 - rgb)]
    yield Sample("gif-frames", encoded(paletted, "GIF", save_all=True, append_images=frames), palette[indices])
    yield Sample("webp-frames", encoded(rgb, "WEBP", save_all=True, append_images=frames, lossless=True), rgb)
    yield Sample("mpo-RGB", encoded(rgb, "MPO", save_all=True, append_images=frames, quality=95), rgb, 12)
    yield Sample("gif-small-screen", _shrink_screen(encoded(paletted, "GIF")), palette[indices])


PLAIN_FORMATS: Final[dict[str, dict[str, Any]]] = {
    "png": {},
    "jpeg": {"quality": 95},
    "jpeg-progressive": {"quality": 95, "progressive": True},
    "webp": {"quality": 95},
    "webp-lossless": {"lossless": True},
    "bmp": {},
    "tiff": {},
}
LOSSLESS: Final = {"png", "webp-lossless", "bmp", "tiff"}


def _as_rgb(grey: Array) -> Pixels:
    return np.repeat(grey[..., None], 3, axis=-1).astype(np.uint8)


def _keyed(rgb: Pixels, colour: Pixels) -> Pixels:
    return np.where((rgb == colour).all(axis=-1)[..., None], np.uint8(255), rgb)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Returns one chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_file(width: int, height: int, depth: int, colour: int, pixels: bytes, *, before: bytes = b"") -> bytes:
    """Returns a PNG file of rows of pixels, each after the number of its filter, with chunks before them."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + png_chunk(b"IDAT", zlib.compress(pixels)) + png_chunk(b"IEND", b"")


def _png_16(levels: Array, transparent: int) -> bytes:
    height, width = levels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    return png_file(width, height, 16, 0, rows, before=png_chunk(b"tRNS", struct.pack(">H", transparent)))


def bmp_rle(width: int, height: int, pixels: bytes) -> bytes:
    """Returns a BMP file with run-length encoded bytes and a palette of greys."""
    palette = b"".join(bytes([level, level, level, 0]) for level in range(256))
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + palette + pixels


def _tiff_16(levels: Array) -> bytes:
    height, width = levels.shape
    pixels = levels.astype(">u2").tobytes()
    shorts = {256: width, 257: height, 258: 16, 259: 1, 262: 1, 277: 1, 278: height}
    longs = {273: 8 + 2 + 12 * 9 + 4, 279: len(pixels)}
    entries = [struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in shorts.items()]
    entries += [struct.pack(">HHII", tag, 4, 1, value) for tag, value in longs.items()]
    return b"MM\0*" + struct.pack(">IH", 8, len(entries)) + b"".join(sorted(entries)) + bytes(4) + pixels


def _shrink_screen(gif: bytes) -> bytes:
    return gif[:6] + struct.pack("<HH", 3, 2) + gif[10:]


SAMPLES: Final = {sample.name: sample for sample in _samples()}
"""Every format and mode, by name."""

NO_PICTURES: Final = {
    "empty": b"",
    "text": b"hello, world",
    "html": b"<!doctype html><title>Not found</title>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "pdf": b"%PDF-1.7\n",
    "ppm": encoded(scene(), "PPM"),
    "ico": encoded(scene(16, 16), "ICO"),
}
"""Files of other formats than the six accepted ones. The media stage refuses them."""

CUT_HEADERS: Final = {
    "png": SAMPLES["png-RGB"].data[:20],
    "jpeg": SAMPLES["jpeg-RGB"].data[:100],
    "webp": SAMPLES["webp-RGB"].data[:20],
    "gif": SAMPLES["gif-P"].data[:11],
    "bmp": SAMPLES["bmp-RGB"].data[:20],
    "tiff": SAMPLES["tiff-deflate"].data[:30],
    "magic": b"\x89PNG\r\n\x1a\n",
}
"""Cut short before the size; the media stage refuses it."""

BROKEN: Final = {
    "png-cut": SAMPLES["png-RGB"].data[:-400],
    "png-bad-crc": SAMPLES["png-RGB"].data[:29] + b"\0\0\0\0" + SAMPLES["png-RGB"].data[33:],
    "png-no-pixels": bare_png(WIDTH, HEIGHT),
    "jpeg-cut": SAMPLES["jpeg-RGB"].data[:-200],
    "webp-cut": SAMPLES["webp-RGB"].data[:-50],
    "gif-cut": SAMPLES["gif-P"].data[: len(SAMPLES["gif-P"].data) * 2 // 3],
    "bmp-cut": SAMPLES["bmp-RGB"].data[:-500],
    "tiff-cut": SAMPLES["tiff-RGB"].data[:-500],
    "tiff-32-bit": encoded(Image.fromarray(scene()[..., 0].astype(np.int32)), "TIFF"),
    "tiff-float": encoded(Image.fromarray(scene()[..., 0].astype(np.float32)), "TIFF"),
}
"""With a header that reads well; the preprocess stage refuses it."""
