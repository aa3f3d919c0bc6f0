"""Compares the vision tower with the library's module, in its numbers and in its speed.

    python -m cluster.encode.benchmark
    taskset -c 0 python -m cluster.encode.benchmark --device cpu --geometry demo --dtype float32 --batch 1
    taskset -c 0 python -m cluster.encode.benchmark --device cpu --grid 32x32 --batch 1 --repeats 6

The first line is for a GPU: the geometry of the 32B model, random weights, bfloat16. It needs torch and transformers,
but neither Ray nor vLLM.

Both towers are timed on normalised patches that are on the device already. Neither the way of the patches there nor
the way of the embeddings back is counted.

Exit codes: 0 the numbers are right; 1 they are not; 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import torch
import transformers
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from cluster.encode.tower import Tower

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

Grid = tuple[int, int, int]
"""A picture's patches: 1, height, width."""

LARGE: Final = {
    "depth": 32,
    "hidden_size": 1280,
    "num_heads": 16,
    "intermediate_size": 3456,
    "out_hidden_size": 5120,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
DEMO: Final = LARGE | {
    "depth": 4,
    "hidden_size": 192,
    "num_heads": 4,
    "intermediate_size": 512,
    "out_hidden_size": 256,
    "fullatt_block_indexes": [1, 3],
}
MEGAPIXEL: Final = (1, 74, 72)
"""1036 x 1008 pixels: not a multiple of the window, as most pictures are not."""
GEOMETRIES: Final[dict[str, tuple[dict[str, Any], Grid]]] = {"32B": (LARGE, MEGAPIXEL), "demo": (DEMO, (1, 12, 16))}
"""A tower and the picture that it is measured with, if nothing else is asked for."""
MAX_ERROR: Final = 1e-5
"""The largest error in float32, as a share of the largest number."""
MAX_ERROR_RATIO: Final = 1.5
"""The most that the tower's bfloat16 may differ from the library's float32, in multiples of the library's own
bfloat16 error."""
BLOCK: Final = 10
"""Runs of one tower before the other runs. In use a tower finds the caches as its own runs left them."""


@dataclass(frozen=True, slots=True)
class Speed:
    """The speed of a tower. ``matmul_fraction`` is its share of the matrix-multiplication rate that was measured in
    the same run."""

    pictures_per_s: float
    run_s: float
    tflops: float
    matmul_fraction: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints a table, and writes JSON if asked to. The result is 1 if the numbers are wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--geometry", choices=list(GEOMETRIES), default="32B", help="of the tower")
    parser.add_argument("--grid", type=_grid, help="the picture in patches of 14 pixels, height and width: 32x32")
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="in which speed is measured"
    )
    parser.add_argument("--batch", type=int, default=4, help="pictures per run")
    parser.add_argument("--repeats", type=int, default=20, help="runs of each tower, by turns")
    parser.add_argument("--json", type=Path, help="where to write the report")
    options = parser.parse_args(arguments)
    report = measure(
        options.device,
        options.geometry,
        grid=options.grid,
        dtype=options.dtype,
        batch=options.batch,
        repeats=options.repeats,
    )
    sys.stdout.write(table(report))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if report["right"] else 1


@torch.inference_mode()
def measure(
    device: str, geometry: str, *, batch: int, repeats: int, grid: Grid | None = None, dtype: str = "bfloat16"
) -> dict[str, Any]:
    """Runs the whole comparison. The report says what ran where, the errors of the numbers, and the speeds."""
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = (
        False  # by default the library's convolution is in TF32 also where all else is exact
    )
    sizes, usual = GEOMETRIES[geometry]
    config, grid = Qwen2_5_VLVisionConfig(**sizes), grid or usual
    number: torch.dtype = getattr(torch, dtype)
    picture = torch.randn(grid[1] * grid[2], 3 * config.patch_size**2, device=device)
    exact = make_library(config, torch.float32, device)
    expected = run_library(exact, [picture], [grid])
    error = largest_error(Tower(exact)([picture], [grid])[0], expected)
    library = make_library(config, number, device)
    library.load_state_dict(exact.state_dict())
    del exact
    tower = Tower(library)
    rounded = picture.to(number)
    errors = [
        mean_error(rows, expected) for rows in (tower([rounded], [grid])[0], run_library(library, [rounded], [grid]))
    ]
    pictures, grids = [rounded] * batch, [grid] * batch
    ceiling_tflops = matmul_tflops(device, number, 512 if device == "cpu" else 8192, repeats)
    times_s = by_turns(
        [lambda: tower(pictures, grids), lambda: run_library(library, pictures, grids)], device=device, repeats=repeats
    )
    work = batch * num_flops(config, grid)
    ours, theirs = (
        Speed(batch / run_s, run_s, work / run_s / 1e12, work / run_s / 1e12 / ceiling_tflops) for run_s in times_s
    )
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "geometry": geometry,
        "dtype": dtype,
        "picture_pixels": [side * config.patch_size for side in grid[1:]],
        "pictures_per_run": batch,
        "runs": repeats,
        "gflop_per_picture": num_flops(config, grid) / 1e9,
        "float32_error": error,
        "error": errors[0],
        "library_error": errors[1],
        "right": error <= MAX_ERROR and (dtype == "float32" or errors[0] <= MAX_ERROR_RATIO * errors[1]),
        "matmul_tflops": ceiling_tflops,
        "tower": asdict(ours),
        "library": asdict(theirs),
        "speedup": ours.pictures_per_s / theirs.pictures_per_s,
    }


def _grid(text: str) -> Grid:
    height, width = text.split("x")
    return (1, int(height), int(width))


def make_library(
    config: Qwen2_5_VLVisionConfig, dtype: torch.dtype, device: str
) -> Qwen2_5_VisionTransformerPretrainedModel:
    """The library's module with random weights."""
    return Qwen2_5_VisionTransformerPretrainedModel._from_config(config, dtype=dtype).eval().to(device)


def run_library(
    module: Qwen2_5_VisionTransformerPretrainedModel, pictures: Sequence[Tensor], grids: Sequence[Grid]
) -> Tensor:
    """The library's output for pictures of [num_patches, 3 · patch · patch] each. It wants every picture as two
    equal frames."""
    frames = torch.cat([*pictures]).view(sum(map(len, pictures)), 3, 1, -1).expand(-1, -1, 2, -1)
    rows: Tensor = module(frames.flatten(1), grid_thw=torch.tensor(grids, device=module.device)).pooler_output
    return rows


def largest_error(rows: Tensor, expected: Tensor) -> float:
    """The largest difference, over the largest number."""
    return float((rows - expected).abs().max() / expected.abs().max())


def mean_error(rows: Tensor, expected: Tensor) -> float:
    """The root mean square of the differences, divided by the root mean square of the expected numbers."""
    return float((rows.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def matmul_tflops(device: str, dtype: torch.dtype, side: int, repeats: int) -> float:
    """The rate at which the device multiplies square matrices, in TFLOP/s: the median of several runs."""
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    [run_s] = by_turns([lambda: left @ right], device=device, repeats=repeats)
    return 2 * side**3 / run_s / 1e12


def by_turns(calls: Sequence[Callable[[], object]], *, device: str, repeats: int) -> list[float]:
    """The median time of each call in seconds. The calls alternate in blocks of ``BLOCK`` runs, so that all meet the
    same device."""
    times_s: list[list[float]] = [[] for _ in calls]
    while len(times_s[-1]) < repeats:
        for call, times in zip(calls, times_s, strict=True):
            for run in range(-2, min(BLOCK, repeats - len(times))):  # the first two are to warm up
                synchronise(device)
                started_s = perf_counter()
                call()
                synchronise(device)
                if run >= 0:
                    times.append(perf_counter() - started_s)
    return [median(times) for times in times_s]


def synchronise(device: str) -> None:
    """Waits until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def num_flops(config: Qwen2_5_VLVisionConfig, grid: Grid) -> int:
    """The floating-point operations of one picture's matrix multiplications, which are the same for both towers."""
    _, height, width = grid
    hidden, patches, unit = config.hidden_size, height * width, config.spatial_merge_size**2
    side = config.window_size // config.patch_size
    windows = [
        min(side, height - y) * min(side, width - x) for y in range(0, height, side) for x in range(0, width, side)
    ]
    num_full = len(config.fullatt_block_indexes)
    pairs = num_full * patches**2 + (config.depth - num_full) * sum(window**2 for window in windows)
    per_patch = (
        config.depth * (4 * hidden**2 + 3 * hidden * config.intermediate_size) + 3 * config.patch_size**2 * hidden
    )
    merger = patches // unit * unit * hidden * (unit * hidden + config.out_hidden_size)
    return int(2 * (patches * per_patch + 2 * pairs * hidden + merger))


def table(report: dict[str, Any]) -> str:
    """The report for people, as Markdown."""
    width, height = report["picture_pixels"][::-1]
    lines = [
        (
            f"{report['device']}; {report['geometry']} geometry; "
            f"{report['pictures_per_run']} pictures of {width} x {height} a run"
        ),
        f"matrix multiplication: {report['matmul_tflops']:.2f} TFLOP/s",
        f"float32 against the library: {report['float32_error']:.1e} of the largest number",
        f"{report['dtype']} against that: {report['error']:.1e}; the library's own: {report['library_error']:.1e}",
        f"the numbers are {'right' if report['right'] else 'WRONG'}",
        "",
        "| | pictures/s | ms per run | TFLOP/s | of the ceiling |",
        "|---|---|---|---|---|",
    ]
    for name in ("tower", "library"):
        speed = Speed(**report[name])
        fraction = f"{100 * speed.matmul_fraction:.0f} %"
        lines.append(
            f"| {name} | {speed.pictures_per_s:.1f} | {1e3 * speed.run_s:.1f} | {speed.tflops:.2f} | {fraction} |"
        )
    return "\n".join([*lines, "", f"{report['speedup']:.2f} x the library", ""])


if __name__ == "__main__":
    sys.exit(main())
