"""Bad input that is wrong before a field is read: floods, broken JSON and routes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cluster.request import MAX_CONTAINERS, MAX_TEXT_BYTES
from tests.helpers.ask import image, text
from tests.helpers.pictures import png
from tests.serve.default.bad_input.kind import CHAT, PICTURE, URL, Bad, ask

if TYPE_CHECKING:
    from collections.abc import Iterator

DEEP: Final = 100_000


def floods() -> Iterator[Bad]:
    """Yields requests that exceed a limit: on pictures, bytes, tokens or JSON objects."""
    yield Bad("17 pictures", "too_many_images", "messages", ask(*[PICTURE] * 17))
    spread = {"messages": [{"role": "user", "content": [PICTURE]}] * 17}
    yield Bad("17 pictures in as many turns", "too_many_images", "messages", spread)
    yield Bad("picture bytes", "image_too_large", URL, ask(image(bytes(20 * 2**20 + 1))), status=413)
    yield Bad("body bytes", "request_too_large", None, b" " * (64 * 2**20 + 1), status=413)
    text_flood = ask(text("a" * MAX_TEXT_BYTES))
    yield Bad("text bytes", "request_too_large", None, text_flood, status=413)
    yield Bad(
        "text bytes beside a picture", "request_too_large", None, ask(PICTURE, text("a" * MAX_TEXT_BYTES)), status=413
    )
    prompt = {"prompt": "a" * MAX_TEXT_BYTES}
    yield Bad("text bytes to count", "request_too_large", None, prompt, status=413, path="/tokenize")
    yield Bad("tokens", "request_too_large", None, {"tokens": [5] * MAX_TEXT_BYTES}, status=413, path="/detokenize")
    yield Bad("parts", "request_too_large", None, ask(*[text("a")] * MAX_CONTAINERS), status=413)
    nested = {"type": "function", "function": {"name": "a", "parameters": {"anyOf": [{}] * MAX_CONTAINERS}}}
    yield Bad("objects in a schema", "request_too_large", None, ask(text("hello"), tools=[nested]), status=413)
    yield Bad("context by text", "context_length_exceeded", "messages", ask(text("red " * 5000)))
    yield Bad("context by much text", "context_length_exceeded", "messages", ask(text("red " * 100_000)))
    # 16 pictures of 48 tokens, and words that would fit the context without them
    large = image(png(400, 300))
    yield Bad("context by pictures", "context_length_exceeded", "messages", ask(*[large] * 16, text("red " * 1800)))


def json_zoo() -> Iterator[Bad]:
    """Yields bodies that are not a JSON object."""
    bodies = {
        "nothing": b"",
        "a space": b" ",
        "null": b"null",
        "array": b"[]",
        "number": b"5",
        "string": b'"hello"',
        "truncated": b'{"model": "prism-demo", "messages": [{"role"',
        "single quotes": b"{'model': 'prism-demo'}",
        "trailing comma": b'{"max_tokens": 5,}',
        "NaN": b'{"temperature": NaN}',
        "Infinity": b'{"temperature": -Infinity}',
        "two objects": b'{"max_tokens": 5}{"max_tokens": 6}',
        "comment": b'// hello\n{"max_tokens": 5}',
        "leading zero": b'{"max_tokens": 05}',
        "raw newline": b'{"model": "a\nb"}',
        "bad escape": b'{"model": "\\x41"}',
        "lone surrogate": b'{"model": "\\ud800"}',
        "invalid UTF-8": b'{"model": "\xff"}',
        "byte order mark": b"\xef\xbb\xbf{}",
        "UTF-16": '{"max_tokens": 5}'.encode("utf-16"),
        "gzip": b"\x1f\x8b\x08\0\0\0\0\0",
        "form": b"model=prism-demo&max_tokens=5",
        "long number": b'{"max_tokens": ' + b"9" * 10_000 + b"}",
        "deep arrays": b"[" * DEEP,
        "deep objects": b'{"a":' * DEEP,
        "deep and closed": b'{"messages":' + b"[" * DEEP + b"]" * DEEP + b"}",
    }
    for name, body in bodies.items():
        yield Bad(f"json: {name}", "invalid_json", None, body)
    yield Bad(
        "json: 1e999",
        "invalid_value",
        "temperature",
        b'{"messages": [{"role": "user", "content": "a"}], "temperature": 1e999}',
    )


def routes() -> Iterator[Bad]:
    """Yields paths and methods that Prism does not serve."""
    for method in ("GET", "PUT", "PATCH", "DELETE", "OPTIONS"):
        yield Bad(f"{method} on chat", "method_not_allowed", None, None, status=405, method=method)
    yield Bad("POST on health", "method_not_allowed", None, {}, status=405, path="/health")
    yield Bad("POST on the document", "method_not_allowed", None, {}, status=405, path="/openapi.json")
    for path in ("/nope", "/v1", "/v1/embeddings", "/v1/responses", f"{CHAT}/", CHAT.upper(), "/docs", "/redoc"):
        yield Bad(f"POST {path}", "route_not_found", None, {}, status=404, path=path)
    for name in ("nope", "..%2Fprism-demo", "%00"):
        yield Bad(
            f"card of {name}", "model_not_found", "model", None, status=404, path=f"/v1/models/{name}", method="GET"
        )


SECTIONS: Final = (floods, json_zoo, routes)
