"""Sends a running Prism short requests in which one field holds junk, and judges the answers.

    python -m tests.fuzz.fields http://127.0.0.1:8000 --num 2000 --seed 0

Each answer is 200 or a typed 4xx, and a refusal names the field that holds the junk.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.bodies import spoilt

HANG_S: Final = 60.0


@dataclass
class FieldFindings:
    """The answers of a run by status and code, the faults, and the fields that a refusal should have named."""

    answers: Counter[str] = field(default_factory=Counter)
    faults: dict[str, str] = field(default_factory=dict)
    unnamed: dict[str, str] = field(default_factory=dict)
    slowest_s: float = 0.0


def fuzz_fields(url: str, *, num: int, number: int) -> FieldFindings:
    """Sends so many requests to a running Prism.

    Args:
        url: Its address.
        num: The number of requests.
        number: The seed.
    """
    findings = FieldFindings()
    with httpx.Client(base_url=url, timeout=HANG_S) as client:

        @seed(number)
        @settings(
            max_examples=num,
            phases=[Phase.generate],
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(spoilt())
        def send(drawn: tuple[str, str, dict[str, Any]]) -> None:
            _send(client, *drawn, findings)

        send()
    return findings


def _send(client: httpx.Client, path: str, name: str, body: dict[str, Any], findings: FieldFindings) -> None:
    told = f"{path} {repr(body)[:400]}"
    started_s = time.monotonic()
    try:
        response = client.post(path, content=json.dumps(body))
    except httpx.HTTPError as failure:
        findings.faults.setdefault(f"{path} {name}: {type(failure).__name__}", told)
        return
    findings.slowest_s = max(findings.slowest_s, time.monotonic() - started_s)
    status = response.status_code
    if status == httpx.codes.OK:
        findings.answers["200"] += 1
        if body.get("stream") is True and '"error"' in response.text:
            findings.faults.setdefault(f"{path} {name}: an error within a stream", f"{response.text[:300]} {told}")
        return
    error = _error(response)
    findings.answers[f"{status} {error.get('code')}"] += 1
    if not 400 <= status < 500 or error.keys() < {"message", "type", "param", "code", "request_id"}:
        if not (status == httpx.codes.GATEWAY_TIMEOUT and name == "prism"):
            findings.faults.setdefault(f"{path} {name}: {status}", f"{response.text[:400]} {told}")
        return
    if error["code"] != "invalid_json" and (error["param"] or "").split(".")[0].split("[")[0] != name:
        findings.unnamed.setdefault(f"{path} {name} is not {error['param']}", f"{error['message'][:200]} {told}")


def _error(response: httpx.Response) -> dict[str, Any]:
    try:
        error = response.json()["error"]
    except (ValueError, LookupError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--num", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = fuzz_fields(options.url, num=options.num, number=options.seed)
    summary = {"answers": dict(found.answers.most_common()), "slowest_s": round(found.slowest_s, 2)}
    sys.stdout.write(json.dumps({**summary, "faults": found.faults, "unnamed": found.unnamed}, indent=1) + "\n")
    sys.exit(1 if found.faults else 0)


if __name__ == "__main__":
    main()
