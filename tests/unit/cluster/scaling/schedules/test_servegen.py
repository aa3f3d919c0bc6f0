"""Schedules from ServeGen's data: clients, rates, sizes and what is refused. The data here are made up."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from cluster.scaling.schedules.schedule import ScheduleError
from cluster.scaling.schedules.servegen import from_servegen

if TYPE_CHECKING:
    from pathlib import Path

    from cluster.scaling.schedules.schedule import Arrival

MORNING = {"text_tokens": "{10: 1.0}", "image_tokens": "{100: 1.0}", "image_count": "{1: 0.5, 3: 0.5}"}
EVENING = {"text_tokens": "{20: 1.0}", "image_tokens": "{50: 1.0}", "image_count": "{0: 1.0}"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two clients over two hours: one steady, one that sends in the second hour only and changes its sizes then."""
    rows = {
        "0": [f"{start},2.0,1.0,Weibull,1.0,0.5" for start in range(0, 7200, 600)],
        "10": [
            f"{start},{0 if start < 3600 else 5},0.5,{'' if start < 3600 else 'Gamma'},4.0,0.05"
            for start in range(0, 7200, 600)
        ],
    }
    for name, lines in rows.items():
        (tmp_path / f"chunk-{name}-trace.csv").write_text("\n".join(lines) + "\n")
        sizes = {"0": {**MORNING, "output_tokens": "{7: 1.0}"}, "3600": {**EVENING, "output_tokens": "{9: 1.0}"}}
        (tmp_path / f"chunk-{name}-dataset.json").write_text(json.dumps(sizes))
    return tmp_path


def made(
    data: Path, start_s: float = 0, duration_s: float = 7200, speed_up: float = 1, **more: list[str]
) -> list[Arrival]:
    """Returns the arrivals of a part of the data."""
    return list(from_servegen(data, start_s=start_s, duration_s=duration_s, speed_up=speed_up, seed=1, **more)[1])


def test_each_client_keeps_its_rate(data: Path) -> None:
    """Each client sends at its rate in each window, and all arrivals are in the order of time."""
    arrivals = made(data)
    assert [arrival.at_s for arrival in arrivals] == sorted(arrival.at_s for arrival in arrivals)
    hours = Counter((arrival.client, int(arrival.at_s // 3600)) for arrival in arrivals)
    assert hours.keys() == {("0", 0), ("0", 1), ("10", 1)}
    assert hours["0", 0] == pytest.approx(7200, rel=0.06)
    assert hours["10", 1] == pytest.approx(18_000, rel=0.03)


def test_sizes_are_those_of_the_time_of_day(data: Path) -> None:
    """Sizes come from the distributions that hold at the time, and each picture has its own tokens."""
    early, late = made(data, 0, 1800)[0:200], made(data, 3600, 1800)[0:200]
    assert {arrival.text_tokens for arrival in early} == {10}
    assert {len(arrival.pictures) for arrival in early} == {1, 3}
    pixels = [picture.width * picture.height for arrival in early for picture in arrival.pictures]
    assert min(pixels) == pytest.approx(max(pixels), rel=0.01) == pytest.approx(100 * 784, rel=0.01)
    assert {(arrival.text_tokens, arrival.output_tokens, arrival.pictures) for arrival in late} == {(20, 9, ())}


def test_a_day_can_pass_faster(data: Path) -> None:
    """With a speed-up of 10 the same arrivals come in a tenth of the time."""
    slow, fast = made(data, 600, 1200), made(data, 600, 1200, 10)
    assert [arrival.at_s / 10 for arrival in slow] == pytest.approx([arrival.at_s for arrival in fast])
    heading, _ = from_servegen(data, start_s=600, duration_s=1200, speed_up=10, seed=1)
    assert heading.duration_s == 120
    assert fast[-1].at_s <= 120


def test_a_missing_window_is_a_pause(data: Path) -> None:
    """If the row of a window is missing, nothing comes in it, and later arrivals keep their time."""
    path = data / "chunk-0-trace.csv"
    rows = path.read_text().splitlines()
    path.write_text("\n".join(rows[:1] + rows[2:]))
    windows = Counter(int(arrival.at_s // 600) for arrival in made(data, 0, 1800, clients=["0"]))
    assert windows.keys() == {0, 2}


def test_the_burstiest_clients_of_the_data_are_accepted(data: Path) -> None:
    """A gamma distribution with the smallest shape of ServeGen's own data, 0.0118, is read."""
    path = data / "chunk-0-trace.csv"
    path.write_text(path.read_text().replace("Weibull,1.0", "Gamma,0.0118"))
    assert made(data, clients=["0"])


def test_some_clients_can_be_chosen(data: Path) -> None:
    """A choice of clients leaves out the others and changes nothing about those that stay."""
    alone = made(data, clients=["10"])
    assert alone == [arrival for arrival in made(data) if arrival.client == "10"]


def test_what_cannot_be_used_is_refused(data: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Unknown clients, a time beyond the data, a folder without data and broken files are each named."""
    with pytest.raises(ScheduleError, match="no clients 3; there are 0, 10"):
        made(data, clients=["0", "3"])
    with pytest.raises(ScheduleError, match="end after 2 hours"):
        made(data, 3600, 7200)
    with pytest.raises(ScheduleError, match="must be a folder"):
        made(tmp_path_factory.mktemp("empty"))
    for name, text in (
        ("trace.csv", "0,1,1,Poisson,1,1\n"),
        ("dataset.json", "{}"),
        ("dataset.json", '{"0": {"a": 1}}'),
        ("dataset.json", "[]"),
        ("dataset.json", "[" * 5000),
        ("dataset.json", json.dumps({"0": {**MORNING, "output_tokens": "{}"}})),
        ("dataset.json", json.dumps({"0": {**MORNING, "output_tokens": "{-5: 1.0}"}})),
        ("dataset.json", json.dumps({"0": {**MORNING, "output_tokens": "{5: -1.0}"}})),
        ("dataset.json", json.dumps({"0": {**MORNING, "output_tokens": "{1e999: 1.0}"}})),
        ("trace.csv", ""),
        ("trace.csv", "0,nan,1,Gamma,1,1\n"),
        ("trace.csv", "0,-1,1,Gamma,1,1\n"),
        ("trace.csv", "0,1,1,Gamma,0,1\n"),
        ("trace.csv", "0,1,1,Weibull,nan,1\n"),
        ("trace.csv", "0,1,1,Gamma,1,1\n300,1,1,Gamma,1,1\n"),
    ):
        before = (data / f"chunk-10-{name}").read_text()
        (data / f"chunk-10-{name}").write_text(text)
        with pytest.raises(ScheduleError, match=f"chunk-10-{name} is not as"):
            made(data)
        (data / f"chunk-10-{name}").write_text(before)
