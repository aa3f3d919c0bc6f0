"""The document: every route with its methods, parameters, statuses and headers."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from cluster.errors import (
    ControllerUnavailable,
    InternalError,
    InvalidKey,
    InvalidRequest,
    MethodNotAllowed,
    ModelNotAllowed,
    ModelNotFound,
    OperatorsOnly,
    PoolUnavailable,
    PrismError,
    RouteNotFound,
)
from deployments.openapi.answers import (
    ANSWERS,
    REQUEST_ID,
    SERVER_TIMING,
    error_leaves,
    error_responses,
    media_types,
    ok,
)
from deployments.openapi.bodies import body_schemas

if TYPE_CHECKING:
    from cluster.config import PrismConfig

Schema = dict[str, Any]

NOT_OF_ANSWERS: Final = (RouteNotFound, MethodNotAllowed, ControllerUnavailable, OperatorsOnly)
"""The errors that no request for an answer gets."""
OPERATORS: Final = (InvalidKey, OperatorsOnly)
"""The errors of routes that are for operators."""
EVERYWHERE: Final = (InvalidRequest, InternalError, PoolUnavailable)
"""The errors of every route. The first one is HAProxy's, for a request that did not arrive whole."""


def openapi_json(config: PrismConfig) -> bytes:
    """The document as JSON."""
    return json.dumps(openapi_document(config)).encode()


def openapi_document(config: PrismConfig) -> Schema:
    """The document, of OpenAPI 3.1."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Prism",
            "version": version("prism-serve"),
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{}, {"key": []}],
        "paths": {path: _with_parameters(path, item) for path, item in _paths().items()},
        "components": {
            "schemas": {**body_schemas(config), **ANSWERS},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": KEY}},
        },
    }


DESCRIPTION: Final = (
    "Serves Qwen2.5-VL with the OpenAI API. Bodies may have all fields that vLLM knows; this document names those that "
    "Prism reads or refuses, and the common ones. Other paths get 404 `route_not_found`. Other methods get 405 "
    "`method_not_allowed` with the header `Allow`, but HEAD is answered where GET is. `/-/routes` and `/-/healthz` are "
    "Serve's own and need no key. Headers that are malformed or longer than 15 KiB get an error in "
    "HTML, with 400 or 408."
)


STREAM: Final = (
    "With `stream`: the answer as SSE events with chunks of the OpenAI API, and then `[DONE]`. If it breaks, the last "
    "event before `[DONE]` is an error of the schema `Error`."
)


KEY: Final = "An API key. Without `keys_file` in the Router's settings there are none, and everybody gets in."


def _paths() -> dict[str, Schema]:
    stream: dict[str, Schema] = {"text/event-stream": {"description": STREAM}}
    return {
        "/v1/chat/completions": _post("chat", "Continues a conversation", "ChatBody", "ChatAnswer", stream),
        "/v1/completions": _post("completions", "Continues a text", "CompletionBody", "CompletionAnswer", stream),
        "/tokenize": _post("tokenize", "Counts and lists the tokens of a prompt", "TokenizeBody", "TokenizeAnswer"),
        "/detokenize": _post("detokenize", "Gives the text of tokens", "DetokenizeBody", "DetokenizeAnswer"),
        "/v1/models": _get("models", "Lists the served model", _json("ModelList"), InvalidKey),
        "/v1/models/{name}": _get(
            "model", "Describes the served model", _json("Model"), InvalidKey, ModelNotAllowed, ModelNotFound
        ),
        "/health": _get("health", "Says whether every pool can serve or start", {}),
        "/status": _get(
            "status", "Tells operators the state of every pool", _json("Status"), *OPERATORS, ControllerUnavailable
        ),
        "/version": _get("version", "Tells the versions of Prism and its libraries", _json("Versions")),
        "/metrics": _get(
            "metrics",
            "Gives operators the metrics of every replica, or of one",
            {"text/plain": {"type": "string"}},
            *OPERATORS,
            RouteNotFound,
        ),
        "/metrics/targets": _get(
            "targets", "Lists each replica as a target for Prometheus", _json("Targets"), *OPERATORS
        ),
        "/openapi.json": _get("openapi", "Gives this document", {"application/json": {"type": "object"}}, InvalidKey),
    }


REPLICA: Final = "The name of one target of `/metrics/targets`, as `pool/replica`. Without it all replicas are meant."


def _with_parameters(path: str, item: Schema) -> Schema:
    parameters: list[Schema] = [
        {
            "name": REQUEST_ID,
            "in": "header",
            "schema": {"type": "string", "pattern": "^[!-~]{1,128}$"},
            "description": "A name for the request. Without it, or with another value, Prism makes one up.",
        }
    ]
    if path == "/metrics":
        parameters.append({"name": "replica", "in": "query", "schema": {"type": "string"}, "description": REPLICA})
    if "{name}" in path:
        name: Schema = {"type": "string", "minLength": 1}
        parameters.append({"name": "name", "in": "path", "required": True, "schema": name})
    return {"parameters": parameters, **item}


def _json(schema: str) -> dict[str, Schema]:
    return {"application/json": {"$ref": f"#/components/schemas/{schema}"}}


def _get(operation: str, summary: str, content: dict[str, Schema], *errors: type[PrismError]) -> Schema:
    responses = ok(f"{summary}.", content) | error_responses((*EVERYWHERE, *errors))
    return {"get": {"operationId": operation, "summary": f"{summary}.", "responses": responses}}


def _post(operation: str, summary: str, body: str, answer: str, stream: dict[str, Schema] | None = None) -> Schema:
    content = _json(answer) | (stream or {})
    errors = [kind for kind in error_leaves() if kind not in NOT_OF_ANSWERS]
    responses = ok("The answer.", content, {"Server-Timing": SERVER_TIMING}) | error_responses(errors)
    return {
        "post": {
            "operationId": operation,
            "summary": f"{summary}.",
            "requestBody": {"required": True, "content": media_types(_json(body))},
            "responses": responses,
        }
    }
