"""Builds the Serve application from the ``args:`` of an application file."""

# No `from __future__ import annotations` here: Serve reads the annotation of `build` as it stands, to validate the
# arguments.

from collections.abc import Sequence
from typing import Any

from ray import serve
from ray.serve import Application

from cluster.config import DecoderConfig, PoolConfig, PrismConfig
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
    decoders = {**decoder_options(config.decoder, labels), **routing_options(config.decoder.routing)}
    decoder = serve.deployment(**common, **decoders)(Decoder).bind(config, encoder)
    router = serve.deployment(**common, **pool_options(config.router, labels))(serve.ingress()(Router))
    return router.bind(config, preprocessor=preprocessor, encoder=encoder, decoder=decoder)


def pool_options(pool: PoolConfig, labels: Sequence[str]) -> dict[str, Any]:
    """Serve's options for a pool whose replicas each are one Ray actor.

    Args:
        pool: The pool's part of the configuration.
        labels: The Ray labels of all pools. A pool whose own nodes are full or missing may use nodes without such a
            label.
    """
    resources = pool.resources
    actor: dict[str, Any] = {"num_cpus": resources.num_cpus, "num_gpus": resources.num_gpus}
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


def decoder_options(pool: DecoderConfig, labels: Sequence[str]) -> dict[str, Any]:
    """Serve's options for decoders. On GPUs each tensor-parallel worker has one bundle, and all bundles are on one
    node."""
    options = pool_options(pool, labels)
    if pool.device == "cpu":
        return options
    actor = options["ray_actor_options"]
    if pool.tensor_parallel_size == 1:
        actor["num_gpus"] = 1
        return options
    cpus = actor["num_cpus"]
    first = {"CPU": cpus, "GPU": 1}
    options["placement_group_bundles"] = [first, *({"CPU": 1, "GPU": 1} for _ in range(pool.tensor_parallel_size - 1))]
    options["placement_group_strategy"] = "STRICT_PACK"
    if selector := actor.pop("label_selector", None):
        options["placement_group_bundle_label_selector"] = [selector]
    actor.pop("fallback_strategy", None)
    return options


def resources_of(config: PrismConfig) -> dict[str, float]:
    """The CPUs and GPUs that all replicas of all pools reserve."""
    total = {"CPU": 0.0, "GPU": 0.0}
    for pool in config.pools:
        options = decoder_options(pool, ()) if isinstance(pool, DecoderConfig) else pool_options(pool, ())
        actor = options["ray_actor_options"]
        for bundle in options.get("placement_group_bundles") or [{"CPU": actor["num_cpus"], "GPU": actor["num_gpus"]}]:
            for name, amount in bundle.items():
                total[name] += pool.num_replicas * amount
    return total
