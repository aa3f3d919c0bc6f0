"""Collects the measured figures and writes them as ``results.json``, ``results.md`` and plots."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from loadtest.bench import plots
from loadtest.bench.bars import BARS, BarResult, judge, short, spread, with_unit
from loadtest.bench.systems import NAMES, versions
from loadtest.servers import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from loadtest.bench.bars import Results
    from loadtest.bench.load import Sample
    from loadtest.bench.workloads import Scenario

LATENCY_PANELS: Final[tuple[str, ...]] = ("text", "picture_new", "picture_seen", "windows")
"""The scenarios whose times to the first token are drawn."""


@dataclass
class Record:
    """The results of all repeats of all scenarios so far.

    Args:
        about: The machine, versions, date and command.
        figures: Scenario → system → figure → its value in each repeat.
        failures: ``scenario, system`` → how many answers failed, by cause.
        ttft_ms: Scenario → system → TTFT of every whole answer of every repeat.
        gaps_ms: System → phase of ``bursts`` → every gap between tokens of every text stream.
        notes: Anything that could not be measured, and why.
    """

    about: dict[str, Any]
    figures: Results = field(default_factory=dict)
    failures: dict[str, Counter[str]] = field(default_factory=dict)
    ttft_ms: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    gaps_ms: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, scenario: Scenario, system: str, phases: Mapping[str, Sequence[Sample]]) -> None:
        """Adds the samples of one repeat. Only whole answers have figures; failed ones are counted separately.

        Args:
            scenario: The scenario that was run.
            system: The name of the system that answered.
            phases: The samples of each recorded phase, by the phase's name.
        """
        whole = {name: [sample for sample in samples if not sample.failure] for name, samples in phases.items()}
        for samples in phases.values():
            for sample in samples:
                if sample.failure:
                    self.failures.setdefault(f"{scenario.name}, {system}", Counter())[sample.failure] += 1
        if not all(whole.values()):
            self.notes.append(f"{scenario.name}, {system}: a phase has no whole answer, so this repeat has no figures")
            return
        rows = self.figures.setdefault(scenario.name, {}).setdefault(system, {})
        for name, value in scenario.figures(whole).items():
            rows.setdefault(name, []).append(value)
        times_ms = self.ttft_ms.setdefault(scenario.name, {}).setdefault(system, [])
        times_ms += [sample.ttft_s * 1000 for samples in whole.values() for sample in samples]
        if scenario.name == "bursts":
            phase_gaps = self.gaps_ms.setdefault(system, defaultdict(list))
            for name, samples in whole.items():
                phase_gaps[name] += [
                    gap_s * 1000 for sample in samples if sample.kind == "text" for gap_s in sample.gaps_s
                ]

    def write(self, folder: Path, scenarios: Sequence[Scenario]) -> None:
        """Writes the results so far into a folder, over those of an earlier call.

        Args:
            folder: Gets ``results.json``, ``results.md`` and one PNG per plot that has data.
            scenarios: The scenarios of this run, in the order of the report.
        """
        folder.mkdir(parents=True, exist_ok=True)
        verdicts = [judge(bar, self.figures) for bar in BARS]
        content = {
            "about": self.about,
            "notes": self.notes,
            "failures": self.failures,
            "figures": self.figures,
            "bars": [asdict(verdict) | {"text": verdict.bar.text} for verdict in verdicts],
        }
        (folder / "results.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        (folder / "results.md").write_text(self.markdown(scenarios, verdicts))
        self._draw(folder, {scenario.name: scenario.title for scenario in scenarios})

    def _draw(self, folder: Path, titles: Mapping[str, str]) -> None:
        latency = {name: self.ttft_ms[name] for name in LATENCY_PANELS if name in self.ttft_ms}
        if latency:
            plots.draw_ttft(latency, titles, folder / "ttft.png")
        if self.gaps_ms:
            plots.draw_gaps(self.gaps_ms, folder / "gaps.png")
        rated = {
            name: systems
            for name, systems in self.figures.items()
            if all("requests/s" in figures for figures in systems.values()) and len(systems) > 1
        }
        if rated:
            plots.draw_rates(rated, titles, folder / "rates.png")

    def markdown(self, scenarios: Sequence[Scenario], verdicts: Sequence[BarResult]) -> str:
        """The report as Markdown."""
        lines = ["# Prism and other servers, compared on one machine", ""]
        lines += [f"- **{name}:** {value}" for name, value in self.about.items()]
        lines += ["", "Figures are medians over the repeats, with their range in brackets.", "", "## Bars", ""]
        lines += ["A bar is a limit that Prism must keep. Its number is the row of the requirement.", ""]
        lines += ["| # | bar | measured | result |", "|---:|---|---:|---|"]
        for verdict in verdicts:
            value = "–" if verdict.value is None else short(verdict.value)
            said = {True: "holds", False: "**missed**", None: "not measured"}[verdict.holds]
            lines.append(f"| {verdict.bar.number} | {verdict.bar.text} | {value} | {said} |")
        for scenario in scenarios:
            systems = self.figures.get(scenario.name)
            if systems:
                lines += ["", f"## `{scenario.name}`: {scenario.title}", "", *table(systems)]
        if self.failures or self.notes:
            lines += ["", "## Failures and notes", ""]
            lines += [
                f"- {where}: {count} × {cause}"
                for where, causes in self.failures.items()
                for cause, count in causes.items()
            ]
            lines += [f"- {note}" for note in self.notes]
        return "\n".join(lines) + "\n"


def table(systems: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """A Markdown table with one row per figure and one column per system."""
    names = list(dict.fromkeys(name for figures in systems.values() for name in figures))
    lines = [f"| | {' | '.join(NAMES.get(system, system) for system in systems)} |", "|---|" + "---:|" * len(systems)]
    for name in names:
        cells = (spread(figures[name]) if name in figures else "–" for figures in systems.values())
        lines.append(f"| {with_unit(name)} | {' | '.join(cells)} |")
    return lines


def about(repeats: int, *, quick: bool, client_first: bool) -> dict[str, Any]:
    """Describes the run: the machine, the versions, the date, the command, and how the systems are laid out.

    Args:
        repeats: How many times each system is measured.
        quick: Whether only a quarter of the requests are sent.
        client_first: Whether the machine lets the client run before everything else.
    """
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "python -m loadtest.bench " + " ".join(sys.argv[1:]),
        "commit": commit,
        "machine": f"{os.cpu_count()} cores of {cpu}, Linux {platform.release()}",
        **versions(),
        "repeats": f"{repeats}{', quick' if quick else ''}; systems alternate, and each is started again every time",
        "client": "scheduled before everything else" if client_first else "scheduled like everything else, may be late",
        **LAYOUT,
    }


LAYOUT: Final = {
    "the same for all": (
        "checkpoint, float32, max_model_len 4096, max_num_seqs 64, 1 GiB of KV cache per engine, eager mode, one "
        "thread per engine, the bytes of every request, one client process on the same cores"
    ),
    "prompts": (
        "Prism prefills them in chunks of 64 tokens, as its application file says, except in `windows`. The others "
        "prefill them whole, which is vLLM's default (flag `--long-prefill-token-threshold`)."
    ),
    "cores": (
        "In `windows` the two engines are bound to cores 0 and 1. In `bursts` and `geometry` the engine is bound to "
        "core 1 and Prism's encoder to core 0. In all other scenarios nothing is bound."
    ),
    "niceness": (
        "Ray's workers run at 0. Prism sets its own (`cluster/priority.py`): engines at 15 and pictures at 0; in "
        "`bursts` and `geometry`, where a core is reserved for the engine (`bind_cores`), the engine at 0 and pictures "
        "at 5."
    ),
}
"""How the systems are laid out, for the head of the report."""


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.exists() else []
