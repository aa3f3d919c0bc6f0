"""Says in plain words what is wrong with the entries below ``deployments:`` of an application file.

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
