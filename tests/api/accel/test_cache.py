"""What is kept between calls: found by content, bounded in bytes, the oldest use goes first."""

import threading

import numpy as np
import pytest
import torch

from kernel_distill.accel import _cache
from kernel_distill.accel._cache import cached, content_key, identity_key


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
    assert cached("key", lambda: "anew", 60) == "value"
    assert made("other", 40)
    assert cached("key", lambda: "anew", 60) == "value"  # one entry of 60 bytes, beside one of 40


def test_keys_are_contents():
    a = np.arange(6.0)
    assert content_key(a) == content_key(a.copy()) == content_key(torch.from_numpy(a))
    assert content_key(a.reshape(2, 3)[:, ::-1]) == content_key(a.reshape(2, 3)[:, ::-1].copy())
    others = [a.reshape(2, 3), a.astype(np.float32), a + np.eye(6)[5] * 1e-15 * 8, a[::-1], np.arange(6)]
    keys = {content_key(other) for other in (a, *others)}
    assert len(keys) == 6


def in_numpy(array):
    return array.numpy() if isinstance(array, torch.Tensor) else array


CHANGES = {
    "one number": lambda a: a.__setitem__((3, 2), 7.0),
    "rows in another order": lambda a: a.__setitem__(slice(None), a[::-1].copy()),
    "columns in another order": lambda a: a.__setitem__(slice(None), a[:, ::-1].copy()),
    "two numbers exchanged": lambda a: a.__setitem__(([0, 5], [1, 3]), a[[5, 0], [3, 1]]),
    "the sign of zero": lambda a: a.__setitem__((0, 0), -0.0),
}


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("change", CHANGES)
def test_identity_with_changes_that_nobody_counts(kind, change):
    values = np.random.default_rng(0).standard_normal((40, 8))
    values[0, 0] = 0.0
    array = kind(values)
    before = identity_key(array)
    assert identity_key(array) == before
    CHANGES[change](in_numpy(array))
    assert identity_key(array) != before


def test_identity_is_of_the_object_while_it_lives():
    a = torch.ones(3, 5)
    key = identity_key(a)
    assert identity_key(a.clone()) != key
    assert identity_key(a.T) != key
    a.add_(0)
    assert identity_key(a) != key  # torch counts
    del a
    assert all(identity_key(torch.ones(3, 5)) != key for _ in range(5))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(7, dtype=np.uint8),
        np.asfortranarray(np.eye(3)),
        np.eye(4)[::-1],
        np.empty((0, 3)),
        np.float32(2.0) * np.ones(()),
        np.arange(6, dtype=">f4"),
        np.broadcast_to(np.ones(2), (3, 2)),
        torch.ones(3, 1).expand(3, 4),
        torch.tensor([True, False]),
        torch.ones(3, dtype=torch.bfloat16),
        torch.arange(29, dtype=torch.uint8)[1:],
    ],
    ids=lambda array: f"{array.dtype}-{tuple(array.shape)}",
)
def test_identity_of_odd_arrays(array):
    array = np.asarray(array) if not isinstance(array, torch.Tensor) else array
    assert identity_key(array) == identity_key(array)
