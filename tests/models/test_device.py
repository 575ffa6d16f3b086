"""TF32 is off unless the user turns it on, before MLX computes anything."""

import os
import subprocess
import sys

import pytest

from mlx_dpo.models.device import TF32_SWITCH, tf32_enabled


@pytest.mark.parametrize("module", ["mlx_dpo", "mlx_dpo.__main__", "tests.conftest"])
@pytest.mark.parametrize("chosen", [None, "0", "1"])
def test_importing_the_package_turns_tf32_off_where_nothing_is_said(
    module: str, chosen: str | None
) -> None:
    environment = {k: v for k, v in os.environ.items() if k != TF32_SWITCH}
    environment |= {} if chosen is None else {TF32_SWITCH: chosen}
    code = f"import os, {module}; print(os.environ['{TF32_SWITCH}'])"
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == (chosen or "0")


@pytest.mark.parametrize(
    ("value", "on"), [("0", False), ("1", True), ("", False), ("2", True), ("yes", False)]
)
def test_the_switch_is_read_as_mlx_reads_it(
    value: str, on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TF32_SWITCH, value)
    assert tf32_enabled() is on


def test_without_the_package_tf32_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TF32_SWITCH)
    assert tf32_enabled()
