"""Speeds that are computed from published figures, against arithmetic by hand and figures of Prism's own."""

from __future__ import annotations

import pytest

from cluster.scaling.planning.roofline import Layout, kv_tokens, speeds_of
from deployments.local.catalogue import SHIPPED_CATALOGUE, read_catalogue
from tests.helpers.planned import catalogue

SPLIT, COLOCATED = Layout("large", 2, "small"), Layout("large", 2, None)


def test_a_step_reads_the_weights_and_the_context_once() -> None:
    """Two large GPUs read 2 TB/s at half their peak. Weights of 10 GB take 5 ms, and 1,000 tokens of context 50 µs."""
    decoder = speeds_of(catalogue(), SPLIT, 1000).decoder
    assert decoder.step_s == pytest.approx(0.005)
    assert decoder.sequence_s == pytest.approx(50e-6)


def test_a_prefill_is_arithmetic_and_exchange() -> None:
    """Two large GPUs do 200 TFLOPS at half their peak, so a token takes 50 µs. Each GPU sends 40 kB of sums for
    it, which take 0.1 µs at 400 GB/s."""
    assert 1 / speeds_of(catalogue(), SPLIT, 1000).decoder.prefill_tokens_per_s == pytest.approx(50.1e-6)
    alone = speeds_of(catalogue(), Layout("large", 1, "small"), 1000).decoder
    assert alone.prefill_tokens_per_s == pytest.approx(10_000)  # one GPU exchanges nothing


def test_the_tower_runs_on_the_encoders_gpu_or_on_all_of_a_decoder() -> None:
    """A patch takes 20 µs on one small GPU. Colocated, two large GPUs share it and take 5 µs."""
    assert speeds_of(catalogue(), SPLIT, 1000).encoder.patch_s == pytest.approx(20e-6)
    assert speeds_of(catalogue(), SPLIT, 1000).decoder.tower_patch_s is None
    assert speeds_of(catalogue(), COLOCATED, 1000).decoder.tower_patch_s == pytest.approx(5e-6)


def test_the_kv_cache_gets_what_weights_and_tower_leave() -> None:
    """Of 36 GB per GPU the weights take 5, the rest of the engine 1, and a colocated tower half of 1."""
    assert kv_tokens(catalogue(), SPLIT) == 600_000
    assert kv_tokens(catalogue(), COLOCATED) == 590_000
    assert kv_tokens(catalogue(), Layout("small", 1, "small")) < 0


@pytest.mark.parametrize(
    ("gpu", "num_gpus", "num_tokens"), [("H100", 4, 829_000), ("H100", 2, 290_000), ("L40S", 4, 380_000)]
)
def test_the_shipped_figures_give_known_sizes_of_kv_caches(gpu: str, num_gpus: int, num_tokens: int) -> None:
    """The sizes agree with estimates that were made by hand for the 32B model."""
    assert kv_tokens(read_catalogue(SHIPPED_CATALOGUE), Layout(gpu, num_gpus, "L4")) == pytest.approx(
        num_tokens, rel=0.01
    )


def test_the_shipped_figures_give_the_measured_speed_of_the_tower() -> None:
    """An H100 encodes 58 pictures of 5,328 patches a second (docs/measurements.md)."""
    patch_s = speeds_of(read_catalogue(SHIPPED_CATALOGUE), Layout("H100", 4, "H100"), 0).encoder.patch_s
    assert 1 / (5328 * patch_s) == pytest.approx(58, rel=0.01)
