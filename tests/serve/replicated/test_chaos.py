"""A short form of chaos: processes die under a mixed load that other tests of this cluster leave alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadtest.chaos.killing import Killer
from loadtest.chaos.mix import make_requests
from loadtest.chaos.processes import ClusterProcesses
from loadtest.chaos.results import ChaosTally
from loadtest.chaos.running import chaos
from tests.helpers.launching import replicas

if TYPE_CHECKING:
    from tests.helpers.launching import Launched

KINDS = ("child:kill", "haproxy:kill", "controller:kill")
SEED = 15


async def test_nothing_is_lost_while_processes_die(launched: Launched) -> None:
    """A preprocessor's child, HAProxy and Serve's controller die under load, one after the other. Every
    request gets the answer of the undisturbed run or a typed error, and a connection that HAProxy's death cuts gets its
    answer by a plain retry. The controller that starts again keeps the decoders that run."""
    requests = make_requests(16, seed=SEED, model="prism-demo", timeout_s=60)
    killer = Killer(launched.url, ClusterProcesses(launched.root), SEED)
    decoders = {process.pid for process in replicas(launched.root, "Decoder", at_least=2)}
    tally = ChaosTally.of(await chaos(killer, launched.url, requests, KINDS, num_workers=3, seed=SEED))
    assert tally.is_good, tally.text()
    assert set(tally.whole_s) == set(KINDS)
    assert {process.pid for process in replicas(launched.root, "Decoder", at_least=2)} == decoders
