"""The command ``prism simulate``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import yaml
from typer.testing import CliRunner

from deployments.local.cli import app

if TYPE_CHECKING:
    from pathlib import Path

SPEEDS = {
    "encoder": {"patch_s": 1e-4},
    "decoder": {"prefill_tokens_per_s": 10_000, "step_s": 0.01, "kv_tokens": 100_000, "start_s": 5},
}


def run(folder: Path, speeds: object, *options: str) -> tuple[int, str]:
    """Writes a schedule of texts and the speeds, and returns the exit code and the output of the command."""
    schedule, file = folder / "texts.jsonl", folder / "speeds.yaml"
    runner = CliRunner()
    words = ["schedule", str(schedule), "--duration", "60", "--rate", "5", "--mix", "text=1"]
    assert runner.invoke(app, words).exit_code == 0
    file.write_text(yaml.safe_dump(speeds))
    result = runner.invoke(app, ["simulate", str(schedule), "--speeds", str(file), *options])
    return result.exit_code, result.output


def test_fixed_sizes_give_times(tmp_path: Path) -> None:
    """With fixed sizes the times are printed, the ITL is that of a step, and no pool is said to change."""
    code, output = run(tmp_path, SPEEDS, "--decoders", "2")
    assert code == 0
    assert "'answered'" in output
    [itl] = [line for line in output.splitlines() if line.startswith("ITL")]
    assert 10 <= float(itl.split()[2]) < 12
    assert "at most" not in output


def test_bounds_let_the_policy_decide(tmp_path: Path) -> None:
    """With bounds, the sizes that the policy came to are printed."""
    slow = {**SPEEDS, "decoder": {**SPEEDS["decoder"], "prefill_tokens_per_s": 400}}
    code, output = run(tmp_path, slow, "--decoders", "1-4")
    assert code == 0
    [decoders] = [line for line in output.splitlines() if line.startswith("decoder: at most")]
    assert int(decoders.split()[3]) > 1


@pytest.mark.parametrize(
    ("speeds", "options", "said"),
    [
        ({**SPEEDS, "encoder": {}}, (), "encoder.patch_s"),
        ({**SPEEDS, "decoder": {**SPEEDS["decoder"], "step_s": -1}}, (), "decoder.step_s: it must be"),
        ([], (), "it must be a mapping"),
        (SPEEDS, ("--decoders", "0"), "it must be a number"),
        (SPEEDS, ("--decoders", "4-2"), "the smaller number comes first"),
        (SPEEDS, ("--decoders", "many"), "it must be a number"),
    ],
)
def test_what_is_wrong_is_named(speeds: object, options: tuple[str, ...], said: str, tmp_path: Path) -> None:
    """A wrong speed or size is named, and nothing is simulated."""
    code, output = run(tmp_path, speeds, *options)
    assert code == 2
    assert said in " ".join(output.split())
