"""The bodies of requests."""

from __future__ import annotations

import base64
import io
import json
from typing import TYPE_CHECKING, Any

from PIL import Image

from loadtest import bodies
from loadtest.bodies import BodyBuilder, answer_message
from loadtest.schedule import LoadArrival, LoadPicture, PlannedRequest

if TYPE_CHECKING:
    import pytest


def asked(index: int, *pictures: LoadPicture, text_tokens: int = 5) -> PlannedRequest:
    """A request at a place of a schedule."""
    return PlannedRequest(index, LoadArrival(0.0, "c", text_tokens, 7, pictures), "text", is_last_turn=True)


def content(message: bytes) -> list[dict[str, Any]]:
    """The parts of a message."""
    parts: list[dict[str, Any]] = json.loads(message)["content"]
    return parts


def test_a_request_has_the_sizes_of_its_arrival() -> None:
    """The text has a word per token, pictures have their sizes, and the answer has a fixed length."""
    builder = BodyBuilder('a "model"')
    message = builder.message(asked(0, LoadPicture("a", 100, 50), LoadPicture("b", 30, 80), text_tokens=40))
    body = json.loads(builder.body([message], 7))
    assert (body["model"], body["max_tokens"], body["min_tokens"]) == ('a "model"', 7, 7)
    assert body["stream_options"] == {"include_usage": True}
    *images, text = body["messages"][0]["content"]
    assert len(text["text"].split()) == 40
    files = [base64.b64decode(image["image_url"]["url"].partition(",")[2]) for image in images]
    assert [Image.open(io.BytesIO(file)).size for file in files] == [(100, 50), (30, 80)]


def test_a_picture_depends_on_its_name_alone() -> None:
    """Two builders draw the same bytes for one name, and other bytes for another. Texts of two requests differ."""
    first, again = (BodyBuilder("m").message(asked(index, LoadPicture("a", 60, 60))) for index in (0, 1))
    other = BodyBuilder("m").message(asked(0, LoadPicture("b", 60, 60)))
    assert content(first)[0] == content(again)[0]
    assert content(first)[0] != content(other)[0]
    assert content(first)[1] != content(again)[1]


def test_a_conversation_is_sent_again() -> None:
    """The messages of a body are in order, with the answers in between."""
    builder = BodyBuilder("m")
    messages = [builder.message(asked(0)), answer_message('a "b"'), builder.message(asked(1))]
    body = json.loads(builder.body(messages, 1))
    assert [one["role"] for one in body["messages"]] == ["user", "assistant", "user"]
    assert body["messages"][1]["content"] == 'a "b"'


def test_drawn_pictures_are_kept_within_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that is asked for again is not drawn again, unless too many bytes were drawn since."""
    drawn = []

    def draw(_: Any, size: tuple[int, int]) -> bytes:
        drawn.append(size[0])
        return bytes(600)

    monkeypatch.setattr(bodies, "new_picture", draw)
    monkeypatch.setattr(bodies, "MAX_KEPT_BYTES", 2000)
    builder = BodyBuilder("m")
    for width in (1, 2, 1, 3, 1, 2):
        builder.message(asked(0, LoadPicture(f"picture {width}", width, 1)))
    assert drawn == [1, 2, 3, 2]
