"""Pictures in child processes: bombs stay within their budgets, and lost children are replaced."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest
from prometheus_client import REGISTRY

from cluster.checkpoint import ProcessorSettings
from cluster.errors import InvalidPicture, PictureTooExpensive, PoolUnavailable, PrismError
from cluster.isolation import budget as budgets
from cluster.isolation import children as module
from cluster.isolation.budget import Budget
from cluster.isolation.children import MAX_OVERDUE, Children
from cluster.isolation.process import Child
from cluster.messages import Picture
from cluster.preprocess import preprocess
from cluster.shared_memory import held_by
from loadtest.servers import ROOT
from tests.helpers.bombs import BOMBS, PARAM, SIDE, SLOW, blank
from tests.helpers.pictures import BROKEN, SAMPLES, encoded, scene
from tests.helpers.waiting import settled, until, wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cluster.isolation.wire import Job, Reply

SETTINGS = ProcessorSettings()
GOOD = Picture("1" * 64, SAMPLES["png-RGB"].data, *SAMPLES["png-RGB"].size, param=PARAM)
LARGE = Picture("2" * 64, blank("JPEG", SIDE, quality=90), SIDE, SIDE, param=PARAM)
SLACK_S = 0.5
"""CPU seconds that a picture may use beyond its budget until its parent looks."""
FRAME_BYTES = 64 * 2**20
"""What a child has mapped in addition to its data."""
NICENESS = 3
PATIENCE_S = 60.0
NOISE_SIDE = 2400
"""A PNG of this side takes a child a tenth of a second at least."""


@pytest.fixture(scope="module")
async def children() -> AsyncIterator[Children]:
    """The children of one preprocessor."""
    started = Children(SETTINGS, NICENESS)
    await started.start()
    yield started
    started.end()


@dataclass
class Use:
    """The most that each process under the template has used: CPU seconds and bytes of memory."""

    template: psutil.Process
    cpu_s: dict[int, float] = field(default_factory=dict)
    num_bytes: dict[int, int] = field(default_factory=dict)

    def look(self) -> None:
        """Looks at the processes that there are now."""
        for process in self.template.children():
            with suppress(psutil.Error):
                times, memory = process.cpu_times(), process.memory_info()
                self.cpu_s[process.pid] = times.user + times.system
                self.num_bytes[process.pid] = max(memory.rss, self.num_bytes.get(process.pid, 0))


@asynccontextmanager
async def watched(children: Children) -> AsyncIterator[Use]:
    """Looks at the processes under the template all through the block. It may miss one that lives for a moment only."""
    use = Use(template_of(children))
    use.look()
    before = dict(use.cpu_s)

    async def watch() -> None:
        while True:
            use.look()
            await asyncio.sleep(0.02)

    task = asyncio.create_task(watch())
    try:
        yield use
    finally:
        task.cancel()
        use.look()
        use.cpu_s = {pid: cpu_s - before.get(pid, 0.0) for pid, cpu_s in use.cpu_s.items()}


def template_of(children: Children) -> psutil.Process:
    """Returns the template's process."""
    assert children._template is not None
    return psutil.Process(children._template.pid)


async def only_child(children: Children) -> psutil.Process:
    """Waits until no other child lives, and returns the process of the last one."""
    await until(lambda: are_left(children, 1), PATIENCE_S, "there is not one child")
    [child] = template_of(children).children()
    return child


async def are_left(children: Children, num_children: int) -> bool:
    """Returns True if the template has so many children."""
    return len(template_of(children).children()) == num_children


async def busy_child(children: Children) -> psutil.Process:
    """Waits until a child computes, and returns its process."""
    before = cpu_s_of(children)
    found: list[psutil.Process] = []

    async def is_busy() -> bool:
        found[:] = [process for process, cpu_s in cpu_s_of(children).items() if cpu_s > before.get(process, 0.0) + 0.15]
        return bool(found)

    await until(is_busy, PATIENCE_S, "no child computes")
    return found[0]


def cpu_s_of(children: Children) -> dict[psutil.Process, float]:
    """Returns the CPU seconds of each child."""
    found = {}
    for process in template_of(children).children():
        with suppress(psutil.NoSuchProcess):
            found[process] = process.cpu_times().user
    return found


@pytest.mark.parametrize("name", BOMBS)
async def test_a_bomb_ends_within_its_budget(name: str, children: Children) -> None:
    """Each bomb is refused as too expensive, refused as broken, or decoded, and its CPU time and memory are bounded."""
    bomb = BOMBS[name]
    picture = bomb.picture()
    budget = Budget.of(picture)
    async with watched(children) as use:
        outcome = (await asyncio.gather(children.prepare(picture), return_exceptions=True))[0]
    assert max(use.cpu_s.values(), default=0.0) < budget.max_cpu_s + SLACK_S
    assert (
        max(use.num_bytes.values(), default=0)
        < template_of(children).memory_info().rss + budget.max_bytes + FRAME_BYTES
    )
    if bomb.is_refused:
        assert isinstance(outcome, PictureTooExpensive)
        assert (outcome.param, outcome.code, outcome.status) == (PARAM, "image_too_expensive", 400)
        assert outcome.message.endswith("save it again as a baseline JPEG or as a PNG.")
    elif isinstance(outcome, BaseException):
        assert isinstance(outcome, InvalidPicture)
    else:
        np.testing.assert_array_equal(outcome.patches, preprocess(picture, SETTINGS).patches)


@pytest.mark.parametrize("picture", [GOOD, LARGE], ids=["in a packet", "in a memfd"])
async def test_a_child_makes_the_pixels_of_the_stage(picture: Picture, children: Children) -> None:
    """The patches, the grid and the digest are those of the preprocess stage, and the time is the child's."""
    pixels, expected = await children.prepare(picture), preprocess(picture, SETTINGS)
    np.testing.assert_array_equal(pixels.patches, expected.patches)
    assert (pixels.digest, pixels.grid) == (expected.digest, expected.grid)
    assert pixels.ran_s > 0


async def test_a_broken_picture_is_refused_as_the_stage_does(children: Children) -> None:
    """A refusal crosses the processes with its message and the field's name, and the child stays."""
    await children.prepare(GOOD)
    child = await only_child(children)
    with pytest.raises(InvalidPicture, match="broken or cut short") as caught:
        await children.prepare(Picture("0" * 64, BROKEN["png-cut"], 46, 34, param=PARAM))
    assert caught.value.param == PARAM
    assert await only_child(children) == child


def test_a_broken_picture_prints_nothing() -> None:
    """A TIFF on each of whose rows libtiff has a complaint writes nothing into the preprocessor's output."""
    done = subprocess.run([sys.executable, "-c", FAX], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.stdout, done.stderr, done.returncode) == ("answered\n", "", 0)


FAX = """
import asyncio
from cluster.checkpoint import ProcessorSettings
from cluster.errors import PrismError
from cluster.isolation.children import Children
from cluster.messages import Picture
from tests.helpers.pictures import encoded
from PIL import Image

async def main():
    data = bytearray(encoded(Image.effect_noise((500, 500), 90).convert("1"), "TIFF", compression="group4"))
    data[200:4000:7] = bytes(len(range(200, 4000, 7)))
    children = Children(ProcessorSettings(), 0)
    await children.start()
    try:
        await children.prepare(Picture("0" * 64, bytes(data), 500, 500, param="x"))
    except PrismError:
        pass
    print("answered", flush=True)
    children.end()

asyncio.run(main())
"""


async def test_a_defect_comes_with_its_traceback(children: Children) -> None:
    """An exception that is no refusal arrives with the traceback of the child."""
    with pytest.raises(RuntimeError, match=r"(?s)structure\.py.*TypeError"):
        await children.prepare(Picture("0" * 64, "no bytes", 46, 34, param=PARAM))  # type: ignore[arg-type]


async def test_children_have_one_thread_and_their_niceness(children: Children) -> None:
    """The template and a child have one thread each, and the niceness that was asked for."""
    await children.prepare(LARGE)
    own = psutil.Process().nice()
    for process in (template_of(children), await only_child(children)):
        assert (process.num_threads(), process.nice()) == (1, own + NICENESS)


async def test_the_next_picture_does_not_wait_for_one_that_is_overdue(children: Children) -> None:
    """While a bomb computes with the lowest priority, good pictures are prepared. The bomb is refused in the end."""
    bomb = asyncio.create_task(children.prepare(SLOW.picture()))
    slow = await busy_child(children)
    pixels = await children.prepare(GOOD)
    np.testing.assert_array_equal(pixels.patches, preprocess(GOOD, SETTINGS).patches)
    assert not bomb.done()
    assert slow.nice() == 19
    with pytest.raises(PictureTooExpensive, match="far longer"):
        await bomb
    await until(lambda: gone(slow), PATIENCE_S, "the child of the bomb lives on")


async def gone(process: psutil.Process) -> bool:
    """Returns True once a process has ended."""
    return not process.is_running()


async def test_overdue_pictures_are_few(children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    """With too many overdue pictures, one of them is refused at once, and a good picture still gets its turn."""
    monkeypatch.setattr(budgets, "TOLERANCE", 1000)
    monkeypatch.setattr(budgets, "MEMORY_BYTES", 2**30)
    bombs = [asyncio.create_task(children.prepare(SLOW.picture())) for _ in range(MAX_OVERDUE + 1)]
    await settled()  # so that they come first
    await children.prepare(GOOD)
    # Which one has used most depends on the cores that they got.
    [refused] = [bomb for bomb in bombs if bomb.done()]
    with pytest.raises(PictureTooExpensive, match="far longer"):
        await refused
    await until(lambda: are_left(children, MAX_OVERDUE + 1), PATIENCE_S, "the refused picture's child lives on")
    bombs.remove(refused)
    for bomb in bombs:
        bomb.cancel()
    await asyncio.wait(bombs)
    await until(lambda: are_left(children, 1), PATIENCE_S, "the children of callers that left live on")


async def test_a_caller_that_leaves_ends_the_work(children: Children) -> None:
    """The child of a cancelled caller is killed, whether its picture is overdue or not."""
    for is_overdue in (False, True):
        task = asyncio.create_task(children.prepare(SLOW.picture()))
        child = await busy_child(children)
        if is_overdue:
            await children.prepare(GOOD)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda child=child: gone(child), PATIENCE_S, "the child lives on")  # type: ignore[misc]
    await children.prepare(GOOD)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGSTOP])
async def test_a_picture_whose_child_is_lost_gets_another_one(
    number: signal.Signals, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that ends or stops under way costs its picture nothing but time."""
    noise = Picture("3" * 64, encoded(scene(NOISE_SIDE, NOISE_SIDE), "PNG"), NOISE_SIDE, NOISE_SIDE, param=PARAM)
    expected, look = await children.prepare(noise), Child.look
    struck: list[psutil.Process] = []

    def striking(self: Child) -> tuple[float, bool]:
        used_s, is_computing = look(self)
        if used_s > module.TICK_S and not struck:
            assert self._process is not None
            struck.append(self._process)
            self._process.send_signal(number)
        return used_s, is_computing

    monkeypatch.setattr(module, "LOOK_S", 0.005)
    monkeypatch.setattr(Child, "look", striking)
    np.testing.assert_array_equal((await children.prepare(noise)).patches, expected.patches)
    [lost] = struck
    await until(lambda: gone(lost), PATIENCE_S, "the lost child lives on")


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGSTOP])
async def test_a_picture_that_costs_two_children_is_refused(number: signal.Signals, children: Children) -> None:
    """A picture under which two children die or stop is refused, its field is named, and the next one is prepared."""
    task = asyncio.create_task(children.prepare(SLOW.picture()))
    for _ in range(2):
        lost = await busy_child(children)
        lost.send_signal(number)
        await until(lambda lost=lost: gone(lost), PATIENCE_S, "the lost child lives on")  # type: ignore[misc]
    with pytest.raises(InvalidPicture, match="decoder crashed") as caught:
        await task
    assert caught.value.param == PARAM
    await children.prepare(GOOD)


async def test_a_child_that_is_killed_does_not_blame_its_picture(children: Children) -> None:
    """A picture under which the kernel kills two children, as it does when memory is short, ends with an error that a
    retry helps against. Both are counted."""
    before = num_ended("killed")
    task = asyncio.create_task(children.prepare(SLOW.picture()))
    for _ in range(2):
        lost = await busy_child(children)
        lost.kill()
        await until(lambda lost=lost: gone(lost), PATIENCE_S, "the lost child lives on")  # type: ignore[misc]
    with pytest.raises(PoolUnavailable, match="was killed") as caught:
        await task
    assert (caught.value.can_retry, caught.value.cause) == (True, "the child was killed")
    assert num_ended("killed") == before + 2
    await children.prepare(GOOD)


def num_ended(reason: str) -> float:
    """Returns the number of children that were counted as ended for a reason."""
    return REGISTRY.get_sample_value("prism_children_ended_total", {"reason": reason}) or 0.0


async def test_every_end_of_a_child_is_counted_once(children: Children) -> None:
    """An expensive picture, a crash, a caller that leaves and a kill between pictures count each child, by its
    reason."""
    reasons = ("expensive", "crashed", "left", "idle")
    before = [num_ended(reason) for reason in reasons]
    with pytest.raises(PictureTooExpensive):
        await children.prepare(SLOW.picture())
    task = asyncio.create_task(children.prepare(SLOW.picture()))
    for _ in range(2):
        lost = await busy_child(children)
        lost.send_signal(signal.SIGSEGV)
        await until(lambda lost=lost: gone(lost), PATIENCE_S, "the lost child lives on")  # type: ignore[misc]
    with pytest.raises(InvalidPicture):
        await task
    task = asyncio.create_task(children.prepare(SLOW.picture()))
    await busy_child(children)
    task.cancel()
    await asyncio.wait([task])
    await children.prepare(GOOD)
    (await only_child(children)).kill()
    await until(lambda: is_idle_child_lost(children), PATIENCE_S, "the loss of the child is not noticed")
    await children.prepare(GOOD)
    assert [num_ended(reason) - count for reason, count in zip(reasons, before, strict=True)] == [1, 2, 1, 1]


async def test_pictures_that_wait_for_their_turn_are_known(children: Children) -> None:
    """While a picture is under way, the others wait, and the wait of the oldest grows."""
    assert (len(children.waiting), children.waiting.oldest_s) == (0, 0.0)
    tasks = [asyncio.create_task(children.prepare(LARGE)) for _ in range(3)]
    await settled()
    assert len(children.waiting) == 2
    assert children.waiting.oldest_s > 0
    await asyncio.gather(*tasks)
    assert len(children.waiting) == 0


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGSEGV, InvalidPicture), (signal.SIGKILL, PoolUnavailable)], ids=["crash", "kill"]
)
async def test_a_picture_that_loses_every_child_at_once_ends(
    number: signal.Signals, error: type[PrismError], children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child may be lost for another reason, so the picture gets a second one. If that crashes too, the picture is
    refused. If that is killed too, a retry may help."""
    sent: list[int] = []
    send = Child.send

    def killing(self: Child, job: Job) -> asyncio.Future[Reply]:
        reply = send(self, job)
        assert self._process is not None
        sent.append(self._process.pid)
        self._process.send_signal(number)
        return reply

    with monkeypatch.context() as patch:
        patch.setattr(Child, "send", killing)
        with pytest.raises(error):
            await children.prepare(SLOW.picture())
    assert len(set(sent)) == 2
    await children.prepare(GOOD)


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
async def test_a_child_that_is_lost_between_pictures_costs_none(number: signal.Signals, children: Children) -> None:
    """A child that was stopped or killed while it was idle is replaced, and the next picture is prepared."""
    await children.prepare(GOOD)
    child = await only_child(children)
    child.send_signal(number)
    await children.prepare(GOOD)
    assert await only_child(children) != child


async def test_memory_is_bounded(children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that needs more memory than it may use is refused, the limit is named, and the next one is prepared."""
    monkeypatch.setattr(budgets, "MEMORY_BYTES", 2**20)
    monkeypatch.setattr(budgets, "MEMORY_BYTES_PER_PIXEL", 1)
    max_bytes = Budget.of(LARGE).max_bytes
    for _ in range(2):
        async with watched(children) as use:
            with pytest.raises(PictureTooExpensive, match="far more memory") as caught:
                await children.prepare(LARGE)
        assert caught.value.figures == {"limit_memory_bytes": max_bytes}
        assert (
            max(use.num_bytes.values(), default=0) < template_of(children).memory_info().rss + max_bytes + FRAME_BYTES
        )
    monkeypatch.undo()
    await children.prepare(LARGE)


async def test_a_template_that_dies_is_replaced(children: Children) -> None:
    """The picture under way ends with an error that a retry helps against, and the next one is prepared."""
    task = asyncio.create_task(children.prepare(SLOW.picture()))
    child = await busy_child(children)
    before = template_of(children)
    before.kill()
    with pytest.raises(PoolUnavailable):
        await task
    await until(lambda: gone(child), PATIENCE_S, "the template's child outlived it")
    await children.prepare(GOOD)
    assert template_of(children) != before


async def test_a_template_that_stops_is_replaced(children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that does not fork in time is killed, and another one gives the picture its child."""
    await children.prepare(GOOD)
    before = template_of(children)
    child = await only_child(children)
    before.suspend()
    child.kill()
    await until(lambda: is_idle_child_lost(children), PATIENCE_S, "the loss of the child is not noticed")
    monkeypatch.setattr(module, "FORK_S", 0.5)
    await children.prepare(GOOD)
    assert not before.is_running()


async def is_idle_child_lost(children: Children) -> bool:
    """Returns True once the parent knows that its idle child has ended."""
    return children._idle is not None and children._idle.is_lost


async def test_a_probe_finds_and_replaces_a_stopped_child(children: Children) -> None:
    """A probe prepares a picture, for which a child that is stopped is replaced. It counts as work."""
    await children.prepare(GOOD)
    (await only_child(children)).suspend()
    before_s = children.worked_at_s
    await children.probe()
    assert children.worked_at_s > before_s


async def test_nothing_is_left_open(children: Children) -> None:
    """Pictures and refusals leave no descriptor open, nothing in /dev/shm, and nothing mapped once nobody has the
    patches."""
    await children.prepare(LARGE)
    before = held(children)
    for picture in (LARGE, GOOD, BOMBS["png exif"].picture(), BOMBS["tiff tile"].picture(), LARGE):
        with suppress(PrismError):
            await children.prepare(picture)
    pixels = await children.prepare(LARGE)
    assert held(children)[2] == before[2] + 1
    del pixels
    assert held(children) == before


def held(children: Children) -> tuple[int, set[Path], int]:
    """Returns the number of this process's descriptors, what it and its children have in /dev/shm, and the number of
    mapped pictures."""
    template = template_of(children)
    in_shm = held_by([psutil.Process(), template, *template.children()])
    num_mapped = Path("/proc/self/maps").read_text().count("memfd:prism-picture")
    return len(os.listdir("/proc/self/fd")), in_shm, num_mapped


PARENT = """
import asyncio, os
from cluster.checkpoint import ProcessorSettings
from cluster.isolation.children import Children
from tests.helpers.bombs import SLOW

async def main():
    children = Children(ProcessorSettings(), 0)
    await children.start()
    print(children._template.pid, flush=True)
    await children.prepare(SLOW.picture())

asyncio.run(main())
"""


def test_a_parent_that_is_killed_leaves_nobody_behind() -> None:
    """After SIGKILL of the parent, the template and a child that computes end too."""
    with subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        template = psutil.Process(int(parent.stdout.readline()))
        wait_until(lambda: [child for child in template.children() if child.cpu_times().user > 0.1], PATIENCE_S, "idle")
        left = [template, *template.children()]
        parent.kill()
    wait_until(lambda: not any(is_there(process) for process in left), PATIENCE_S, "the parent left processes behind")


def is_there(process: psutil.Process) -> bool:
    """Returns True while a process runs."""
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False
