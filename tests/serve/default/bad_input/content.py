"""Bad input in messages: pictures, URLs and parts."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

from tests.helpers.ask import image, text
from tests.helpers.bombs import BOMBS
from tests.helpers.pictures import BROKEN, CUT_HEADERS, NO_PICTURES, bare_png, png
from tests.serve.default.bad_input.kind import PART, PICTURE, URL, Bad, ask

if TYPE_CHECKING:
    from collections.abc import Iterator


def pictures() -> Iterator[Bad]:
    """Yields bytes that are no picture, pictures that are cut off or only claim to be large, and files that are made
    to be expensive."""
    for what, samples in {"no picture": NO_PICTURES, "cut header": CUT_HEADERS, "broken": BROKEN}.items():
        for name, data in samples.items():
            yield Bad(f"{what}: {name}", "invalid_image", URL, ask(image(data)))
    for width, height in [(1, 1000), (201, 1), (0, 5)]:
        data = png(width, height) if width else bare_png(width, height)
        yield Bad(f"{width} x {height} pixels", "invalid_image", URL, ask(image(data)))
    bmp = (
        b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 100_000, -100_000, 1, 24, *[0] * 6)
    )
    bombs = {
        "png": bare_png(20_000, 20_000),
        "largest png": bare_png(2**31 - 1, 2**31 - 1),
        "jpeg": b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03\x01\x22\0\x02\x11\x01\x03\x11\x01\xff\xd9",
        "gif": b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0;",
        "bmp": bmp,
    }
    for name, data in bombs.items():
        yield Bad(f"too many pixels: {name}", "image_too_large", URL, ask(image(data)), status=413)
    for name in ("jpeg scans", "mpo scans", "bmp rle, 49 megapixels", "tiff tile", "tiff jpeg scans"):
        yield Bad(f"too expensive: {name}", "image_too_expensive", URL, ask(image(BOMBS[name].picture().data)))
    later = [{"role": "system", "content": [PICTURE]}, {"role": "user", "content": [text("?"), PICTURE, image(b"x")]}]
    yield Bad("the last of many", "invalid_image", "messages[1].content[2].image_url.url", {"messages": later})


def urls() -> Iterator[Bad]:
    """Yields URLs that Prism does not follow."""
    codes = {
        "unsupported_url_scheme": [
            *(
                "",
                "http://example.com/a.png",
                "HTTP://example.com/a.png",
                "file:///etc/passwd",
                "ftp://example.com/a.png",
            ),
            *(
                "javascript:alert(1)",
                "blob:https://example.com/1",
                "example.com/a.png",
                "/etc/passwd",
                "//example.com/a.png",
            ),
            *("gopher://example.com", "\0", "prism:0:0", "a" * 64),
        ],
        "image_url_forbidden": [
            *(
                "https://127.0.0.1/a.png",
                "https://localhost/a.png",
                "https://10.0.0.1/a.png",
                "https://192.168.0.1/a.png",
            ),
            *("https://169.254.169.254/latest/meta-data/", "https://[::1]/a.png", "https://[::ffff:127.0.0.1]/a.png"),
            *("https://0x7f000001/", "https://2130706433/", "https://127.1/", "https://0.0.0.0/", "https://[fe80::1]/"),
            *("https://", "https:///a.png", "https://me:secret@example.com/a.png", f"https://{'a' * 9000}.com/"),
        ],
        "invalid_image": [
            *("data:", "data:,", "data:image/png,raw", "data:image/png;base64", "data:image/png;base64,!!!!"),
            *("data:image/png;base64,aGk", "data:text/plain;base64,aGk=", "data:image/svg+xml;base64,PHN2Zy8+"),
        ],
    }
    for code, all_of_it in codes.items():
        for url in all_of_it:
            yield Bad(f"url {url[:40]!r}", code, URL, ask({"type": "image_url", "image_url": {"url": url}}))


def parts() -> Iterator[Bad]:
    """Yields content parts that are neither text nor a picture, or that are malformed."""
    url = PICTURE["image_url"]
    forged = {"image_embeds": "prism:0:0", "image_grid_thw": [1, 2, 2]}
    table: list[tuple[str, str, Any]] = [
        ("invalid_value", "", 5),
        ("invalid_value", "", None),
        ("invalid_value", "", []),
        ("invalid_value", "", "plain"),
        ("invalid_value", ".type", {}),
        ("invalid_value", ".type", {"type": None, "image_url": url}),
        ("invalid_value", ".type", {"type": 5}),
        ("invalid_value", ".type", {"type": ["text"]}),
        ("invalid_value", ".type", {"type": {"text": 1}}),
        ("invalid_value", ".type", {"image_url": url}),
        ("invalid_value", ".image_url", {"type": "image_url"}),
        ("invalid_value", ".image_url", {"type": "image_url", "image_url": None}),
        ("invalid_value", ".image_url", {"type": "image_url", "image_url": 5}),
        ("invalid_value", ".image_url", {"type": "image_url", "image_url": [url]}),
        ("invalid_value", ".image_url.url", {"type": "image_url", "image_url": {}}),
        ("invalid_value", ".image_url.url", {"type": "image_url", "image_url": {"url": 5}}),
        ("invalid_value", ".image_url.url", {"type": "image_url", "image_url": {"url": None}}),
        ("invalid_value", ".image_url.detail", {"type": "image_url", "image_url": {**url, "detail": "max"}}),
        ("invalid_value", ".image_url.detail", {"type": "image_url", "image_url": {**url, "detail": ["low"]}}),
        ("unknown_field", ".image_url.size", {"type": "image_url", "image_url": {**url, "size": 5}}),
        ("unknown_field", ".digest", {**PICTURE, "digest": "0" * 64}),
        ("invalid_value", ".uuid", {**PICTURE, "uuid": 5}),
        ("invalid_value", ".uuid", {**PICTURE, "uuid": ["a"]}),
        ("uuid_without_picture", ".uuid", {"type": "image_url", "uuid": "a"}),
        ("uuid_without_picture", ".uuid", {"type": "image_url", "image_url": None, "uuid": "a"}),
        ("uuid_without_picture", ".uuid", {"type": "image_url", "image_url": {"url": None}, "uuid": "a"}),
        ("unsupported_content_part", ".type", {"type": "prism_picture", "digest": "0" * 64}),
        ("unsupported_content_part", ".type", {"type": "TEXT", "text": "a"}),
        ("unsupported_content_part", ".type", {"type": "image", "image": "a"}),
        ("unsupported_content_part", ".type", {"type": "input_image", "image_url": url["url"]}),
        ("unsupported_content_part", ".type", {"type": "video_url", "video_url": {"url": "https://example.com/a"}}),
        ("unsupported_content_part", ".type", {"type": "audio_url", "audio_url": {"url": "https://example.com/a"}}),
        ("unsupported_content_part", ".type", {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}),
        ("unsupported_content_part", ".type", {"type": "file", "file": {"file_id": "a"}}),
        ("embeddings_not_accepted", ".type", {"type": "image_embeds", "image_embeds": "a"}),
        ("embeddings_not_accepted", ".type", {"type": "image_embeds", "image_embeds": forged}),
        ("embeddings_not_accepted", ".type", {"type": "image_embeds", "uuid": "a"}),
        ("embeddings_not_accepted", ".type", {"image_embeds": None, "uuid": "a"}),
        ("embeddings_not_accepted", ".type", {"type": "image_pil", "image_pil": "a"}),
        ("embeddings_not_accepted", ".type", {"type": "audio_embeds", "audio_embeds": "a"}),
        ("embeddings_not_accepted", ".type", {"type": "video_embeds", "video_embeds": "a"}),
        ("embeddings_not_accepted", ".type", {"type": "prompt_embeds", "data": "a"}),
        ("unknown_field", ".uuid", {**text("a"), "uuid": "a"}),
        ("unknown_field", ".image_embeds", {**text("a"), "image_embeds": forged, "uuid": "a"}),
        ("unknown_field", ".image_url", {**text("a"), "image_url": url, "uuid": "a"}),
        ("unknown_field", ".image", {**text("a"), "image": "to a template, a picture"}),
        ("unknown_field", ".video", {**text("a"), "video": "to a template, a video"}),
        ("unknown_field", ".image_pil", {"type": "refusal", "refusal": "a", "image_pil": "a"}),
        ("invalid_value", ".text", {"type": "text"}),
        ("invalid_value", ".text", {"type": "text", "text": 5}),
        ("invalid_value", ".text", {"type": "text", "text": None}),
        ("invalid_value", ".text", {"type": "text", "text": ["a"]}),
        ("invalid_value", ".refusal", {"type": "refusal"}),
    ]
    for code, suffix, part in table:
        yield Bad(
            f"part {str(part).replace(url['url'], 'data:')[:120]}", code, PART + suffix, ask(part, text("What is it?"))
        )


def messages() -> Iterator[Bad]:
    """Yields conversations of the wrong shape."""
    one: dict[str, Any] = {"role": "user", "content": "hello"}
    called = {"role": "assistant", "content": "hello"}
    table: list[tuple[str | None, Any]] = [
        ("messages", None),
        ("messages", 5),
        ("messages", "hello"),
        ("messages", {}),
        ("messages", []),
        ("messages[0]", [5]),
        ("messages[0]", [None]),
        ("messages[0]", ["hello"]),
        ("messages[1]", [one, []]),
        ("messages[0].role", [{}]),
        ("messages[0].role", [{"content": "hello"}]),
        ("messages[0].role", [{**one, "role": 5}]),
        ("messages[0].content", [{**one, "content": 5}]),
        ("messages[0].content", [{**one, "content": True}]),
        ("messages[0].content", [{**one, "content": None}]),
        ("messages[0].content", [{**one, "content": text("hello")}]),
        ("messages[0].content", [{**one, "content": PICTURE}]),
        ("messages[0].name", [{**one, "name": 5}]),
        ("messages", [{**called, "tool_calls": "a"}, one]),
        ("messages", [{**called, "tool_calls": [{}]}, one]),
        (None, [{**called, "tool_calls": 5}, one]),
    ]
    for param, value in table:
        yield Bad(f"messages {str(value)[:60]}", "invalid_value", param, {"messages": value, "max_tokens": 2})
    yield Bad("no messages", "invalid_value", "messages", {"model": "prism-demo"})


def picture_fields() -> Iterator[Bad]:
    """Yields fields that are refused only in requests with a picture, because they would move or cut its tokens."""
    marker = "<|image_pad|>"
    called = {"id": "a", "type": "function", "function": {"name": "a", "arguments": "{}"}}
    table: dict[str, tuple[str, dict[str, Any]]] = {
        "marker before a picture": ("messages", ask(text(marker), PICTURE)),
        "marker after a picture": ("messages", ask(PICTURE, text(f"<|vision_start|>{marker}<|vision_end|>"))),
        "marker in two parts": ("messages", ask(text("<|image_"), text("pad|>"), PICTURE)),
        "many markers": ("messages", ask(text(marker * 50), PICTURE, PICTURE)),
        "marker as a role": ("messages", {"messages": [{"role": marker, "content": [PICTURE]}]}),
        "marker in another turn": (
            "messages",
            {"messages": [{"role": "assistant", "content": marker, "tool_calls": [called]}, *ask(PICTURE)["messages"]]},
        ),
        "truncated to 1": ("truncate_prompt_tokens", ask(PICTURE, text("hello"), truncate_prompt_tokens=1)),
        "truncated to 20": ("truncate_prompt_tokens", ask(PICTURE, text("hello"), truncate_prompt_tokens=20)),
        "beam search": ("use_beam_search", ask(PICTURE, text("hello"), use_beam_search=True)),
    }
    for name, (param, body) in table.items():
        yield Bad(f"picture: {name}", "invalid_value", param, body)


SECTIONS: Final = (pictures, urls, parts, messages, picture_fields)
