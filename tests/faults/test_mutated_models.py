"""Damaged model files: used or refused in one line, in bounded memory, and never a crash."""

import json
import subprocess
import sys

import pytest

from tests.faults.mutations import KINDS, MOST_MEMORY

pytestmark = pytest.mark.survival

SIZE = 60


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_damage_is_refused_in_one_line_and_bounded_memory(kind: str) -> None:
    command = [sys.executable, "-m", "tests.faults.mutations", kind, "0", str(SIZE)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    last = ran.stdout.splitlines()[-1:]
    assert ran.returncode == 0, f"exit {ran.returncode} at {last}: {ran.stderr[-2000:]}"
    found = json.loads(last[0])
    assert found["used"] + found["refused"] == SIZE
    assert found["refused"] > SIZE // 4
    assert found["peak_bytes"] < MOST_MEMORY
