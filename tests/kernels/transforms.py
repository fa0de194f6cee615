"""Every derivative that an operation promises, checked in float64 against finite differences."""

import torch


def check_derivatives(function, *arrays):
    """Backward, forward mode, both twice, batches of each, and vmap over the first argument.

    `function` takes float64 tensors and returns one tensor.
    """
    inputs = [torch.as_tensor(a, dtype=torch.float64).clone().requires_grad_() for a in arrays]
    torch.autograd.gradcheck(
        function, inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )
    torch.autograd.gradgradcheck(function, inputs, check_fwd_over_rev=True)

    first, rest = inputs[0].detach(), [t.detach() for t in inputs[1:]]
    batch = torch.stack([first, first.flip(0), 1.1 * first])
    mapped = torch.vmap(lambda x: function(x, *rest))(batch)
    one_by_one = torch.stack([function(x, *rest) for x in batch])
    torch.testing.assert_close(mapped, one_by_one, rtol=1e-10, atol=1e-12)

    def loss(x):
        return function(x, *rest).sin().sum()

    inside = torch.vmap(torch.func.grad(loss))(batch)
    outside = torch.func.grad(lambda x: torch.vmap(loss)(x).sum())(batch)
    one_by_one = torch.stack([torch.func.grad(loss)(x) for x in batch])
    torch.testing.assert_close(inside, one_by_one, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(outside, one_by_one, rtol=1e-9, atol=1e-11)
