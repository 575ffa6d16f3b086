"""Advice to install an optional part works where it is given."""

from pathlib import Path

import pytest

from mlx_dpo.extras import to_install


def test_in_a_clone_the_clone_is_installed_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    assert to_install("torch", tmp_path) == "pip install -e '.[torch]'"
    monkeypatch.chdir("/")
    assert to_install("torch", tmp_path) == f"pip install -e '{tmp_path}[torch]'"


def test_from_a_wheel_the_packages_themselves_are_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["numpy>=1.26", 'starlette>=1; extra == "label"', 'torch==2.13.0; extra == "torch"']
    monkeypatch.setattr("mlx_dpo.extras.requires", lambda name: lines)
    assert to_install("label", tmp_path) == "pip install 'starlette>=1'"
