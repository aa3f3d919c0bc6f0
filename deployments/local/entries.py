"""Says in plain words what is wrong with the policy and with the entries below ``deployments:`` of an application.

It knows what only ``deployments.app`` may set, and what Serve would refuse or misread later than its schema does.
"""

from __future__ import annotations

import difflib
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from ray.serve.schema import DeploymentSchema

from cluster.config import USER_CONFIGS, PrismConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DEPLOYMENTS: Final = tuple(pool.deployment for pool in PrismConfig().pools)
PATH: Final = "applications.deployments"

SETTABLE: Final = frozenset(
    {
        "name",
        "num_replicas",
        "autoscaling_config",
        "max_ongoing_requests",
        "user_config",
        "max_surge_percent",
        "rolling_update_percentage",
        "graceful_shutdown_timeout_s",
        "graceful_shutdown_wait_loop_s",
        "health_check_period_s",
        "health_check_timeout_s",
        "max_replicas_per_node",
        "logging_config",
    }
)
"""The keys that an entry may have. ``deployments.app`` sets the others, and Serve would replace what it has set as a
whole: a decoder with ``ray_actor_options`` here would have no GPUs."""
POLICY: Final = "deployments.ray_serve.autoscaling:JointScaling"
MEASURED: Final = {"upscale_delay_s": 0, "downscale_delay_s": 0, "metrics_interval_s": 1, "look_back_period_s": 10}
"""What every ``autoscaling_config`` must say if ``POLICY`` decides. By default Serve tells a policy about the load up
to 20 s late, and carries out its answer 30 s or 10 minutes later. The policy has delays of its own."""
BOUNDS: Final = frozenset({"min_replicas", "max_replicas", "upscaling_factor", "downscaling_factor"})
MAX_START_S: Final = 3600
MAX_REPLICAS: Final = 10_000
MAX_REPLICAS_PER_NODE: Final = 100


def entry_problems(entries: object) -> Iterator[str]:
    """Yields a sentence for each thing that is wrong with the value of ``deployments:``."""
    if not isinstance(entries, list):
        yield f"{PATH}: it must be a list of mappings, each with a name"
        return
    for entry in entries:
        if isinstance(entry, dict):
            yield from _problems(entry)
        else:
            yield f"{PATH}: each entry must be a mapping with a name, not {str(entry)[:80]}"
    names = Counter(str(entry.get("name")) for entry in entries if isinstance(entry, dict))
    yield from (f"{PATH}.name: {name} is there {count} times" for name, count in names.items() if count > 1)


def policy_problems(application: Mapping[str, Any]) -> Iterator[str]:
    """Yields a sentence for each thing that keeps the application's ``autoscaling_policy`` from working."""
    policy = application.get("autoscaling_policy")
    if policy is None:
        return
    where = "applications.autoscaling_policy"
    if not isinstance(policy, dict) or policy.get("policy_function") != POLICY:
        yield f"{where}.policy_function: it must be {POLICY}; leave autoscaling_policy out for Serve's own policy"
        return
    starts = (policy.get("policy_kwargs") or {}).get("start_s", {})
    if set(policy.get("policy_kwargs") or {}) - {"start_s"}:
        yield f"{where}.policy_kwargs: it may hold start_s only; the Router's user_config has the policy's settings"
    elif not isinstance(starts, dict) or not all(
        name in DEPLOYMENTS and isinstance(start_s, int | float) and 0 < start_s <= MAX_START_S
        for name, start_s in starts.items()
    ):
        yield f"{where}.policy_kwargs.start_s: it must give seconds, up to {MAX_START_S}, by names of deployments"
    entries = [entry for entry in application.get("deployments") or [] if isinstance(entry, dict)]
    bounds = {entry.get("name"): entry.get("autoscaling_config") for entry in entries}
    if not bounds.get("Router"):
        yield f"{where}: it needs an autoscaling_config of Router, because Routers tell it its settings"
    for name, config in bounds.items():
        if isinstance(config, dict):
            yield from _measuring_problems(str(name), config)


def _measuring_problems(name: str, config: Mapping[str, Any]) -> Iterator[str]:
    for key, value in MEASURED.items():
        if config.get(key) != value:
            yield f"{PATH}.autoscaling_config.{key}: it must be {value} for {name}, because Prism's policy decides"
    for key in sorted(config.keys() - MEASURED.keys() - BOUNDS, key=str):
        yield f"{PATH}.autoscaling_config.{key}: leave it out for {name}; Prism's policy does not use it"
    for key in ("upscaling_factor", "downscaling_factor"):
        factor = config.get(key, 1)
        if not (isinstance(factor, int) and factor in (1, 2, 4, 8, 16)):
            yield f"{PATH}.autoscaling_config.{key}: it must be 1, 2, 4, 8 or 16, not {str(factor)[:80]}"


def _problems(entry: Mapping[str, Any]) -> Iterator[str]:
    name = entry.get("name")
    if name not in DEPLOYMENTS and "name" in entry:
        near = difflib.get_close_matches(str(name), DEPLOYMENTS, 1)
        right = f"did you mean {near[0]}?" if near else f"there are {', '.join(DEPLOYMENTS)}"
        yield f"{PATH}.name: there is no {name}; {right}"
    for key in sorted(entry.keys() & DeploymentSchema.model_fields.keys() - SETTABLE):
        instead = "; say what a replica needs in args, in the pool's resources" if key == "ray_actor_options" else ""
        yield f"{PATH}.{key}: Prism sets this key itself; leave it out{instead}"
    bounds = entry.get("autoscaling_config")
    if "autoscaling_config" in entry and not isinstance(bounds, dict):
        yield f"{PATH}.autoscaling_config: it must be a mapping, not {str(bounds)[:80]}"
    elif bounds and "initial_replicas" in bounds:
        yield (
            f"{PATH}.autoscaling_config.initial_replicas: leave it out and raise min_replicas; "
            "after an incremental upgrade Serve would never go below it"
        )
    if "num_replicas" in entry and entry["num_replicas"] is None and not bounds:
        yield f"{PATH}.num_replicas: it must be a number, unless there is an autoscaling_config"
    if isinstance(num_replicas := entry.get("num_replicas"), int) and num_replicas > MAX_REPLICAS:
        yield f"{PATH}.num_replicas: it must be at most {MAX_REPLICAS}"
    per_node = entry.get("max_replicas_per_node", 1)
    if isinstance(per_node, int) and not 1 <= per_node <= MAX_REPLICAS_PER_NODE:
        yield f"{PATH}.max_replicas_per_node: it must be from 1 to {MAX_REPLICAS_PER_NODE}, not {per_node}"
    if "user_config" in entry and name in DEPLOYMENTS:
        yield from _user_config_problems(str(name), entry["user_config"])


def _user_config_problems(name: str, user_config: object) -> Iterator[str]:
    """Serve fails replicas that get a ``user_config`` and read none, and does not tell replicas that theirs is null."""
    if name not in USER_CONFIGS and not user_config:
        yield f"{PATH}.user_config: {name} has none; leave it out"
    elif not isinstance(user_config, dict):
        yield f"{PATH}.user_config: it must be a mapping, not {str(user_config)[:80]}; leave it out for the defaults"
