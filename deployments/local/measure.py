"""The command ``prism measure``: the speeds of a running cluster's replicas, for the simulator.

It speaks HTTP only, and expects to be alone with the cluster. Pictures and prompts are new, so no cache helps, and
each figure is a median or the slope of a line, so that a fixed cost does not count as a speed.
"""

from __future__ import annotations

import base64
import io
import itertools
import random
import re
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path  # noqa: TC003 -- typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any, Final

import httpx
import typer
import yaml
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from cluster.scaling.simulation.speeds import RouterSpeeds, Speeds
from deployments.local.entries import DEPLOYMENTS
from deployments.local.key import key_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SIDES_PIXELS: Final = (112, 224, 336, 448)
TEXT_TOKENS: Final = (64, 256, 1024)
STREAMS: Final = (1, 2, 4, 8)
"""The sizes that are asked for: sides of pictures, lengths of prompts, and streams at the same time."""
NUM_REPEATS: Final = 5
ANSWER_TOKENS: Final = 32
NUM_READINGS: Final = 4
NUM_ALONE: Final = 15
WORK: Final = frozenset({"preprocess", "encode", "prefill", "stream"})
"""The stages of a waterfall in which pools work, as far as their speeds tell."""
NUM_ROUTED: Final = 80
NUM_AT_A_TIME: Final = 8
"""The number of requests in flight while a Router is measured. A process that handles several events each time it wakes
up needs less CPU for each."""
PATCHES_PER_TOKEN: Final = 4
WORDS: Final = [
    "river",
    "stone",
    "cloud",
    "green",
    "seven",
    "paper",
    "light",
    "north",
    "quiet",
    "table",
    "under",
    "apple",
]
LEAST_S: Final = 1e-9


class Prober:
    """Asks a running cluster, one question after the other.

    Args:
        client: An HTTP client of the cluster.
    """

    def __init__(self, client: httpx.Client) -> None:
        self._client: Final = client
        card = client.get("/v1/models").raise_for_status().json()["data"][0]
        self.model: Final[str] = card["id"]
        self.max_model_len: Final[int] = card["max_model_len"]
        self._draw: Final = random.Random()

    def ask(self, content: list[dict[str, Any]], num_tokens: int = 1) -> tuple[int, dict[str, float]]:
        """Asks for a short answer.

        Returns:
            The tokens of the prompt, and the seconds of each stage of the waterfall.
        """
        body = self._body(content, num_tokens) | {"prism": {"waterfall": True}}
        answer = self._client.post("/v1/chat/completions", json=body).raise_for_status()
        stages = re.findall(r"(\w+);dur=([\d.]+)", answer.headers["server-timing"])
        return answer.json()["usage"]["prompt_tokens"], {name: float(ms) / 1000 for name, ms in stages}

    def stream_gaps_s(self) -> list[float]:
        """The gaps between the pieces of a streamed answer, in seconds."""
        body = self._body([self.text(8)], ANSWER_TOKENS) | {"min_tokens": ANSWER_TOKENS, "stream": True}
        with self._client.stream("POST", "/v1/chat/completions", json=body) as answer:
            times_s = [time.perf_counter() for line in answer.iter_lines() if '"content"' in line]
        return [later - earlier for earlier, later in itertools.pairwise(times_s)]

    def text(self, num_words: int) -> dict[str, Any]:
        """A text that no prefix cache holds, of about as many tokens as words."""
        return {"type": "text", "text": " ".join([str(self._draw.random()), *self._draw.choices(WORDS, k=num_words)])}

    def picture(self, side_pixels: int) -> dict[str, Any]:
        """A new picture of coloured blocks."""
        blocks = Image.frombytes("RGB", (8, 8), self._draw.randbytes(192))
        file = io.BytesIO()
        blocks.resize((side_pixels, side_pixels)).save(file, "JPEG", quality=90)
        url = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
        return {"type": "image_url", "image_url": {"url": url}}

    def samples(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        """The labels and the value of each sample of a metric."""
        text = self._client.get("/metrics").raise_for_status().text
        for family in text_string_to_metric_families(text):
            yield from ((sample.labels, sample.value) for sample in family.samples if sample.name == name)

    def router_cpu_s(self) -> float:
        """CPU seconds of all Routers since their start."""
        return sum(
            value for labels, value in self.samples("process_cpu_seconds_total") if labels.get("pool") == "router"
        )

    def start_s(self) -> dict[str, float]:
        """The seconds that a replica takes to start, by the names of the deployments, as the scaling policy knows."""
        pools = self._client.get("/status").raise_for_status().json()["pools"]
        return {name: pool["scaling"]["start_s"] for name, pool in pools.items() if pool.get("scaling")}

    def _body(self, content: list[dict[str, Any]], num_tokens: int) -> dict[str, Any]:
        messages = [{"role": "user", "content": content}]
        return {"model": self.model, "messages": messages, "max_tokens": num_tokens, "temperature": 0}


def line_through(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Fits a line and returns its value at zero and its slope, neither below zero."""
    slope, base = statistics.linear_regression(*zip(*points, strict=True))
    return max(base, 0.0), max(slope, LEAST_S)


def measure_pictures(prober: Prober) -> tuple[dict[str, float], dict[str, float]]:
    """The speeds of preprocessors and encoders, by the names of their fields."""
    question = {"type": "text", "text": "What is it?"}
    num_text_tokens, _ = prober.ask([question])
    prepared, encoded = [], []
    for side_pixels in SIDES_PIXELS:
        asked = [prober.ask([prober.picture(side_pixels), question]) for _ in range(NUM_REPEATS)]
        num_patches = PATCHES_PER_TOKEN * (asked[0][0] - num_text_tokens)
        prepared.append((side_pixels**2, statistics.median(spent["preprocess"] for _, spent in asked)))
        encoded.append((num_patches, statistics.median(spent["encode"] for _, spent in asked)))
    (picture_s, pixel_s), (run_s, patch_s) = line_through(prepared), line_through(encoded)
    return {"picture_s": picture_s, "pixel_s": pixel_s}, {"run_s": run_s, "patch_s": patch_s}


def measure_decoding(prober: Prober) -> dict[str, float]:
    """The speeds of decoders, by the names of their fields."""
    prefills = []
    for num_words in TEXT_TOKENS:
        if num_words > prober.max_model_len // 3:  # a word may have more than one token
            break
        asked = [prober.ask([prober.text(num_words)]) for _ in range(NUM_REPEATS)]
        prefills.append(
            (statistics.mean(count for count, _ in asked), statistics.median(s["prefill"] for _, s in asked))
        )
    steps = []
    for num_streams in STREAMS:
        with ThreadPoolExecutor(num_streams) as threads:
            gaps_s = [gap for gaps in threads.map(lambda _: prober.stream_gaps_s(), range(num_streams)) for gap in gaps]
        steps.append((num_streams, statistics.mean(gaps_s)))
    (_, token_s), (step_s, sequence_s) = line_through(prefills), line_through(steps)
    return {"prefill_tokens_per_s": 1 / token_s, "step_s": max(step_s, LEAST_S), "sequence_s": sequence_s}


def measure_router(prober: Prober) -> dict[str, float]:
    """The CPU seconds of Routers for a request and for a token of an answer, by the names of their fields.

    The CPU seconds are read from ``/metrics``, and each reading costs a Router as much CPU as a dozen requests. So this
    cost is measured too, and subtracted.
    """
    first_s = prober.router_cpu_s()
    for _ in range(NUM_READINGS):
        begun_s = prober.router_cpu_s()
    reading_s = (begun_s - first_s) / NUM_READINGS
    num_streams = NUM_ROUTED // 2
    with ThreadPoolExecutor(NUM_AT_A_TIME) as threads:
        list(threads.map(lambda _: prober.ask([prober.text(8)]), range(NUM_ROUTED)))
        short_s = prober.router_cpu_s()
        list(threads.map(lambda _: prober.stream_gaps_s(), range(num_streams)))
        long_s = prober.router_cpu_s()
    request_s = (short_s - begun_s - reading_s) / NUM_ROUTED
    token_s = ((long_s - short_s - reading_s) / num_streams - request_s) / (ANSWER_TOKENS - 1)
    return {"request_s": max(request_s, 0.0), "token_s": max(token_s, 0.0)}


def measure_path(prober: Prober, router: RouterSpeeds) -> dict[str, float]:
    """The seconds before the first token in which no pool works for a request, by the names of their fields.

    They are the time of a lone request, less the stages of its waterfall in which a pool works, and less the CPU time
    of its Router.

    Args:
        prober: Asks the cluster.
        router: The CPU seconds of Routers.
    """
    text = [prober.ask([prober.text(8)]) for _ in range(NUM_ALONE)]
    picture = [prober.ask([prober.picture(SIDES_PIXELS[1]), prober.text(8)]) for _ in range(NUM_ALONE)]
    text_s, picture_s = (
        statistics.median(sum(s for stage, s in spent.items() if stage not in WORK) for _, spent in asked)
        for asked in (text, picture)
    )
    router_picture_s = router.picture_s + SIDES_PIXELS[1] ** 2 * router.pixel_s
    return {
        "request_path_s": max(text_s - router.request_s, 0.0),
        "picture_path_s": max(picture_s - text_s - router_picture_s, 0.0),
    }


def measure_all(prober: Prober, say: Callable[[str], None]) -> Speeds:
    """Measures every pool. Where something cannot be measured over HTTP, the simulator's default stays.

    Args:
        prober: Asks the cluster.
        say: Called with a few words about what is measured.
    """
    for _ in range(2):  # the first requests of a cluster are slow
        prober.ask([prober.picture(SIDES_PIXELS[0]), prober.text(8)])
    say("pictures")
    preprocessor, encoder = measure_pictures(prober)
    say("decoders")
    decoder = measure_decoding(prober)
    say("Routers")
    router = measure_router(prober)
    starts = prober.start_s()
    of = {name: {"start_s": starts[name]} if name in starts else {} for name in DEPLOYMENTS}
    cache = next((labels for labels, _ in prober.samples("vllm:cache_config_info")), {})
    kv_tokens = int(cache.get("block_size", 16)) * int(cache.get("num_gpu_blocks", 4096))
    speeds = Speeds.model_validate(
        {
            "router": router | of["Router"],
            "preprocessor": preprocessor | of["Preprocessor"],
            "encoder": encoder | of["VisionEncoder"],
            "decoder": decoder | of["Decoder"] | {"kv_tokens": kv_tokens},
        }
    )
    say("the time between the pools")
    return speeds.model_copy(update=measure_path(prober, speeds.router))


def measure(
    file: Annotated[Path, typer.Argument(help="Where to write the speeds, as YAML.")],
    url: Annotated[str, typer.Option(help="Where Prism listens.", envvar="PRISM_URL")] = "http://127.0.0.1:8000",
) -> None:
    """Measures how fast each pool of a running cluster is, for prism simulate. It expects to be alone with it."""
    try:
        with httpx.Client(base_url=url, timeout=300, headers=key_header()) as client:
            speeds = measure_all(Prober(client), lambda words: typer.echo(f"measuring {words} …", err=True))
        file.write_text(yaml.safe_dump(speeds.model_dump(mode="json", exclude={"processor"}), sort_keys=False))
    except httpx.HTTPStatusError as error:
        raise typer.Exit(_failed(f"{url} refused: {error.response.text[:300]}", 1)) from None
    except httpx.HTTPError as error:
        raise typer.Exit(_failed(f"{url} cannot be reached: {error}", 3)) from None
    except OSError as error:
        raise typer.Exit(_failed(f"{file} cannot be written: {error}", 2)) from None
    patches, tokens = 1 / speeds.encoder.patch_s, speeds.decoder.prefill_tokens_per_s
    steps = 1 / (speeds.decoder.step_s + speeds.decoder.sequence_s)
    typer.echo(f"{file}: {patches:.0f} patches/s, {tokens:.0f} prompt tokens/s, {steps:.0f} steps/s")


def _failed(words: str, code: int) -> int:
    typer.echo(words, err=True)
    return code
