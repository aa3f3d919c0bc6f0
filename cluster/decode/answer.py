"""One call through vLLM's OpenAI layer: bytes of JSON, or SSE text as the engine makes it."""

from __future__ import annotations

import logging
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest, TokenizeChatRequest, TokenizeCompletionRequest

from cluster.decode.bounds import check_bounds
from cluster.decode.coalesce import coalesced
from cluster.decode.placement import PlacedChatRequest
from cluster.decode.refusals import chunk_refusal, engine_died, invalid_field, misread, refusal
from cluster.decode.stats import watch
from cluster.errors import EmbeddingLost, InternalError, PrismError
from cluster.messages import Call, Embedding, FirstPiece, is_picture, picture_part

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from cluster.decode.engine import Engine
    from cluster.decode.transport.handoff import Handoff
    from cluster.messages import Digest, Spent

log: Final = logging.getLogger(__name__)

MAX_PIECE_CHARS: Final = 2**20 - 2**10
"""Four bytes each at most, and gRPC carries 4 MiB at a time."""

Request = TypeVar("Request", bound=BaseModel)


async def generate(
    engine: Engine, call: Call, embeddings: Mapping[Digest, Embedding], spent: Spent
) -> AsyncGenerator[FirstPiece | str]:
    """Runs one call. A stream yields SSE text piece by piece, anything else yields its JSON.

    Closing the iterator, or cancelling its task, frees the engine's slot.

    Raises:
        EmbeddingLost: An embedding was not there any more when the engine came to it; it has to be offered again.
        PrismError: For what vLLM refuses, before the first piece is out, so that the client gets a proper status.
    """
    async with engine.transport.offered(call.request_id, embeddings) as handoff:
        del embeddings  # what the engine needs of them, the handoff has
        try:
            async with aclosing(_answer(engine, call, handoff, spent)) as pieces:
                async for piece in pieces:
                    yield piece
        except InternalError as error:
            if engine.transport.is_lost(call.request_id):
                raise EmbeddingLost(
                    "An embedding was gone before the engine came to it; send the request again."
                ) from error
            raise


async def warm_up(engine: Engine) -> None:
    """Runs one picture through, so that no client waits for what vLLM does on first use."""
    shape = engine.embedding_shape
    rows = np.zeros((1, shape.row_bytes), dtype=np.uint8)
    blank = Embedding("0" * 64, rows, shape.dtype, (1, shape.merge_size, shape.merge_size))
    message = {"role": "user", "content": [picture_part(blank.digest), {"type": "text", "text": "?"}]}
    call = Call("chat", "warm-up", {"messages": [message], "max_tokens": 2})
    async for _ in generate(engine, call, {blank.digest: blank}, {}):
        pass


async def _answer(engine: Engine, call: Call, handoff: Handoff, spent: Spent) -> AsyncGenerator[FirstPiece | str]:
    times = watch()
    result = await _begin(engine, call, handoff)
    if isinstance(result, BaseModel):
        first, *rest = _cut(result.model_dump_json())
        yield FirstPiece(first, {**spent, **times.spent(streams=False)})
        for part in rest:
            yield part
        return
    async with aclosing(_checked(result, engine, call)) as chunks:
        begun = await anext(chunks)
        if call.endpoint == "chat":  # it only names the role: whoever waits for a token waits for the next
            begun += await anext(chunks, "")
        first, *rest = _cut(begun)
        yield FirstPiece(first, {**spent, **times.spent(streams=True)})
        for part in rest:
            yield part
        engine.num_streams += 1
        try:
            async with aclosing(coalesced(chunks, lambda: engine.num_streams)) as pieces:
                async for piece in pieces:
                    for part in _cut(piece):
                        yield part
        finally:
            engine.num_streams -= 1


def _cut(text: str) -> list[str]:
    """The text in parts that one message between processes can carry; whoever reads it puts them together again."""
    return [text[start : start + MAX_PIECE_CHARS] for start in range(0, len(text), MAX_PIECE_CHARS)] or [text]


async def _checked(chunks: AsyncGenerator[str], engine: Engine, call: Call) -> AsyncGenerator[str]:
    """The chunks of a stream; one that reports an error is raised."""
    async with aclosing(chunks):
        async for chunk in chunks:
            if reported := chunk_refusal(chunk, call.body):
                raise engine_died() if engine.is_dead else reported
            yield chunk


async def _begin(engine: Engine, call: Call, handoff: Handoff) -> Any:
    """Has vLLM render the request and start on it; gives its whole answer, or the iterator of a stream."""
    try:
        result = await _serve(engine, call, _with_parts(call.body, handoff))
    except ValidationError as error:
        raise invalid_field(error, call.body) from None
    except PrismError:
        raise
    except Exception as error:  # whatever vLLM raises, it says itself which status that is
        refused = engine_died() if engine.is_dead else refusal(error, call.body)
        if isinstance(refused, InternalError):
            log.exception("request %s failed", call.request_id)
        raise refused from error
    if isinstance(result, ErrorResponse):
        raise engine_died() if engine.is_dead else refusal(result, call.body)
    return result


async def _serve(engine: Engine, call: Call, body: dict[str, Any]) -> Any:
    body = {**body, "request_id": call.request_id}
    serving, tokenization = engine.serving, engine.serving.serving_tokenization
    match call.endpoint:
        case "chat":
            request = _read(PlacedChatRequest, body).expect(_num_pictures(call.body))
            return await serving.openai_serving_chat.create_chat_completion(request)
        case "completions":
            return await serving.openai_serving_completion.create_completion(_read(CompletionRequest, body))
        case "tokenize":
            kind = TokenizeChatRequest if "messages" in body else TokenizeCompletionRequest
            return await tokenization.create_tokenize(_read(kind, body), None)
        case "detokenize":
            text = _read(DetokenizeRequest, body)
            tokenization.renderer.validate_token_ids(
                text.tokens
            )  # as for a prompt: the tokenizer would skip others in silence
            return await tokenization.create_detokenize(text, None)


def _read(kind: type[Request], body: dict[str, Any]) -> Request:
    try:
        request = kind.model_validate(body)
    except (AttributeError, LookupError, TypeError) as error:
        raise misread(error) from None
    check_bounds(request)
    return request


def _num_pictures(body: dict[str, Any]) -> int:
    contents = [message.get("content") for message in body.get("messages") or ()]
    return sum(is_picture(part) for content in contents if isinstance(content, list) for part in content)


def _with_parts(body: dict[str, Any], handoff: Handoff) -> dict[str, Any]:
    """Puts vLLM's part for an embedding where the Router left a picture's digest; all else stays as it is."""
    if not handoff.parts:
        return body
    messages = [
        {
            **message,
            "content": [handoff.parts[part["digest"]] if is_picture(part) else part for part in message["content"]],
        }
        if isinstance(message.get("content"), list)
        else message
        for message in body["messages"]
    ]
    return {**body, **handoff.fields, "messages": messages}
