"""Request stage: reads a client's JSON as far as Prism must, and leaves the rest to vLLM.

In: the raw body of a request. Out: a ``ClientRequest``, in which every picture's URL has been found and counted. vLLM
    checks the fields of the OpenAI API. This stage checks three kinds of fields: content parts that carry pictures,
    fields that only an operator may set, and Prism's own object ``prism``.
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
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from cluster.messages import Digest

MAX_TEXT_BYTES: Final = 2 * 2**20
"""The most bytes of a body without its pictures. vLLM renders and tokenizes one request at a time: a body of 40 MB
would delay all other requests by 100 s."""
BASE64_ALPHABET: Final = string.ascii_letters.encode() + string.digits.encode() + b"+/="
MAX_CONTAINERS: Final = 32_768
"""The most objects and arrays in a body. vLLM validates them in its event loop: a million parts would stop every stream
for 20 s."""

TEXT_PARTS: Final = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
    "tool_reference": "name",
}
"""The content parts that are text: each type, and the field that holds the text."""

TEXT_EXTRAS: Final = frozenset({"annotations", "cache_control", "closed", "prompt_cache_breakpoint"})
"""Fields that a text part may have as well. All others are refused: vLLM passes unknown fields to the chat template,
and many templates take any part with a field ``image`` for a picture."""

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
"""Fields of vLLM that clients may not set, because they change what happens behind the Router. Each has advice for the
client."""

PRISM_FIELDS: Final = frozenset({"timeout_s", "waterfall"})
MAX_FLOAT: Final = sys.float_info.max


@dataclass(frozen=True, slots=True)
class PictureField:
    """One picture of a body: its URL, the path of the field that holds the URL, and the indices of its message and
    content part."""

    url: str = field(repr=False)
    param: str
    message: int
    part: int


@dataclass(frozen=True, slots=True)
class ClientRequest:
    """A request as far as the Router reads it. ``body`` is the client's JSON without the field ``prism``."""

    body: dict[str, Any] = field(repr=False)
    pictures: tuple[PictureField, ...]
    timeout_s: float | None = None
    wants_waterfall: bool = False

    @property
    def num_url_chars(self) -> int:
        """The characters of all picture URLs, which hold the pictures themselves or only an address."""
        return sum(len(picture.url) for picture in self.pictures)

    @property
    def stream(self) -> bool:
        return self.body.get("stream") is True

    def body_with(self, digests: Sequence[Digest]) -> dict[str, Any]:
        """The body with a digest in place of each picture's content part; nothing else differs.

        Args:
            digests: One for each of ``pictures``, in their order.
        """
        if not self.pictures:
            return self.body
        messages = list(self.body["messages"])
        for number in {picture.message for picture in self.pictures}:
            messages[number] = {**messages[number], "content": list(messages[number]["content"])}
        for picture, digest in zip(self.pictures, digests, strict=True):
            messages[picture.message]["content"][picture.part] = picture_part(digest)
        return {**self.body, "messages": messages}


def read_request(raw: bytes, *, served_name: str, max_pictures: int) -> ClientRequest:
    """Parses a body and checks the fields that concern Prism.

    Args:
        raw: The body as it came over HTTP.
        served_name: The name of the served model.
        max_pictures: The most pictures that one request may carry.

    Raises:
        InvalidJson: The body is not a JSON object.
        BodyTooLarge: The body without its pictures is too large.
        InvalidField, UnknownField, UnsupportedPart, EmbeddingRefused, UuidWithoutPicture: A field has a wrong value.
        ModelNotFound: The body names another model.
        TooManyPictures: The body carries more than ``max_pictures``.
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
    pictures = tuple(_find_pictures(body))
    if len(pictures) > max_pictures:
        message = f"The request carries {len(pictures)} pictures; at most {max_pictures} are accepted."
        raise TooManyPictures(message, param="messages", asked=len(pictures), limit=max_pictures)
    if pictures and body.get("truncate_prompt_tokens") is not None:
        message = "truncate_prompt_tokens would cut pictures; leave it out, or send text alone."
        raise InvalidField(message, param="truncate_prompt_tokens")
    if pictures and body.get("use_beam_search"):  # vLLM's beam search drops the addresses of the embeddings
        message = "use_beam_search is not served with pictures; leave it out, or send text alone."
        raise InvalidField(message, param="use_beam_search")
    _check_size(len(raw) - sum(len(picture.url) for picture in pictures), body)
    return ClientRequest(body, pictures, *_read_prism(body.pop("prism", None)))


def _parse(raw: bytes) -> dict[str, Any]:
    # Base64 is the only thing that may be long. A long body of brackets would take seconds to parse, in the event loop.
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
    """Refuses a body that would occupy a decoder for seconds. ``num_bytes`` counts the body without its pictures."""
    if num_bytes > MAX_TEXT_BYTES:
        message = f"Beside its pictures the request has {num_bytes} bytes; at most {MAX_TEXT_BYTES} are read."
        raise BodyTooLarge(message, asked_bytes=num_bytes, limit_bytes=MAX_TEXT_BYTES)
    waiting: list[Any] = [body]
    for container in waiting:  # the list grows while it is read
        values = container.values() if isinstance(container, dict) else container
        waiting.extend(value for value in values if isinstance(value, dict | list))
        if len(waiting) > MAX_CONTAINERS:
            message = f"The request holds more than {MAX_CONTAINERS} objects and arrays; send less at a time."
            raise BodyTooLarge(message, limit=MAX_CONTAINERS)


def _check_fields(body: dict[str, Any]) -> None:
    """Refuses values that vLLM accepts although they make no sense."""
    if not isinstance(body.get("stream"), bool | None):
        raise InvalidField(f"stream must be true or false, not {_kind(body['stream'])}.", param="stream")
    if body.get("prompt") is not None and "messages" in body:
        raise InvalidField(
            "Send prompt to /v1/completions or messages to /v1/chat/completions, not both.", param="prompt"
        )


def _read_prism(options: object) -> tuple[float | None, bool]:
    """The timeout in seconds, if one was given, and whether the client wants the waterfall."""
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


def _find_pictures(body: dict[str, Any]) -> Iterator[PictureField]:
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
                yield PictureField(url, f"{field}[{j}].image_url.url", i, j)


def _picture_url(part: object, param: str) -> str | None:
    """The URL of a picture part, or None for a part that is text."""
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
