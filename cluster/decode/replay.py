"""Repeats the earlier part of a stream in vLLM, below its API layer.

The request is registered in vLLM's output processor with its own prompt. The processor then gets the tokens so far as
if the engine had just made them. So the detokenizer, stop strings, log-probabilities, usage and parsers see one answer.
The engine gets the tokens so far in one of two ways:

- *behind the prompt*, in one prefill. This is exact if the next token depends on the tokens alone.
- *forced*, one step for each token, if the engine must count, such as for a grammar, a penalty or a seed
  (``cluster/decode/forcing.py``). The engine's outputs for these steps are dropped.
"""

from __future__ import annotations

from collections import defaultdict
from copy import copy
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.outputs import LogprobsLists, LogprobsTensors

from cluster.decode.forcing import FORCED_TOKENS

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.output_processor import OutputProcessorOutput, RequestOutputCollector, RequestState
    from vllm.v1.engine.parallel_sampling import ParentRequest

    from cluster.decode.steps import Share, Step

FINISHES: Final = {str(reason): reason for reason in FinishReason}
REPETITION: Final = "repetition_detected"
"""vLLM's ``stop_reason`` of an answer that repeats itself."""


def must_force(params: SamplingParams) -> bool:
    """Returns True if the next token depends on more than the tokens before it: on a count or state that an engine
    keeps of the tokens that it has made itself."""
    return bool(
        params.structured_outputs is not None
        or params.presence_penalty
        or params.frequency_penalty
        or params.repetition_penalty != 1
        or (params.seed is not None and params.temperature)
        or params.bad_words
        or params.thinking_token_budget is not None
        or params.repetition_detection is not None
    )


class ReplayedOutputs:
    """The queue of a request's outputs, with the repeated ones before those of the engine.

    Args:
        repeated: The outputs of the earlier steps, in their order.
        queue: vLLM's queue of the request.
    """

    def __init__(self, repeated: list[RequestOutput], queue: RequestOutputCollector) -> None:
        self._repeated: Final = repeated[::-1]
        self._queue: Final = queue
        self.request_id: Final = queue.request_id

    def get_nowait(self) -> RequestOutput | None:
        """The next output, or None if the engine has made none yet."""
        return self._repeated.pop() if self._repeated else self._queue.get_nowait()

    async def get(self) -> RequestOutput:
        """The next output, as soon as there is one."""
        return self.get_nowait() or await self._queue.get()

    def close(self) -> None:
        """See vLLM's ``RequestOutputCollector``."""
        self._queue.close()


class ReplayProcessor(OutputProcessor):  # type: ignore[misc]  # vLLM's types are not followed
    """vLLM's output processor, which repeats the steps of the requests in ``steps`` when they are added."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps: Final[dict[str, list[Step]]] = {}
        """The steps to repeat, by the name that the API layer gives a request."""
        self.repeated: Final[dict[str, list[RequestOutput]]] = {}
        """Their outputs, by the same name."""
        self._num_forced: Final[dict[str, int]] = {}
        """The tokens that the engine has yet to make again, by the engine's name of a request."""
        self._forced_names: Final[defaultdict[str, list[str]]] = defaultdict(list)
        """The engine's names of the answers to a request, by the name that the API layer gives it."""
        self._dropped: Final[dict[str, EngineCoreOutput]] = {}
        """The last output that was dropped, by the engine's name of a request. It has the events of all of them."""

    def add_request(
        self,
        request: EngineCoreRequest,
        prompt: str | None,
        parent_req: ParentRequest | None = None,
        request_index: int = 0,
        queue: RequestOutputCollector | None = None,
    ) -> None:
        """See vLLM. It is called for all answers to a prompt before the engine gets the first of them."""
        super().add_request(request, prompt, parent_req, request_index, queue)
        steps = self.steps.get(request.external_req_id)
        if not steps:
            return
        shares = [share for step in steps for share in step.shares if share.index == request_index]
        self._prepare(request, shares)
        if parent_req is None or request_index == parent_req.n - 1:
            names = {request_index: request.request_id}
            if parent_req is not None:
                names = {index: parent_req.get_child_info(index)[0] for index in range(parent_req.n)}
            assert queue is not None, "an engine client has a queue for each request"
            self.repeated[request.external_req_id] = [self._repeat(step, names, queue) for step in steps]

    def process_outputs(
        self, engine_core_outputs: list[EngineCoreOutput], *args: Any, **kwargs: Any
    ) -> OutputProcessorOutput:
        """See vLLM. Outputs that only make an earlier token again are dropped."""
        if self._num_forced or self._dropped:
            engine_core_outputs = [output for output in engine_core_outputs if not self._is_known(output)]
        return super().process_outputs(engine_core_outputs, *args, **kwargs)

    def do_tracing(self, engine_core_output: EngineCoreOutput, req_state: RequestState, iteration_stats: Any) -> None:
        """See vLLM. A repeated end has no statistics and makes no span: its time was another decoder's."""
        if iteration_stats is not None:
            super().do_tracing(engine_core_output, req_state, iteration_stats)

    def forget(self, name: str) -> None:
        """Forgets the steps of a request that has ended."""
        self.steps.pop(name, None)
        self.repeated.pop(name, None)
        for request_id in self._forced_names.pop(name, ()):
            self._num_forced.pop(request_id, None)
            self._dropped.pop(request_id, None)

    def _prepare(self, request: EngineCoreRequest, shares: list[Share]) -> None:
        """Changes the request that the engine will get, which vLLM has registered here as it was."""
        tokens = [token for share in shares for token in share.tokens]
        params = request.sampling_params = copy(request.sampling_params)
        if any(share.is_last for share in shares):
            request.abort_immediately = True
        elif tokens and must_force(params):
            params.extra_args = {**(params.extra_args or {}), FORCED_TOKENS: tokens}
            self._num_forced[request.request_id] = len(tokens)
            self._forced_names[request.external_req_id].append(request.request_id)
        elif tokens:
            request.prompt_token_ids = [*request.prompt_token_ids, *tokens]
            params.max_tokens -= len(tokens)
            params.min_tokens = max(0, params.min_tokens - len(tokens))
        if tokens:
            params.prompt_logprobs = None

    def _repeat(self, step: Step, names: dict[int, str], queue: RequestOutputCollector) -> RequestOutput:
        """The output of a step."""
        states = [self.request_states[names[share.index]] for share in step.shares]
        super().process_outputs([_output(share, state) for share, state in zip(step.shares, states, strict=True)])
        for state in states:
            state.is_prefilling = True  # vLLM's metrics have not seen this step
        output = queue.get_nowait()
        assert output is not None, "each step has an output"
        return output

    def _is_known(self, output: EngineCoreOutput) -> bool:
        """Returns True if the output only makes an earlier token again, and counts it. The first output that is not
        dropped gets the times and the prefill of those that were."""
        request_id = output.request_id
        if (num_left := self._num_forced.pop(request_id, 0)) > len(output.new_token_ids):
            self._num_forced[request_id] = num_left - len(output.new_token_ids)
        dropped = self._dropped.get(request_id)
        if dropped is not None:
            output.events = [*(dropped.events or ()), *(output.events or ())] or None
            output.prefill_stats = dropped.prefill_stats or output.prefill_stats
        if num_left and not output.finished:
            self._dropped[request_id] = output
            return True
        self._dropped.pop(request_id, None)
        return False


def _output(share: Share, state: RequestState) -> EngineCoreOutput:
    """Makes the report of the engine for one answer in a step. Its log-probabilities are stand-ins, because the events
    that show them have been sent."""
    logprobs = prompt_logprobs = None
    if state.logprobs_processor.num_logprobs is not None:
        ids = np.array(share.tokens, dtype=np.int32).reshape(-1, 1)
        logprobs = LogprobsLists(ids, np.zeros(ids.shape, np.float32), np.ones(len(ids), np.int32))
    if state.logprobs_processor.num_prompt_logprobs is not None and not state.detokenizer.num_output_tokens():
        rows = torch.tensor(state.prompt_token_ids[1:], dtype=torch.int32).reshape(-1, 1)
        prompt_logprobs = LogprobsTensors(rows, torch.zeros(rows.shape), torch.ones(len(rows), dtype=torch.int32))
    return EngineCoreOutput(
        request_id=state.request_id,
        new_token_ids=list(share.tokens),
        new_logprobs=logprobs,
        new_prompt_logprobs_tensors=prompt_logprobs,
        finish_reason=FINISHES[share.finish] if share.finish else None,
        stop_reason=REPETITION if share.finish == "repetition" else share.stop_token,
    )
