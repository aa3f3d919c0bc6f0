"""The measurement of the vision tower alone, on the CPU and at a small geometry."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig

from cluster.encode import benchmark

if TYPE_CHECKING:
    from pathlib import Path

ALONE = """
import sys
for name in ("ray", "vllm", "fastapi", "prometheus_client", "pydantic", "PIL"):
    sys.modules[name] = None  # an import of it fails
from cluster.encode.benchmark import main
sys.exit(main(sys.argv[1:]))
"""


def test_it_measures_with_torch_and_transformers_alone(tmp_path: Path) -> None:
    """The measurement runs without Ray and vLLM, compares the tower's numbers with the library's, and reports its
    speed."""
    report = tmp_path / "report.json"
    command = [
        sys.executable,
        "-c",
        ALONE,
        "--device",
        "cpu",
        "--geometry",
        "demo",
        "--repeats",
        "2",
        "--json",
        str(report),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| tower |" in done.stdout
    measured = json.loads(report.read_text())
    assert measured["right"]
    assert measured["tower"]["pictures_per_s"] > 0


def test_the_work_of_a_picture_is_counted() -> None:
    """The counted operations for a megapixel picture in the large geometry equal those of its matrix products within
    2 %."""
    config = Qwen2_5_VLVisionConfig(**benchmark.LARGE)
    patches = 74 * 72
    matrices = 32 * (1280 * 3840 + 1280 * 1280 + 3 * 1280 * 3456) * patches
    attention = 4 * 2 * 1280 * patches**2 + 28 * 2 * 1280 * 64 * patches
    flops = benchmark.num_flops(config, benchmark.MEGAPIXEL)
    assert abs(flops / (2 * (matrices + attention)) - 1) < 0.02
