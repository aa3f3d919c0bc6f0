"""Request stage: reads a client's JSON as far as Prism must, and leaves the rest to vLLM.

In: the raw body. Out: a ``ClientRequest`` whose pictures are found, counted and lifted out. What a field of the OpenAI API
means is vLLM's business; this stage knows the content parts that carry pictures, the fields that only an engine's operator
may set, and Prism's own object ``prism``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pydantic_core import from_json

from cluster.errors import (
    EmbeddingRefused,
    InvalidField,
    InvalidJson,
    ModelNotFound,
    TooManyPictures,
    UnknownField,
    UnsupportedPart,
    UuidWithoutPicture,
)
from cluster.messages import is_picture, picture_part

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, MutableSequence

    from cluster.messages import Digest

TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text", "refusal", "thinking", "tool_reference"})
PICTURE_FIELDS: Final = frozenset({"type", "image_url", "uuid"})
URL_FIELDS: Final = frozenset({"url", "detail"})
DETAILS: Final = ("auto", "low", "high")

MEDIA_FIELDS: Final = frozenset(
    {
        "image_url",
        "image_pil",
        "image_embeds",
        "audio_url",
        "input_audio",
        "audio_embeds",
        "video_url",
        "video_embeds",
        "prompt_embeds",
    }
)
"""Keys that make vLLM treat a part as media, whatever its type says."""

EMBEDDING_PARTS: Final = frozenset({"image_embeds", "audio_embeds", "video_embeds", "prompt_embeds", "image_pil"})

OPERATOR_FIELDS: Final = {
    "mm_processor_kwargs": "Pictures are prepared alike for everyone; leave it out.",
    "media_io_kwargs": "Pictures are read alike for everyone; leave it out.",
    "mm_payload": "It belongs to vLLM's render server; leave it out.",
    "return_mm_kwargs": "It belongs to vLLM's render server; leave it out.",
    "kv_transfer_params": "It is set between replicas only; leave it out.",
    "ec_transfer_params": "It is set between replicas only; leave it out.",
    "request_id": "Prism names each request itself; send the header X-Request-Id to find yours in the logs.",
}
"""Fields of vLLM's that would reach behind the Router, each with what to do instead."""

PRISM_FIELDS: Final = frozenset({"timeout_s"})


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
    timeout_s: float | None

    @property
    def stream(self) -> bool:
        return self.body.get("stream") is True

    def put_pictures(self, digests: Mapping[str, Digest]) -> dict[str, Any]:
        """Replaces each picture part by its digest, given by the slot's ``param``. Returns the body."""
        for slot in self.slots:
            slot.parts[slot.index] = picture_part(digests[slot.param])
        return self.body


def read_request(raw: bytes, *, served_name: str, max_pictures: int) -> ClientRequest:
    """Parses and checks a body.

    Raises:
        InvalidJson: It is not a JSON object.
        InvalidField, UnknownField, UnsupportedPart, EmbeddingRefused, UuidWithoutPicture: A field that Prism reads is wrong.
        ModelNotFound: It asks for another model.
        TooManyPictures: It carries more than ``max_pictures``.
    """
    body = _parse(raw)
    _check_model(body.get("model"), served_name)
    for name, advice in OPERATOR_FIELDS.items():
        if name in body:
            raise UnknownField(f"{name} is not accepted from clients. {advice}", param=name)
    if "prompt_embeds" in body:
        raise EmbeddingRefused("prompt_embeds is not accepted from clients; send text and pictures.", param="prompt_embeds")
    slots = tuple(_find_pictures(body))
    if len(slots) > max_pictures:
        message = f"The request carries {len(slots)} pictures; at most {max_pictures} are accepted."
        raise TooManyPictures(message, param="messages", asked=len(slots), limit=max_pictures)
    return ClientRequest(body, slots, _read_prism(body.pop("prism", None)))


def _parse(raw: bytes) -> dict[str, Any]:
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


def _read_prism(options: object) -> float | None:
    if options is None:
        return None
    if not isinstance(options, dict):
        raise InvalidField(f"prism must be an object, not {_kind(options)}.", param="prism")
    for name in options.keys() - PRISM_FIELDS:
        raise UnknownField(f"prism.{name} is unknown; prism takes {', '.join(sorted(PRISM_FIELDS))}.", param=f"prism.{name}")
    timeout_s = options.get("timeout_s")
    if timeout_s is None:
        return None
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not timeout_s > 0:
        raise InvalidField("prism.timeout_s must be a positive number of seconds.", param="prism.timeout_s")
    return float(timeout_s)


def _find_pictures(body: dict[str, Any]) -> Iterator[PictureSlot]:
    messages = body.get("messages")
    if not isinstance(messages, list):
        return  # vLLM says what is wrong with it
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidField(f"messages[{i}] must be an object, not {_kind(message)}.", param=f"messages[{i}]")
        parts = message.get("content")
        if not isinstance(parts, list):
            continue
        for j, part in enumerate(parts):
            param = f"messages[{i}].content[{j}]"
            url = _picture_url(part, param)
            if url is not None:
                yield PictureSlot(url, f"{param}.image_url.url", parts, j)


def _picture_url(part: object, param: str) -> str | None:
    """The picture's URL, or None for a part that is text."""
    if isinstance(part, str):
        return None
    if not isinstance(part, dict):
        raise InvalidField(f"{param} must be an object, not {_kind(part)}.", param=param)
    kind = part.get("type")
    if kind == "image_url":
        return _image_url(part, param)
    if kind in EMBEDDING_PARTS or (kind not in TEXT_PARTS and EMBEDDING_PARTS & part.keys()):
        message = f"{param}: embeddings and tensors are not accepted from clients; send the picture as image_url."
        raise EmbeddingRefused(message, param=f"{param}.type")
    if not isinstance(kind, str):
        raise InvalidField(f'{param}.type must be given: "text" or "image_url".', param=f"{param}.type")
    if kind not in TEXT_PARTS or is_picture(part):
        message = f'{param}.type {kind!r} is not supported; use "text" or "image_url".'
        raise UnsupportedPart(message, param=f"{param}.type")
    for name in (MEDIA_FIELDS | {"uuid"}) & part.keys():
        raise UnknownField(f'{param}.{name} does not belong in a part of type "{kind}".', param=f"{param}.{name}")
    return None


def _image_url(part: dict[str, Any], param: str) -> str:
    for name in part.keys() - PICTURE_FIELDS:
        raise UnknownField(f"{param}.{name} is unknown; a picture part takes image_url and uuid.", param=f"{param}.{name}")
    if not isinstance(part.get("uuid"), str | None):
        raise InvalidField(f"{param}.uuid must be a string, not {_kind(part['uuid'])}.", param=f"{param}.uuid")
    image_url = part.get("image_url")
    if isinstance(image_url, dict):
        for name in image_url.keys() - URL_FIELDS:
            raise UnknownField(
                f"{param}.image_url.{name} is unknown; it takes url and detail.", param=f"{param}.image_url.{name}"
            )
        if image_url.get("detail") not in (None, *DETAILS):
            raise InvalidField(
                f"{param}.image_url.detail must be one of {', '.join(DETAILS)}.", param=f"{param}.image_url.detail"
            )
        image_url = image_url.get("url")
    if image_url is None and part.get("uuid") is not None:
        message = f"{param} has a uuid but no picture; send the picture with it, every time."
        raise UuidWithoutPicture(message, param=f"{param}.uuid")
    if not isinstance(image_url, str):
        message = f'{param}.image_url must be {{"url": "data:image/…;base64,…"}} or an https: URL, not {_kind(image_url)}.'
        raise InvalidField(message, param=f"{param}.image_url")
    return image_url


def _kind(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")
