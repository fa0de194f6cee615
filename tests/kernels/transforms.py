"""Every derivative that an operation promises, checked in float64 against finite differences."""

import torch


def check_derivatives(function, *arrays, nested_forward=True):
    """Backward, forward mode, both twice, batches of each, and vmap over the first argument.

    `function` takes float64 tensors and returns one tensor. `nested_forward` is False for operations that do not
    support forward mode inside forward mode, and say so.
    """
    inputs = [torch.as_tensor(a, dtype=torch.float64).clone().requires_grad_() for a in arrays]
    torch.autograd.gradcheck(
        function, inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )
    torch.autograd.gradgradcheck(function, inputs, check_fwd_over_rev=True)

    once = torch.func.jacfwd(lambda x: function(x, *inputs[1:]).sin().sum())
    forward_twice = torch.func.jacfwd(once)(inputs[0].detach()) if nested_forward else None
    if forward_twice is not None:
        torch.testing.assert_close(
            forward_twice, torch.func.jacrev(once)(inputs[0].detach()), rtol=1e-9, atol=1e-11
        )

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
