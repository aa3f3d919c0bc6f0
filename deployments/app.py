"""Builds the Serve application from the ``args:`` of an application file."""

# No `from __future__ import annotations` here: Serve reads the annotation of `build` as it stands, to validate the
# arguments.

from collections.abc import Mapping, Sequence
from typing import Any

from ray import serve
from ray.serve import Application

from cluster.config import PoolConfig, PrismConfig
from deployments.decoder import Decoder
from deployments.encoder import VisionEncoder
from deployments.preprocessor import Preprocessor
from deployments.ray_serve.request_routers import routing_options
from deployments.router import Router

HEALTH_CHECK_PERIOD_S = 2.0
"""Seconds. Serve replaces a replica after three failed checks. Until then a dead replica attracts requests, because
its queue is short."""
HEALTH_CHECK_TIMEOUT_S = 3.0
"""Seconds. A check that is not answered by then has failed. No check waits for work, so only a process that does not
run its event loop for 9 s in a row fails three of them. Serve's default of 30 s would leave requests with it for
minutes."""
DECODER_CHECK_TIMEOUT_S = 10.0
"""Seconds, in place of ``HEALTH_CHECK_TIMEOUT_S``. A decoder's event loop makes whole answers of up to 16 MiB, each in
seconds, and several that end in one step of the engine come without a pause. An engine that is stuck is noticed by the
decoder itself."""
MAX_ONGOING_REQUESTS = 64
MAX_ONGOING_HTTP_REQUESTS = 1024
"""The calls that one replica works on at a time unless ``deployments:`` says otherwise. A Router's calls are HTTP
requests of every kind, also such as ``/health``."""


USER_CONFIG: dict[str, Any] = {}
"""The default ``user_config`` of a deployment. It must not be None: Serve tells running replicas nothing when a
``user_config`` becomes None, so they would keep the old settings."""


def build(config: PrismConfig) -> Application:
    """Builds the application from the ``args:``: a Router and the three pools behind it.

    Serve calls this, and then applies what the application file says below ``deployments:``. A replica that is removed
    first finishes its requests.

    Raises:
        ValidationError: A key is unknown or a value is out of range; the message names it.
    """
    labels = config.pool_labels
    common: dict[str, Any] = {
        "health_check_period_s": HEALTH_CHECK_PERIOD_S,
        "health_check_timeout_s": HEALTH_CHECK_TIMEOUT_S,
        "graceful_shutdown_timeout_s": config.router.request_timeout_s,
        "max_ongoing_requests": MAX_ONGOING_REQUESTS,
    }
    preprocessor = serve.deployment(**common, **pool_options(config.preprocessor, labels))(Preprocessor).bind(config)
    encoders = {**pool_options(config.encoder, labels), **routing_options(config.encoder.routing)}
    encoder = serve.deployment(**common, **encoders, user_config=USER_CONFIG)(VisionEncoder).bind(config, preprocessor)
    decoders = {**pool_options(config.decoder, labels), **routing_options(config.decoder.routing)}
    decoders = {**common, **decoders, "health_check_timeout_s": DECODER_CHECK_TIMEOUT_S}
    decoder = serve.deployment(**decoders)(Decoder).bind(config, encoder)
    routers = {**common, **pool_options(config.router, labels), "max_ongoing_requests": MAX_ONGOING_HTTP_REQUESTS}
    router = serve.deployment(**routers, user_config=USER_CONFIG)(serve.ingress()(Router))
    return router.bind(config, preprocessor=preprocessor, encoder=encoder, decoder=decoder)


def pool_options(pool: PoolConfig, labels: Sequence[str]) -> dict[str, Any]:
    """Serve's options for a pool. Each replica is one Ray actor, so all its GPUs are on one node.

    Args:
        pool: The pool's part of the configuration.
        labels: The Ray labels of all pools. A pool whose own nodes are full or missing may use nodes without such a
            label.
    """
    resources = pool.resources
    actor: dict[str, Any] = {"num_cpus": resources.num_cpus, "num_gpus": pool.num_gpus}
    if resources.memory_bytes is not None:
        actor["memory"] = resources.memory_bytes
    if resources.pool_label is not None:
        actor["label_selector"] = {"pool": resources.pool_label}
        if not resources.pool_label_required:
            actor["fallback_strategy"] = [{"label_selector": {"pool": f"!in({','.join(labels)})"}}]
    return {"ray_actor_options": actor}


def resources_of(config: PrismConfig, num_replicas: Mapping[str, int]) -> dict[str, float]:
    """The CPUs and GPUs that all replicas of all pools reserve.

    Args:
        config: The ``args:``.
        num_replicas: The number of replicas of each deployment, by its name.
    """
    return {
        "CPU": sum(num_replicas[pool.deployment] * pool.resources.num_cpus for pool in config.pools),
        "GPU": sum(num_replicas[pool.deployment] * pool.num_gpus for pool in config.pools),
    }
