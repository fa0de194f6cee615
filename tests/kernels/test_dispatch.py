"""Which backend runs, what is said when one does not, and that a named one is never replaced."""

import logging
import subprocess
import sys
import threading

import pytest
import torch

from kernel_distill.kernels import _dispatch
from kernel_distill.kernels._dispatch import choose, explain, implement, use_backend
from kernel_distill.kernels.kernel_matrix import kernel_matrix
from kernel_distill.kernels.radial import Gaussian

CUDA = torch.device("cuda", 0)


class OnGpu(torch.Tensor):
    """A CPU tensor that says it is on a GPU."""

    @property
    def device(self):
        return CUDA


def on_gpu():
    return torch.zeros(2).as_subclass(OnGpu)


@pytest.fixture
def operation(monkeypatch):
    """An operation with three implementations that return their names; the middle one refuses long inputs."""
    monkeypatch.setattr(_dispatch, "_REGISTRY", {})
    monkeypatch.setattr(_dispatch, "_installed", lambda library: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    _dispatch._say_once.cache_clear()
    implement("op", "torch", lambda x: "torch")
    implement("op", "cuda", lambda x: "cuda")
    implement(
        "op",
        "triton",
        lambda x: "triton",
        rejects=lambda x: "takes two entries at most" if len(x) > 2 else None,
        slower=lambda x: "is slower for two" if len(x) == 2 else None,
    )
    return "op"


def run(operation, x, **options):
    return choose(operation, x, **options)(x)


def test_the_cpu_uses_the_definition(operation):
    assert run(operation, torch.zeros(1)) == "torch"
    assert run(operation, torch.zeros(1), backend="torch") == "torch"


def test_a_gpu_uses_the_first_that_will_do(operation, caplog):
    with caplog.at_level(logging.INFO, "kernel_distill"):
        assert run(operation, on_gpu()[:1]) == "triton"
        assert not caplog.messages
        assert run(operation, on_gpu()) == "cuda"
        assert run(operation, on_gpu()) == "cuda"
        assert caplog.messages == ["op does not run in triton: it is slower for two"]  # once
        assert run(operation, torch.zeros(3).as_subclass(OnGpu)) == "cuda"
    assert caplog.messages[1:] == ["op does not run in triton: it takes two entries at most"]


def test_a_named_backend_runs_or_raises(operation):
    assert run(operation, on_gpu(), backend="triton") == "triton"  # slower, but asked for
    with pytest.raises(ValueError, match="'triton' was asked for, but op takes two entries at most"):
        run(operation, torch.zeros(3).as_subclass(OnGpu), backend="triton")
    with pytest.raises(ValueError, match="'cuda' was asked for, but op needs tensors on a CUDA device"):
        run(operation, torch.zeros(1), backend="cuda")
    with pytest.raises(ValueError, match="unknown backend 'cublas': known are triton, cuda, torch"):
        run(operation, torch.zeros(1), backend="cublas")


def test_launches_go_to_the_device_of_the_tensors(operation, monkeypatch):
    entered = []

    class Entering:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            entered.append(self.device)

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(torch.cuda, "device", Entering)
    assert run(operation, on_gpu(), backend="triton") == "triton"
    assert not entered
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert run(operation, on_gpu(), backend="triton") == "triton"
    assert entered == [CUDA]


def test_a_missing_library_is_named(operation, monkeypatch):
    monkeypatch.setattr(_dispatch, "_installed", lambda library: library != "cupy")
    assert run(operation, on_gpu()) == "torch"


def test_explain_takes_the_arguments_of_a_call():
    X = torch.zeros(3, 2)
    reasons = explain("kernel_matrix", Gaussian(), X)
    assert reasons["torch"] is None
    assert "cuda" in reasons["cuda"]
    if not _dispatch.INTERPRETED:
        assert reasons["triton"] == "needs tensors on a CUDA device, these are on 'cpu'"
    assert explain("gram_add_", torch.zeros(2, 2), X) == {}
    with pytest.raises(ValueError, match="no operation is called 'kernel_matrx'"):
        explain("kernel_matrx", X)
    with pytest.raises(ValueError, match="samples as rows"):
        explain("kernel_matrix", Gaussian(), torch.zeros(3))
    assert kernel_matrix(Gaussian(), X).shape == (3, 3)


def test_use_backend_holds_in_its_block_and_thread(operation):
    with use_backend("triton"):
        assert run(operation, on_gpu()) == "triton"
        assert run(operation, on_gpu(), backend="torch") == "torch"
        seen = []
        thread = threading.Thread(target=lambda: seen.append(run(operation, on_gpu())))
        thread.start()
        thread.join()
        assert seen == ["cuda"]
    assert run(operation, on_gpu()) == "cuda"
    with pytest.raises(ValueError, match="unknown backend"), use_backend("cublas"):
        pass


def test_the_environment_names_a_backend():
    code = (
        "import numpy as np; from kernel_distill.kernels.kernel_matrix import kernel_matrix;"
        "from kernel_distill.kernels.radial import Gaussian\n"
        "try: kernel_matrix(Gaussian(), np.zeros((2, 2)))\n"
        "except ValueError as error: print(error)"
    )
    environment = {"KERNEL_DISTILL_BACKEND": "cuda", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "'cuda' was asked for, but kernel_matrix" in done.stdout


def test_targets_are_imported_when_chosen(operation):
    implement(operation, "torch", "radial:Gaussian")
    assert choose(operation, torch.zeros(1)).__name__ == "Gaussian"


def test_every_implementation_exists():
    """Each declared target can be imported, wherever its library is."""
    import kernel_distill.kernels  # noqa: F401

    assert len(_dispatch._REGISTRY) > 9
    for entries in _dispatch._REGISTRY.values():
        assert "torch" in entries
        for name, entry in entries.items():
            if _dispatch._installed({"cuda": "cupy"}.get(name, name)):
                assert callable(entry.load())
