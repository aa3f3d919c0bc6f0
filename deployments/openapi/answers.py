"""The schemas of answers and errors, and the headers of responses."""

from __future__ import annotations

from collections import defaultdict
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from cluster import errors
from cluster.errors import PrismError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Schema = dict[str, Any]


def error_leaves() -> list[type[PrismError]]:
    """Every error that a client can get, in the order of the tree's drawing."""
    return list(_leaves(PrismError))


def _leaves(kind: type[PrismError]) -> Iterator[type[PrismError]]:
    children = [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
    if not children:
        yield kind
    for child in children:
        yield from _leaves(child)


def error_responses(kinds: Iterable[type[PrismError]]) -> dict[str, Schema]:
    """The responses for some errors, by their status."""
    found: defaultdict[int, list[type[PrismError]]] = defaultdict(list)
    for kind in kinds:
        found[kind.status].append(kind)
    return {str(status): _error_response(status, found[status]) for status in sorted(found)}


def _error_response(status: int, kinds: list[type[PrismError]]) -> Schema:
    codes = sorted({kind.code for kind in kinds})
    headers = dict(HEADERS)
    if any(kind.can_retry for kind in kinds):
        headers["Retry-After"] = RETRY_AFTER
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = WWW_AUTHENTICATE
    schema: Schema = {
        "allOf": [
            {"$ref": "#/components/schemas/Error"},
            {"properties": {"error": {"properties": {"code": {"enum": codes}}}}},
        ]
    }
    return {
        "description": f"{HTTPStatus(status).phrase}: {', '.join(f'`{code}`' for code in codes)}.",
        "headers": headers,
        "content": {"application/json": {"schema": schema}},
    }


def ok(description: str, content: dict[str, Schema], headers: dict[str, Schema] | None = None) -> dict[str, Schema]:
    """The response of a request that succeeded, under its status."""
    response: Schema = {"description": description, "headers": {**HEADERS, **(headers or {})}}
    if content:
        response["content"] = media_types(content)
    return {"200": response}


def media_types(schemas: dict[str, Schema]) -> Schema:
    """A ``content`` of the document, from the schema of each media type."""
    return {media_type: {"schema": schema} for media_type, schema in schemas.items()}


REQUEST_ID: Final = "X-Request-Id"
RATE_LIMITS: Final[dict[str, Schema]] = {
    f"x-ratelimit-{what}-{of}": {"description": f"{meaning}, if the API key has a limit.", "schema": {"type": "string"}}
    for of, name in (("requests", "requests"), ("picture-tokens", "tokens of pictures"))
    for what, meaning in (
        ("limit", f"The most {name} in a minute"),
        ("remaining", f"The {name} that are left now"),
        ("reset", f"The time until all {name} are there again"),
    )
}
HEADERS: Final[dict[str, Schema]] = {
    **RATE_LIMITS,
    REQUEST_ID: {
        "description": "The name of the request in the logs: the client's, or one that Prism made up.",
        "schema": {"type": "string"},
    },
}
RETRY_AFTER: Final[Schema] = {
    "description": "Seconds after which the same request can succeed. Errors that a retry cannot help lack it.",
    "schema": {"type": "integer", "minimum": 0},
}
WWW_AUTHENTICATE: Final[Schema] = {"description": "The way to send a key.", "schema": {"type": "string"}}
SERVER_TIMING: Final[Schema] = {
    "description": "The waterfall in milliseconds, if the request asks for it with `prism.waterfall`.",
    "schema": {"type": "string"},
}


def _answer(required: list[str], **properties: Any) -> Schema:
    return {"type": "object", "required": required, "properties": properties}


_USAGE: Final = _answer(
    ["prompt_tokens", "total_tokens"],
    prompt_tokens={"type": "integer"},
    completion_tokens={"type": ["integer", "null"]},
    total_tokens={"type": "integer"},
)


def _generated(kind: str, choice: Schema) -> Schema:
    return _answer(
        ["id", "object", "created", "model", "choices", "usage"],
        id={"type": "string"},
        object={"const": kind},
        created={"type": "integer"},
        model={"type": "string"},
        choices={"type": "array", "minItems": 1, "items": choice},
        usage=_USAGE,
    )


_INDEX: Final[Schema] = {"type": "integer", "minimum": 0}
_FINISH: Final[Schema] = {"type": ["string", "null"], "examples": ["stop", "length", "tool_calls"]}
_MODEL: Final = _answer(
    ["id", "object", "created", "owned_by"],
    id={"type": "string"},
    object={"const": "model"},
    created={"type": "integer"},
    owned_by={"type": "string"},
    root={"type": "string"},
    max_model_len={"type": "integer"},
)

ANSWERS: Final[dict[str, Schema]] = {
    "Error": _answer(
        ["error"],
        error=_answer(
            ["message", "type", "param", "code"],
            message={"type": "string", "description": "A sentence that says what is wrong."},
            type={"enum": sorted({kind.type for kind in error_leaves()})},
            param={"type": ["string", "null"], "description": "The field or header at fault, as a path."},
            code={"enum": sorted({kind.code for kind in error_leaves()})},
            request_id={"type": "string", "description": "As in the header `X-Request-Id`."},
            figures={
                "type": "object",
                "additionalProperties": {"type": "number"},
                "description": "Numbers of an error about a limit.",
            },
        ),
    ),
    "ChatAnswer": _generated(
        "chat.completion",
        _answer(["index", "message", "finish_reason"], index=_INDEX, message={"type": "object"}, finish_reason=_FINISH),
    ),
    "CompletionAnswer": _generated(
        "text_completion",
        _answer(["index", "text", "finish_reason"], index=_INDEX, text={"type": "string"}, finish_reason=_FINISH),
    ),
    "TokenizeAnswer": _answer(
        ["count", "max_model_len", "tokens"],
        count={"type": "integer"},
        max_model_len={"type": "integer"},
        tokens={"type": "array", "items": {"type": "integer"}},
    ),
    "DetokenizeAnswer": _answer(["prompt"], prompt={"type": "string"}),
    "Model": _MODEL,
    "ModelList": _answer(["object", "data"], object={"const": "list"}, data={"type": "array", "items": _MODEL}),
    "Targets": {
        "type": "array",
        "items": _answer(
            ["targets", "labels"],
            targets={"type": "array", "items": {"type": "string"}},
            labels={"type": "object", "additionalProperties": {"type": "string"}},
        ),
    },
    "Status": _answer(["model", "pools"], model={"type": "string"}, pools={"type": "object"}),
    "Versions": _answer(["version"], version={"type": "string"}),
}
"""The schemas by their names in the document."""
