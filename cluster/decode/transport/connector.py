"""vLLM's end of the shared way in: an encoder-cache connector that finds segments by the addresses in a request.

The scheduler opens the segments of a request before it first schedules it, and the workers map them through the
scheduler. So what was found once is there until the request is over and no step that is on its way can want it, whoever
lets go of it meanwhile; and what is not found fails one request. vLLM's processes load this module by its name.
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
    """An embedding that workers are to map: its name in vLLM's caches, where it is, and its rows."""

    identifier: str
    path: str
    num_rows: int


@dataclass
class Loads(ECConnectorMetadata):  # type: ignore[misc]  # vLLM's types are not followed
    """What the scheduler tells the workers with a step."""

    loads: list[Load]


class OpenSegments:
    """The segments that the scheduler has open, request by request.

    Args:
        row_bytes: What a row of an embedding has to take.
        num_steps: How many steps may be on their way to the workers at a time.
        report_lost: Called with a request's name when a segment of its cannot be opened.
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
        """Opens a request's segments, unless they are; False if one is gone, which is then reported once.

        Args:
            request_id: vLLM's name of the request.
            num_rows: The rows of each of its embeddings, which may stand there more than once.
            addresses: Where its segments are.
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
        """The requests that are to fail, each once."""
        lost, self._lost = self._lost, set()
        return lost

    def path(self, request_id: str, identifier: str) -> str:
        """Where workers find a segment that is open."""
        return self._open[request_id][identifier].path

    def end(self, request_id: str) -> None:
        """A request is over; steps that are on their way may still want its segments."""
        self._ended.extend(self._open.pop(request_id, {}).values())

    def step(self) -> None:
        """A step begins; what ended so many steps ago is wanted by none."""
        self._closing.append(self._ended)
        self._ended = []
        if len(self._closing) > self._num_steps:
            for segment in self._closing.popleft():
                segment.close()


class SharedMemoryConnector(ECConnectorBase):  # type: ignore[misc]
    """Made by vLLM once in its scheduler and once in each worker."""

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
            self._openings = OpenSegments(row_bytes, vllm_config.max_concurrent_batches, self._report_lost)

    # In the scheduler.

    def ensure_cache_available(self, request: Request, num_computed_tokens: int) -> bool:
        """Whether all of a request's embeddings are open here; asked before each of its steps."""
        del num_computed_tokens  # what is in the prefix cache now may have to be computed again after a preemption
        num_rows = ((feature.identifier, feature.mm_position.get_num_embeds()) for feature in request.mm_features)
        return self._openings.open(request.request_id, num_rows, request.ec_transfer_params)

    def take_unavailable_requests(self) -> set[str]:
        """The requests that vLLM is to fail."""
        return self._openings.take_lost()

    def has_cache_item(self, identifier: str) -> bool:
        """Always: a request whose embeddings are not all there does not get so far, and there is no tower to make them."""
        del identifier
        return True

    def update_state_after_alloc(self, request: Request, index: int) -> None:
        """There is room for an embedding in the workers' caches: they are to load it with this step."""
        identifier = request.mm_features[index].identifier
        path = self._openings.path(request.request_id, identifier)
        self._loads.append(Load(identifier, path, request.get_num_encoder_embeds(index)))

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> Loads:
        """What goes to the workers with this step."""
        del scheduler_output
        self._openings.step()
        loads, self._loads = self._loads, []
        return Loads(loads)

    def request_finished(self, request: Request) -> tuple[bool, None]:
        """A request has ended, well or not."""
        self._openings.end(request.request_id)
        return False, None

    def _report_lost(self, request_id: str) -> None:
        with suppress(OSError):  # nobody has read of thousands that were lost before, or there is nobody any more
            os.write(self._losses, f"{request_id}\n".encode())

    # In each worker.

    def start_load_caches(self, encoder_cache: dict[str, torch.Tensor], **kwargs: Any) -> None:
        """Maps this step's embeddings. On a CPU the mapping itself is the tensor, [num_rows, width]; a GPU gets a copy."""
        del kwargs
        device = current_platform.device_type
        for identifier, path, num_rows in self._get_connector_metadata().loads:
            # A private mapping: what a worker might write into it stays its own.
            numbers = torch.from_file(path, shared=False, size=num_rows * self._width, dtype=self._dtype)
            with gpu_sync_allowed():
                encoder_cache[identifier] = numbers.view(num_rows, self._width).to(device)

    def save_caches(self, encoder_cache: dict[str, torch.Tensor], mm_hash: str, **kwargs: Any) -> None:
        """Nothing is ever saved: embeddings come from the encoder pool."""
