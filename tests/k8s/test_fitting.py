"""Every pool fits its worker group, counted by Ray's own KubeRay autoscaler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.k8s.fitting import Group, Pool, groups_of, num_unplaced, pools_of

if TYPE_CHECKING:
    from tests.helpers.k8s.manifests import Object


def _unplaced(rayservice: Object, application: Object) -> dict[str, int]:
    """Returns the number of replicas without room by the label of their pool. Pools that fit are left out."""
    groups = {group.label: group for group in groups_of(rayservice).values()}
    unplaced = {str(pool.label): num_unplaced(pool, groups[pool.label]) for pool in pools_of(application)}
    return {label: num for label, num in unplaced.items() if num}


def test_every_pool_fits_its_worker_group(rayservice: Object, application: Object) -> None:
    """The nodes of its worker group have room for all replicas of a pool at the same time, each replica on one node."""
    assert _unplaced(rayservice, application) == {}


def test_a_worker_group_serves_exactly_one_pool(rayservice: Object, application: Object) -> None:
    """Pools and worker groups match one to one by the label `pool`, which is also the group's name."""
    groups = [group for name, group in groups_of(rayservice).items() if name != "headgroup"]
    wanted = [pool.label for pool in pools_of(application)]
    assert sorted(str(group.label) for group in groups) == sorted(map(str, wanted))
    assert [group.label for group in groups] == [group.name for group in groups]


def test_the_head_offers_no_cpu(rayservice: Object) -> None:
    """No replica can land on the head, where the control plane runs."""
    head = groups_of(rayservice)["headgroup"]
    assert (head.resources["CPU"], head.resources.get("GPU", 0)) == (0, 0)


def test_group_sizes_stand_still_without_an_autoscaler(rayservice: Object) -> None:
    """Without an autoscaler, the three counts of a group are equal."""
    cluster = rayservice["spec"]["rayClusterConfig"]
    assert cluster["enableInTreeAutoscaling"] is False
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]


@pytest.mark.parametrize(
    ("pool", "changes"),
    [
        ("encoder", {"resources": {"num_cpus": 0.6, "pool_label": "encoder"}}),
        ("preprocessor", {"resources": {"num_cpus": 0.4, "memory_bytes": 2**40, "pool_label": "preprocessor"}}),
        ("decoder", {"device": "cuda"}),
        ("decoder", {"device": "cuda", "tensor_parallel_size": 2}),
    ],
)
def test_a_pool_that_is_too_big_is_caught(
    rayservice: Object, application: Object, pool: str, changes: dict[str, Any]
) -> None:
    """A CPU, byte or GPU too many leaves replicas without room in that pool and in no other."""
    application["applications"][0]["args"][pool] |= changes
    assert _unplaced(rayservice, application).keys() == {pool}


def test_a_replica_too_many_is_caught(rayservice: Object, application: Object) -> None:
    """Two decoders and their two replacements need more than the decoders' node has."""
    [decoder] = [each for each in application["applications"][0]["deployments"] if each["name"] == "Decoder"]
    decoder["autoscaling_config"]["min_replicas"] = 2
    assert _unplaced(rayservice, application) == {"decoder": 2}


@pytest.mark.parametrize(
    ("num_replicas", "cpus", "num_nodes", "node_cpus", "unplaced"),
    [
        (3, 1.2, 2, 2, 1),  # 3.6 of 4 CPUs in all, yet a node takes one replica only
        (2, 1.2, 2, 2, 0),
        (10, 0.1, 1, 1, 0),  # ten times 0.1 is 1, whatever floating point says
        (4, 0.3, 1, 1, 1),
        (1, 3, 2, 2, 1),
    ],
)
def test_a_replica_is_never_spread_over_nodes(
    num_replicas: int, cpus: float, num_nodes: int, node_cpus: int, unplaced: int
) -> None:
    """Free resources of two nodes do not add up to room for one replica."""
    pool = Pool("Decoder", num_replicas, "decoder", {"CPU": cpus})
    assert num_unplaced(pool, Group("decoder", num_nodes, "decoder", {"CPU": node_cpus})) == unplaced
