"""What vLLM says against a request, as one of Prism's errors: a status, a field and a sentence."""

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
"""vLLM quotes what it refuses, which may be as long as the request."""

CONTEXT_WORDS: Final = ("maximum context length", "maximum model length")
POINTER: Final = re.compile(r" \(parameter=.*\)$", re.DOTALL)
"""What vLLM adds to a message for its own log."""


def refusal(failure: Exception | ErrorResponse, body: Mapping[str, Any]) -> PrismError:
    """The error for what vLLM raised or returned; ``body`` is the client's, whose fields an error may name."""
    if isinstance(failure, TypeError):
        return misread(failure)
    response = failure if isinstance(failure, ErrorResponse) else create_error_response(failure)
    status, message, param = response.error.code, _sentence(response.error.message), response.error.param
    if status == 501:  # NotImplementedError: options that vLLM does not join
        status = 400
    if status >= 500:
        return InternalError(f"The decoder failed: {message}") if status == 500 else PoolUnavailable(message)
    if status == 404:
        return ModelNotFound(message, param="model")
    if any(words in message for words in CONTEXT_WORDS):
        return ContextTooLong(message, param="messages" if "messages" in body else "prompt")
    named = (param, message.split()[0].partition(".")[0])  # "n must be at least 1, got 0."
    if message.startswith("Grammar error"):
        named = ("response_format", "structured_outputs")
    return EngineRefused(message, param=next((name for name in named if name in body), None), status=status)


def invalid_field(error: ValidationError, body: Mapping[str, Any]) -> InvalidField:
    """pydantic's refusal of a body. Each branch of a union complains; the complaint that reaches deepest fits best."""
    details, path = max(((details, _path(details, body)) for details in error.errors()), key=_aptness)
    field = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")
    message = details["msg"].removeprefix("Value error, ")
    if not field and details["loc"]:  # tool calls are read late, and the error does not say where they stand
        field, message = "messages", f"in a tool call, {details['loc'][-1]}: {message}"
    return InvalidField(_sentence(f"{field}: {message}" if field else message), param=field or None)


def misread(error: Exception) -> InvalidField:
    """vLLM's readers stumble over values of the wrong kind before pydantic gets to say so."""
    message = f"A field's value is of the wrong kind, such as a string in place of an object ({type(error).__name__}: {error})."
    return InvalidField(_sentence(message))


def chunk_refusal(chunk: str, body: Mapping[str, Any]) -> PrismError | None:
    """The error that a chunk of a stream reports in place of an answer, or None: much is checked only as a stream
    begins."""
    if not chunk.startswith(SSE_ERROR_PREFIX):
        return None
    event = chunk.partition("\n\n")[0]
    return refusal(ErrorResponse.model_validate(json.loads(event.removeprefix("data: "))), body)


def engine_died() -> PoolUnavailable:
    """What becomes of the requests of an engine that is gone."""
    return PoolUnavailable("The decoder's engine has died and is being replaced; send the request again.")


def _path(details: ErrorDetails, body: Any) -> tuple[int | str, ...]:
    """Where in the body the error lies: pydantic's steps but for those that name a branch of a union."""
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
    """Deeper is better, then what tells more: a field that is missing tells least, for another branch may not want it."""
    details, path = found
    kind = details["type"]
    return len(path), 0 if kind == "missing" else 1 if kind == "literal_error" else 2 if kind.endswith("_type") else 3


def _sentence(message: str) -> str:
    message = POINTER.sub("", message).strip()
    if len(message) > MAX_MESSAGE_CHARS:
        message = f"{message[:MAX_MESSAGE_CHARS]} …"
    return message if message.endswith((".", "!", "?")) else f"{message}."
