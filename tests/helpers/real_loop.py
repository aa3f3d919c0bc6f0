"""Runs one load of long texts against real engines whose number the policy decides: decoders go from 1 to 2 and back.

A second engine adds no capacity on two cores. So this shows that the policy, Serve and real engines work together, and
that no request is lost on the way. ``closed_loop`` shows how well the sizes follow a load.

python -m tests.helpers.real_loop --out runs        about three minutes: a summary, and a plot
"""

from __future__ import annotations

import argparse
import asyncio
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from deployments.local.app_file import ApplicationFile
from deployments.local.launch import running
from loadtest.servers import APP, changed_app, free_port
from tests.helpers.closed_loop import POOLS, WINDOW_S, Load, plot, run_load

WORDS: Final = 900
"""The words of a long text. One decoder reads such a text in about a fifth of a second here."""
START_S: Final = 30.0
"""The time that a decoder takes to start here. A pool waits three such times before it shrinks."""
FACTOR: Final = 8.0
SEED: Final = 1
"""A seed whose load has a spike of long texts."""


@dataclass(frozen=True)
class RealLoad(Load):
    """A load whose texts fit the demo checkpoint, with answers of a fixed length."""

    def body(self, number: int, *, in_spike: bool) -> dict[str, Any]:
        """The request of one arrival, as in ``Load``. Only texts are long, and no two are the same."""
        body = super().body(number, in_spike=False)
        if in_spike:
            body["messages"] = [{"role": "user", "content": f"{number} " + f"word{number} " * WORDS}]
        return {**body, "ignore_eos": True, "stream_options": {"include_usage": True}}


def main() -> None:
    """Runs the load, saves its record and a plot, and prints a summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    load = RealLoad.random(SEED, factor=FACTOR)
    tuned = {"scaling": "act", "scale_down_window_s": WINDOW_S, "ttft_slo_s": 2.0}
    content = changed_app({"Router": {"user_config": tuned}})
    content["applications"][0]["autoscaling_policy"]["policy_kwargs"] = {"start_s": {"Decoder": START_S}}
    with running(ApplicationFile.parse(APP, content), port=free_port()) as cluster:
        run = asyncio.run(run_load(cluster.url, load, "joint"))
    (out / "real.json").write_text(json.dumps(asdict(run)))
    plot([run], out / "real.png")
    summary = {
        "requests": run.num_requests,
        "failures": run.failures[:3],
        "decoders": run.steps("Decoder"),
        "raised after seconds": run.raised_s("Decoder"),
        "highest": {pool: run.most(pool) for pool in POOLS},
        "all small again after seconds": run.settled_s,
    }
    print(yaml.safe_dump(summary, sort_keys=False))  # noqa: T201


if __name__ == "__main__":
    main()
