"""Sends one request and says how it ended: an answer, a typed error, a cut connection, or something else."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import aiohttp

from loadtest.workload import PATH

if TYPE_CHECKING:
    from loadtest.chaos.mix import ChaosRequest

EndingKind = Literal["answer", "typed", "cut", "hung", "malformed"]
CLIENT_MARGIN_S: Final = 5.0
"""A request hangs if it has not ended so long after its own deadline."""


@dataclass(frozen=True, slots=True)
class ChaosAnswer:
    """The text, finish reason and tokens of a whole answer, by which answers are compared."""

    text: str
    finish_reason: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of one try of a request.

    Args:
        kind: ``answer``; ``typed``: an error with a code; ``cut``: the connection was refused, reset or closed early;
            ``hung``: it did not end by its deadline; ``malformed``: something else than the API says.
        cause: The error's code, or a few words.
        answer: The answer, if there is one.
    """

    kind: EndingKind
    cause: str = ""
    answer: ChaosAnswer | None = None


def connections() -> aiohttp.TCPConnector:
    """Connections that are used once. Otherwise a server that closes an idle one could meet the next request."""
    return aiohttp.TCPConnector(limit=0, force_close=True)


async def ask(client: aiohttp.ClientSession, url: str, request: ChaosRequest) -> Ending:
    """Sends a request once and returns how it ended. It raises nothing but cancellation."""
    try:
        async with asyncio.timeout(request.body["prism"]["timeout_s"] + CLIENT_MARGIN_S):
            async with client.post(url + PATH, json=request.body) as response:
                if response.status != 200:
                    return _refusal(response.status, await response.read())
                return read_stream(await response.read()) if request.is_stream else read_whole(await response.read())
    except TimeoutError:
        return Ending("hung", "no end by its deadline")
    except (aiohttp.ClientError, OSError) as error:
        return Ending("cut", type(error).__name__)


def read_whole(body: bytes) -> Ending:
    """The ending of a request without a stream that was answered with 200."""
    try:
        content = json.loads(body)
        [choice] = content["choices"]
        answer = ChaosAnswer(
            choice["message"]["content"], choice["finish_reason"], content["usage"]["completion_tokens"]
        )
    except (ValueError, LookupError, TypeError):
        return Ending("malformed", "200 without an answer" if body else "200 with an empty body")
    return _checked(answer)


def read_stream(body: bytes) -> Ending:
    """The ending of a stream from all of its bytes."""
    text, reason, num_tokens, is_done = "", "", 0, False
    try:
        for event in body.decode().split("\n\n"):
            if not (data := event.removeprefix("data: ")):
                continue
            if data == "[DONE]":
                is_done = True
                continue
            content: dict[str, Any] = json.loads(data)
            if "error" in content:
                return Ending("typed", str(content["error"]["code"]))
            num_tokens = (content.get("usage") or {}).get("completion_tokens", num_tokens)
            for choice in content["choices"]:
                text += choice["delta"].get("content") or ""
                reason = choice["finish_reason"] or reason
    except (ValueError, LookupError, TypeError):
        return Ending("malformed", "a stream with something that is no event")
    if not is_done:
        return Ending("malformed", "a stream that ended without [DONE]" if body else "a stream without an event")
    return _checked(ChaosAnswer(text, reason, num_tokens))


def _checked(answer: ChaosAnswer) -> Ending:
    if not answer.text or not answer.finish_reason:
        return Ending("malformed", "200 with an empty answer", answer)
    return Ending("answer", answer=answer)


def _refusal(status: int, body: bytes) -> Ending:
    try:
        code = json.loads(body)["error"]["code"]
    except (ValueError, LookupError, TypeError):
        code = None
    if isinstance(code, str) and code:
        return Ending("typed", f"{status} {code}")
    return Ending("malformed", f"{status} without a typed error")
