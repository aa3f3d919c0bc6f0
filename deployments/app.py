"""Builds the Serve application from the ``args:`` of an application file."""

# No `from __future__ import annotations` here: Serve reads the annotation of `build` as it stands, to validate the
# arguments.

from collections.abc import Sequence
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


def build(config: PrismConfig) -> Application:
    """Builds the application; Serve calls this with the ``args:``. A replica that is removed first finishes its
    requests.

    Raises:
        ValidationError: A key is unknown or a value is out of range; the message names it.
    """
    return compose(config, drain_s=config.router.request_timeout_s)


def compose(config: PrismConfig, *, drain_s: float) -> Application:
    """Builds the application: a Router and the three pools behind it.

    Args:
        config: The whole configuration.
        drain_s: How long a replica that is removed may still work on its requests.
    """
    labels = config.pool_labels
    common: dict[str, Any] = {"health_check_period_s": HEALTH_CHECK_PERIOD_S, "graceful_shutdown_timeout_s": drain_s}
    preprocessor = serve.deployment(**common, **pool_options(config.preprocessor, labels))(Preprocessor).bind(config)
    encoders = {**pool_options(config.encoder, labels), **routing_options(config.encoder.routing)}
    encoder = serve.deployment(**common, **encoders)(VisionEncoder).bind(config, preprocessor)
    decoders = {**pool_options(config.decoder, labels), **routing_options(config.decoder.routing)}
    decoder = serve.deployment(**common, **decoders)(Decoder).bind(config, encoder)
    router = serve.deployment(**common, **pool_options(config.router, labels))(serve.ingress()(Router))
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
    return {
        "num_replicas": pool.num_replicas,
        "max_ongoing_requests": pool.max_ongoing_requests,
        "ray_actor_options": actor,
    }


def resources_of(config: PrismConfig) -> dict[str, float]:
    """The CPUs and GPUs that all replicas of all pools reserve."""
    return {
        "CPU": sum(pool.num_replicas * pool.resources.num_cpus for pool in config.pools),
        "GPU": sum(pool.num_replicas * pool.num_gpus for pool in config.pools),
    }
