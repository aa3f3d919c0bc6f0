"""Odd bodies and headers get a typed refusal from the Router, before any pool is called."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from concurrent.futures import Future
from http.client import HTTPResponse
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from cluster.errors import PrismError
from cluster.request import OPERATOR_FIELDS, read_request
from cluster.stream import Answer
from tests.fuzz.bodies import FIELDS, GOOD, raw_bodies, spoilt
from tests.helpers.http_surface import served
from tests.helpers.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

    from cluster.access_log import AccessRecord
    from cluster.admission.slots import Admission
    from cluster.deadline import Deadline

LIMITS = settings(
    max_examples=400, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
PATIENCE_S = 10.0
SERVED = "prism-demo"


def read(raw: bytes) -> PrismError | None:
    """Reads a body as the Router does. Returns its refusal."""
    try:
        request = read_request(raw, served_name=SERVED, max_pictures=16)
        request.body_with(["0" * 64 for _ in request.pictures])
    except PrismError as error:
        return error
    return None


@LIMITS
@given(raw_bodies())
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    """Whatever the bytes are, the request stage reads them or refuses them with a 4xx and a sentence."""
    if (error := read(raw)) is not None:
        assert 400 <= error.status < 500
        assert error.message.endswith(".")
        json.dumps(error.to_openai()).encode()


@LIMITS
@given(spoilt())
def test_a_refusal_names_the_field_that_was_spoilt(drawn: tuple[str, str, dict[str, Any]]) -> None:
    """If one field of a good request is spoilt and the request stage refuses it, ``param`` names that field."""
    _, field, body = drawn
    error = read(json.dumps(body).encode())
    if error is not None and error.code != "invalid_json":
        assert error.param is not None
        assert error.param.split(".")[0].split("[")[0] == field


async def no_pools(_: str, raw: bytes, __: Any, deadline: Deadline, ___: AccessRecord) -> Answer:
    """Reads the body as ``Router.serve`` does, and answers nothing."""

    async def rest() -> AsyncGenerator[str]:
        return
        yield

    read_request(raw, served_name=SERVED, max_pictures=16)
    return Answer("{}", rest(), False, False, deadline)


NAMES = some.sampled_from(
    ["content-type", "x-request-id", "x-other", "accept", "authorization", "x-request-start", "te"]
)
VALUES = some.one_of(
    some.binary(max_size=40).map(lambda value: value.translate(None, b"\r\n\0")),
    some.sampled_from([b"", b"text/plain", b"multipart/form-data", b"application/json; charset=utf-16", b"\xff\xfe"]),
)


@pytest.fixture(scope="module")
def surface() -> Iterator[tuple[int, Admission]]:
    """An HTTP surface in a thread of its own. Returns its port and its admission."""
    started: Future[tuple[int, Admission, Callable[[], object]]] = Future()

    async def serve() -> None:
        over, loop = asyncio.Event(), asyncio.get_running_loop()
        async with served(no_pools, timeout_s=5.0) as (port, admission):
            started.set_result((port, admission, lambda: loop.call_soon_threadsafe(over.set)))
            await over.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    port, admission, end = started.result(PATIENCE_S)
    yield port, admission
    end()
    thread.join()


@LIMITS
@given(
    raw=raw_bodies(), headers=some.lists(some.tuples(NAMES, VALUES), max_size=4), path=some.sampled_from(sorted(GOOD))
)
def test_odd_headers_and_bodies_over_http(
    surface: tuple[int, Admission], raw: bytes, headers: list[tuple[str, bytes]], path: str
) -> None:
    """Odd bytes in headers and bodies get 200 or a typed 4xx over HTTP, and keep no slot."""
    port, admission = surface
    status, media_type, body = exchange(port, path, raw, headers)
    assert status == 200 or 400 <= status < 500
    if status >= 400 and media_type == "application/json":  # the server answers in plain text what is not HTTP
        assert {"message", "type", "param", "code"} <= json.loads(body)["error"].keys()
    wait_until(lambda: admission.num_requests == admission.num_bytes == 0, PATIENCE_S, "a slot is kept")


def exchange(port: int, path: str, raw: bytes, headers: list[tuple[str, bytes]]) -> tuple[int, str, bytes]:
    """Sends one request. Returns the status, the media type and the body of the answer."""
    lines = b"".join(name.encode() + b": " + value + b"\r\n" for name, value in headers)
    head = f"POST {path} HTTP/1.1\r\nHost: prism\r\nConnection: close\r\nContent-Length: {len(raw)}\r\n".encode()
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
        connection.sendall(head + lines + b"\r\n" + raw)
        response = HTTPResponse(connection)
        response.begin()
        return response.status, response.headers.get_content_type(), response.read()


@pytest.mark.parametrize("path", sorted(FIELDS))
def test_every_field_of_vllms_is_fuzzed(path: str) -> None:
    """The fields that are fuzzed are those that vLLM has, without those that the Router refuses."""
    from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest

    from cluster.decode.prompts import CheckedChat, CheckedCompletion, CheckedTokenizeChat, CheckedTokenizeText

    kinds = {
        "/v1/chat/completions": [CheckedChat],
        "/v1/completions": [CheckedCompletion],
        "/tokenize": [CheckedTokenizeChat, CheckedTokenizeText],
        "/detokenize": [DetokenizeRequest],
    }
    names = {name for kind in kinds[path] for name in kind.model_fields}
    assert names - OPERATOR_FIELDS.keys() - {"prompt_embeds"} <= set(FIELDS[path])
