"""Checks that the replicas of an application fit into the worker groups that KubeRay makes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.serve._private.build_app import build_app

from cluster.config import PrismConfig
from deployments.app import build

if TYPE_CHECKING:
    from collections.abc import Mapping

RAY_UNIT = 10_000
"""Ray counts resources in ten-thousandths, so that 0.1 + 0.2 is 0.3."""


@dataclass(frozen=True)
class Pool:
    """The replicas of one deployment; each needs ``resources`` on a single node that carries ``label``.

    The replacements that Serve starts before it stops old replicas (``max_surge_percent``) count too.
    """

    name: str
    num_replicas: int
    label: str | None
    resources: Mapping[str, float]


@dataclass(frozen=True)
class Group:
    """The nodes of one worker group, as Ray's autoscaler sees them."""

    name: str
    num_nodes: int
    label: str | None
    resources: Mapping[str, float]


def pools_of(application: Mapping[str, Any]) -> list[Pool]:
    """Returns the pools of an application file's content with the resources that they ask of Ray. Ray need not run."""
    [content] = application["applications"]
    said = {deployment["name"]: deployment for deployment in content.get("deployments", [])}
    built = deployments_of(PrismConfig.model_validate(content["args"]))
    return [_pool(deployment, said.get(deployment.name, {})) for deployment in built]


def deployments_of(config: PrismConfig) -> list[Any]:
    """Returns the built application's Serve deployments, before ``deployments:`` of the application file is applied."""
    return list(build_app(build(config), name="prism").deployments)


def groups_of(rayservice: Mapping[str, Any]) -> dict[str, Group]:
    """Returns the head group (``headgroup``) and the worker groups by name, with the resources that Ray's own KubeRay
    autoscaler computes for them.

    The count of a group is the number of nodes that run before the autoscaler adds any.
    """
    cluster = {"metadata": {"name": "prism", "namespace": "default"}, "spec": rayservice["spec"]["rayClusterConfig"]}
    node_types = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    return {
        name: Group(name, node["min_workers"], node["labels"].get("pool"), node["resources"])
        for name, node in node_types.items()
    }


def num_unplaced(pool: Pool, group: Group) -> int:
    """Returns the number of a pool's replicas for which a group has no room. A pool has a group to itself, so filling
    one node after the other is optimal."""
    per_node = min(
        math.floor(round(group.resources.get(name, 0) * RAY_UNIT) / round(amount * RAY_UNIT))
        for name, amount in pool.resources.items()
        if amount
    )
    return max(0, pool.num_replicas - per_node * group.num_nodes)


def _pool(deployment: Any, said: Mapping[str, Any]) -> Pool:
    replica = deployment._replica_config
    actor = replica.ray_actor_options
    if replica.placement_group_bundles:
        raise NotImplementedError(f"{deployment.name} has a placement group; count its bundles one by one then")
    resources = {"CPU": actor["num_cpus"], "GPU": actor.get("num_gpus", 0), "memory": actor.get("memory", 0)}
    target = said.get("num_replicas") or said.get("autoscaling_config", {}).get("min_replicas", 1)
    num_replicas = target + math.ceil(target * said.get("max_surge_percent", 0) / 100)
    return Pool(deployment.name, num_replicas, actor.get("label_selector", {}).get("pool"), resources)
