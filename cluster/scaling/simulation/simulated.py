"""The four pools of a simulated cluster.

Router ──> Decoder ──> VisionEncoder ──> Preprocessor. With a vision tower in the decoders (colocated), they call the
preprocessors themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cluster.scaling.simulation.engine import DecoderReplica
from cluster.scaling.simulation.events import EventClock
from cluster.scaling.simulation.picture_path import PicturePath
from cluster.scaling.simulation.replicas import One, PoolSize, ReplicaPool
from cluster.scaling.simulation.servers import EncoderReplica, PreprocessorReplica, RouterReplica

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping, Sequence

    from cluster.messages import Replica
    from cluster.scaling.simulation.speeds import Speeds


class SimulatedCluster:
    """The four pools, and the way of pictures between them.

    Args:
        speeds: The speeds of the replicas.
        sizes: The sizes of the pools, by name.
        draw: The source of chance.
        starts_s: The seconds of the first starts of each pool, by name. Further starts, and pools that are not in it,
            take the time that the speeds give.
    """

    def __init__(
        self,
        speeds: Speeds,
        sizes: Mapping[str, PoolSize],
        draw: random.Random,
        starts_s: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        clock: Final = EventClock()
        self.clock: Final = clock

        def pool(name: str, make: Callable[[Replica], One]) -> ReplicaPool[One]:
            most = speeds.max_ongoing_requests(name)
            first_starts_s = (starts_s or {}).get(name, ())
            return ReplicaPool(
                name,
                clock,
                sizes[name],
                make,
                start_s=speeds.start_s(name),
                max_ongoing=most,
                first_starts_s=first_starts_s,
            )

        self.routers: Final = pool(
            "router", lambda name: RouterReplica(name, clock, speeds.router, speeds.report_period_s)
        )
        self.preprocessors: Final = pool(
            "preprocessor", lambda name: PreprocessorReplica(name, clock, speeds.preprocessor)
        )
        self.encoders: Final = pool("encoder", lambda name: EncoderReplica(name, clock, speeds.encoder))
        self.decoders: Final = pool(
            "decoder", lambda name: DecoderReplica(name, clock, speeds.decoder, speeds.load_factor)
        )
        self.pools: Final[tuple[ReplicaPool[Any], ...]] = (
            self.routers,
            self.preprocessors,
            self.encoders,
            self.decoders,
        )
        self.pictures: Final = PicturePath(clock, self.encoders, self.preprocessors, draw, speeds.picture_path_s)
