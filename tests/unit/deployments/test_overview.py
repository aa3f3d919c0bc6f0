"""What operators ask about the cluster: one run at a time for all who ask, and a controller that hangs."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from cluster.errors import ControllerUnavailable, PoolUnavailable, RouteNotFound
from deployments import overview
from deployments.overview import ClusterOverview, SharedRun
from deployments.ray_serve.replica import ProcessMetrics
from deployments.ray_serve.replicas import PoolAnswers

if TYPE_CHECKING:
    from collections.abc import Iterator


class Runs:
    """A function that notes when it runs, and ends once it is told to."""

    def __init__(self) -> None:
        self.began_s: list[float] = []
        self.num_running = 0
        self.end = asyncio.Event()

    async def __call__(self) -> int:
        self.began_s.append(asyncio.get_running_loop().time())
        self.num_running += 1
        assert self.num_running == 1
        await self.end.wait()
        self.num_running -= 1
        return len(self.began_s)


@pytest.fixture
def short_pause(monkeypatch: pytest.MonkeyPatch) -> float:
    """Shortens the pause between runs, and returns it."""
    monkeypatch.setattr(overview, "PAUSE_S", 0.05)
    return 0.05


async def test_callers_share_a_run_that_began_after_they_asked(short_pause: float) -> None:
    """A hundred callers share one run. Those that come while it runs share the next one, which begins later."""
    runs = Runs()
    shared = SharedRun(runs)
    early = [asyncio.create_task(shared()) for _ in range(100)]
    while not runs.began_s:  # noqa: ASYNC110
        await asyncio.sleep(0)
    late = [asyncio.create_task(shared()) for _ in range(100)]
    await asyncio.sleep(0)
    runs.end.set()
    assert set(await asyncio.gather(*early)) == {1}
    assert set(await asyncio.gather(*late)) == {2}
    assert runs.began_s[1] - runs.began_s[0] >= short_pause
    assert await shared() == 3
    assert runs.began_s[2] - runs.began_s[1] >= short_pause


async def test_one_run_follows_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run does not begin before the one before it has ended, however long that takes."""
    monkeypatch.setattr(overview, "PAUSE_S", 0)
    runs = Runs()
    shared = SharedRun(runs)
    first = asyncio.create_task(shared())
    while not runs.began_s:  # noqa: ASYNC110
        await asyncio.sleep(0)
    second = asyncio.create_task(shared())
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(runs.began_s) == 1
    runs.end.set()
    assert [await first, await second] == [1, 2]


async def test_a_run_outlives_a_caller_that_leaves() -> None:
    """A caller that is cancelled takes the result from no other one."""
    runs = Runs()
    shared = SharedRun(runs)
    leaver, stayer = asyncio.create_task(shared()), asyncio.create_task(shared())
    while not runs.began_s:  # noqa: ASYNC110
        await asyncio.sleep(0)
    leaver.cancel()
    await asyncio.wait([leaver])
    runs.end.set()
    assert await stayer == 1


@pytest.mark.usefixtures("short_pause")
async def test_all_callers_get_the_error_of_their_run() -> None:
    """The error of a run reaches each of its callers, and the next run is not affected."""
    errors = [PoolUnavailable("No replica of the decoder pool can serve now."), None]

    async def fail() -> None:
        if error := errors.pop(0):
            raise error

    shared = SharedRun(fail)
    assert [type(one) for one in await asyncio.gather(shared(), shared(), return_exceptions=True)] == 2 * [
        PoolUnavailable
    ]
    await shared()


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Makes Serve's controller hang until the event is set. The store is empty, and no replica is known."""
    resume = threading.Event()

    async def ask_all(*_: Any, **__: Any) -> PoolAnswers:
        return PoolAnswers([], [])

    def read_pool_states(_: Any) -> dict[str, Any]:
        resume.wait()
        return {"Decoder": {"status": threading.current_thread().name}}

    monkeypatch.setattr(overview, "PAUSE_S", 0)
    monkeypatch.setattr(overview, "ANSWER_TIMEOUT_S", 0.05)
    monkeypatch.setattr(overview, "read_pool_states", read_pool_states)
    monkeypatch.setattr(overview, "read_decisions", dict)
    monkeypatch.setattr(overview, "ask_all", ask_all)
    yield resume
    resume.set()


def overview_of(*pools: str) -> ClusterOverview:
    """Returns the overview of a cluster with some pools, whose handles nobody calls."""
    handles = {name: SimpleNamespace(deployment_name=name) for name in pools}
    return ClusterOverview(cast(Any, SimpleNamespace(pools=())), cast(Any, None), cast(Any, handles))


async def test_a_controller_that_hangs_is_a_typed_error_and_holds_up_nothing(hanging: threading.Event) -> None:
    """While Serve's controller hangs, each question ends in time. The other answers, and the threads that decode
    pictures, are as quick as before, and the controller is asked again when it is back."""
    cluster = overview_of()
    for _ in range(20):
        with pytest.raises(ControllerUnavailable, match="did not answer within"):
            await cluster.pool_states()
    assert await asyncio.wait_for(asyncio.to_thread(int), 5) == 0
    assert b"prism_replica_answered" in await asyncio.wait_for(cluster.cluster_metrics(), 5)
    hanging.set()
    while True:
        try:
            states = await cluster.pool_states()
            break
        except ControllerUnavailable:  # the thread of the first question ends now
            pass
    assert states["Decoder"]["status"].startswith("controller")
    assert states["Decoder"]["scaling"] is None


@pytest.mark.usefixtures("hanging")
async def test_metrics_name_the_replicas_that_did_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text has the metrics of all replicas that answered, and says which ones did not."""

    async def ask_all(pool: Any, *_: Any, **__: Any) -> PoolAnswers:
        given = [ProcessMetrics("one", b"# TYPE jobs gauge\njobs 5.0\n")] if pool else []
        return PoolAnswers(given, ["two"] if pool else [])

    monkeypatch.setattr(overview, "ask_all", ask_all)
    lines = (await overview_of("decoder").cluster_metrics()).decode().splitlines()
    assert 'jobs{pool="decoder",replica="one"} 5.0' in lines
    assert 'prism_replica_answered{pool="decoder",replica="one"} 1.0' in lines
    assert 'prism_replica_answered{pool="decoder",replica="two"} 0.0' in lines


@pytest.mark.usefixtures("hanging")
async def test_each_replica_is_a_target_and_answers_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The targets are the replicas that run, and one for the cluster. Each of them gives its own samples, with the
    labels of the text of the whole cluster."""

    async def call(actor: str, method: str) -> ProcessMetrics:
        assert method == "metrics"
        if actor == "silent":
            await asyncio.Event().wait()
        return ProcessMetrics("one", f'# TYPE jobs gauge\njobs{{of="{actor}"}} 5.0\n'.encode())

    def actors_of(pool: Any) -> dict[str, str]:
        return {"one": "first", "two": "silent"} if pool else {}

    monkeypatch.setattr(overview, "call", call)
    monkeypatch.setattr(overview, "actors_of", actors_of)
    monkeypatch.setattr(overview, "read_decisions", lambda: {"Decoder": {"target": 2, "wanted": 2, "reason": "demand"}})
    cluster = overview_of("decoder")
    targets = cluster.scrape_targets("prism:8000")
    assert {target["targets"][0] for target in targets} == {"prism:8000"}
    names = [target["labels"]["__param_replica"] for target in targets]
    assert names == [target["labels"]["instance"] for target in targets] == ["decoder/one", "decoder/two", "cluster"]
    assert b'jobs{pool="decoder",replica="one",of="first"} 5.0' in await cluster.replica_metrics("decoder/one")
    assert b'prism_scaling_target{deployment="Decoder"} 2.0' in await cluster.replica_metrics("cluster")
    with pytest.raises(PoolUnavailable):
        await cluster.replica_metrics("decoder/two")


@pytest.mark.parametrize("name", ["", "decoder", "decoder/", "decoder/three", "nothing/one", "one", "a/b/c"])
async def test_a_target_that_is_gone_is_not_found(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A replica that does not run is 404, so Prometheus shows its target as down."""
    monkeypatch.setattr(overview, "actors_of", lambda _: {"one": "first"})
    with pytest.raises(RouteNotFound, match="targets"):
        await overview_of("decoder").replica_metrics(name)


@pytest.mark.usefixtures("hanging")
async def test_a_pool_without_replicas_is_ready_if_it_may_start_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool whose replicas all fail is named, unless the last decision lets it have none."""

    async def ask_all(*_: Any, **__: Any) -> PoolAnswers:
        return PoolAnswers([], ["one"])

    monkeypatch.setattr(overview, "ask_all", ask_all)
    with pytest.raises(PoolUnavailable, match="encoder"):
        await overview_of("encoder").check_ready()
    monkeypatch.setattr(overview, "read_decisions", lambda: {"encoder": {"min_replicas": 0}})
    await overview_of("encoder").check_ready()
