"""The end of the shared transport in vLLM's processes: a connector that opens segments by their addresses.

The scheduler opens the segments of a request before it first schedules it, and the workers map them through the
scheduler. An opened segment stays valid until its request has finished and every dispatched step has completed, even if
its owner closes it earlier. A segment that cannot be opened fails only its own request. vLLM's processes load this
module by its name.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from vllm.distributed.ec_transfer.ec_connector.base import ECConnectorBase, ECConnectorMetadata, ECConnectorRole
from vllm.platforms import current_platform
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from cluster.decode.transport.segment import Address, Segment, allow_many_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

Segments = dict[str, Segment]


class Load(NamedTuple):
    """An embedding that workers are to map: its name in vLLM's caches, the path of its segment, and the number of
    its rows."""

    identifier: str
    path: str
    num_rows: int


@dataclass
class Loads(ECConnectorMetadata):  # type: ignore[misc]  # vLLM's types are not followed
    """The message from the scheduler to the workers with each step."""

    loads: list[Load]


class OpenSegments:
    """The segments that the scheduler has open, by request.

    Args:
        row_bytes: The bytes of one row of an embedding.
        num_steps: The most steps that may be dispatched to the workers at the same time.
        report_lost: Called with a request's name when one of its segments cannot be opened.
    """

    def __init__(self, row_bytes: int, num_steps: int, report_lost: Callable[[str], None]) -> None:
        self._row_bytes = row_bytes
        self._num_steps = num_steps
        self._report_lost = report_lost
        self._open: dict[str, Segments] = {}
        self._lost: set[str] = set()
        self._ended: list[Segment] = []
        self._closing: deque[list[Segment]] = deque()

    def open(self, request_id: str, num_rows: Iterable[tuple[str, int]], addresses: dict[str, Any] | None) -> bool:
        """Opens the segments of a request, unless they are open already.

        Args:
            request_id: vLLM's name of the request.
            num_rows: Pairs of an embedding's name and its number of rows. A name may occur more than once.
            addresses: The addresses of the segments by the embeddings' names.

        Returns:
            True if all segments are open. False if one is gone; then ``report_lost`` is called, once per request.
        """
        if request_id in self._open:
            return True
        if request_id in self._lost:
            return False
        segments: Segments = {}
        try:
            for identifier, rows in num_rows:
                if identifier not in segments:
                    address = Address(*(addresses or {})[identifier])
                    segments[identifier] = Segment.opened(address, rows * self._row_bytes)
        except (LookupError, OSError, TypeError):
            self._ended.extend(segments.values())
            self._lost.add(request_id)
            self._report_lost(request_id)
            return False
        self._open[request_id] = segments
        return True

    def take_lost(self) -> set[str]:
        """The requests that vLLM must fail. Each is given once."""
        lost, self._lost = self._lost, set()
        return lost

    def path(self, request_id: str, identifier: str) -> str:
        """The path by which workers map an open segment."""
        return self._open[request_id][identifier].path

    def end(self, request_id: str) -> None:
        """Notes that a request is over. Steps that are already dispatched may still need its segments."""
        self._ended.extend(self._open.pop(request_id, {}).values())

    def step(self) -> None:
        """Notes that a step begins, and closes the segments that no dispatched step can need any more."""
        self._closing.append(self._ended)
        self._ended = []
        if len(self._closing) > self._num_steps:
            for segment in self._closing.popleft():
                segment.close()


class SharedMemoryConnector(ECConnectorBase):  # type: ignore[misc]
    """vLLM makes one of these in its scheduler and one in each worker."""

    def __init__(self, vllm_config: VllmConfig, role: ECConnectorRole) -> None:
        super().__init__(vllm_config, role)
        model = vllm_config.model_config
        self._width, self._dtype = model.get_inputs_embeds_size(), model.dtype
        self._loads: list[Load] = []
        if role is ECConnectorRole.SCHEDULER:
            allow_many_files()
            settings = vllm_config.ec_transfer_config.ec_connector_extra_config
            self._losses = os.open(settings["losses"], os.O_WRONLY | os.O_NONBLOCK)
            row_bytes = self._width * self._dtype.itemsize
            self._open_segments = OpenSegments(row_bytes, vllm_config.max_concurrent_batches, self._report_lost)

    # In the scheduler.

    def ensure_cache_available(self, request: Request, num_computed_tokens: int) -> bool:
        """vLLM calls this before each step of a request: whether all of the request's embeddings are open here."""
        del num_computed_tokens  # tokens that are cached now may have to be computed again after a preemption
        num_rows = ((feature.identifier, feature.mm_position.get_num_embeds()) for feature in request.mm_features)
        return self._open_segments.open(request.request_id, num_rows, request.ec_transfer_params)

    def take_unavailable_requests(self) -> set[str]:
        """The requests that vLLM must fail."""
        return self._open_segments.take_lost()

    def has_cache_item(self, identifier: str) -> bool:
        """True for every embedding. vLLM asks only about requests whose embeddings are all open, and there is no
        vision tower that could make one."""
        del identifier
        return True

    def update_state_after_alloc(self, request: Request, index: int) -> None:
        """vLLM calls this when the workers' caches have room for an embedding: they will map it in this step."""
        identifier = request.mm_features[index].identifier
        path = self._open_segments.path(request.request_id, identifier)
        self._loads.append(Load(identifier, path, request.get_num_encoder_embeds(index)))

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> Loads:
        """The message to the workers for this step."""
        del scheduler_output
        self._open_segments.step()
        loads, self._loads = self._loads, []
        return Loads(loads)

    def request_finished(self, request: Request) -> tuple[bool, None]:
        """vLLM calls this when a request has ended, with or without success."""
        self._open_segments.end(request.request_id)
        return False, None

    def _report_lost(self, request_id: str) -> None:
        with suppress(OSError):  # the pipe is full or closed: nobody reads it
            os.write(self._losses, f"{request_id}\n".encode())

    # In each worker.

    def start_load_caches(self, encoder_cache: dict[str, torch.Tensor], **kwargs: Any) -> None:
        """Maps the embeddings of this step as [num_rows, width]. On a CPU the mapping itself is the tensor; a GPU
        gets a copy."""
        del kwargs
        device = current_platform.device_type
        for identifier, path, num_rows in self._get_connector_metadata().loads:
            # A private mapping: nothing that a worker writes can reach another process.  [num_rows · width]
            numbers = torch.from_file(path, shared=False, size=num_rows * self._width, dtype=self._dtype)
            with gpu_sync_allowed():
                encoder_cache[identifier] = numbers.view(num_rows, self._width).to(device)

    def save_caches(self, encoder_cache: dict[str, torch.Tensor], mm_hash: str, **kwargs: Any) -> None:
        """Does nothing, because embeddings come from the encoder pool."""
