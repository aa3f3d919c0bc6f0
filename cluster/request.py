"""Request stage: reads a client's JSON as far as Prism must, and leaves the rest to vLLM.

In: the raw body. Out: a ``ClientRequest`` whose pictures are found, counted and lifted out. What a field of the OpenAI
    API means is vLLM's business; this stage knows the content parts that carry pictures, the fields that only an
    engine's operator may set, and Prism's own object ``prism``.
"""

from __future__ import annotations

import string
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pydantic_core import from_json

from cluster.errors import (
    BodyTooLarge,
    EmbeddingRefused,
    InvalidField,
    InvalidJson,
    ModelNotFound,
    TooManyPictures,
    UnknownField,
    UnsupportedPart,
    UuidWithoutPicture,
)
from cluster.messages import picture_part

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, MutableSequence

    from cluster.messages import Digest

MAX_TEXT_BYTES: Final = 2 * 2**20
"""Of a body beside its pictures. vLLM renders and tokenizes one request at a time; 40 MB keep all others waiting for
100 s."""
BASE64_ALPHABET: Final = string.ascii_letters.encode() + string.digits.encode() + b"+/="
MAX_CONTAINERS: Final = 32_768
"""Objects and arrays in a body. vLLM validates them in its event loop; a million parts stop every stream for 20 s."""

TEXT_PARTS: Final = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
    "tool_reference": "name",
}
"""Types of parts that are text, and the field that holds it."""

TEXT_EXTRAS: Final = frozenset({"annotations", "cache_control", "closed", "prompt_cache_breakpoint"})
"""What else text may carry. vLLM shows fields that it does not know to the chat template, and to many a template any
part with a field ``image`` is a picture."""

PICTURE_FIELDS: Final = frozenset({"image_url", "uuid"})
URL_FIELDS: Final = frozenset({"url", "detail"})
DETAILS: Final = ("auto", "low", "high")

EMBEDDING_PARTS: Final = frozenset({"image_embeds", "audio_embeds", "video_embeds", "prompt_embeds", "image_pil"})

OPERATOR_FIELDS: Final = {
    "chat_template": "The model's own template is used; leave it out.",
    "vllm_xargs": "It is for extensions of vLLM's, and none are installed; leave it out.",
    "mm_processor_kwargs": "Pictures are prepared alike for everyone; leave it out.",
    "media_io_kwargs": "Pictures are read alike for everyone; leave it out.",
    "mm_payload": "It belongs to vLLM's render server; leave it out.",
    "return_mm_kwargs": "It belongs to vLLM's render server; leave it out.",
    "kv_transfer_params": "It is set between replicas only; leave it out.",
    "ec_transfer_params": "It is set between replicas only; leave it out.",
    "request_id": "Prism names each request itself; send the header X-Request-Id to find yours in the logs.",
}
"""Fields of vLLM's that would reach behind the Router, each with what to do instead."""

PRISM_FIELDS: Final = frozenset({"timeout_s", "waterfall"})
MAX_FLOAT: Final = sys.float_info.max


@dataclass(frozen=True, slots=True)
class PictureSlot:
    """A place in the body where a picture stands: its URL, the field's name, and the list and index to replace it at."""

    url: str = field(repr=False)
    param: str
    parts: MutableSequence[Any] = field(repr=False)
    index: int


@dataclass(frozen=True, slots=True)
class ClientRequest:
    """A request as far as the Router reads it."""

    body: dict[str, Any] = field(repr=False)
    slots: tuple[PictureSlot, ...]
    timeout_s: float | None = None
    wants_waterfall: bool = False

    @property
    def num_url_chars(self) -> int:
        """Of the pictures' URLs, which hold them or say where they are."""
        return sum(len(slot.url) for slot in self.slots)

    @property
    def stream(self) -> bool:
        return self.body.get("stream") is True

    def put_pictures(self, digests: Mapping[str, Digest]) -> None:
        """Replaces each picture part in the body by its digest, given by the slot's ``param``."""
        for slot in self.slots:
            slot.parts[slot.index] = picture_part(digests[slot.param])


def read_request(raw: bytes, *, served_name: str, max_pictures: int) -> ClientRequest:
    """Parses and checks a body.

    Raises:
        InvalidJson: It is not a JSON object.
        BodyTooLarge: It has too much beside its pictures.
        InvalidField, UnknownField, UnsupportedPart, EmbeddingRefused, UuidWithoutPicture: A field that Prism reads is
            wrong.
        ModelNotFound: It asks for another model.
        TooManyPictures: It carries more than ``max_pictures``.
    """
    body = _parse(raw)
    _check_model(body.get("model"), served_name)
    for name, advice in OPERATOR_FIELDS.items():
        if name in body:
            raise UnknownField(f"{name} is not accepted from clients. {advice}", param=name)
    if "prompt_embeds" in body:
        raise EmbeddingRefused(
            "prompt_embeds is not accepted from clients; send text and pictures.", param="prompt_embeds"
        )
    _check_fields(body)
    slots = tuple(_find_pictures(body))
    if len(slots) > max_pictures:
        message = f"The request carries {len(slots)} pictures; at most {max_pictures} are accepted."
        raise TooManyPictures(message, param="messages", asked=len(slots), limit=max_pictures)
    if slots and body.get("truncate_prompt_tokens") is not None:
        message = "truncate_prompt_tokens would cut pictures; leave it out, or send text alone."
        raise InvalidField(message, param="truncate_prompt_tokens")
    _check_size(len(raw) - sum(len(slot.url) for slot in slots), body)
    return ClientRequest(body, slots, *_read_prism(body.pop("prism", None)))


def _parse(raw: bytes) -> dict[str, Any]:
    # Only what base64 is made of may be long: a body of brackets would take seconds to parse, and all streams wait for
    # it.
    if len(raw) > MAX_TEXT_BYTES and len(raw.translate(None, BASE64_ALPHABET)) > MAX_TEXT_BYTES:
        message = f"Beside its pictures the request has more than the {MAX_TEXT_BYTES} bytes that are read."
        raise BodyTooLarge(message, asked_bytes=len(raw), limit_bytes=MAX_TEXT_BYTES)
    try:
        body = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidJson(f"The body is not valid JSON ({error}).") from None
    if not isinstance(body, dict):
        raise InvalidJson(f"The body must be a JSON object, not {_kind(body)}.")
    return body


def _check_model(model: object, served_name: str) -> None:
    if model is not None and not isinstance(model, str):
        raise InvalidField(f"model must be a string such as {served_name!r}, not {_kind(model)}.", param="model")
    if model not in (None, served_name):
        raise ModelNotFound(f"The model {model!r} is not served here; ask for {served_name!r}.", param="model")


def _check_size(num_bytes: int, body: dict[str, Any]) -> None:
    """Refuses what would keep a decoder from its other requests for seconds; ``num_bytes`` are those beside the
    pictures."""
    if num_bytes > MAX_TEXT_BYTES:
        message = f"Beside its pictures the request has {num_bytes} bytes; at most {MAX_TEXT_BYTES} are read."
        raise BodyTooLarge(message, asked_bytes=num_bytes, limit_bytes=MAX_TEXT_BYTES)
    waiting: list[Any] = [body]
    for container in waiting:  # which grows as it is read
        values = container.values() if isinstance(container, dict) else container
        waiting.extend(value for value in values if isinstance(value, dict | list))
        if len(waiting) > MAX_CONTAINERS:
            message = f"The request holds more than {MAX_CONTAINERS} objects and arrays; send less at a time."
            raise BodyTooLarge(message, limit=MAX_CONTAINERS)


def _check_fields(body: dict[str, Any]) -> None:
    """Refuses what vLLM takes and should not."""
    if not isinstance(body.get("stream"), bool | None):
        raise InvalidField(f"stream must be true or false, not {_kind(body['stream'])}.", param="stream")
    if body.get("prompt") is not None and "messages" in body:
        raise InvalidField(
            "Send prompt to /v1/completions or messages to /v1/chat/completions, not both.", param="prompt"
        )


def _read_prism(options: object) -> tuple[float | None, bool]:
    """The timeout in seconds, and whether the waterfall is wanted."""
    if options is None:
        return None, False
    if not isinstance(options, dict):
        raise InvalidField(f"prism must be an object, not {_kind(options)}.", param="prism")
    _refuse_others(options, PRISM_FIELDS, "prism", "prism takes timeout_s and waterfall")
    waterfall = options.get("waterfall", False)
    if not isinstance(waterfall, bool):
        raise InvalidField(f"prism.waterfall must be true or false, not {_kind(waterfall)}.", param="prism.waterfall")
    timeout_s = options.get("timeout_s")
    if timeout_s is None:
        return None, waterfall
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s <= MAX_FLOAT:
        raise InvalidField("prism.timeout_s must be a positive number of seconds.", param="prism.timeout_s")
    return float(timeout_s), waterfall


def _find_pictures(body: dict[str, Any]) -> Iterator[PictureSlot]:
    if "messages" not in body:
        return
    messages = body["messages"]
    if not isinstance(messages, list) or not messages:
        wrong = "an empty one" if messages == [] else _kind(messages)
        raise InvalidField(f"messages must be an array of messages, not {wrong}.", param="messages")
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidField(f"messages[{i}] must be an object, not {_kind(message)}.", param=f"messages[{i}]")
        if not isinstance(message.get("role"), str):
            raise InvalidField(f'messages[{i}].role must be given, such as "user".', param=f"messages[{i}].role")
        parts, field = message.get("content"), f"messages[{i}].content"
        if not isinstance(parts, str | list | None):
            raise InvalidField(f"{field} must be a string or an array of parts, not {_kind(parts)}.", param=field)
        if not isinstance(parts, list):
            continue
        for j, part in enumerate(parts):
            url = _picture_url(part, f"{field}[{j}]")
            if url is not None:
                yield PictureSlot(url, f"{field}[{j}].image_url.url", parts, j)


def _picture_url(part: object, param: str) -> str | None:
    """The picture's URL, or None for a part that is text."""
    if not isinstance(part, dict):
        raise InvalidField(f"{param} must be an object, not {_kind(part)}.", param=param)
    kind = part.get("type")
    if kind == "image_url":
        return _image_url(part, param)
    if not isinstance(kind, str | None):
        raise InvalidField(f"{param}.type must be a string, not {_kind(kind)}.", param=f"{param}.type")
    if kind in EMBEDDING_PARTS or (kind not in TEXT_PARTS and EMBEDDING_PARTS & part.keys()):
        message = f"{param}: embeddings and tensors are not accepted from clients; send the picture as image_url."
        raise EmbeddingRefused(message, param=f"{param}.type")
    if kind is None:
        raise InvalidField(f'{param}.type must be given: "text" or "image_url".', param=f"{param}.type")
    if kind not in TEXT_PARTS:
        message = f'{param}.type {kind!r} is not supported; use "text" or "image_url".'
        raise UnsupportedPart(message, param=f"{param}.type")
    text = TEXT_PARTS[kind]
    _refuse_others(part, TEXT_EXTRAS | {"type", text}, param, f"a part of type {kind!r} takes {text}")
    if not isinstance(part.get(text), str):
        raise InvalidField(f"{param}.{text} must be a string, not {_kind(part.get(text))}.", param=f"{param}.{text}")
    return None


def _image_url(part: dict[str, Any], param: str) -> str:
    _refuse_others(part, PICTURE_FIELDS | {"type"}, param, "a picture part takes image_url and uuid")
    if not isinstance(part.get("uuid"), str | None):
        raise InvalidField(f"{param}.uuid must be a string, not {_kind(part['uuid'])}.", param=f"{param}.uuid")
    image_url, field = part.get("image_url"), f"{param}.image_url"
    if isinstance(image_url, dict):
        _refuse_others(image_url, URL_FIELDS, field, "it takes url and detail")
        if image_url.get("detail") not in (None, *DETAILS):
            raise InvalidField(f"{field}.detail must be one of {', '.join(DETAILS)}.", param=f"{field}.detail")
        image_url, field = image_url.get("url"), f"{field}.url"
    if image_url is None and part.get("uuid") is not None:
        message = f"{param} has a uuid but no picture; send the picture with it, every time."
        raise UuidWithoutPicture(message, param=f"{param}.uuid")
    if not isinstance(image_url, str):
        raise InvalidField(f"{field} must give a data: or https: URL as a string, not {_kind(image_url)}.", param=field)
    return image_url


def _refuse_others(given: Mapping[str, Any], known: Iterable[str], param: str, advice: str) -> None:
    for name in sorted(given.keys() - known):
        raise UnknownField(f"{param}.{name} is unknown; {advice}.", param=f"{param}.{name}")


def _kind(value: object) -> str:
    names = {
        dict: "an object",
        list: "an array",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "null")
