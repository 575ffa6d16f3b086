"""MLX's limits while something runs, on machines that are not here."""

import mlx.core as mx
import pytest

from mlx_dpo.models.limits import CACHE_BYTES, follow_peak, limited_memory

GIB = 2**30


class Device:
    """Stands for MLX's limits on a device that recommends so many bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, recommended: int | None) -> None:
        self.limits = {"cache": 99, "wired": 7}
        metal = recommended is not None
        info = {"max_recommended_working_set_size": recommended} if metal else {}
        monkeypatch.setattr(mx, "device_info", lambda: info)
        monkeypatch.setattr(mx.metal, "is_available", lambda: metal)
        monkeypatch.setattr(mx, "set_cache_limit", lambda limit: self._set("cache", limit))
        monkeypatch.setattr(mx, "set_wired_limit", lambda limit: self._set("wired", limit))

    def _set(self, name: str, limit: int) -> int:
        old, self.limits[name] = self.limits[name], limit
        return old


@pytest.mark.parametrize("size", [5.3, 10.7, 48.0])
def test_an_eighth_is_cached_and_no_more_than_seven_tenths_are_pinned(
    monkeypatch: pytest.MonkeyPatch, size: float
) -> None:
    device = Device(monkeypatch, int(size * GIB))
    with limited_memory():
        assert device.limits["cache"] == int(size * GIB) // 8
        assert 0 < device.limits["wired"] <= 0.7 * size * GIB


def test_a_cpu_pins_nothing_and_caches_a_fixed_size(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch, None)
    with limited_memory():
        assert device.limits == {"cache": CACHE_BYTES, "wired": 7}


def test_a_cuda_device_caches_an_eighth_of_its_memory_and_pins_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = Device(monkeypatch, None)
    monkeypatch.setattr(mx, "device_info", lambda: {"total_memory": 80 * GIB})
    with limited_memory():
        assert device.limits == {"cache": 10 * GIB, "wired": 7}


@pytest.mark.parametrize("peak", [GIB // 2, GIB, 4 * GIB])
def test_the_cache_follows_the_peak_up_to_its_share(
    monkeypatch: pytest.MonkeyPatch, peak: int
) -> None:
    device = Device(monkeypatch, 8 * GIB)
    monkeypatch.setattr(mx, "get_peak_memory", lambda: peak)
    with limited_memory():
        follow_peak()
        assert device.limits["cache"] == min(peak, GIB)


@pytest.mark.parametrize("recommended", [None, 10 * GIB])
def test_the_old_limits_come_back_however_it_ends(
    monkeypatch: pytest.MonkeyPatch, recommended: int | None
) -> None:
    device = Device(monkeypatch, recommended)
    with pytest.raises(KeyError), limited_memory():
        raise KeyError
    assert device.limits == {"cache": 99, "wired": 7}
