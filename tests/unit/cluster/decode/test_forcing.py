"""Forced tokens in a batch of vLLM."""

from __future__ import annotations

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate

from cluster.decode.forcing import FORCED_TOKENS, ForcedTokens


def test_known_tokens_are_the_only_choice() -> None:
    """Each of the known tokens is the only choice at its step. Later steps and other requests stay as they are."""
    processor, made = ForcedTokens(None, torch.device("cpu"), is_pin_memory=False), list[int]()
    forced = SamplingParams(extra_args={FORCED_TOKENS: [3, 1]})
    added = [(0, SamplingParams(), [9], list[int]()), (1, forced, [9], made)]
    processor.update_state(BatchUpdate(batch_size=2, removed=(), added=added, moved=()))
    chosen = []
    for _ in range(3):
        logits = processor.apply(torch.tensor([[0.0, 1.0, 5.0, 2.0]] * 2))
        assert logits[0].tolist() == [0.0, 1.0, 5.0, 2.0]
        chosen.append(int(logits[1].argmax()))
        made.append(chosen[-1])
        assert bool(logits[1].isinf().any()) is (len(made) <= 2)
    assert chosen == [3, 1, 2]
    assert not processor.is_argmax_invariant()
