"""The soak's judgement of memory."""

from __future__ import annotations

import random
import statistics
import subprocess
import sys

import psutil
import pytest

from loadtest.soak import growth, is_flat, main, memory

HELD_MIB = 64
HOLD = f"held = bytearray(range(256)) * {HELD_MIB * 2**12}; print(1, flush=True); import time; time.sleep(60)"
PLAYED = f"""
(exec -a ServeReplica:prism:Decoder bash -c '{sys.executable} -c "{HOLD}" & wait') &
(exec -a ServeReplica:prism:Router {sys.executable} -c "{HOLD}") &
{sys.executable} -c "{HOLD}" &
wait
"""
"""A decoder with an engine below it, a Router and something else, as far as titles go."""


def test_an_engines_memory_is_its_decoders() -> None:
    """The memory of a replica's child process counts for the replica's pool. Memory of other processes counts for no
    pool."""
    with subprocess.Popen(["bash"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        shell.stdin.write(PLAYED.encode())
        shell.stdin.close()
        assert sorted(shell.stdout.read(6)) == sorted(b"1\n" * 3)  # their writes may mix
        root = psutil.Process(shell.pid)
        taken = memory(root)
        for child in root.children(recursive=True):
            child.kill()
    assert all(HELD_MIB < taken[group] < 2 * HELD_MIB for group in ("Decoder", "Router", "others"))
    assert (taken["Preprocessor"], taken["VisionEncoder"]) == (0, 0)


@pytest.mark.parametrize("seed", range(10))
def test_growth_compares_the_last_third_with_the_second(seed: int) -> None:
    """The medians of the second and the last third are compared. The total is the growth of the sum, not a sum of
    growths."""
    rng = random.Random(seed)
    samples = [{"a": rng.uniform(10, 20), "b": rng.uniform(100, 200)} for _ in range(rng.randrange(6, 40))]
    third = len(samples) // 3
    found = growth(samples)
    for name in ("a", "b"):
        before = statistics.median(sample[name] for sample in samples[third : 2 * third])
        after = statistics.median(sample[name] for sample in samples[2 * third :])
        assert found[name] == pytest.approx(after / before - 1)
    before = statistics.median(sample["a"] + sample["b"] for sample in samples[third : 2 * third])
    after = statistics.median(sample["a"] + sample["b"] for sample in samples[2 * third :])
    assert found["total"] == pytest.approx(after / before - 1)


def test_what_is_full_is_flat_and_what_leaks_is_not() -> None:
    """A cache that fills within the first third is flat. A leak of 6 MiB per minute in total, or of 1 MiB per minute
    in a small pool, is not."""
    full = [{"engine": 5000.0, "cache": min(number * 20.0, 64.0), "router": 100.0} for number in range(60)]
    assert is_flat(growth(full))
    assert not is_flat(growth([sample | {"engine": 5000.0 + 6 * number} for number, sample in enumerate(full)]))
    assert not is_flat(growth([sample | {"router": 100.0 + number} for number, sample in enumerate(full)]))


def test_a_load_of_nothing_is_refused() -> None:
    """An impossible number ends the command with exit code 2."""
    with pytest.raises(SystemExit) as ended:
        main(["--rate", "0"])
    assert ended.value.code == 2
