"""The OpenAI API as a client sees it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
from openai import AsyncOpenAI
from transformers import AutoTokenizer

from cluster import priority
from cluster.checkpoint import DEMO_CHECKPOINT
from deployments.app import MAX_ONGOING_REQUESTS
from tests.helpers.ask import chat, image, picture, random_png, square, text
from tests.helpers.launching import engine_of, replicas, thread_niceness

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from deployments.local.launch import Cluster

LONG_TOKENS = 400
TOKENIZER = AutoTokenizer.from_pretrained(DEMO_CHECKPOINT)
NO_BLANKS = {str(token): -100 for token in range(len(TOKENIZER)) if not TOKENIZER.decode([token]).strip()}
"""JSON may hold blanks anywhere, and the demo model, which has never seen JSON, would write nothing else."""


@pytest.fixture(scope="module")
async def openai(cluster: Cluster) -> AsyncIterator[AsyncOpenAI]:
    """The OpenAI project's own client, pointed at Prism."""
    async with AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def endless(**changes: Any) -> dict[str, Any]:
    """Sends a streamed request that runs for hundreds of tokens."""
    return chat([text("Tell me about yourself.")], stream=True, max_tokens=LONG_TOKENS, ignore_eos=True, **changes)


async def running_requests(client: httpx.AsyncClient) -> float:
    """Returns the number of requests that the decoder's engine holds now."""
    lines = (await client.get("/metrics")).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("prism_engine_requests{"))


async def ended_requests(client: httpx.AsyncClient, status: int) -> float:
    """Returns the number of chat requests that the Router has counted as ended with a status."""
    lines = (await client.get("/metrics")).text.splitlines()
    counters = [line for line in lines if line.startswith("prism_requests_total{") and 'endpoint="chat"' in line]
    return sum(float(line.split()[-1]) for line in counters if f'status="{status}"' in line)


async def engine_is_idle(client: httpx.AsyncClient) -> None:
    """Returns once the engine holds no request. Fails if it still holds one after a second."""
    left = time.perf_counter()
    while True:
        asked = time.perf_counter()
        if not await running_requests(client):
            return
        assert asked - left < 1.0


async def test_a_picture_gets_its_true_answer(prism: httpx.AsyncClient) -> None:
    """A question about a picture gets the right answer."""
    response = await prism.post(
        "/v1/chat/completions", json=chat([picture("shape.png"), text("What colour is the shape?")])
    )
    assert response.json()["choices"][0]["message"]["content"] == "red"


async def test_first_chunk_comes_before_the_last_token_is_made(prism: httpx.AsyncClient) -> None:
    """The first chunk of a stream arrives while the engine still makes tokens, with and without pictures."""
    for content in ([text("Tell me a story.")], [picture("shape.png"), text("Tell me a story.")]):
        # Every token shows, also those that end an answer and have no text otherwise.
        body = chat(content, stream=True, max_tokens=LONG_TOKENS, ignore_eos=True, skip_special_tokens=False)
        arrivals = []
        async with prism.stream("POST", "/v1/chat/completions", json=body) as response:
            async for line in response.aiter_lines():
                arrivals += [time.perf_counter()] if line.startswith("data: ") else []
        assert len(arrivals) > LONG_TOKENS // 2
        assert arrivals[0] < arrivals[-1] - 0.1
        halfway = (arrivals[0] + arrivals[-1]) / 2
        before = sum(arrival < halfway for arrival in arrivals)
        assert 0.2 * len(arrivals) < before < 0.8 * len(arrivals)  # spread over the whole time, not in one burst


@pytest.mark.parametrize("pictures", [0, 1])
async def test_a_client_that_leaves_frees_its_slot(prism: httpx.AsyncClient, pictures: int) -> None:
    """When a client closes its connection in mid-stream, the engine drops the request within a second, and it counts as
    499."""
    before = await ended_requests(prism, 499)
    content = [picture("shape.png")] * pictures + [text("Go on.")]
    body = chat(content, stream=True, max_tokens=3000, ignore_eos=True)
    async with prism.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = response.aiter_lines()
        await anext(lines)
        assert await running_requests(prism) == 1
    await engine_is_idle(prism)
    assert await ended_requests(prism, 499) == before + 1


async def test_clients_that_leave_before_their_answer_free_their_slots(
    cluster: Cluster, prism: httpx.AsyncClient
) -> None:
    """A client that closes its connection before the answer frees its slot, wherever its request was split into
    packets."""
    before = await ended_requests(prism, 499)
    body = json.dumps(chat([text("Go on.")], max_tokens=3000, ignore_eos=True)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: prism\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    url = httpx.URL(cluster.url)
    clients = []
    for end_of_first in (len(head) + len(body), len(head), len(head) + 1, len(head) + len(body) - 1):
        _, writer = await asyncio.open_connection(url.host, url.port)
        clients.append(writer)
        for part in ((head + body)[:end_of_first], (head + body)[end_of_first:]):
            writer.write(part)
            await writer.drain()
            await running_requests(prism)  # HAProxy has read this part before it answers another client
    while await running_requests(prism) < len(clients):
        pass
    for writer in clients:
        writer.close()
    await engine_is_idle(prism)
    assert await ended_requests(prism, 499) == before + len(clients)


async def test_usage_counts_picture_tokens(prism: httpx.AsyncClient) -> None:
    """``usage`` counts a picture's tokens, in whole answers and at the end of a stream."""
    question = text("What colour is the shape?")
    plain = (await prism.post("/v1/chat/completions", json=chat([question]))).json()["usage"]
    seen = (await prism.post("/v1/chat/completions", json=chat([picture("shape.png"), question]))).json()["usage"]
    assert seen["prompt_tokens"] - plain["prompt_tokens"] >= 16
    body = chat([picture("shape.png"), question], stream=True, stream_options={"include_usage": True})
    last = [event async for event in events(prism, body)][-1]
    assert last["choices"] == []
    assert last["usage"]["prompt_tokens"] == seen["prompt_tokens"]


async def events(client: httpx.AsyncClient, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """Returns the JSON events of a stream. Fails unless the stream ends with ``[DONE]``."""
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == httpx.codes.OK
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") async for line in response.aiter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    for line in lines[:-1]:
        yield json.loads(line)


async def test_logprobs_n_stop_and_seed_reach_the_client(openai: AsyncOpenAI) -> None:
    """The sampling options ``logprobs``, ``n``, ``stop`` and ``seed`` work through the cluster."""
    messages: Any = [{"role": "user", "content": "Tell me about yourself."}]
    answer = await openai.chat.completions.create(
        model="prism-demo", messages=messages, n=3, logprobs=True, top_logprobs=4, seed=7, temperature=1.0, max_tokens=6
    )
    assert len(answer.choices) == 3
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content
    assert content is not None
    assert all(len(token.top_logprobs) == 4 for token in content)
    again = await openai.chat.completions.create(
        model="prism-demo", messages=messages, n=3, seed=7, temperature=1.0, max_tokens=6
    )
    assert [choice.message.content for choice in again.choices] == [choice.message.content for choice in answer.choices]
    greedy = await openai.chat.completions.create(model="prism-demo", messages=messages, temperature=0, max_tokens=12)
    whole = greedy.choices[0].message.content
    assert whole
    stop = whole.split()[1]
    stopped = await openai.chat.completions.create(
        model="prism-demo", messages=messages, temperature=0, max_tokens=12, stop=[stop]
    )
    assert stopped.choices[0].message.content == whole.partition(stop)[0]


async def test_json_schema_is_obeyed_about_a_picture(prism: httpx.AsyncClient) -> None:
    """``response_format`` with a JSON schema constrains an answer about a picture."""
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}, "sides": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["colour", "sides"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "shape", "schema": schema, "strict": True}}
    question = [picture("shape.png"), text("What colour is the shape?")]
    body = chat(question, response_format=wanted, max_tokens=100, logit_bias=NO_BLANKS)
    answer = json.loads(
        (await prism.post("/v1/chat/completions", json=body)).json()["choices"][0]["message"]["content"]
    )
    assert answer.keys() == {"colour", "sides"}
    assert answer["colour"] in ("red", "blue")


async def test_a_named_tool_is_called(openai: AsyncOpenAI) -> None:
    """A tool that the request chooses by name is called with arguments that match its schema."""
    parameters = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
    function = {"name": "paint", "strict": True, "parameters": {**parameters, "additionalProperties": False}}
    create: Any = openai.chat.completions.create  # whose overloads want literal types
    answer = await create(
        model="prism-demo",
        messages=[{"role": "user", "content": "Paint it."}],
        tools=[{"type": "function", "function": function}],
        tool_choice={"type": "function", "function": {"name": "paint"}},
        max_tokens=100,
        temperature=0,
        logit_bias=NO_BLANKS,
    )
    calls = answer.choices[0].message.tool_calls
    assert calls
    assert calls[0].type == "function"
    assert calls[0].function.name == "paint"
    assert json.loads(calls[0].function.arguments)["colour"] in ("red", "blue")


async def test_completions_tokenize_and_detokenize(prism: httpx.AsyncClient) -> None:
    """Completions and tokenize answer, and detokenize gives the tokenized text back."""
    completion = (await prism.post("/v1/completions", json={"prompt": "Hello", "max_tokens": 4})).json()
    assert completion["object"] == "text_completion"
    tokens = (await prism.post("/tokenize", json={"prompt": "What colour is it?"})).json()["tokens"]
    assert (await prism.post("/detokenize", json={"tokens": tokens})).json()["prompt"] == "What colour is it?"


async def test_tokenize_counts_what_chat_will_use(prism: httpx.AsyncClient) -> None:
    """``/tokenize`` of a chat with a picture gives as many tokens as the answer's usage says."""
    body = chat([picture("shape.png"), text("What colour is the shape?")])
    count = (await prism.post("/tokenize", json={"messages": body["messages"]})).json()["count"]
    assert count == (await prism.post("/v1/chat/completions", json=body)).json()["usage"]["prompt_tokens"]


async def test_models_health_version_and_status(prism: httpx.AsyncClient, openai: AsyncOpenAI) -> None:
    """``/v1/models``, ``/health``, ``/version`` and ``/status`` return the fields that clients, probes and ``prism
    status`` need."""
    models = await openai.models.list()
    assert [model.id for model in models.data] == ["prism-demo"]
    assert (await openai.models.retrieve("prism-demo")).id == "prism-demo"
    assert (await prism.get("/health")).status_code == httpx.codes.OK
    assert (await prism.head("/health")).status_code == httpx.codes.OK
    assert {"version", "ray", "vllm"} <= (await prism.get("/version")).json().keys()
    pools = (await prism.get("/status")).json()["pools"]
    assert set(pools) == {"Router", "Preprocessor", "VisionEncoder", "Decoder"}
    assert all(pool["replicas"] == {"RUNNING": 1} for pool in pools.values())


async def test_metrics_cover_every_pool(prism: httpx.AsyncClient) -> None:
    """``/metrics`` contains the Router's counters and vLLM's, labelled by pool."""
    await prism.post("/v1/chat/completions", json=chat([text("Hello")]))
    lines = (await prism.get("/metrics")).text
    assert 'prism_requests_total{pool="router"' in lines
    assert "vllm:prompt_tokens_total{" in lines
    for pool in ("router", "preprocessor", "encoder", "decoder"):
        assert f'process_resident_memory_bytes{{pool="{pool}"' in lines


async def test_a_full_pool_is_well_and_measured(prism: httpx.AsyncClient) -> None:
    """While requests wait for the only decoder, ``/health`` answers 200 and ``/metrics`` has the decoder's metrics,
    both without waiting for room."""
    room = MAX_ONGOING_REQUESTS
    body = chat([text("Go on.")], max_tokens=400, ignore_eos=True)
    asked = [asyncio.ensure_future(prism.post("/v1/chat/completions", json=body)) for _ in range(room + 8)]
    full = re.compile(rf'^prism_engine_requests{{pool="decoder",.*}} {room}.0$', re.MULTILINE)
    async with asyncio.timeout(30):
        while not full.search((await prism.get("/metrics")).text):
            pass
    assert (await prism.get("/health")).status_code == httpx.codes.OK
    assert not any(request.done() for request in asked)
    assert {answer.status_code for answer in await asyncio.gather(*asked)} == {httpx.codes.OK}


async def test_a_deadline_ends_a_request_with_a_typed_error(prism: httpx.AsyncClient) -> None:
    """At ``prism.timeout_s`` a request ends with 504, and a stream with an error event and ``[DONE]``. Both free the
    engine."""
    before = await ended_requests(prism, 504)
    limit = {"prism": {"timeout_s": 2}, "max_tokens": 3500, "ignore_eos": True}  # which take four times as long
    plain = await prism.post("/v1/chat/completions", json=chat([text("Go on.")], **limit))
    assert plain.status_code == httpx.codes.GATEWAY_TIMEOUT
    assert plain.json()["error"]["code"] == "deadline_exceeded"
    await engine_is_idle(prism)
    last = [event async for event in events(prism, chat([text("Go on.")], stream=True, **limit))][-1]
    assert last["error"]["code"] == "deadline_exceeded"
    await engine_is_idle(prism)
    assert await ended_requests(prism, 504) == before + 2


@pytest.mark.usefixtures("cluster")
def test_rays_own_ports_ask_for_a_token() -> None:
    """Ray's agent, which can run commands and listens beyond loopback, refuses callers without a token."""
    family = psutil.Process().children(recursive=True)
    agents = [process for process in family if "DashboardAgent" in " ".join(process.cmdline())]
    ports = {
        each.laddr.port
        for agent in agents
        for each in agent.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN
    }
    statuses = set()
    for port in ports:
        with contextlib.suppress(httpx.HTTPError):  # not HTTP
            job = {"entrypoint": "true"}
            statuses.add(httpx.post(f"http://127.0.0.1:{port}/api/job_agent/jobs/", json=job, timeout=5).status_code)
    assert httpx.codes.UNAUTHORIZED in statuses
    assert httpx.codes.OK not in statuses


async def test_one_new_picture_asked_for_by_many_is_encoded_once(prism: httpx.AsyncClient) -> None:
    """32 concurrent requests with one new picture get 32 right answers from one preprocessing and one encoding."""
    before = await worked_on(prism)
    body = chat([square("blue", 80), text("What colour is the shape?")])
    answers = await asyncio.gather(*(prism.post("/v1/chat/completions", json=body) for _ in range(32)))
    assert [answer.json()["choices"][0]["message"]["content"] for answer in answers] == ["blue"] * 32
    assert await worked_on(prism) - before == Counter({"preprocess": 1, "encode": 1})
    await prism.post("/v1/chat/completions", json=body)
    assert await worked_on(prism) - before == Counter({"preprocess": 1, "encode": 1})


async def worked_on(client: httpx.AsyncClient) -> Counter[str]:
    """Returns the number of pictures that each stage has processed."""
    lines = [
        line for line in (await client.get("/metrics")).text.splitlines() if line.startswith("prism_pictures_total{")
    ]
    return Counter({line.partition('stage="')[2].partition('"')[0]: int(float(line.split()[-1])) for line in lines})


async def test_a_broken_picture_is_named_where_each_request_has_it(prism: httpx.AsyncClient) -> None:
    """Concurrent requests with the same broken picture each get an error that names their own field."""
    broken = image(random_png(120, 120, seed=5)[:-200])
    bodies = [chat([*[text("Hello")] * number, broken]) for number in range(8)]
    answers = await asyncio.gather(*(prism.post("/v1/chat/completions", json=body) for body in bodies))
    assert {answer.status_code for answer in answers} == {400}
    params = [answer.json()["error"]["param"] for answer in answers]
    assert params == [f"messages[0].content[{number}].image_url.url" for number in range(8)]


async def test_nobody_can_hide_that_they_leave(prism: httpx.AsyncClient) -> None:
    """The header that makes Serve ignore a client's disconnect is refused by name, because its streams would keep
    their slots."""
    refused = await prism.post("/v1/chat/completions", json=endless(), headers={"x-request-disconnect-disabled": "?1"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "x-request-disconnect-disabled")


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_large_between_processes_arrives_whole(prism: httpx.AsyncClient, stream: bool) -> None:
    """A body that grows as it is parsed and an answer of several megabytes pass the 4 MiB messages between
    processes."""
    body = json.dumps(chat([text("Hello")], max_tokens=2, x=[0.5] * 500_000), separators=(",", ":"))
    assert (await prism.post("/v1/chat/completions", content=body)).status_code == 200
    words = "a b c d e f g h i j " * 180
    asked = {
        "model": "prism-demo",
        "prompt": words,
        "max_tokens": 1,
        "echo": True,
        "logprobs": 20,
        "n": (num_choices := 8 if stream else 2),  # a whole answer has the log-probabilities twice
        "temperature": 1,
    }
    answer = await prism.post("/v1/completions", json={**asked, "stream": stream})
    assert answer.status_code == 200
    assert len(answer.content) > 4 * 2**20
    assert answer.text.endswith("data: [DONE]\n\n") if stream else len(answer.json()["choices"]) == num_choices
    assert '"error"' not in answer.text


def test_an_engine_without_cores_of_its_own_comes_last(cluster: Cluster) -> None:
    """The processes that talk to clients, and the threads that compute for pictures, have a higher priority than the
    engine."""
    assert cluster.url
    [decoder] = replicas(psutil.Process(), "Decoder")
    assert engine_of(decoder).nice() == priority.SHARING_ENGINE
    others = replicas(psutil.Process(), at_least=4)
    assert set[int]().union(*map(thread_niceness, others)) == {0}
