"""Turns vLLM's refusals of a request into Prism's errors, each with a status, a field and a sentence."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response

from cluster.errors import (
    ContextTooLong,
    EngineRefused,
    InternalError,
    InvalidField,
    ModelNotFound,
    PoolUnavailable,
    PrismError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

SSE_ERROR_PREFIX: Final = 'data: {"error"'
MAX_MESSAGE_CHARS: Final = 600
"""vLLM quotes the value that it refuses, which may be as long as the request."""

CONTEXT_WORDS: Final = ("maximum context length", "maximum model length")
EMPTY_WORDS: Final = ("prompt cannot be empty", "at least one prompt")
OBJECTS: Final = ("structured_outputs",)
"""Fields that vLLM reads as objects before it knows that they are objects."""
POINTER: Final = re.compile(r" \(parameter=.*\)$", re.DOTALL)
"""A part that vLLM adds to a message for its own log."""


def refusal(failure: Exception | ErrorResponse, body: Mapping[str, Any]) -> PrismError:
    """The error for an exception or an error response of vLLM.

    Args:
        failure: The exception that vLLM raised, or the response that it returned.
        body: The client's body; ``param`` names one of its fields, or none.
    """
    if isinstance(failure, TypeError):
        return misread(failure, body)
    response = failure if isinstance(failure, ErrorResponse) else create_error_response(failure)
    status, message, param = response.error.code, _sentence(response.error.message), response.error.param
    if status == 501:  # NotImplementedError: a combination of options that vLLM does not have
        status = 400
    if status >= 500:
        return InternalError(f"The decoder failed: {message}") if status == 500 else PoolUnavailable(message)
    if status == 404:
        return ModelNotFound(message, param="model")
    if any(words in message for words in CONTEXT_WORDS):
        return ContextTooLong(message, param="messages" if "messages" in body else "prompt")
    named: tuple[str | None, ...] = (param, message.split()[0].partition(".")[0])  # "n must be at least 1, got 0."
    if "max_tokens" in named and body.get("max_completion_tokens") is not None:  # vLLM copies it into max_tokens
        named = ("max_completion_tokens",)
    if any(words in message for words in EMPTY_WORDS):
        named = ("truncate_prompt_tokens", "prompt", "messages")
    if message.startswith("Grammar error"):
        named = ("response_format", "structured_outputs")
    return EngineRefused(message, param=next((name for name in named if name in body), None), status=status)


def invalid_field(error: ValidationError, body: Mapping[str, Any]) -> InvalidField:
    """The error for pydantic's refusal of a body.

    Each branch of a union reports its own errors. The one that points deepest into the body fits best.
    """
    details, path = max(((details, _path(details, body)) for details in error.errors()), key=_aptness)
    field = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")
    message = details["msg"].removeprefix("Value error, ")
    if not field and details["loc"]:  # tool calls are validated late, and the error does not say where they are
        field, message = "messages", f"in a tool call, {details['loc'][-1]}: {message}"
    return InvalidField(_sentence(f"{field}: {message}" if field else message), param=field or None)


def misread(error: Exception, body: Mapping[str, Any]) -> InvalidField:
    """The error for a value of the wrong kind on which vLLM's own parsing fails before pydantic's."""
    param = next((name for name in OBJECTS if not isinstance(body.get(name), dict | None)), None)
    message = (
        "A field's value is of the wrong kind, such as a string in place of an object "
        f"({type(error).__name__}: {error})."
    )
    return InvalidField(_sentence(message), param=param)


def chunk_refusal(chunk: str, body: Mapping[str, Any]) -> PrismError | None:
    """The error that a chunk of a stream reports, or None. vLLM checks many fields only when a stream begins."""
    if not chunk.startswith(SSE_ERROR_PREFIX):
        return None
    event = chunk.partition("\n\n")[0]
    return refusal(ErrorResponse.model_validate(json.loads(event.removeprefix("data: "))), body)


def engine_died() -> PoolUnavailable:
    """The error for the requests of an engine whose process has ended."""
    return PoolUnavailable(
        "The decoder's engine has died and is being replaced; send the request again.", pool="decoder"
    )


def _path(details: ErrorDetails, body: Any) -> tuple[int | str, ...]:
    """Returns the path of an error in the request body. Pydantic's path also holds the names of union branches; they
    are left out."""
    path: list[int | str] = []
    value = body
    for step in details["loc"]:
        try:
            value = value[step]
        except (LookupError, TypeError):
            continue
        path.append(step)
    if details["type"] == "missing" and (path or len(details["loc"]) == 1):
        path.append(details["loc"][-1])
    return tuple(path)


def _aptness(found: tuple[ErrorDetails, tuple[int | str, ...]]) -> tuple[int, int]:
    """Returns a sort key for pydantic's errors about one body. The error with the largest key describes it best.

    A deeper path ranks first, and the kind of error decides between equal depths. A missing field ranks lowest, because
    another branch of the union may not need it.
    """
    details, path = found
    kind = details["type"]
    return len(path), 0 if kind == "missing" else 1 if kind == "literal_error" else 2 if kind.endswith("_type") else 3


def _sentence(message: str) -> str:
    message = POINTER.sub("", message).strip()
    if len(message) > MAX_MESSAGE_CHARS:
        message = f"{message[:MAX_MESSAGE_CHARS]} …"
    return message if message.endswith((".", "!", "?")) else f"{message}."
