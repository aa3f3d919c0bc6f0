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
"""Every ``autoscaling_config`` must say this if ``POLICY`` decides. By default Serve tells a policy about the load up
to 20 s late, and carries out its answer 30 s or 10 minutes later. The policy has delays of its own."""
BOUNDS: Final = frozenset({"min_replicas", "max_replicas", "upscaling_factor", "downscaling_factor"})
MAY_BE_EMPTY: Final = ("Preprocessor", "VisionEncoder")
"""The pools that may have no replica. A call starts one."""
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
    policy, where = application.get("autoscaling_policy"), "applications.autoscaling_policy"
    entries = application.get("deployments") or []
    by_name = {str(entry.get("name")): entry for entry in entries if isinstance(entry, dict)}
    if policy is None:
        tuned = by_name.get("Router", {}).get("user_config")
        if isinstance(tuned, dict) and tuned.get("scaling") == "act":
            yield f"{PATH}.user_config.scaling: act needs the application's autoscaling_policy {POLICY}"
        return
    if not isinstance(policy, dict) or policy.get("policy_function") != POLICY:
        yield f"{where}.policy_function: it must be {POLICY}; leave autoscaling_policy out for Serve's own policy"
        return
    yield from _start_problems(policy.get("policy_kwargs") or {}, f"{where}.policy_kwargs")
    if not by_name.get("Router", {}).get("autoscaling_config"):
        yield f"{where}: it needs an autoscaling_config of Router, because Routers tell it its settings"
    for name, entry in by_name.items():
        if isinstance(config := entry.get("autoscaling_config"), dict):
            yield from _measuring_problems(name, config)
        elif entry.get("num_replicas") == "auto":
            yield f"{PATH}.num_replicas: leave it out for {name} and give it an autoscaling_config"


def _start_problems(options: object, where: str) -> Iterator[str]:
    if not isinstance(options, dict) or options.keys() - {"start_s"}:
        yield f"{where}: it may hold start_s only; the Router's user_config has the policy's settings"
        return
    starts_s = options.get("start_s", {})
    if not isinstance(starts_s, dict) or not all(
        name in DEPLOYMENTS and type(start_s) in (int, float) and 0 < start_s <= MAX_START_S
        for name, start_s in starts_s.items()
    ):
        yield f"{where}.start_s: it must give seconds, up to {MAX_START_S}, by names of deployments"


def _measuring_problems(name: str, config: Mapping[str, Any]) -> Iterator[str]:
    where = f"{PATH}.autoscaling_config"
    for key, value in MEASURED.items():
        if config.get(key) != value or isinstance(config.get(key), bool):
            yield f"{where}.{key}: it must be {value} for {name}, because Prism's policy decides"
    for key in sorted(config.keys() - MEASURED.keys() - BOUNDS, key=str):
        yield f"{where}.{key}: leave it out for {name}; Prism's policy does not use it"
    for key in ("upscaling_factor", "downscaling_factor"):
        factor = config.get(key, 1)
        if type(factor) is not int or factor not in (1, 2, 4, 8, 16):
            yield f"{where}.{key}: it must be 1, 2, 4, 8 or 16, not {str(factor)[:80]}"
    if config.get("min_replicas") == 0 and name not in MAY_BE_EMPTY:
        yield f"{where}.min_replicas: it must be at least 1 for {name}; only {' and '.join(MAY_BE_EMPTY)} may be empty"
    if isinstance(most := config.get("max_replicas"), int) and most > MAX_REPLICAS:
        yield f"{where}.max_replicas: it must be at most {MAX_REPLICAS}"


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
