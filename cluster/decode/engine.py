"""A running vLLM engine with the serving objects of its OpenAI layer; ``cluster.decode.start`` makes one."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Final

import psutil

from cluster import shared_memory
from cluster.decode.answer_size import TokenLengths
from cluster.health import PATIENCE_S

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.datastructures import State

    from cluster.decode.stats import SchedulerLog, TimedLLM
    from cluster.decode.transport.handoff import Transport
    from cluster.decode.transport.shape import EmbeddingShape


MEASURED_TOKENS: Final = 256
"""The length of the prompts by which the engine's speed is measured."""
SLOWER: Final = 4.0
"""A step of the same size may take so many times longer: behind a long context, or while others use the cores."""
SLOWER_ON_SHARED_CORES: Final = 30.0
"""The same for an engine that shares its cores: it may get a thirtieth of the CPU time (``cluster/priority.py``)."""
KILL_TIMEOUT_S: Final = 1.0
"""How long to wait for killed processes to be gone, in seconds."""


class Engine:
    """A running vLLM engine in processes of its own, which end with this one.

    Args:
        llm: vLLM's client of the engine.
        state: vLLM's serving objects, one for each endpoint of its OpenAI API.
        shape: What the language model accepts as an embedding.
        transport: How embeddings reach the engine.
        log: What vLLM's scheduler reported last.
        segments: Shared memory that the engine's processes hold, to be removed when they are gone.
    """

    def __init__(
        self,
        llm: TimedLLM,
        state: State,
        shape: EmbeddingShape,
        transport: Transport,
        log: SchedulerLog,
        segments: set[Path],
    ) -> None:
        self.serving = state
        self.embedding_shape = shape
        self.transport = transport
        self._llm = llm
        self._log = log
        self._segments = segments
        self.num_streams = 0
        """Answers that are streamed now."""
        self.patience_s = PATIENCE_S
        """The seconds without a step after which the engine is stuck, if it has work."""

    @cached_property
    def token_lengths(self) -> TokenLengths:
        """The lengths of the texts of the tokenizer's tokens."""
        return TokenLengths(self._llm.get_tokenizer().get_vocab())

    @property
    def is_dead(self) -> bool:
        """True once the engine's process has ended."""
        return bool(self._llm.errored)

    @property
    def num_requests(self) -> int:
        """Requests that the engine holds now, waiting or running. Probes of its health do not count."""
        return max(0, int(self._llm.get_num_unfinished_requests()) - self._llm.num_probes)

    @property
    def kv_tokens(self) -> int:
        """The number of tokens that fit into the KV cache."""
        cache = self._llm.vllm_config.cache_config
        return int(cache.block_size * (cache.num_gpu_blocks or 0))

    def stats(self) -> dict[str, float]:
        """Returns the engine's load. ``waiting`` includes requests that wait for room in shared memory.
        ``queued_tokens`` are the prompts of all requests whose prefill has not ended, counted whole. ``kv_use`` is the
        used share of the KV cache, from 0 to 1."""
        for_room = self.transport.num_waiting
        if not self.num_requests:  # the scheduler's last report may be older than the last end of a request
            return {"waiting": for_room, "running": 0, "queued_tokens": 0, "kv_use": 0.0}
        running = min(self._log.num_running, self.num_requests)
        return {
            "waiting": self.num_requests - running + for_room,
            "running": running,
            "queued_tokens": int(self._llm.get_num_queued_tokens()),
            "kv_use": round(self._log.kv_use, 2),
        }

    def queue(self) -> tuple[int, float]:
        """The requests of the engine that have no token yet, and the age of the oldest in seconds."""
        waiting = [
            state.arrival_time for state in self._llm.output_processor.request_states.values() if state.is_prefilling
        ]
        return len(waiting), time.time() - min(waiting) if waiting else 0.0

    def work(self) -> dict[str, float]:
        """Returns what the scaling policy reads: the prompt tokens that came, were prefilled and wait, and the share of
        the engine's room in use, of the KV cache or of the sequences per step."""
        prefills, now = self._llm.prefills, self.stats()
        max_running = self._llm.vllm_config.scheduler_config.max_num_seqs
        return prefills.offered.stats(
            prefills.num_tokens,
            prefills.busy_s,
            waiting=now["queued_tokens"],
            fullness=max(now["kv_use"], now["running"] / max_running),
        )

    @property
    def stepped_s(self) -> float:
        """The time of ``time.monotonic`` at which this process heard of the engine's last step with work. Before the
        first one it is the time of the start."""
        return self._log.stepped_s

    async def probe(self) -> None:
        """Generates one token, as the smallest request would. It returns when the engine has answered."""
        await self._llm.probe()

    async def measure_patience(self, *, shares_cores: bool) -> None:
        """Sets ``patience_s`` by the speed of the engine, which should have nothing else to do now.

        The longest step prefills as many tokens as one step may hold. On a GPU it takes about a second. On a few CPU
        cores, with a large model, it takes minutes.

        Args:
            shares_cores: The engine has a low priority on cores that pictures use as well.
        """
        slower = SLOWER_ON_SHARED_CORES if shares_cores else SLOWER
        limits = self._llm.vllm_config
        budget = limits.scheduler_config.max_num_batched_tokens
        num_tokens = max(1, min(MEASURED_TOKENS, budget, limits.model_config.max_model_len - 1))
        took_s = []
        for _ in range(2):  # the faster one counts, because others may compute on the same cores
            started_s = time.monotonic()
            await self._llm.probe(num_tokens)
            took_s.append(time.monotonic() - started_s)
        self.patience_s = max(PATIENCE_S, slower * min(took_s) * budget / num_tokens)

    async def parameter_names(self) -> list[list[str]]:
        """The names of all weights, worker by worker. Tests use it to see that no worker holds a vision tower."""
        return list(await self._llm.collective_rpc("parameter_names"))

    def kill(self) -> None:
        """Kills the engine's processes, which a stopped process cannot prevent, and removes their shared memory."""
        processes = psutil.Process().children(recursive=True)
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=KILL_TIMEOUT_S)
        shared_memory.unlink(self._segments, ignore=os.getpid())

    def stop(self) -> None:
        """Ends the engine's processes, and removes shared memory that they leave if they were killed."""
        self._llm.shutdown()
        self.transport.close()
        shared_memory.unlink(self._segments)
