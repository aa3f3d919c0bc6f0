"""The request stage: finding pictures, putting digests in their places, and refusing what Prism reads wrong."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from cluster.errors import (
    BodyTooLarge,
    EmbeddingRefused,
    InvalidField,
    InvalidJson,
    ModelNotFound,
    PrismError,
    TooManyPictures,
    UnknownField,
    UnsupportedPart,
    UuidWithoutPicture,
)
from cluster.messages import PICTURE_PART, is_picture, picture_part
from cluster.request import (
    DETAILS,
    EMBEDDING_PARTS,
    MAX_CONTAINERS,
    MAX_TEXT_BYTES,
    OPERATOR_FIELDS,
    TEXT_PARTS,
    ClientRequest,
    read_request,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

NAME = "prism-demo"
PART = "messages[0].content[0]"


def read(body: Any, max_pictures: int = 4) -> ClientRequest:
    """Parses a request body that is given as JSON values or as bytes."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_request(raw, served_name=NAME, max_pictures=max_pictures)


def picture(url: str, **more: Any) -> dict[str, Any]:
    """Returns a content part with a picture."""
    return {"type": "image_url", "image_url": {"url": url}, **more}


def text(words: str) -> dict[str, Any]:
    """Returns a content part with text."""
    return {"type": "text", "text": words}


def turn(*parts: Any, role: str = "user") -> dict[str, Any]:
    """Returns a message with content parts."""
    return {"role": role, "content": list(parts)}


def ask(*parts: Any, **fields: Any) -> dict[str, Any]:
    """Returns a request body with one turn."""
    return {"messages": [turn(*parts)], **fields}


def refusal(kind: type[PrismError], body: Any, param: str | None) -> PrismError:
    """Parses a body that must be refused, checks that the error is well formed, and returns the error."""
    with pytest.raises(PrismError) as caught:
        read(body)
    error = caught.value
    assert (type(error), error.param) == (kind, param)
    assert error.message.endswith(".")
    return error


def test_pictures_are_found_in_order_across_roles() -> None:
    """The pictures of all roles are found in the order of the conversation, each with the path of its URL."""
    body = {
        "messages": [
            turn(text("Look."), picture("a"), role="system"),
            {"role": "user", "content": "no parts"},
            turn(picture("b"), text("and"), picture("c", uuid="mine")),
            {"role": "assistant", "content": None},
            turn({"type": "image_url", "image_url": "d"}, role="tool"),
        ]
    }
    assert [(found.url, found.param) for found in read(body).pictures] == [
        ("a", "messages[0].content[1].image_url.url"),
        ("b", "messages[2].content[0].image_url.url"),
        ("c", "messages[2].content[2].image_url.url"),
        ("d", "messages[4].content[0].image_url.url"),
    ]


def test_digests_take_the_places_of_pictures() -> None:
    """Every picture is replaced by its digest, a uuid is dropped, and all other fields stay as the client wrote
    them."""
    body = ask(
        text("first"), picture("a", uuid="mine"), picture("b"), text("last"), temperature=0.5, tools=[{"x": [1, None]}]
    )
    request = read(body)
    digests = [f"digest of {found.url}" for found in request.pictures]
    parts = [text("first"), picture_part("digest of a"), picture_part("digest of b"), text("last")]
    assert request.body_with(digests) == {**body, "messages": [turn(*parts)]}
    assert request.body == body
    assert [is_picture(part) for part in parts] == [False, True, True, False]


def test_text_alone_needs_no_pictures() -> None:
    """Bodies without messages, or with plain strings, have no pictures and stay as they are."""
    for body in ({"prompt": "hello"}, {"tokens": [1, 2]}, {"messages": [{"role": "user", "content": "hello"}]}):
        request = read(body)
        assert request.pictures == ()
        assert request.body_with([]) == body


@pytest.mark.parametrize("kind", TEXT_PARTS)
def test_text_comes_in_all_its_parts(kind: str) -> None:
    """Each type of text part is accepted with a string in its own field, and refused without one."""
    field = TEXT_PARTS[kind]
    part = {"type": kind, field: "hello", "cache_control": {"type": "ephemeral"}}
    assert read(ask(part)).pictures == ()
    wrongs: tuple[Any, ...] = (None, 5, ["hello"], {})
    for wrong in wrongs:
        refusal(InvalidField, ask({**part, field: wrong}), f"{PART}.{field}")
    for smuggled in ("uuid", "image", "image_url", "image_pil", *EMBEDDING_PARTS):
        refusal(UnknownField, ask({**part, smuggled: None}), f"{PART}.{smuggled}")


@pytest.mark.parametrize("detail", [None, *DETAILS])
def test_a_picture_may_have_a_detail(detail: str | None) -> None:
    """``detail`` is taken as OpenAI defines it."""
    assert len(read(ask({"type": "image_url", "image_url": {"url": "a", "detail": detail}})).pictures) == 1


@pytest.mark.parametrize(
    ("kind", "suffix", "part"),
    [
        (InvalidField, "", 5),
        (InvalidField, "", "hello"),
        (InvalidField, ".type", {}),
        (InvalidField, ".type", {"type": ["text"]}),
        (InvalidField, ".type", {"type": {}}),
        (InvalidField, ".image_url", {"type": "image_url"}),
        (InvalidField, ".image_url", {"type": "image_url", "image_url": ["a"]}),
        (InvalidField, ".image_url.url", {"type": "image_url", "image_url": {"url": 5}}),
        (InvalidField, ".image_url.detail", {"type": "image_url", "image_url": {"url": "a", "detail": "max"}}),
        (InvalidField, ".uuid", picture("a", uuid=5)),
        (UnknownField, ".image_url.size", {"type": "image_url", "image_url": {"url": "a", "size": 5}}),
        (UnknownField, ".digest", picture("a", digest="b", uuid="c")),
        (UuidWithoutPicture, ".uuid", {"type": "image_url", "uuid": "a"}),
        (UuidWithoutPicture, ".uuid", {"type": "image_url", "image_url": {"url": None}, "uuid": "a"}),
        (UnsupportedPart, ".type", picture_part("0" * 64)),
        (UnsupportedPart, ".type", {"type": "video_url", "video_url": {"url": "a"}}),
        (EmbeddingRefused, ".type", {"type": "image_embeds", "image_embeds": {}}),
        (EmbeddingRefused, ".type", {"type": "video_url", "image_embeds": None, "uuid": "a"}),
        (EmbeddingRefused, ".type", {"prompt_embeds": "a"}),
    ],
)
def test_a_bad_part_is_named(kind: type[PrismError], suffix: str, part: Any) -> None:
    """An invalid content part is refused with the path of the field at fault."""
    refusal(kind, ask(part), PART + suffix)


def test_the_same_fault_has_one_name() -> None:
    """Of several unknown fields, the error names the alphabetically first, whatever their order in the body."""
    for names in (["b", "a", "c"], ["c", "b", "a"]):
        refusal(UnknownField, ask({**text("hello"), **dict.fromkeys(names, 1)}), f"{PART}.a")
        refusal(UnknownField, {"prompt": "hello", "prism": dict.fromkeys(names, 1)}, "prism.a")


@pytest.mark.parametrize(
    ("param", "messages"),
    [
        ("messages", None),
        ("messages", []),
        ("messages", "hello"),
        ("messages[0]", [None]),
        ("messages[0].role", [{"content": "hello"}]),
        ("messages[1].role", [turn(), {"role": 5, "content": "hello"}]),
        ("messages[0].content", [{"role": "user", "content": text("hello")}]),
        ("messages[0].content", [{"role": "user", "content": False}]),
    ],
)
def test_bad_messages_are_named(param: str, messages: Any) -> None:
    """An invalid conversation is refused with the path of the message at fault."""
    refusal(InvalidField, {"messages": messages}, param)


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("model", {"model": 5}),
        ("stream", {"stream": "true"}),
        ("stream", {"stream": 1}),
        ("prompt", {"prompt": "hello"}),
        ("truncate_prompt_tokens", {"truncate_prompt_tokens": 5}),
        ("prism", {"prism": 5}),
        ("prism.timeout_s", {"prism": {"timeout_s": 0}}),
        ("prism.waterfall", {"prism": {"waterfall": "yes"}}),
        ("prism.waterfall", {"prism": {"waterfall": None}}),
        ("prism.timeout_s", {"prism": {"timeout_s": True}}),
        ("prism.timeout_s", {"prism": {"timeout_s": "5"}}),
        ("prism.timeout_s", {"prism": {"timeout_s": 10**400}}),
    ],
)
def test_a_bad_field_is_named(param: str, fields: dict[str, Any]) -> None:
    """A field that Prism reads is refused by its name if its value is invalid."""
    refusal(InvalidField, ask(picture("a"), **fields), param)


@pytest.mark.parametrize("name", OPERATOR_FIELDS)
def test_what_only_an_operator_may_set_is_refused(name: str) -> None:
    """Fields that reach past the Router are refused with any value."""
    values: tuple[Any, ...] = (None, {}, "a")
    for value in values:
        refusal(UnknownField, {"prompt": "hello", name: value}, name)


def test_other_models_and_embeddings_are_refused() -> None:
    """Only the served model's name, or none, is accepted. Embeddings as a prompt or as a picture are refused."""
    for fits in (None, NAME):
        assert read({"model": fits, "prompt": "hello"}).pictures == ()
    assert repr(NAME) in refusal(ModelNotFound, {"model": "other", "prompt": "hello"}, "model").message
    refusal(EmbeddingRefused, {"prompt_embeds": "a"}, "prompt_embeds")


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"null", b'{"a": NaN}', b"{'a': 1}", b'{"a": 1}x', b"[" * 9**6, b'{"a": "\xff"}']
)
def test_what_is_not_a_json_object_is_refused(raw: bytes) -> None:
    """A body that is not exactly one JSON object is refused."""
    refusal(InvalidJson, raw, None)


def test_pictures_are_counted_over_the_whole_request() -> None:
    """As many pictures as allowed are taken, and one more is refused with both figures."""
    assert len(read(ask(*[picture("a")] * 4)).pictures) == 4
    error = refusal(TooManyPictures, {"messages": [turn(picture("a"), picture("b"))] * 3}, "messages")
    assert error.figures == {"asked": 6, "limit": 4}


def test_text_is_bounded_and_pictures_are_not_counted_as_text() -> None:
    """The bytes without pictures have a limit of their own. Picture bytes are limited where pictures are read."""
    url = "data:" + "a" * (2 * MAX_TEXT_BYTES)
    assert read(ask(picture(url), text("hello"))).pictures[0].url == url
    room = MAX_TEXT_BYTES - len(json.dumps({"prompt": ""}))
    assert read({"prompt": "a" * room}).pictures == ()
    error = refusal(BodyTooLarge, {"prompt": "a" * (room + 1)}, None)
    assert error.figures == {"asked_bytes": MAX_TEXT_BYTES + 1, "limit_bytes": MAX_TEXT_BYTES}


def test_objects_are_bounded() -> None:
    """A body may have a limited number of objects and arrays, at any depth. Plain values in them are not counted."""
    room = MAX_CONTAINERS - 2  # the body and the array are two
    assert read({"prompt": "a", "tools": [{}] * room}).pictures == ()
    assert read({"tokens": [5] * 10 * MAX_CONTAINERS}).pictures == ()
    refusal(BodyTooLarge, {"prompt": "a", "tools": [{}] * (room + 1)}, None)
    refusal(BodyTooLarge, {"prompt": "a", "tools": [[[]]] * room}, None)


def test_prism_options_are_read_and_go_no_further() -> None:
    """``prism.timeout_s`` is returned in seconds, and the ``prism`` object is not sent to the decoder."""
    for options, timeout_s in ((None, None), ({}, None), ({"timeout_s": None}, None), ({"timeout_s": 2}, 2.0)):
        request = read({"prompt": "hello", "prism": options})
        assert request.timeout_s == timeout_s
        assert request.body == {"prompt": "hello"}


def test_a_stream_is_asked_for_by_true_alone() -> None:
    """``stream`` must be a boolean, and its default is false."""
    for fields, stream in (
        ({}, False),
        ({"stream": None}, False),
        ({"stream": False}, False),
        ({"stream": True}, True),
    ):
        assert read({"prompt": "hello", **fields}).stream is stream


WORDS = (
    *(
        "messages",
        "content",
        "role",
        "type",
        "text",
        "image_url",
        "url",
        "detail",
        "uuid",
        "model",
        "prism",
        "timeout_s",
        "n",
    ),
    *(
        "prompt",
        "stream",
        "image_embeds",
        "digest",
        PICTURE_PART,
        NAME,
        "user",
        "auto",
        "logit_bias",
        "tools",
        "cache_control",
    ),
)
LEAVES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    5,
    2**63,
    10**400,
    0.5,
    1e308,
    "",
    "\0",
    "data:image/png;base64,AA==",
)


def anything(draw: random.Random, depth: int = 0) -> Any:
    """Returns a random JSON value that is made of words which mean something to Prism."""
    kind = draw.random()
    if depth > 5 or kind < 0.3:
        return draw.choice(LEAVES) if draw.random() < 0.5 else draw.choice(WORDS)
    if kind < 0.6:
        return [anything(draw, depth + 1) for _ in range(draw.randint(0, 3))]
    return {draw.choice(WORDS): anything(draw, depth + 1) for _ in range(draw.randint(0, 4))}


def spoiled(draw: random.Random, value: Any) -> Any:
    """Returns a good body in which random values are removed or replaced by random others."""
    if draw.random() < 0.06:
        return anything(draw, 3)
    if isinstance(value, dict):
        return {key: spoiled(draw, inner) for key, inner in value.items() if draw.random() > 0.03}
    if isinstance(value, list):
        return [spoiled(draw, inner) for inner in value]
    return value


def good_bodies() -> Iterable[dict[str, Any]]:
    """Returns valid bodies of several kinds."""
    parts = (text("hello"), picture("a", uuid="b"), {"type": "image_url", "image_url": {"url": "c", "detail": "low"}})
    yield {
        "model": NAME,
        "messages": [turn(*parts), turn(*parts, role="system")],
        "prism": {"timeout_s": 5},
        "stream": True,
    }
    yield {
        "prompt": ["hello", "you"],
        "n": 3,
        "logit_bias": {"5": 0.5},
        "tools": [{"type": "function", "function": {}}],
    }


@pytest.mark.parametrize("seed", range(20))
def test_no_body_does_worse_than_a_typed_error(seed: int) -> None:
    """Any JSON body is read or refused with a typed error. A body that is read can be sent on."""
    draw = random.Random(seed)
    outcomes: set[type] = set()
    for _ in range(400):
        body = anything(draw) if draw.random() < 0.3 else spoiled(draw, draw.choice([*good_bodies()]))
        try:
            request = read(body)
        except PrismError as error:
            assert error.status < 500  # noqa: PT017 - any of Prism's errors may come; this is what they share
            outcomes.add(type(error))
        else:
            outcomes.add(ClientRequest)
            sent = request.body_with(["0" * 64 for _ in request.pictures])
            assert "image_url" not in {part.get("type") for part in parts_of(sent)}
    assert len(outcomes) > 5


def parts_of(body: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """Returns all content parts of a parsed body."""
    for message in body.get("messages", ()):
        yield from message["content"] if isinstance(message.get("content"), list) else ()


def test_a_beam_search_is_for_text_alone() -> None:
    """A beam search is refused with pictures, and left to vLLM without them."""
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    for content, is_refused in (([part], True), ("hello", False)):
        body = {"messages": [{"role": "user", "content": content}], "use_beam_search": True}
        raw = json.dumps(body).encode()
        if not is_refused:
            read_request(raw, served_name="prism-demo", max_pictures=1)
            continue
        with pytest.raises(InvalidField, match="send text alone") as refused:
            read_request(raw, served_name="prism-demo", max_pictures=1)
        assert refused.value.param == "use_beam_search"
