"""MLX's limits while something runs, on machines that are not here."""

import sys
from types import SimpleNamespace

import mlx.core as mx
import pytest

from mlx_dpo.models.limits import CACHE_BYTES, follow_peak, limited_memory

GIB = 2**30
BEFORE = {"memory": 88, "cache": 99, "wired": 7}


class Device:
    """Stands for MLX's limits on a device that recommends so many bytes; a CPU recommends none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, recommended: int | None) -> None:
        self.limits = dict(BEFORE)
        self.calls: list[str] = []
        metal = recommended is not None
        info = {"max_recommended_working_set_size": recommended} if metal else {}
        monkeypatch.setattr(mx, "device_info", lambda: info)
        monkeypatch.setattr(mx.metal, "is_available", lambda: metal)
        for name in BEFORE:
            monkeypatch.setattr(mx, f"set_{name}_limit", lambda n, name=name: self._set(name, n))
        monkeypatch.setattr(mx, "synchronize", lambda *streams: self.calls.append(f"{streams}"))

    def _set(self, name: str, limit: int) -> int:
        self.calls.append(name)
        old, self.limits[name] = self.limits[name], limit
        return old


@pytest.mark.parametrize("size", [5.3, 10.7, 48.0])
def test_all_memory_stays_within_what_is_recommended_and_seven_tenths_of_it_are_pinned(
    monkeypatch: pytest.MonkeyPatch, size: float
) -> None:
    device = Device(monkeypatch, int(size * GIB))
    with limited_memory():
        assert device.limits["memory"] == int(0.95 * int(size * GIB))
        assert device.limits["cache"] == int(size * GIB) // 8
        assert 0 < device.limits["wired"] <= 0.7 * size * GIB


@pytest.mark.parametrize(("budget", "expected"), [(4 * GIB, 4 * GIB), (20 * GIB, 9.5 * GIB)])
def test_all_memory_stays_within_a_budget_too(
    monkeypatch: pytest.MonkeyPatch, budget: int, expected: float
) -> None:
    device = Device(monkeypatch, 10 * GIB)
    with limited_memory(budget):
        assert device.limits["memory"] == expected


def test_a_cpu_pins_nothing_and_caches_a_fixed_size(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch, None)
    with limited_memory():
        assert device.limits == {**BEFORE, "cache": CACHE_BYTES}
    with limited_memory(GIB):
        assert device.limits == {**BEFORE, "cache": CACHE_BYTES, "memory": GIB}


def test_a_cuda_device_keeps_within_its_memory_and_pins_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = Device(monkeypatch, None)
    monkeypatch.setattr(mx, "device_info", lambda: {"total_memory": 80 * GIB})
    with limited_memory():
        assert device.limits == {**BEFORE, "memory": 76 * GIB, "cache": 10 * GIB}


@pytest.mark.parametrize(("peak", "held"), [(3 * GIB, GIB), (9 * GIB, GIB)])
def test_the_cache_holds_what_a_step_used_beyond_what_is_held_between_steps(
    monkeypatch: pytest.MonkeyPatch, peak: int, held: int
) -> None:
    device = Device(monkeypatch, 8 * GIB)
    monkeypatch.setattr(mx, "get_peak_memory", lambda: peak)
    monkeypatch.setattr(mx, "get_active_memory", lambda: held)
    with limited_memory():
        follow_peak()
        assert device.limits["cache"] == min(peak - held, int(7.6 * GIB))


def test_a_cpu_caches_no_more_than_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch, None)
    monkeypatch.setattr(mx, "get_peak_memory", lambda: CACHE_BYTES // 2)
    with limited_memory():
        follow_peak()
        assert device.limits["cache"] == CACHE_BYTES // 2


def test_what_is_pinned_changes_under_no_running_evaluation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """mlx-lm generates on a stream of its own, which `mx.synchronize` alone does not wait for."""
    device = Device(monkeypatch, 10 * GIB)
    monkeypatch.setitem(
        sys.modules, "mlx_lm.generate", SimpleNamespace(generation_stream="generation")
    )
    with limited_memory():
        pass
    waits = ["()", "('generation',)", "wired"]
    assert device.calls[2:5] == device.calls[-3:] == waits


@pytest.mark.parametrize("recommended", [None, 10 * GIB])
def test_the_old_limits_come_back_however_it_ends(
    monkeypatch: pytest.MonkeyPatch, recommended: int | None
) -> None:
    device = Device(monkeypatch, recommended)
    with pytest.raises(KeyError), limited_memory(GIB):
        raise KeyError
    assert device.limits == BEFORE
