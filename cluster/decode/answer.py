"""Runs one call through vLLM's OpenAI layer: the result is a JSON text, or SSE text as the engine makes it."""

from __future__ import annotations

import logging
import time
from contextlib import aclosing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest

from cluster.decode.answer_size import AnswerSize, check_text_size
from cluster.decode.bounds import check_bounds
from cluster.decode.coalesce import coalesced
from cluster.decode.prompts import (
    CheckedChat,
    CheckedCompletion,
    CheckedRequest,
    CheckedTokenizeChat,
    CheckedTokenizeText,
    PromptCheck,
)
from cluster.decode.refusals import chunk_refusal, engine_died, invalid_field, misread, refusal
from cluster.decode.stats import Accepted, judging, watch
from cluster.decode.steps import StepLog, follow
from cluster.errors import ContinuationNotExact, EmbeddingLost, InternalError, PrismError
from cluster.messages import Begun, Call, Embedding, FirstPiece, Piece, TokenCounts, is_picture, picture_part
from cluster.metrics import EMBEDDINGS_LOST

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from cluster.decode.engine import Engine
    from cluster.decode.stats import EngineTimes
    from cluster.decode.transport.handoff import Grids, Handoff, Pull, Reservation
    from cluster.messages import Digest, Replay, Spent

log: Final = logging.getLogger(__name__)

MAX_PIECE_CHARS: Final = 2**20 - 2**10
"""A character has at most four bytes, and gRPC carries at most 4 MiB in a message."""

LOGPROB_FIELDS: Final = ("logprobs", "top_logprobs", "prompt_logprobs")

Request = TypeVar("Request", bound=BaseModel)


async def generate(engine: Engine, call: Call, grids: Grids, pull: Pull) -> AsyncGenerator[Begun | FirstPiece | Piece]:
    """Runs one call. A stream yields SSE text piece by piece; any other call yields its JSON text.

    A call with pictures, except ``/tokenize``, yields ``Begun`` as soon as their embeddings are here, long before an
    answer that is not streamed. The first text is a ``FirstPiece``. A call with a ``replay`` yields only the part of
    the stream that the client has not got yet. That may be nothing but an empty first piece. Closing the iterator, or
    cancelling its task, frees the engine's slot.

    If an embedding is missing, vLLM judges the request first. Then room for all embeddings is reserved, and then they
    are pulled. If one is removed while the request waits for room, vLLM judges the request after the wait. If none is
    missing, vLLM judges the request when it runs. ``/tokenize`` reserves and pulls nothing.

    Args:
        engine: The running engine.
        call: The request.
        grids: The grid of each picture that the call names.
        pull: Gets the embedding of one of these pictures.

    Raises:
        EmbeddingLost: An embedding was gone before the engine read it. The caller may run the call again if it has got
            no text.
        ContinuationNotExact: The client has got a part of an event with log-probabilities.
        PrismError: vLLM refused the request, or an embedding could not be pulled. These come before the first text, so
            that the client gets a proper status. The engine may fail later, too.
    """
    _check_cut_event(call)
    if call.endpoint == "tokenize":  # to count tokens, the size of a picture is enough
        with engine.transport.standing_in(call.request_id, grids) as handoff:
            async with aclosing(_run(engine, call, handoff, {})) as pieces:
                async for piece in pieces:
                    yield piece
        return
    spent: Spent = {}
    is_judged = engine.transport.lacks(grids)
    if is_judged:
        spent["render"] = await _judge(engine, call, grids)
    async with engine.transport.reserved(call.request_id, grids) as room:
        if room.empty and not is_judged:  # what was here may have made way for others while this request waited
            spent["render"] = await _judge(engine, call, grids)
        handoff = await _filled(room, pull, spent)
        if grids:
            yield Begun()
        try:
            async with aclosing(_run(engine, call, handoff, spent)) as pieces:
                async for piece in pieces:
                    yield piece
        except InternalError as error:
            if engine.transport.is_lost(call.request_id):
                EMBEDDINGS_LOST.inc()
                raise EmbeddingLost(
                    "An embedding was gone before the engine came to it; send the request again."
                ) from error
            raise


def _check_cut_event(call: Call) -> None:
    """Checks that an event of which the client has got a part is made again with the same text.

    Raises:
        ContinuationNotExact: It is not, because repeated log-probabilities are stand-ins.
    """
    if call.replay and call.replay.num_chars and _wants_logprobs(call.body):
        raise ContinuationNotExact(
            "The decoder of this answer failed in the middle of an event with log-probabilities, which no other can "
            "make again exactly; send the request again."
        )


def _wants_logprobs(body: dict[str, Any]) -> bool:
    """Returns True if a body asks for log-probabilities. With 0, it asks for those of the chosen tokens alone."""
    return any(body.get(name) is not None and body[name] is not False for name in LOGPROB_FIELDS)


async def _judge(engine: Engine, call: Call, grids: Grids) -> float:
    """Has vLLM check a request with stand-ins for its embeddings, up to the point where it would enter the engine.
    This takes as long as rendering the request, which happens once more when it runs.

    Returns:
        The seconds that it took.

    Raises:
        PrismError: vLLM refused the request.
    """
    started_s = time.monotonic()
    with engine.transport.standing_in(call.request_id, grids) as handoff, judging(), suppress(Accepted):
        result = await _begin(engine, call, handoff)
        async with aclosing(_checked(result, engine, call)) as chunks:  # vLLM checks a stream when it begins
            await anext(chunks)
    return time.monotonic() - started_s


async def _filled(room: Reservation, pull: Pull, spent: Spent) -> Handoff:
    """Fills the room of a request. ``spent`` gets the stages of the embedding that was ready last."""
    last: Spent = {"cache_hit": 0.0}

    async def pulled(digest: Digest) -> Embedding:
        nonlocal last
        embedding = await pull(digest)
        last = embedding.spent or last
        return embedding

    handoff = await room.filled(pulled)
    if handoff.parts:
        spent.update(last)
    return handoff


async def warm_up(engine: Engine) -> None:
    """Sends one blank picture through the engine, so that no client waits for what vLLM does on first use."""
    shape = engine.embedding_shape
    rows = np.zeros((1, shape.row_bytes), dtype=np.uint8)
    blank = Embedding("0" * 64, rows, shape.dtype, (1, shape.merge_size, shape.merge_size))
    message = {"role": "user", "content": [picture_part(blank.digest), {"type": "text", "text": "?"}]}
    call = Call("chat", "warm-up", {"messages": [message], "max_tokens": 2})

    async def pull(_: Digest) -> Embedding:
        return blank

    async for _ in generate(engine, call, {blank.digest: blank.grid}, pull):
        pass


async def _run(engine: Engine, call: Call, handoff: Handoff, spent: Spent) -> AsyncGenerator[FirstPiece | Piece]:
    times = watch(call.traceparent)
    progress = StepLog(call.replay) if call.body.get("stream") is True else None
    follow(progress)
    result = await _begin(engine, call, handoff)
    if isinstance(result, BaseModel):
        first, *rest = _cut(result.model_dump_json())
        tokens = _counted(engine, call, handoff, times, is_whole=True)
        yield FirstPiece(first, _sum(spent, times.spent(is_stream=False)), tokens=tokens)
        for part in rest:
            yield Piece(part)
        return
    assert progress is not None, "vLLM streams only on demand"
    chunks = _unsent(_checked(result, engine, call), call.replay, progress)
    async with aclosing(coalesced(chunks, lambda: engine.num_streams)) as groups:
        begun: list[str] = await anext(groups, [])
        if call.endpoint == "chat" and len(begun) == 1 and not call.replay:
            begun += await anext(groups, [])  # the first chunk only names the role; this group has the first token
        begin, *pieces = _pieces(begun, progress)
        seconds = _sum(spent, times.spent(is_stream=True))
        tokens = _counted(engine, call, handoff, times, is_whole=False)
        yield FirstPiece(begin.text, seconds, begin.num_events, begin.steps, progress.created, tokens)
        engine.num_streams += 1
        try:
            for piece in pieces:
                yield piece
            async for group in groups:
                for piece in _pieces(group, progress):
                    yield piece
        finally:
            engine.num_streams -= 1


def _counted(engine: Engine, call: Call, handoff: Handoff, times: EngineTimes, *, is_whole: bool) -> TokenCounts | None:
    """The tokens of a call, or None if they are not known. In a beam search each step is a request of its own."""
    if not times.num_prompt_tokens or call.body.get("use_beam_search"):
        return None
    num_completion_tokens = times.num_completion_tokens if is_whole else None
    return TokenCounts(times.num_prompt_tokens, sum(_picture_tokens(engine, call, handoff)), num_completion_tokens)


async def _unsent(chunks: AsyncGenerator[str], replay: Replay | None, progress: StepLog) -> AsyncGenerator[str]:
    """Yields the chunks that the client has not got yet."""
    num_events, num_chars = (replay.num_events, replay.num_chars) if replay else (0, 0)
    async with aclosing(chunks):
        async for chunk in chunks:
            progress.settle()
            if num_events:
                num_events -= 1
            elif num_chars:
                num_chars, unsent = max(0, num_chars - len(chunk)), chunk[num_chars:]
                yield unsent
            else:
                yield chunk


def _pieces(chunks: list[str], progress: StepLog) -> list[Piece]:
    """Chunks of a stream as pieces. The events of a text that has to be cut count in its last piece."""
    *first, last = _cut("".join(chunks))
    steps = progress.take()
    if not first:
        return [Piece(last, len(chunks), steps)]
    return [*(Piece(part, 0, b"" if number else steps) for number, part in enumerate(first)), Piece(last, len(chunks))]


def _sum(first: Spent, second: Spent) -> Spent:
    """The seconds of both, stage by stage."""
    return {stage: first.get(stage, 0.0) + second.get(stage, 0.0) for stage in (*first, *second)}


def _cut(text: str) -> list[str]:
    """The text in parts that one message between processes can carry. The reader joins them again."""
    return [text[start : start + MAX_PIECE_CHARS] for start in range(0, len(text), MAX_PIECE_CHARS)] or [text]


async def _checked(chunks: AsyncGenerator[str], engine: Engine, call: Call) -> AsyncGenerator[str]:
    """Yields the chunks of a stream, and raises the error that a chunk reports."""
    async with aclosing(chunks):
        async for chunk in chunks:
            if reported := chunk_refusal(chunk, call.body):
                raise engine_died() if engine.is_dead else reported
            yield chunk


async def _begin(engine: Engine, call: Call, handoff: Handoff) -> Any:
    """Has vLLM render the request and start on it. The result is vLLM's whole answer, or the iterator of a stream."""
    try:
        result = await _serve(engine, call, handoff)
    except ValidationError as error:
        raise invalid_field(error, call.body) from None
    except PrismError:
        raise
    except Exception as error:  # vLLM itself knows the status of its exceptions
        refused = engine_died() if engine.is_dead else refusal(error, call.body)
        if isinstance(refused, InternalError):
            log.exception("request %s failed", call.request_id)
        raise refused from error
    if isinstance(result, ErrorResponse):
        raise engine_died() if engine.is_dead else refusal(result, call.body)
    return result


async def _serve(engine: Engine, call: Call, handoff: Handoff) -> Any:
    body = {**_with_parts(call.body, handoff), "request_id": call.request_id}
    serving, tokenization = engine.serving, engine.serving.serving_tokenization
    check = partial(_checked_prompts, engine, call, handoff)
    match call.endpoint:
        case "chat":
            return await serving.openai_serving_chat.create_chat_completion(check(_read(CheckedChat, body)))
        case "completions":
            return await serving.openai_serving_completion.create_completion(check(_read(CheckedCompletion, body)))
        case "tokenize":
            kind = CheckedTokenizeChat if "messages" in body else CheckedTokenizeText
            return await tokenization.create_tokenize(check(_read(kind, body)), None)
        case "detokenize":
            text = _read(DetokenizeRequest, body)
            tokenization.renderer.validate_token_ids(
                text.tokens
            )  # as for a prompt: the tokenizer would silently skip unknown ids
            check_text_size(engine.token_lengths.of(text.tokens))
            return await tokenization.create_detokenize(text, None)


def _checked_prompts(engine: Engine, call: Call, handoff: Handoff, request: CheckedRequest) -> CheckedRequest:
    """The request with the check of its prompts."""
    pictures = _picture_tokens(engine, call, handoff)
    return request.checked(PromptCheck(AnswerSize(request), engine.token_lengths, pictures))


def _picture_tokens(engine: Engine, call: Call, handoff: Handoff) -> list[int]:
    """The tokens of each picture, in their order."""
    num_tokens = {
        digest: engine.embedding_shape.num_tokens(part["image_embeds"]["image_grid_thw"])
        for digest, part in handoff.parts.items()
    }
    return [num_tokens[digest] for digest in _pictures(call.body)]


def _read(kind: type[Request], body: dict[str, Any]) -> Request:
    try:
        request = kind.model_validate(body)
    except (AttributeError, LookupError, TypeError) as error:
        raise misread(error, body) from None
    check_bounds(request)
    return request


def _pictures(body: dict[str, Any]) -> Iterator[Digest]:
    """Yields the digest of each picture, in their order. A picture that occurs twice is yielded twice."""
    for message in body.get("messages") or ():
        content = message.get("content")
        yield from (part["digest"] for part in content if is_picture(part)) if isinstance(content, list) else ()


def _with_parts(body: dict[str, Any], handoff: Handoff) -> dict[str, Any]:
    """The body with vLLM's content part for an embedding in place of each digest that the Router put there."""
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
