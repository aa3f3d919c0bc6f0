"""The command ``prism schedule``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from cluster.scaling.schedules.schedule import read_schedule
from deployments.local.cli import app

if TYPE_CHECKING:
    from pathlib import Path


def run(*words: str | Path) -> tuple[int, str]:
    """Runs ``prism schedule`` and returns its exit code and its output."""
    result = CliRunner().invoke(app, ["schedule", *map(str, words)], env={"COLUMNS": "300", "NO_COLOR": "1"})
    return result.exit_code, result.output


def test_it_writes_a_schedule(tmp_path: Path) -> None:
    """The command writes the schedule that its options describe, the same one for the same options."""
    path, again = tmp_path / "one.jsonl", tmp_path / "again.jsonl"
    options = ["--duration", "30", "--rate", "3", "--shape", "spike", "--mix", "text=1,turns=2", "--seed", "5"]
    code, said = run(path, *options)
    heading, arrivals = read_schedule(path)
    assert (code, said) == (0, f"{path}: {len(arrivals)} arrivals in 30 s; {heading.source}\n")
    assert (heading.seed, {arrival.client for arrival in arrivals}) == (5, {"text", "turns"})
    run(again, *options)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--shape", "round"], "it must be one of steady, ramp, step, spike, not round"),
        (["--mix", "cats=1"], "'cats=1' is not"),
        (["--mix", "text=many"], "'text=many' is not"),
        (["--mix", "text=0"], "one weight must be above 0"),
        (["--servegen", "/nowhere"], "must be a folder with ServeGen's data"),
        (["--rate", "0"], "--rate"),
    ],
)
def test_wrong_options_are_named(options: list[str], said: str, tmp_path: Path) -> None:
    """A wrong option ends the command with exit code 2, and the message says what would be right."""
    code, output = run(tmp_path / "one.jsonl", *options)
    assert code == 2
    assert said in output


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A path in a folder that is not there is refused."""
    code, output = run(tmp_path / "nowhere" / "one.jsonl")
    assert code == 2
    assert "it cannot be written" in output
