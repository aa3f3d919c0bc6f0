"""Reads a file of service level objectives (SLOs), in YAML.

An example with every key:

    ttft_s: {p50: 0.3, p90: 0.6, p99: 1.5}      # limits for percentiles over all answers, in seconds
    ttft_scheduled_s: {p99: 1.5}
    icl_s: {p99: 0.2}
    itl_s: {p90: 0.08, p95: 0.1}
    latency_s: {p99: 20}
    goodput:                                    # a request is good if its answer is within each of these
      ttft_s: 1.0
      ttft_scheduled_s: 1.0
      itl_s: 0.1
      latency_s: 30
      min_share: 0.95                           # of all requests
    max_failed_share: 0.001                     # of all requests, 0 without this line
    max_refused_share: 0.01                     # 0 without this line
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import yaml

from loadtest.fields import BadFields, Fields

if TYPE_CHECKING:
    from pathlib import Path

GOOD: Final = ("ttft_s", "ttft_scheduled_s", "itl_s", "latency_s")
"""Times that each answer has once, so that goodput can ask for them."""
JUDGED: Final = (*GOOD, "icl_s")
LEVELS: Final = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Slo:
    """Service level objectives.

    Args:
        percentiles_s: The limits in seconds, by the name of the time and the level.
        good_s: The limits in seconds that make a request good, by the name of the time.
        min_good_share: The least share of good requests, or None for no limit.
        max_failed_share: The largest share of requests that failed or did not end.
        max_refused_share: The largest share of refused requests.
    """

    percentiles_s: dict[tuple[str, str], float]
    good_s: dict[str, float]
    min_good_share: float | None
    max_failed_share: float
    max_refused_share: float


def read_slo(path: Path) -> Slo:
    """Reads a file of objectives.

    Raises:
        BadFields: A key is unknown, or a value is wrong. The message names the file and the key.
        OSError: The file cannot be read.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise BadFields(f"{path} is no YAML: {error}") from None
    fields = Fields(content, str(path))
    percentiles_s: dict[tuple[str, str], float] = {}
    for name in JUDGED:
        if (levels := fields.inner(name)) is not None:
            percentiles_s |= {(name, level): limit for level, limit in _limits(levels, LEVELS).items()}
            levels.end()
    good_s, min_good_share = {}, None
    if (goodput := fields.inner("goodput")) is not None:
        good_s = _limits(goodput, GOOD)
        min_good_share = goodput.number("min_share", most=1.0, default=None)
        goodput.end()
    max_failed_share = fields.number("max_failed_share", most=1.0, default=0.0)
    max_refused_share = fields.number("max_refused_share", most=1.0, default=0.0)
    fields.end()
    if not percentiles_s and not good_s:
        raise BadFields(f"{path}: it limits no time; it must have one of {', '.join(JUDGED)}, goodput")
    return Slo(percentiles_s, good_s, min_good_share, max_failed_share, max_refused_share)


def _limits(fields: Fields, names: object) -> dict[str, float]:
    limits = {str(name): fields.number(str(name), default=None) for name in names}  # type: ignore[attr-defined]
    return {name: limit for name, limit in limits.items() if limit is not None}
