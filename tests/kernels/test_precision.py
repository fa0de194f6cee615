"""The narrow products, emulated on the CPU: what float16 halves keep, and where they would overflow."""

import pytest
import torch

from kernel_distill.kernels import _precision
from kernel_distill.kernels._precision import inner_products, split_left, split_right, working_dtype


def rows(n, d, seed=0, scale=1.0):
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def three_products(x, y):
    (left, x_power), (right, y_power) = split_left(x), split_right(y)
    assert left.dtype == right.dtype == torch.float16
    assert left.isfinite().all()
    assert right.isfinite().all()
    return (left.double() @ right.double().T) * 2.0 ** -(float(x_power) + float(y_power))


@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1.0, 255.0, 1e8, 1e25])
@pytest.mark.parametrize("d", [1, 33, 3072])
def test_three_products_leave_out_the_last_bits_only(scale, d):
    """Each factor keeps 22 bits, so each term is right to 3 x 2^-22 of its size: the sum, of the sum of sizes."""
    x, y = rows(20, d, scale=scale), rows(30, d, 1, scale=scale)
    allowed = 3 * 2.0**-22 * (x.double().abs() @ y.double().abs().T)
    assert ((three_products(x, y) - x.double() @ y.double().T).abs() <= allowed).all()


def test_small_entries_beside_large_ones_lose_no_more_than_float16_has_below():
    x = torch.tensor([[1.0, 1e-6]])
    y = torch.tensor([[1e-6, 1.0]])
    assert abs(float(three_products(x, y)) - 2e-6) < 1e-6 * 2**-12


@pytest.mark.parametrize(("precision", "bits"), [("medium", 11), ("low", 8)])
def test_narrow_operands_keep_their_bits(precision, bits):
    x = rows(50, 70, scale=1e7)
    narrow, power = _precision._narrow(x, precision)
    assert narrow.isfinite().all()
    back = narrow.double() * 2.0 ** -float(power)
    assert ((back - x.double()).abs() <= 2.0**-bits * x.double().abs() + 1e-30).all()


def test_zeros_and_no_rows():
    for x in (torch.zeros(3, 4), torch.zeros(0, 4)):
        left, power = split_left(x)
        assert left.shape == (x.shape[0], 12)
        assert left.isfinite().all()
        assert power.isfinite()


def test_the_cpu_rounds_nothing():
    x = rows(5, 7)
    for precision in _precision.PRECISIONS:
        assert torch.equal(inner_products(x, x, precision), x @ x.T)
        assert _precision.rounded(x, precision) is x


def test_rounded_rows_are_what_the_product_sees(monkeypatch):
    """`rounded` on a GPU: near the rows, and rounding again changes nothing."""
    x = rows(40, 30)

    class Elsewhere(torch.Tensor):
        @property
        def device(self):
            return torch.device("cuda", 0)

    for precision, bits in (("high", 22), ("medium", 11), ("low", 8)):
        once = _precision.rounded(x.as_subclass(Elsewhere), precision).as_subclass(torch.Tensor)
        twice = _precision.rounded(once.as_subclass(Elsewhere), precision).as_subclass(torch.Tensor)
        assert torch.equal(once, twice)
        assert not torch.equal(once, x)
        assert ((once - x).abs() <= 2.0**-bits * x.abs().amax()).all()


def test_dtypes_of_results():
    assert working_dtype(torch.float32, "exact") == torch.float64
    assert working_dtype(torch.float16, "high") == torch.float32
    assert working_dtype(torch.float64, "low") == torch.float64
    with pytest.raises(ValueError, match="'exact', 'high', 'medium', 'low', got 'tf32'"):
        working_dtype(torch.float32, "tf32")
