"""The command ``prism plan``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from cluster.scaling.planning.plan import Candidate, PlanResult, plan
from cluster.scaling.planning.roofline import Layout
from cluster.scaling.schedules.schedule import write_schedule
from cluster.scaling.simulation.outcomes import LatencyGoal
from deployments.local.app_file import ApplicationFile
from deployments.local.cli import DEPLOYMENTS, app
from deployments.local.plan import block, verdict
from tests.helpers.planned import catalogue, pictures

if TYPE_CHECKING:
    from pathlib import Path

GOAL = LatencyGoal(0.3, 0.05)


@pytest.fixture
def schedule(tmp_path: Path) -> Path:
    """A schedule of pictures."""
    path = tmp_path / "pictures.jsonl"
    with path.open("w") as file:
        write_schedule(file, *pictures(4, 20))
    return path


@pytest.fixture
def figures(tmp_path: Path) -> Path:
    """A catalogue in which the split pays."""
    path = tmp_path / "gpus.yaml"
    path.write_text(yaml.safe_dump(catalogue(tower_flops_per_patch=4e9).model_dump()))
    return path


def run(*words: str | Path) -> tuple[int, str]:
    """Runs ``prism plan`` and returns its exit code and its output."""
    result = CliRunner().invoke(app, ["plan", *map(str, words)], env={"COLUMNS": "200", "NO_COLOR": "1"})
    return result.exit_code, result.output


def test_it_prints_a_table_a_verdict_and_a_block(schedule: Path, figures: Path, tmp_path: Path) -> None:
    """The command names the cheapest configuration, says whether the split pays, and writes a plot."""
    png = tmp_path / "plan.png"
    code, said = run(schedule, "--catalogue", figures, "--ttft", "0.3", "--plot", png)
    assert code == 0
    assert "arrivals in 20 s" in said
    assert "cheapest" in said
    assert "not deployable yet" in said
    assert "The split " in said
    assert "- name: VisionEncoder" in said
    with Image.open(png) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 500


def test_only_the_busiest_minutes_are_simulated(schedule: Path, figures: Path) -> None:
    """With --minutes 0.1 six seconds of the schedule are simulated."""
    assert "in 6 s" in run(schedule, "--catalogue", figures, "--minutes", "0.1")[1]


def test_the_block_fits_into_an_application_file(tmp_path: Path) -> None:
    """The printed block can stand in an application file in place of its own."""
    best = plan(*pictures(4, 20), catalogue(), GOAL).cheapest(is_split=True)
    assert best is not None
    content = yaml.safe_load((DEPLOYMENTS / "qwen2_5_vl_32b.yaml").read_text())
    content["applications"][0] |= yaml.safe_load(block(best))
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    names = {"Router": "router", "Preprocessor": "preprocessor", "VisionEncoder": "encoder", "Decoder": "decoder"}
    assert ApplicationFile.read(path).num_replicas() == {name: best.sizes[pool] for name, pool in names.items()}


def candidate(price: float, *, is_split: bool, is_met: bool = True) -> Candidate:
    """Returns a configuration with a price."""
    layout = Layout("large", 1, "small" if is_split else None)
    return Candidate(layout, {}, price, 1.0, 0.1, 0.01, "decoder", is_met)


@pytest.mark.parametrize(
    ("best", "said"),
    [
        ([candidate(3, is_split=True), candidate(4, is_split=False)], "The split pays here: it costs 3.00"),
        ([candidate(5, is_split=True), candidate(4, is_split=False)], "The split does not pay here: it costs 5.00"),
        ([candidate(4, is_split=True), candidate(4, is_split=False)], "The split does not pay here"),
        ([candidate(4, is_split=True)], "The split pays here: no colocated"),
        ([candidate(4, is_split=False)], "The split does not pay here: only colocated"),
        ([candidate(4, is_split=True, is_met=False)], "No configuration meets the goal"),
    ],
)
def test_it_says_whether_the_split_pays(best: list[Candidate], said: str) -> None:
    """The verdict compares the cheapest split with the cheapest colocated configuration."""
    assert verdict(PlanResult(best=best)).startswith(said)


def test_wrong_files_are_named(schedule: Path, figures: Path, tmp_path: Path) -> None:
    """A schedule or a catalogue that cannot be used ends the command with exit code 2."""
    code, said = run(figures, "--catalogue", figures)
    assert (code, "is no JSON" in said) == (2, True)
    code, said = run(schedule, "--catalogue", schedule)
    assert (code, str(schedule) in said) == (2, True)
    code, said = run(tmp_path / "nowhere.jsonl")
    assert (code, "No such file" in said) == (2, True)
    code, said = run(schedule, "--plot", tmp_path / "nowhere" / "plan.png")
    assert (code, "there is no folder" in said, "arrivals in" in said) == (2, True, False)


def test_an_empty_schedule_is_refused(tmp_path: Path) -> None:
    """A schedule without arrivals cannot be planned for."""
    path = tmp_path / "empty.jsonl"
    with path.open("w") as file:
        write_schedule(file, pictures(4, 20)[0], [])
    code, said = run(path)
    assert (code, "it has no arrivals" in said) == (2, True)


def test_a_missing_library_is_named_before_the_search(schedule: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without matplotlib, --plot says what to install, and nothing is simulated."""
    monkeypatch.delitem(sys.modules, "deployments.local.plan_plot", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, said = run(schedule, "--plot", "plan.png")
    assert code == 2
    assert "pip install 'prism-serve[demo]'" in said
    assert "arrivals in" not in said
