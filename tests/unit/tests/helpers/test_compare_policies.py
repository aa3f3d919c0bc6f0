"""The comparison of policies: which settings a baseline gets, and which trials are run."""

from __future__ import annotations

import json
import multiprocessing
import time
from typing import TYPE_CHECKING, Any

from tests.helpers import compare_policies
from tests.helpers.compare_policies import GRIDS, Runner, chosen, sweep_trials, trials_of_test, tuning_trials

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.helpers.sizing_trials import Trial


def result(
    policy: str, attainment: float, gpu_hours: float, half: str = "tuning", age_s: float = 1.0
) -> dict[str, Any]:
    """Returns the parts of a result that the choice reads."""
    shares = {"decoder": gpu_hours / 2, "encoder": gpu_hours / 2}
    return {
        "half": half,
        "policy": policy,
        "start_s": 300.0,
        "metric_age_s": age_s,
        "attainment": attainment,
        "num_requests": 100,
        "gpu_hours": shares,
    }


def test_a_baseline_gets_the_cheapest_settings_that_serve_as_many_requests() -> None:
    """Cheaper settings with less attainment are not chosen, and results of the test half or
    with old counters are not looked at."""
    first, second, third, *_ = GRIDS["serve"]
    tuning = [result("joint", 0.95, 9.0), result(first, 0.94, 5.0), result(second, 0.96, 8.0), result(third, 0.97, 7.0)]
    test = [result(second, 0.99, 1.0, half="test"), result("joint", 0.5, 1.0, age_s=25.0)]
    assert chosen([*tuning, *test])["serve"] == third


def test_a_baseline_that_never_serves_as_many_gets_its_best_settings() -> None:
    """If no settings reach the joint policy's attainment, those with the highest are chosen."""
    first, second, *_ = GRIDS["knative"]
    assert (
        chosen([result("joint", 0.99, 9.0), result(first, 0.94, 5.0), result(second, 0.96, 8.0)])["knative"] == second
    )


def test_a_run_goes_on_where_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials that have a result are not run again, and none begins after the end."""
    ran: list[Trial] = []

    def note(_: Path, trial: Trial) -> dict[str, Any]:
        ran.append(trial)
        return {"policy": trial.policy}

    class InThisProcess:
        def __init__(self, *_: object) -> None: ...
        def __enter__(self) -> InThisProcess:
            return self

        def __exit__(self, *_: object) -> None: ...
        def imap_unordered(self, function: Any, tasks: Any, chunksize: int) -> Any:
            assert chunksize == 1
            return map(function, tasks)

    monkeypatch.setattr(compare_policies, "run", note)
    monkeypatch.setattr(multiprocessing, "Pool", InThisProcess)
    trials = tuning_trials()
    runner = Runner(tmp_path, tmp_path / "runs", 2, time.time() + 1000)
    runner.run(trials[:3])
    runner.run(trials)
    assert len(ran) == len(trials) == len(set(ran)) == len(runner.results())
    assert json.loads((tmp_path / "runs" / f"{trials[0].name}.json").read_text()) == {"policy": "joint"}
    Runner(tmp_path, tmp_path / "late", 2, time.time() - 1).run(trials)
    assert len(ran) == len(trials)


def test_every_policy_has_the_same_arrivals() -> None:
    """In the test and in the sweep the joint policy and each baseline are run for each seed."""
    best = {"serve": "serve 1 1 1", "knative": "knative 1 1 1", "fixed": "fixed 1 1"}
    assert {(one.seed, one.policy) for one in trials_of_test(range(2), best) if one.hour == "trough"} == {
        (seed, policy) for seed in range(2) for policy in ("joint", *best.values())
    }
    assert len(sweep_trials(range(1), best)) == 5 * 3 * 3 * 2
