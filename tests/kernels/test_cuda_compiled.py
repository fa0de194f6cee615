"""The CUDA C++ without a GPU: it compiles for each of them without spills, and as C++ it does what NumPy does."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from kernel_distill.kernels import _first_arrivals
from kernel_distill.kernels._race import NEVER, Smallest, key_of
from kernel_distill.kernels.loss_sampling import row_losses

pytest.importorskip("cupy", reason="CuPy, which brings the bindings to NVRTC, is not installed")
pytest.importorskip("triton", reason="Triton, which brings the assembler, is not installed")

from kernel_distill.kernels._cuda import _loader, _resources, sampling

from .cuda_on_cpu import launcher

SOURCES = sorted(path.stem for path in _loader.FOLDER.glob("*.cu"))
TYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
KERNELS = [f"{kind}_{name}" for kind in ("weights", "squared", "cross_entropy") for name in TYPES]
KERNELS += ["arrive", "estimate"]


# ------------------------------------------------------------------------------------------------------- compiling


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("source", SOURCES)
def test_no_spills(source, capability):
    rows = _resources.measure_source(source, capability)
    assert len(rows) >= 1
    if source == "sampling":
        assert sorted(row.kernel for row in rows) == sorted(KERNELS)
    for row in rows:
        assert (row.stack, row.spills) == (0, 0), row
        assert 16 < row.registers <= 255, row
        assert row.shared <= 48 * 1024, row  # of static shared memory, on any device


def test_machine_code_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled = []
    monkeypatch.setattr(_loader, "compile_source", lambda *what: compiled.append(what) or b"code")
    first = _loader.compiled_file("sampling", "sm_90")
    assert first.read_bytes() == b"code"
    assert _loader.compiled_file("sampling", "sm_90") == first
    assert _loader.compiled_file("sampling", "sm_80") != first
    assert compiled == [("sampling", "sm_90"), ("sampling", "sm_80")]
    monkeypatch.setattr(_loader, "OPTIONS", ("-std=c++20",))
    assert _loader.compiled_file("sampling", "sm_90") != first
    assert len(list(tmp_path.rglob("*"))) == 4  # the folder and three files, no leftovers


def test_machine_code_without_a_place_to_keep_it(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder can be made below a file
    monkeypatch.setattr(_loader, "compile_source", lambda *what: b"code")
    path = _loader.compiled_file("sampling", "sm_90")
    assert path.read_bytes() == b"code"
    path.unlink()


def test_machine_code_or_the_compilers_log(tmp_path, monkeypatch):
    (tmp_path / "empty.cu").write_text('extern "C" __global__ void empty() {}')
    (tmp_path / "broken.cu").write_text("__global__ void f() { nonsense }")
    monkeypatch.setattr(_loader, "FOLDER", tmp_path)
    assert _loader.compile_source("empty", "sm_90")[:4] == b"\x7fELF"
    assert b".entry empty" in _loader.compile_source("empty", "compute_90")
    with pytest.raises(RuntimeError, match=r"broken.cu does not compile:[\s\S]*nonsense"):
        _loader.compile_source("broken", "sm_90")


# ------------------------------------------------------------------------------------------------- running, as C++


@pytest.fixture
def turns(monkeypatch):
    """The launches so far; kernels run as C++."""
    run, launches = launcher("sampling", KERNELS), []

    def launch(source, kernel, *arguments, device):
        launches.append(kernel)
        run(source, kernel, *arguments, device=device)

    monkeypatch.setattr(sampling, "launch", launch)
    return launches


def same(found, wanted):
    """Keys, items and weights to the last bit; the totals are sums in different orders."""
    assert torch.equal(found.keys, wanted.keys)
    assert torch.equal(found.items, wanted.items)
    assert torch.equal(found.weights, wanted.weights)
    assert float(found.total) == pytest.approx(float(wanted.total), rel=1e-12)


def options(want, *, start=0, replacement=False, bound=NEVER):
    return {
        "want": want,
        "seed": 2**64 - 5,
        "stream": "x",
        "start": start,
        "replacement": replacement,
        "bound": bound,
    }


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize(
    ("n", "start", "want"),
    [(1, 0, 1), (15, 15, 2), (33, 2**40 - 7, 40), (129, 16, 12), (5000, 2**24 - 1001, 300), (4097, 8, 1)],
)
def test_arrivals_are_those_of_the_definition(turns, n, start, want, dtype, replacement):
    weights = torch.from_numpy(np.random.default_rng(n).pareto(1.0, n) + 1e-3).to(dtype)
    weights[3::5] = 0
    wanted = _first_arrivals.first_arrivals(weights, **options(want, start=start, replacement=replacement))
    for offset in (16, 17):  # aligned to vector loads, and not
        view = torch.full((n + 64,), torch.nan, dtype=dtype)[
            offset : offset + n
        ]  # nothing beside it may be read
        view[:] = weights
        same(sampling.first_arrivals(view, **options(want, start=start, replacement=replacement)), wanted)
    assert len(turns) == 6  # two times three launches: the first estimate of the time is good


@pytest.mark.parametrize("replacement", [False, True])
def test_every_item_and_many_arrivals(turns, replacement):
    """All branches of the logarithm, to the last bit."""
    weights = torch.ones(20_000)
    found = sampling.first_arrivals(weights, **options(20_001, replacement=replacement))
    same(found, _first_arrivals.first_arrivals(weights, **options(20_001, replacement=replacement)))


EXTREMES = {
    "float32-subnormal": torch.arange(1, 50).float() * 1e-45,
    "float32-largest": torch.full((300,), 3e38),
    "float16-subnormal": torch.arange(1, 50).half() * 2**-24,
    "float16-largest": torch.full((50,), 65504.0).half(),
    "float64-subnormal": torch.arange(1, 50).double() * 5e-324,
    "float64-wide": torch.logspace(-300, 300, 61, dtype=torch.float64),
}


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("weights", EXTREMES.values(), ids=EXTREMES)
def test_extreme_weights(turns, weights, replacement):
    for want in (1, 20):
        found = sampling.first_arrivals(weights, **options(want, replacement=replacement))
        same(found, _first_arrivals.first_arrivals(weights, **options(want, replacement=replacement)))


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize(
    ("dtype", "scale"), [(torch.float32, 3e-37), (torch.float32, 1e-41), (torch.float64, 1e-310)]
)
def test_weights_near_the_least_number_of_their_type(turns, dtype, scale, replacement):
    """The filter's factor overflows and lets every item pass: the race must end all the same."""
    weights = (torch.rand(6_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * scale).to(
        dtype
    )
    found = sampling.first_arrivals(weights, **options(50, replacement=replacement))
    same(found, _first_arrivals.first_arrivals(weights, **options(50, replacement=replacement)))
    assert len(turns) < 150


@pytest.mark.parametrize("replacement", [False, True])
def test_bad_estimates_of_the_time_are_mended(turns, replacement, monkeypatch):
    """The subsample sees every tenth item; what it misses decides."""
    monkeypatch.setattr(sampling, "_SAMPLE", 30)
    n, light = 300, 1e-3
    late, early, blind = torch.full((n,), light), torch.full((n,), light), torch.zeros(n)
    late[5::10] = 1e4  # far more arrives than expected
    early[::10] = torch.logspace(-3, 6, 30)  # far less
    blind[7::10] = 1.0
    for weights in (late, early, blind):
        for want in (1, 3, 29, 45):
            turns.clear()
            found = sampling.first_arrivals(weights, **options(want, replacement=replacement))
            same(found, _first_arrivals.first_arrivals(weights, **options(want, replacement=replacement)))
            assert len(turns) <= 1 + 2 * 12


def test_an_item_drawn_more_often_than_there_is_room(turns, monkeypatch):
    """A time far too late would walk through millions of arrivals: the list is full before."""
    monkeypatch.setattr(sampling, "_SAMPLE", 10)
    weights = torch.full((100,), 1e-6)
    weights[5] = 1e9
    found = sampling.first_arrivals(weights, **options(20, replacement=True))
    same(found, _first_arrivals.first_arrivals(weights, **options(20, replacement=True)))
    assert found.items.tolist() == [5] * 20


def test_arrivals_after_the_bound_are_not_wanted(turns):
    weights = torch.rand(500, generator=torch.Generator().manual_seed(0))
    bound = key_of(5.0, float(weights.double().sum()))  # five arrivals on average
    found = sampling.first_arrivals(weights, **options(100, bound=bound))
    everything = _first_arrivals.first_arrivals(weights, **options(501))
    assert 0 < len(found.keys) < 20
    assert torch.equal(found.keys, everything.keys[everything.keys <= bound])
    tenth = sampling.first_arrivals(weights, **options(100, bound=int(everything.keys[9])))
    assert torch.equal(tenth.keys, everything.keys[:10])


@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, -1e-7])
def test_bad_weights_of_every_type(turns, value, dtype):
    weights = torch.ones(40).to(dtype)
    weights[33:] = value
    with pytest.raises(ValueError, match="finite and non-negative: item 40 is"):
        sampling.first_arrivals(weights, **options(3, start=7))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        pytest.param([torch.nan] + [1.0] * 40 + [torch.inf], "item 7 is nan", id="first-of-two"),
        pytest.param([0.0] * 16 + [-1.0], "item 23 is -1.0", id="negative"),
        pytest.param([1.5e308, 1.5e308], "sum to more than float64", id="sum-overflows"),
    ],
)
def test_bad_weights(turns, weights, message):
    with pytest.raises(ValueError, match=message):
        sampling.first_arrivals(torch.tensor(weights, dtype=torch.float64), **options(3, start=7))


def test_nothing_arrives(turns):
    assert len(sampling.first_arrivals(torch.zeros(20), **options(3)).keys) == 0
    assert len(sampling.first_arrivals(torch.zeros(0), **options(3)).keys) == 0


@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize("loss", ["squared", "cross-entropy"])
@pytest.mark.parametrize(("n", "c", "start"), [(33, 1, 5), (700, 10, 2**24 - 100), (40, 129, 0)])
def test_losses_race_like_weights(turns, loss, n, c, start, dtype):
    rng = np.random.default_rng(c)
    outputs = torch.from_numpy(rng.normal(0, 3, (n, c))).to(dtype)
    targets = torch.from_numpy(rng.normal(size=(n, c)) if loss == "squared" else rng.integers(0, c, n))
    targets = targets.to(dtype) if loss == "squared" else targets
    found = sampling.loss_arrivals(outputs, targets, loss, memory_budget=2**20, **options(n + 1, start=start))
    losses = row_losses(outputs, targets, loss=loss)
    if c == 1 and loss == "cross-entropy":  # one class is always right
        assert len(found.keys) == 0
        return
    # Sums of c terms in another order, and another exponential and logarithm.
    kept = losses[found.items - start]
    eps = torch.finfo(losses.dtype).eps
    torch.testing.assert_close(found.weights.to(losses.dtype), kept, rtol=(32 + c / 4) * eps, atol=0)
    # Given the losses that it computed, the race is the definition's.
    own = torch.zeros(n, dtype=losses.dtype)
    own[found.items - start] = found.weights.to(losses.dtype)
    same(found, _first_arrivals.first_arrivals(own, **options(n + 1, start=start)))
    few = sampling.loss_arrivals(outputs, targets, loss, memory_budget=2**20, **options(5, start=start))
    assert torch.equal(few.keys, found.keys[:5])


def test_tiles_of_rows(turns, monkeypatch):
    """Rows enough for the large blocks, by lowering the threshold; and a part of a block at the end."""
    monkeypatch.setattr(sampling, "_MANY", 1)
    outputs = torch.from_numpy(np.random.default_rng(0).normal(size=(9001, 2))).float()
    found = sampling.loss_arrivals(
        outputs, torch.zeros_like(outputs), "squared", memory_budget=2**20, **options(50, start=11)
    )
    own = 0.5 * outputs.square().sum(1)  # two terms: the same in any order
    same(found, _first_arrivals.first_arrivals(own, **options(50, start=11)))


@pytest.mark.parametrize(
    ("outputs", "targets", "message"),
    [
        pytest.param(
            [[0.0, 1.0], [0.0, 1.0]], [0, 2], r"classes must be 0 ... 1, but row 1 .* is 2", id="class"
        ),
        pytest.param([[0.0, 1.0], [0.0, 1.0]], [-1, 0], r"row 0 .* is -1", id="negative-class"),
        pytest.param(
            [[0.0, 1.0], [torch.nan, 1.0]], [0, 1], r"losses must be finite: that of row 1", id="nan"
        ),
        pytest.param(
            [[0.0, torch.inf], [0.0, 1.0]], [0, 0], r"losses must be finite: that of row 0", id="infinite"
        ),
    ],
)
def test_bad_losses(turns, outputs, targets, message):
    with pytest.raises(ValueError, match=message):
        sampling.loss_arrivals(
            torch.tensor(outputs), torch.tensor(targets), "cross-entropy", memory_budget=2**20, **options(1)
        )


def test_masked_classes(turns):
    """A logit of minus infinity is a class that is impossible, not an error."""
    outputs = torch.tensor([[0.0, -torch.inf, 1.0]])
    found = sampling.loss_arrivals(
        outputs, torch.tensor([0]), "cross-entropy", memory_budget=2**20, **options(2)
    )
    assert found.weights.tolist() == pytest.approx([math.log1p(math.e)], rel=1e-6)


def test_parts_on_a_gpu_merge_with_parts_elsewhere(turns):
    weights = torch.rand(300, generator=torch.Generator().manual_seed(0))
    kept = Smallest(20)
    kept.offer(sampling.first_arrivals(weights[:100], **options(20)))
    kept.offer(_first_arrivals.first_arrivals(weights[100:], **options(20, start=100, bound=kept.bound)))
    found, wanted = kept.best(), _first_arrivals.first_arrivals(weights, **options(20))
    same(found, wanted)
    assert isinstance(found.total, Fraction)
