"""The gates of one Router in front of the encoders and the decoders: the room of these pools, and the wait for it.

In: a request, first when its body has been read, and again when its pictures are known. Out: a refusal, a wait, or the
pass of its answer.
"""

from __future__ import annotations

import asyncio
import math
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from cluster.admission.cost import cost_of
from cluster.admission.stages import StageGates
from cluster.checkpoint import Checkpoint
from cluster.scaling.readings import HELD
from deployments.ray_serve.replicas import max_calls

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ray.serve.handle import DeploymentHandle

    from cluster.access_log import AccessRecord
    from cluster.admission.cost import RequestCost
    from cluster.admission.gate import Pass
    from cluster.admission.kept import KeptPictures
    from cluster.admission.slots import Slot
    from cluster.config import PrismConfig
    from cluster.deadline import Deadline
    from cluster.messages import Call, Endpoint
    from cluster.request import ClientRequest

ENCODER_PATCHES: Final = 32_768
"""All Routers send an encoder so many patches at a time. A GPU takes a tenth of a second for them, so it is never idle
while pictures wait."""
UNEVEN: Final = 1.25
"""The load of several Routers is never quite even. Each may use so much more than its share of a stage."""
USUAL_PATCHES: Final = 1024.0
"""The patches of a picture, until the first ones have come."""
LATEST_WEIGHT: Final = 0.05
"""The weight of the latest picture in their mean."""


class PoolGates:
    """Bounds the work that one Router has at the encoders and the decoders.

    Attributes:
        stages: The gates themselves.

    Args:
        config: The configuration.
        own_pool: The Routers.
        pools: The other pools by their names.
    """

    def __init__(
        self, config: PrismConfig, own_pool: DeploymentHandle[Any], pools: Mapping[str, DeploymentHandle[Any]]
    ) -> None:
        self._config: Final = config
        self._own_pool: Final = own_pool
        self._pools: Final = pools
        self._settings: Final = Checkpoint(config.model).processor
        self._usual_patches = USUAL_PATCHES
        self.stages = StageGates(self.encoder_patches, self.decoder_sequences)

    def judge(
        self,
        endpoint: Endpoint,
        request: ClientRequest,
        raw: bytes,
        deadline: Deadline,
        record: AccessRecord,
        *,
        max_wait_s: float,
        num_free_slots: int,
    ) -> None:
        """Refuses a request that would wait too long, before any work is done for its pictures. Their sizes are not
        known yet, so each counts as a usual one.

        Raises:
            Overloaded: It would wait too long.
        """
        usual_patches = int(self._usual_patches * len(request.pictures))
        self.stages.judge(
            record.tenant,
            self._cost(endpoint, request.body, len(raw) - request.num_url_chars, usual_patches),
            raw,
            record.priority,
            max_wait_s=max_wait_s,
            left_s=deadline.at_s - asyncio.get_running_loop().time(),
            num_free_slots=num_free_slots,
        )

    async def enter(
        self,
        call: Call,
        kept: KeptPictures,
        num_text_bytes: int,
        slot: Slot,
        deadline: Deadline,
        record: AccessRecord,
    ) -> Pass | None:
        """Waits until the encoders and the decoders have room. Gives the pass of the answer, if it needs one.

        Raises:
            DeadlineExceeded: There was no room in time.
        """
        patches = [self._settings.num_patches(picture.num_pixels) for picture in kept.pictures]
        for num_patches in patches:
            self._usual_patches += LATEST_WEIGHT * (num_patches - self._usual_patches)
        cost = self._cost(call.endpoint, call.body, num_text_bytes, sum(patches))
        if not cost.num_sequences:
            return None
        try:
            async with asyncio.timeout_at(deadline.at_s):
                pictures, answer, has_waited = await self.stages.enter(slot, record.tenant, cost, record.priority)
        except TimeoutError:
            raise deadline.exceeded(cause="waiting in the Router") from None
        if has_waited:
            record.waterfall.reach("admission")
        if pictures is not None:
            kept.when_released = partial(pictures.leave, is_done=True)
        return answer

    def num_held(self) -> dict[str, float]:
        """Returns the number of requests that wait here, by the policy's names (``HELD``). Requests that wait for
        encoders count for the preprocessors too. First it lets in those for which there is room now."""
        self.stages.look()
        for_pictures = float(self.stages.encoder.num_waiting)
        return {
            HELD["Decoder"]: float(self.stages.decoder.num_waiting),
            HELD["VisionEncoder"]: for_pictures,
            HELD["Preprocessor"]: for_pictures,
        }

    def decoder_sequences(self) -> float:
        """The sequences that this Router may have at the decoders. Without a running decoder there is no limit, because
        calls that wait at Serve wake the pool."""
        limits = max_calls(self._pools["decoder"])
        num_sequences = sum(min(self._config.decoder.max_num_seqs, limit) for limit in limits)
        return self._own_share(num_sequences) if limits else math.inf

    def encoder_patches(self) -> float:
        """The patches that this Router may have in preparation; see ``decoder_sequences``."""
        num_encoders = len(max_calls(self._pools["encoder"]))
        return self._own_share(num_encoders * ENCODER_PATCHES) if num_encoders else math.inf

    def _own_share(self, of_all: float) -> float:
        num_routers = len(max_calls(self._own_pool))
        return of_all if num_routers <= 1 else max(1.0, UNEVEN * of_all / num_routers)

    def _cost(self, endpoint: Endpoint, body: dict[str, Any], num_text_bytes: int, num_patches: int) -> RequestCost:
        max_tokens = self._config.model.max_model_len
        return cost_of(endpoint, body, num_text_bytes=num_text_bytes, num_patches=num_patches, max_tokens=max_tokens)
