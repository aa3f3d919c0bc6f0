"""One call through vLLM's OpenAI layer: bytes of JSON, or SSE text as the engine makes it."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest, TokenizeChatRequest, TokenizeCompletionRequest
from vllm.v1.engine.exceptions import EngineDeadError

from cluster.decode.embeddings import offered
from cluster.errors import (
    ContextTooLong,
    EngineRefused,
    InternalError,
    InvalidField,
    ModelNotFound,
    PrismError,
    StageUnavailable,
)
from cluster.messages import is_picture

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from cluster.decode.engine import Engine
    from cluster.messages import Call, Digest, Embedding

SSE_ERROR_PREFIX = 'data: {"error"'


async def answer(engine: Engine, call: Call, embeddings: Mapping[Digest, Embedding]) -> AsyncIterator[str]:
    """Runs one call. A stream yields SSE text piece by piece, anything else yields its JSON once.

    Closing the iterator, or cancelling its task, frees the engine's slot.

    Raises:
        PrismError: Before the first piece is out, so that the client gets a proper status.
    """
    loop = asyncio.get_running_loop()
    tensors = {
        digest: await loop.run_in_executor(None, engine.embedding_shape.tensor, embedding)
        for digest, embedding in embeddings.items()
    }
    try:
        with offered(call.request_id, tensors) as references:
            parts = {digest: _vllm_part(embeddings[digest], reference) for digest, reference in references.items()}
            result = await _serve(engine, call, _with_parts(call.body, parts))
    except ValidationError as error:
        raise _invalid_field(error) from None
    except PrismError:
        raise
    except Exception as error:  # whatever vLLM raises, it says itself which status that is
        raise _translate(error) from error
    if isinstance(result, ErrorResponse):
        raise _translate(result)
    if isinstance(result, BaseModel):
        yield result.model_dump_json()
        return
    async for chunk in result:
        yield _error_event(chunk) if chunk.startswith(SSE_ERROR_PREFIX) else chunk


async def _serve(engine: Engine, call: Call, body: dict[str, Any]) -> Any:
    body = {**body, "request_id": call.request_id}
    serving = engine.serving
    match call.endpoint:
        case "chat":
            return await serving.openai_serving_chat.create_chat_completion(ChatCompletionRequest.model_validate(body))
        case "completions":
            return await serving.openai_serving_completion.create_completion(CompletionRequest.model_validate(body))
        case "tokenize":
            kind = TokenizeChatRequest if "messages" in body else TokenizeCompletionRequest
            return await serving.serving_tokenization.create_tokenize(kind.model_validate(body), None)
        case "detokenize":
            return await serving.serving_tokenization.create_detokenize(DetokenizeRequest.model_validate(body), None)


def _vllm_part(embedding: Embedding, reference: str) -> dict[str, Any]:
    payload = {"image_embeds": reference, "image_grid_thw": list(embedding.grid)}
    return {"type": "image_embeds", "uuid": embedding.digest, "image_embeds": payload}


def _with_parts(body: dict[str, Any], parts: Mapping[Digest, dict[str, Any]]) -> dict[str, Any]:
    """Puts vLLM's part for an embedding where the Router left a picture's digest; all else stays as it is."""
    if not parts:
        return body
    messages = [
        {**message, "content": [parts[part["digest"]] if is_picture(part) else part for part in message["content"]]}
        if isinstance(message.get("content"), list)
        else message
        for message in body["messages"]
    ]
    return {**body, "messages": messages}


def _invalid_field(error: ValidationError) -> PrismError:
    first = error.errors()[0]
    field = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"]).lstrip(".")
    message = str(first["msg"]).removeprefix("Value error, ")
    return InvalidField(f"{field or 'The request'}: {message}", param=field or None)


def _translate(failure: Exception | ErrorResponse) -> PrismError:
    if isinstance(failure, EngineDeadError):
        return StageUnavailable("The decoder's engine has died and is being replaced; send the request again.")
    response = failure if isinstance(failure, ErrorResponse) else create_error_response(failure)
    status, message, param = response.error.code, response.error.message, response.error.param
    if status >= 500 and status != 501:
        return InternalError(f"The decoder failed: {message}") if status == 500 else StageUnavailable(message)
    if status == 404:
        return ModelNotFound(message, param="model")
    if "maximum context length" in message or "maximum model length" in message:
        return ContextTooLong(message, param=param or "messages")
    return EngineRefused(message, param=param, status=status)


def _error_event(chunk: str) -> str:
    """vLLM's mid-stream error in our shape; the events after it in the same chunk stay."""
    event, _, rest = chunk.partition("\n\n")
    error = _translate(ErrorResponse.model_validate(json.loads(event.removeprefix("data: "))))
    return f"data: {json.dumps(error.to_openai())}\n\n{rest}"
