"""The stages of a request's time."""

from __future__ import annotations

import random
from itertools import accumulate

import pytest

from cluster.waterfall import MAX_INGRESS_S, STAGES, Waterfall, ingress_s


@pytest.mark.parametrize("seed", range(20))
def test_the_stages_add_up(seed: int) -> None:
    """The stages up to the first token add up to the time since the request arrived, for any times of other
    processes."""
    rng = random.Random(seed)
    laps_s = [rng.uniform(0, 0.1) for _ in range(5)]
    points_s = iter(accumulate([50.0, *laps_s]))
    elsewhere = {stage: rng.uniform(0, laps_s[3] / 4) for stage in ("encode", "transfer", "prefill")}
    waterfall = Waterfall(clock=lambda: next(points_s))
    for stage in ("receive", "parse", "fetch"):
        waterfall.reach(stage)
    waterfall.reach_first_piece(elsewhere)
    assert waterfall.ttft_s == pytest.approx(sum(laps_s[:4]))
    waterfall.reach("stream")
    assert waterfall.ttft_s == pytest.approx(sum(laps_s[:4]))
    assert waterfall.spent["stream"] == pytest.approx(laps_s[4])
    assert waterfall.spent["transfer"] == pytest.approx(laps_s[3] - elsewhere["encode"] - elsewhere["prefill"])


def test_a_whole_answers_stream_is_no_time_to_its_first_token() -> None:
    """If the decoder makes all tokens before its first piece, their time counts as ``stream``."""
    points_s = iter([0.0, 5.0])
    waterfall = Waterfall(clock=lambda: next(points_s))
    waterfall.reach_first_piece({"prefill": 1.0, "stream": 3.0})
    assert waterfall.ttft_s == pytest.approx(2.0)


def test_the_header_tells_the_stages_in_order() -> None:
    """``Server-Timing`` lists each stage once, in the order of a request's path, in milliseconds."""
    points_s = iter([0.0, 0.001, 0.0135])
    waterfall = Waterfall(clock=lambda: next(points_s))
    waterfall.reach("parse")
    waterfall.reach_first_piece({"prefill": 0.01, "encode": 0.002})
    assert waterfall.server_timing() == "parse;dur=1, encode;dur=2, transfer;dur=0.5, prefill;dur=10"
    order = list(STAGES)
    assert order.index("parse") < order.index("encode") < order.index("transfer") < order.index("prefill")


def test_what_a_proxy_says_counts_from_the_start() -> None:
    """The time between the proxy's header and the Router comes first in the waterfall. The time to the first token
    excludes it, because a client may have written the header."""
    points_s = iter([7.0, 7.5])
    waterfall = Waterfall(ingress_s("t=6000000", 7.0), clock=lambda: next(points_s))
    waterfall.reach_first_piece({})
    assert waterfall.milliseconds() == {"ingress": 1000.0, "transfer": 500.0}
    assert waterfall.ttft_s == pytest.approx(0.5)


@pytest.mark.parametrize(
    "header", [None, "", "t=", "t=soon", "t=-5", "t=٣", "7.0", f"t={'9' * 400}", "t=8000000", "t=0"]
)
def test_a_start_that_cannot_be_true_is_left_out(header: str | None) -> None:
    """A request is served whatever its header says. A time in the future or long ago is ignored."""
    assert ingress_s(header, 7.0 + (MAX_INGRESS_S if header == "t=0" else 0)) is None
