"""Asks a running cluster held-out questions and prints how many answers are right, for each kind of question.

python -m cluster.demo.training.evaluate --url http://127.0.0.1:8000
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx

from cluster.demo.training.classes import ADVERTISED, KINDS
from cluster.demo.training.data import held_out

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from PIL import Image

    from cluster.demo.training.data import Example

REQUIRED: Final = 0.95
"""The share of right answers that an advertised kind of question must reach."""

MAX_TOKENS: Final = 16
TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Score:
    """The result of one kind of question; ``mistakes`` holds (question, right answer, given answer)."""

    kind: str
    num_asked: int
    num_right: int
    mistakes: tuple[tuple[str, str, str], ...]

    @property
    def accuracy(self) -> float:
        return self.num_right / self.num_asked if self.num_asked else 0.0

    @property
    def is_enough(self) -> bool:
        return self.kind not in ADVERTISED or self.accuracy >= REQUIRED


def main(arguments: list[str] | None = None) -> int:
    """Asks the questions, prints a table, and returns the exit code: 1 if an advertised kind falls short."""
    options = _options(arguments)
    with httpx.Client(base_url=options.url, timeout=TIMEOUT_S) as client:
        model = options.model or client.get("/v1/models").raise_for_status().json()["data"][0]["id"]
        ask = partial(ask_over_http, client, model)
        scores = []
        for kind in options.kinds:
            scores.append(score(kind, held_out(kind, options.num, options.seed), ask, options.concurrency))
            print(as_row(scores[-1]), flush=True)  # noqa: T201 - printing the table is this command's purpose
    if options.json:
        options.json.write_text(json.dumps(as_json(scores, options.num, options.seed), indent=2) + "\n")
    return 0 if all(one.is_enough for one in scores) else 1


def score(kind: str, examples: Iterable[Example], ask: Callable[[Example], str], concurrency: int = 1) -> Score:
    """Asks every example's question, a few at a time, and counts the right answers."""
    asked = list(examples)
    with ThreadPoolExecutor(concurrency) as pool:
        answers = list(pool.map(ask, asked))
    wrong = [(one, text) for one, text in zip(asked, answers, strict=True) if not one.is_answered_by(text)]
    mistakes = tuple((one.question, one.answer, text) for one, text in wrong)
    return Score(kind, len(asked), len(asked) - len(wrong), mistakes)


def ask_over_http(client: httpx.Client, model: str, example: Example) -> str:
    """One greedy answer over the OpenAI chat API.

    Raises:
        httpx.HTTPError: The cluster cannot be reached or refuses the request.
    """
    content = [
        {"type": "image_url", "image_url": {"url": data_url(example.image)}},
        {"type": "text", "text": example.question},
    ]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
    }
    response = client.post("/v1/chat/completions", json=body).raise_for_status()
    return str(response.json()["choices"][0]["message"]["content"])


def data_url(image: Image.Image) -> str:
    """The picture as a PNG within a URL."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def as_row(one: Score) -> str:
    """A line of the printed table."""
    note = "" if one.kind in ADVERTISED else "  (not advertised)"
    note = note if one.is_enough else "  too few"
    return f"{one.kind:<8} {one.num_right:>5} of {one.num_asked:<5} {one.accuracy:7.1%}{note}"


def as_json(scores: list[Score], num: int, seed: int) -> dict[str, Any]:
    """The content of the file that ``--json`` writes."""
    kinds = {
        one.kind: {
            "accuracy": one.accuracy,
            "right": one.num_right,
            "asked": one.num_asked,
            "mistakes": list(one.mistakes),
        }
        for one in scores
    }
    return {"num": num, "seed": seed, "required": REQUIRED, "kinds": kinds}


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the cluster listens")
    parser.add_argument("--model", help="name of the model; default: the first that the cluster lists")
    parser.add_argument("--num", type=int, default=200, help="questions of each kind")
    parser.add_argument("--seed", type=int, default=7, help="other seeds draw other pictures")
    parser.add_argument("--concurrency", type=int, default=4, help="requests in flight")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--json", type=Path, help="file to write the result to")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
