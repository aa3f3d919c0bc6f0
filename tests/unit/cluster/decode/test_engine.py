"""The time that an engine has for a step, by the speed that it shows at its start."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.decode.engine import Engine
from cluster.health import PATIENCE_S


@pytest.mark.parametrize(
    ("max_model_len", "token_s", "patience_s"),
    [(4096, 0.0001, PATIENCE_S), (4096, 0.02, 4 * 0.02 * 2048), (100, 0.02, 4 * 0.02 * 2048), (1, 0.0001, PATIENCE_S)],
)
async def test_a_slow_engine_has_the_time_for_its_longest_step(
    monkeypatch: pytest.MonkeyPatch, max_model_len: int, token_s: float, patience_s: float
) -> None:
    """An engine has four times the time of a step that is as full as it may be. A fast one has eight seconds. A
    measurement that something else delayed does not count."""
    now_s, delays_s = [100.0], [7.0, 0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])

    async def probe(num_tokens: int) -> None:
        assert 0 < num_tokens <= max(1, max_model_len - 1)  # the answer needs room too
        now_s[0] += num_tokens * token_s + delays_s.pop(0)

    limits = SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_batched_tokens=2048),
        model_config=SimpleNamespace(max_model_len=max_model_len),
    )
    llm, unused = SimpleNamespace(probe=probe, vllm_config=limits), SimpleNamespace()
    parts: Any = (llm, unused, unused, unused, unused, set())
    engine = Engine(*parts)
    await engine.measure_patience(shares_cores=False)
    assert engine.patience_s == pytest.approx(patience_s)
    delays_s[:] = [0.0, 0.0]
    await engine.measure_patience(shares_cores=True)
    assert engine.patience_s >= patience_s
    if patience_s > PATIENCE_S:
        assert engine.patience_s == pytest.approx(patience_s * 30 / 4)
