"""The figures of the side-by-side benchmark, against oracles; the bars and the report."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from loadtest.bench.bars import BARS, Bar, judge, short, spread
from loadtest.bench.load import Sample
from loadtest.bench.results import Record, table
from loadtest.bench.workloads import SCENARIOS, encoding, gaps, latencies, stalls, throughput

if TYPE_CHECKING:
    from pathlib import Path


def sample(start_s: float, texts_s: tuple[float, ...], *, kind: str = "text", num_tokens: int | None = None) -> Sample:
    """Returns a whole answer whose text arrived at the given times."""
    return Sample(kind, num_tokens or len(texts_s), start_s, texts_s, texts_s[-1])


def random_samples(rng: random.Random, count: int) -> list[Sample]:
    """Returns answers of 1 to 9 events at random times."""
    samples = []
    for _ in range(count):
        start_s = rng.uniform(0, 10)
        times_s = sorted(rng.uniform(start_s, start_s + 2) for _ in range(rng.randrange(1, 10)))
        samples.append(sample(start_s, tuple(times_s)))
    return samples


@pytest.mark.parametrize("seed", range(20))
def test_latencies_equal_numpys(seed: int) -> None:
    """Medians, means and nearest-rank percentiles equal numpy's."""
    samples = random_samples(random.Random(seed), 40)
    ttft_ms = np.array([(each.texts_s[0] - each.start_s) * 1000 for each in samples])
    found = latencies(samples)
    assert found["TTFT p50, ms"] == pytest.approx(np.median(ttft_ms))
    assert found["TTFT mean, ms"] == pytest.approx(ttft_ms.mean())
    assert found["TTFT p90, ms"] == pytest.approx(np.sort(ttft_ms)[36])
    per_token_ms = [np.diff(each.texts_s).mean() * 1000 if len(each.texts_s) > 1 else 0.0 for each in samples]
    assert found["ITL, ms"] == pytest.approx(np.mean(per_token_ms))


@pytest.mark.parametrize("seed", range(20))
def test_gaps_equal_numpys(seed: int) -> None:
    """The percentiles over the gaps of all streams equal numpy's, and the worst gap is the largest."""
    samples = random_samples(random.Random(seed), 300)
    every_ms = np.sort(np.concatenate([np.diff(each.texts_s) for each in samples])) * 1000
    found = gaps(samples)
    assert found["gap worst, ms"] == pytest.approx(every_ms[-1])
    assert found["gap p99, ms"] == pytest.approx(every_ms[int(len(every_ms) * 0.99)])
    assert found["gap p99.9, ms"] == pytest.approx(every_ms[int(len(every_ms) * 0.999)])


def test_stalls_are_counted_on_text_alone() -> None:
    """Only gaps of text streams count as stalls. Gaps while pictures run are compared with gaps without pictures."""
    alone = [sample(0.0, (0.1, 0.2, 0.3))]
    together = [sample(0.0, (0.1, 0.4, 0.5)), sample(0.0, (1.0, 9.0), kind="picture")]
    found = stalls({"alone": alone, "with pictures": together})
    assert found["gap worst ×"] == pytest.approx(3.0)
    assert found["gap worst, ms, with pictures"] == pytest.approx(300.0)
    assert found["picture TTFT p50, ms"] == pytest.approx(1000.0)


def test_throughput_counts_from_the_first_request_to_the_last_answer() -> None:
    """Three answers in the two seconds between 1 s and 3 s are 1.5 answers per second."""
    assert throughput([sample(1.0, (1.5,)), sample(2.0, (2.5,)), sample(1.2, (3.0,))]) == {"requests/s": 1.5}


def test_an_answer_that_comes_at_once_is_seen() -> None:
    """Answers whose tokens come in one event, or in events at the same moment, are counted. A single token is not."""
    samples = [
        sample(0.0, (0.1,), num_tokens=16),
        sample(0.0, (0.1, 0.101)),
        sample(0.0, (0.1,)),
        sample(0.0, (0.1, 0.2)),
    ]
    assert latencies(samples)["answers at once, %"] == 50.0


def test_a_picture_costs_what_it_takes_more_the_first_time() -> None:
    """If 32 tokens more take 128 ms, then 80 ms more for a new picture equal 20 decode steps."""
    found = encoding(
        {"new": [sample(0.0, (0.1,))], "again": [sample(0.0, (0.02,))], "long": [sample(0.0, (0.02, 0.148))]}
    )
    assert found["one picture, decode steps"] == pytest.approx(20.0)


def test_bars_compare_medians() -> None:
    """A bar's difference or ratio is computed from the medians over repeats and compared with the limit."""
    results = {"text": {"prism": {"t": [9.0, 50.0, 11.0]}, "vllm": {"t": [8.0, 7.0, 1.0]}}}
    places = (("text", "prism", "t"), ("text", "vllm", "t"))
    difference = judge(Bar(1, places[0], "≤", 4.0, "−", places[1]), results)
    assert (difference.value, difference.holds) == (4.0, True)
    ratio = judge(Bar(1, places[0], "<", 1.5, "÷", places[1]), results)
    assert ratio.value == pytest.approx(11 / 7)
    assert ratio.holds is False
    alone = judge(Bar(1, places[0], "≥", 11.0), results)
    assert (alone.value, alone.holds) == (11.0, True)


def test_a_bar_without_figures_is_not_judged() -> None:
    """A bar neither holds nor fails if one of its systems was not measured."""
    for bar in BARS:
        assert judge(bar, {}).holds is None
        assert judge(bar, {bar.figure[0]: {bar.figure[1]: {bar.figure[2]: [1.0]}}}).holds is (
            None if bar.compared_with else True
        )


def test_bars_speak_of_figures_that_there_are() -> None:
    """Each bar uses figures that its scenario produces for the systems that it names."""
    by_name = {scenario.name: scenario for scenario in SCENARIOS}
    answers = [sample(0.0, (0.1, 0.2, 0.3)), sample(0.0, (0.1, 0.2), kind="picture")]
    names = ("text", "picture", "alone", "with pictures", "new", "again")
    for bar in BARS:
        for place in (bar.figure, bar.compared_with):
            if place is not None:
                scenario = by_name[place[0]]
                assert place[1] in scenario.systems
                phases = ["window"] if place[0] == "windows" else ["picture"] if "requests" in place[2] else names
                assert place[2] in scenario.figures(dict.fromkeys(phases, answers))


def test_medians_stand_with_their_range() -> None:
    """A single value is printed alone, and several as a median with their range, in three digits."""
    assert spread([12.345]) == "12.3"
    assert spread([3.0, 1.0, 2.0]) == "2.00 (1.00–3.00)"
    assert [short(value) for value in (0, 0.01234, 99.94, 1234.5, -20.26)] == ["0", "0.012", "99.9", "1234", "-20.3"]
    rows = table({"a": {"x": [1.0]}, "b": {"x": [2.0], "y": [3.0]}})
    assert rows == ["| | a | b |", "|---|---:|---:|", "| x | 1.00 | 2.00 |", "| y | – | 3.00 |"]


def test_a_record_becomes_a_report(tmp_path: Path) -> None:
    """The report's files are written, they contain failures and notes, and the plot is a picture."""
    record = Record({"date": "today"})
    by_name = {scenario.name: scenario for scenario in SCENARIOS}
    rng = random.Random(3)
    for system in ("prism", "vllm"):
        record.add(by_name["text"], system, {"text": random_samples(rng, 20)})
        record.add(by_name["saturation"], system, {"picture": random_samples(rng, 20)})
        pictures = [sample(0.0, (0.5, 0.6), kind="picture")]
        phases = {"alone": random_samples(rng, 50), "with pictures": random_samples(rng, 50) + pictures}
        record.add(by_name["bursts"], system, phases)
    record.add(by_name["text"], "ray-serve-llm", {"text": [Sample("text", 4, 0.0, (), 1.0, "no [DONE]")]})
    record.write(tmp_path, SCENARIOS)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["failures"] == {"text, ray-serve-llm": {"no [DONE]": 1}}
    assert len(content["figures"]["text"]["prism"]["TTFT p50, ms"]) == 1
    assert len(content["bars"]) == len(BARS)
    report = (tmp_path / "results.md").read_text()
    assert "text, ray-serve-llm: 1 × no [DONE]" in report
    assert "| 6 | bursts, gap worst ×: Prism ≤ 1.5 |" in report
    assert "| 8 | Prism, requests/s: preprocess_two ÷ preprocess_one ≥ 1.8 |" in report
    for name in ("ttft.png", "gaps.png", "rates.png"):
        with Image.open(tmp_path / name) as plot:
            assert plot.size[0] > 400
