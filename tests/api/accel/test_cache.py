"""What is kept between calls: found by content, bounded in bytes, the oldest use goes first."""

import threading

import numpy as np
import pytest
import torch

from kernel_distill.accel import _cache
from kernel_distill.accel._cache import cached, content_key


@pytest.fixture(autouse=True)
def budget(monkeypatch):
    monkeypatch.setenv("KERNEL_DISTILL_ACCEL_CACHE", "100")
    _cache.clear()
    yield
    _cache.clear()


def made(key, nbytes=40):
    """Whether the value of a key had to be made."""
    calls = []
    assert cached(key, lambda: calls.append(1) or key, nbytes) == key
    return bool(calls)


def test_the_least_recently_used_makes_room():
    assert made("a")
    assert made("b")
    assert not made("a")
    assert made("c")  # 120 bytes: b goes
    assert not made("a")
    assert made("b")
    assert made("c")


def test_too_large_values_are_made_every_time_and_push_nothing_out():
    assert made("a")
    assert made("huge", 101)
    assert made("huge", 101)
    assert not made("a")
    assert made("exact", 100)
    assert not made("exact", 100)


def test_nothing_is_kept_without_a_budget(monkeypatch):
    monkeypatch.setenv("KERNEL_DISTILL_ACCEL_CACHE", "0")
    assert made("a")
    assert made("a")


@pytest.mark.parametrize("value", ["1GB", "-1", ""])
def test_bad_budget(monkeypatch, value):
    monkeypatch.setenv("KERNEL_DISTILL_ACCEL_CACHE", value)
    with pytest.raises(ValueError, match="must be a number of bytes"):
        made("a")


def test_two_threads_making_one_value_keep_one():
    both = threading.Barrier(2)

    def make():
        both.wait(10)
        return "value"

    threads = [threading.Thread(target=cached, args=("key", make, 60)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not made("other", 40) or not made("other", 40)
    assert cached("key", lambda: "anew", 60) == "value"


def test_keys_are_contents():
    a = np.arange(6.0)
    assert content_key(a) == content_key(a.copy()) == content_key(torch.from_numpy(a))
    assert content_key(a.reshape(2, 3)[:, ::-1]) == content_key(a.reshape(2, 3)[:, ::-1].copy())
    others = [a.reshape(2, 3), a.astype(np.float32), a + np.eye(6)[5] * 1e-15 * 8, a[::-1], np.arange(6)]
    keys = {content_key(other) for other in (a, *others)}
    assert len(keys) == 6
