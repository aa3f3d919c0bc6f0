"""The schemas of request bodies: fields that Prism reads or refuses, and common fields of the OpenAI API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cluster.messages import MAX_ASPECT_RATIO, PICTURE_FORMATS
from cluster.request import DETAILS, OPERATOR_FIELDS, TEXT_EXTRAS, TEXT_PARTS

if TYPE_CHECKING:
    from cluster.config import PrismConfig

Schema = dict[str, Any]

MAX_ANSWERS: Final = 256
"""The same as in ``cluster.decode.bounds``, which imports vLLM."""
MAX_LOGPROBS: Final = 20
"""vLLM's limit on ``top_logprobs`` and on ``logprobs`` of completions."""

PRISM: Final[Schema] = {
    "type": ["object", "null"],
    "description": "Prism's own options.",
    "additionalProperties": False,
    "properties": {
        "timeout_s": {
            "type": ["number", "null"],
            "exclusiveMinimum": 0,
            "description": "The longest time in seconds that the request may take. The operator's limit holds as well.",
        },
        "waterfall": {
            "type": "boolean",
            "default": False,
            "description": "Asks for the header `Server-Timing`, which says where the time to the first token went.",
        },
    },
}


def body_schemas(config: PrismConfig) -> dict[str, Schema]:
    """The schemas of all request bodies and their parts, by the names that the document refers to them by."""
    model: Schema = {
        "type": ["string", "null"],
        "enum": [config.model.served_name, None],
        "description": "The served model. It may be left out.",
    }
    common = {"model": model, "prism": PRISM, **_refused()}
    messages: Schema = {
        "type": "array",
        "minItems": 1,
        "items": {"$ref": "#/components/schemas/Message"},
        "description": f"The conversation, with at most {config.media.max_pictures} pictures.",
    }
    return {
        "ChatBody": _object(["messages"], {**common, "messages": messages, **SAMPLING, **CHAT}),
        "CompletionBody": _object(["prompt"], {**common, "prompt": PROMPT, **SAMPLING, **COMPLETION}),
        "TokenizeBody": {
            "anyOf": [
                _object(["messages"], {**common, "messages": messages}, without="prompt"),
                _object(["prompt"], {**common, "prompt": {"type": "string"}}, without="messages"),
            ]
        },
        "DetokenizeBody": _object(["tokens"], {**common, "tokens": TOKENS}),
        "Message": MESSAGE,
        "TextPart": {"anyOf": [_text_part(kind, field) for kind, field in TEXT_PARTS.items()]},
        "PicturePart": _picture_part(config),
    }


def _object(required: list[str], properties: dict[str, Any], *, without: str | None = None) -> Schema:
    """The schema of an object with fields that the Router does not know, too."""
    refused: Schema = {without: False} if without else {}
    return {"type": "object", "required": required, "properties": {**properties, **refused}}


def _refused() -> dict[str, Schema]:
    """The fields that clients may not send. They are refused with ``unknown_field``, or ``embeddings_not_accepted``."""
    advice = {**OPERATOR_FIELDS, "prompt_embeds": "Send text and pictures."}
    return {name: {"not": {}, "description": f"Refused. {why}"} for name, why in advice.items()}


def _text_part(kind: str, field: str) -> Schema:
    extras: dict[str, Any] = {name: {} for name in sorted(TEXT_EXTRAS)}
    return {
        "type": "object",
        "required": ["type", field],
        "properties": {"type": {"const": kind}, field: {"type": "string"}, **extras},
        "additionalProperties": False,
    }


def _picture_part(config: PrismConfig) -> Schema:
    media = config.media
    url: Schema = {
        "type": "string",
        "pattern": "^([Dd][Aa][Tt][Aa]|[Hh][Tt][Tt][Pp][Ss]):",
        "description": (
            f"A data: URL with base64, or an https: URL, of a {PICTURE_FORMATS} file with at most "
            f"{media.max_picture_bytes} bytes and {media.max_picture_pixels} pixels. Its longer side is at most "
            f"{MAX_ASPECT_RATIO} times the shorter."
        ),
    }
    detail: Schema = {"enum": [*DETAILS, None], "description": "It has no effect."}
    inner: Schema = {
        "type": "object",
        "required": ["url"],
        "properties": {"url": url, "detail": detail},
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "required": ["type", "image_url"],
        "properties": {
            "type": {"const": "image_url"},
            "image_url": {"anyOf": [inner, url]},
            "uuid": {"type": ["string", "null"], "description": "It has no effect."},
        },
        "additionalProperties": False,
    }


MESSAGE: Final[Schema] = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"type": "string", "examples": ["system", "user", "assistant", "tool"]},
        "content": {
            "anyOf": [
                {"type": ["string", "null"]},
                {
                    "type": "array",
                    "items": {
                        "anyOf": [
                            {"$ref": "#/components/schemas/TextPart"},
                            {"$ref": "#/components/schemas/PicturePart"},
                        ]
                    },
                },
            ]
        },
    },
}
TOKENS: Final[Schema] = {"type": "array", "items": {"type": "integer", "minimum": 0}}
PROMPT: Final[Schema] = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        {**TOKENS, "minItems": 1},
        {"type": "array", "items": {**TOKENS, "minItems": 1}, "minItems": 1},
    ],
    "description": "One or more texts, or one or more lists of tokens. It holds no pictures.",
}


def _number(kind: str = "number", **options: Any) -> Schema:
    return {"type": [kind, "null"], **options}


SAMPLING: Final[dict[str, Schema]] = {
    "stream": {"type": ["boolean", "null"], "description": "Asks for an SSE stream instead of a JSON answer."},
    "stream_options": {
        "type": ["object", "null"],
        "properties": {"include_usage": {"type": ["boolean", "null"]}},
        "description": "It needs `stream`.",
    },
    "max_tokens": _number("integer", minimum=1),
    "n": _number("integer", minimum=1, maximum=MAX_ANSWERS),
    "temperature": _number(minimum=0),
    "top_p": _number(exclusiveMinimum=0, maximum=1),
    "seed": _number("integer", minimum=-(2**63), maximum=2**63 - 1),
    "stop": {"anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": {"type": "string"}}]},
    "presence_penalty": _number(minimum=-2, maximum=2),
    "frequency_penalty": _number(minimum=-2, maximum=2),
    "logit_bias": {
        "type": ["object", "null"],
        "propertyNames": {"pattern": "^[0-9]+$"},
        "additionalProperties": {"type": "number"},
        "description": "A bias from -100 to 100 by the number of a token.",
    },
    "user": {"type": ["string", "null"]},
    "cache_salt": {
        "type": ["string", "null"],
        "minLength": 1,
        "maxLength": 128,
        "description": "Requests with different salts share no cached data.",
    },
}
CHAT: Final[dict[str, Schema]] = {
    "max_completion_tokens": _number("integer", minimum=1),
    "logprobs": {"type": ["boolean", "null"]},
    "top_logprobs": _number("integer", minimum=0, maximum=MAX_LOGPROBS, description="It needs `logprobs`."),
    "response_format": {
        "type": ["object", "null"],
        "required": ["type"],
        "properties": {"type": {"enum": ["text", "json_object", "json_schema", "structural_tag"]}},
    },
    "tools": {"type": ["array", "null"], "items": {"type": "object"}},
    "tool_choice": {"anyOf": [{"type": ["string", "null"]}, {"type": "object"}]},
}
COMPLETION: Final[dict[str, Schema]] = {
    "echo": {"type": ["boolean", "null"]},
    "logprobs": _number("integer", minimum=0, maximum=MAX_LOGPROBS),
    "suffix": {"type": ["string", "null"]},
}
