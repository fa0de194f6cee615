r"""K(X, Y) V and row sums: strips of tiles, `_sums` for one column and `_products` for more, added up in float64.

For Y = X and long rows only tiles that reach above the diagonal are formed. Each serves its rows and, transposed, its
columns; sums of the second kind go to a buffer with a slot for each row of tiles. Bands of rows of tiles, as many as
the byte budget allows, are done one after the other.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from ..radial import RadialKernel
from . import _products, _sums, radial
from ._halves import halves
from ._points import points
from ._tiles import bands, gpu, strips


def kernel_matmul(
    kernel: RadialKernel,
    X: Tensor,
    Y: Tensor,
    V: Tensor | None,
    *,
    same: bool,
    leave_one_out: bool,
    precision: str,
    memory_budget: int | None,
) -> Tensor:
    """See `kernels.kernel_matmul.kernel_matmul`; "low" runs as "medium", which costs the same.

    Beside copies of the arguments in half precision and float64 totals, temporaries stay within the budget, or take
    what one row of tiles needs if that is more.
    """
    radial.check_vanishes(kernel)
    (n, d), m = X.shape, Y.shape[0]
    t = 1 if V is None else V.shape[1]
    total = torch.zeros(n, t, dtype=torch.float64, device=X.device)
    if not (n and m and t):
        return total.float()
    split, on = precision == "high", gpu(X.device)
    form = radial.form(kernel, split)
    one = V is None or t == 1
    launch = _sums.tile(form, d, split, same, on) if one else _products.tile(form, d, split, t, same, on)
    half = launch["HALF"]
    x = points(X, launch["BK"], split)
    y = x if same else points(Y, launch["BK"], split)
    special: dict[str, Any]
    if one:
        run, blocks, special = _sums.sums_kernel, 1, {"WEIGHTED": V is not None}
        weights = (x.numbers if V is None else V.float().contiguous(),)
    else:
        run, blocks = _products.products_kernel, triton.cdiv(t, launch["BT"])
        parts = halves(V.float(), "high" if split else "medium", contracted=0)
        weights = (parts.high, parts.low, parts.scale)
        special = {"t": t, "TOP": _products.largest_power(form)}
    columns = triton.cdiv(m, launch["BM"])
    count = strips(triton.cdiv(n, launch["BN"]), columns, on)
    numbers = radial.parameters(kernel, x.numbers)
    row_bytes = 4 * t * (count * launch["BN"] + (n if half else 0))
    for first, high, top, bottom in bands(n, launch["BN"], row_bytes, memory_budget):
        over_columns = torch.empty(count, bottom - top, t, dtype=torch.float32, device=X.device)
        over_rows = torch.zeros(high if half else 0, n, t, dtype=torch.float32, device=X.device)
        run[(high * count * blocks,)](
            *(x.rows, x.numbers, y.rows, y.numbers, *weights, numbers, over_columns, over_rows),
            *(n, m, x.width, first, bottom - top, count, triton.cdiv(columns, count)),
            FORM=form,
            SAME=same,
            LEFT_OUT=leave_one_out,
            SPLIT=split,
            enable_fp_fusion=True,
            **special,
            **launch,
        )
        total[top:bottom] += over_columns.sum(0, dtype=torch.float64)
        if half:
            total += over_rows.sum(0, dtype=torch.float64)
    return total.float()
