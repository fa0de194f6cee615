"""Networks by seed, many at once, and in files."""

import math
import threading

import pytest
import scipy.stats
import torch

from kernel_distill.kernels import normal, random_bits
from kernel_distill.solver.networks import (
    NetworkStack,
    apply_stack,
    build_network,
    draw_networks,
    load_network,
    network_spec,
    save_network,
)
from kernel_distill.solver.store import write_file

SPECS = {
    "mlp": network_spec("mlp", (7,), 3, width=5),
    "instance": network_spec("convnet", (3, 8, 8), 3, width=4, depth=2),
    "gray": network_spec("convnet", (1, 12, 12), 3, width=4),
    "batch": network_spec("convnet", (2, 8, 10), 3, width=4, depth=1, norm="batch"),
    "group": network_spec("convnet", (3, 8, 8), 3, width=4, depth=1, norm="group"),
    "layer": network_spec("convnet", (2, 8, 8), 3, width=4, depth=1, norm="layer", pooling="max"),
    "lenet": network_spec("lenet", (3, 16, 16), 3),
}
every_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


def rows(shape, dtype=torch.float64):
    return normal(0, "test.stack", shape).to(dtype)


def tensors(stack):
    return stack.parameters | stack.buffers


@every_spec
def test_draws_depend_on_seed_stream_and_number_alone(spec):
    three = draw_networks(spec, 3, 5, "a")
    assert three.count == 3
    for name, value in tensors(draw_networks(spec, 2, 5, "a")).items():
        assert torch.equal(value, tensors(three)[name][:2])
    for other in (draw_networks(spec, 3, 6, "a"), draw_networks(spec, 3, 5, "b")):
        assert not torch.equal(other.parameters["classifier.weight"], three.parameters["classifier.weight"])
    assert len({float(value.sum()) for value in three.parameters["classifier.weight"]}) == 3
    wide = tensors(draw_networks(spec, 3, 5, "a", dtype=torch.float64))
    for name, value in tensors(three).items():
        assert torch.equal(wide[name], value.to(wide[name].dtype))
    one = build_network(spec, 5, "a")
    assert one.training
    for name, value in one.state_dict().items():
        assert torch.equal(value, tensors(three)[name][0])


def test_draws_are_middles_of_slices_in_the_order_of_the_module():
    spec = SPECS["mlp"]
    made = build_network(spec, 3, "s")
    values = list(made.parameters())
    total = sum(value.numel() for value in values)
    words = [int(word) for word in random_bits(3, "s.0", -(-total // 4))]
    levels = [(word >> 16 * i) & 0xFFFF for word in words for i in range(4)]
    signed = torch.tensor([level - 0x10000 * (level >= 0x8000) for level in levels[:total]])
    bounds = [1 / math.sqrt(fan) for fan in (7, 7, 5, 5, 5, 5)]
    wanted = (signed + 0.5) / 2**15
    for value, bound, part in zip(values, bounds, wanted.split([v.numel() for v in values]), strict=True):
        torch.testing.assert_close(value.detach().flatten(), part * bound, rtol=1e-6, atol=0)


def test_draws_have_torch_defaults_distribution():
    state = torch.random.get_rng_state()
    made = build_network(network_spec("convnet", (3, 32, 32), 10), 1)
    assert torch.equal(state, torch.random.get_rng_state())
    fans = {"features.0": 27, "features.4": 1152, "features.8": 1152, "classifier": 2048}
    for name, value in made.named_parameters():
        layer, kind = name.rsplit(".", 1)
        if layer in fans:
            bound, flat = 1 / math.sqrt(fans[layer]), value.detach().double().flatten()
            assert float(flat.abs().max()) < bound
            # Five standard errors of a uniform variable's second moment.
            error = 5 * bound**2 * math.sqrt(4 / 45 / len(flat))
            assert abs(float(flat.square().mean()) - bound**2 / 3) < error
            assert scipy.stats.kstest(flat.numpy(), "uniform", (-bound, 2 * bound)).pvalue > 1e-4
        else:
            assert torch.equal(value, torch.full_like(value, float(kind == "weight")))


def test_batch_norm_starts_as_torch_does():
    buffers = draw_networks(SPECS["batch"], 2, 0).buffers
    assert {name.rsplit(".", 1)[1]: value.unique().tolist() for name, value in buffers.items()} == {
        "running_mean": [0.0],
        "running_var": [1.0],
        "num_batches_tracked": [0],
    }
    assert buffers["features.1.num_batches_tracked"].dtype == torch.int64


@every_spec
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_a_stack_is_each_network_alone(spec, training, own):
    stack = draw_networks(spec, 2, 4, dtype=torch.float64)
    X = rows((2, 3, *spec.input_shape) if own else (3, *spec.input_shape))
    alone = [stack.network(i).train(training) for i in range(2)]
    # Two passes: batch norm's averages move, and the second evaluation reads them.
    for mode in (training, False):
        found = apply_stack(stack, X, training=mode)
        for i, network in enumerate(alone):
            network.train(mode)
            torch.testing.assert_close(found[i], network(X[i] if own else X), rtol=1e-8, atol=1e-9)
            for name, value in network.named_buffers():
                torch.testing.assert_close(stack.buffers[name][i], value)
    features = apply_stack(stack, X, embed=True)
    torch.testing.assert_close(features[1], alone[1].embed(X[1] if own else X), rtol=1e-8, atol=1e-9)
    if training and stack.buffers:
        assert (stack.buffers[next(iter(stack.buffers))] != 0).any()


def test_a_stack_of_deep_networks():
    stack = draw_networks(network_spec("resnet18-bn", (3, 9, 9), 3), 2, 4)
    X = rows((4, 3, 9, 9), torch.float32)
    with torch.no_grad():
        found = apply_stack(stack, X, training=True)
        for i in range(2):
            torch.testing.assert_close(found[i], stack.network(i)(X), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["instance", "batch", "gray"])
def test_gradients_of_a_stack_are_each_network_s(name):
    stack = draw_networks(SPECS[name], 2, 4, dtype=torch.float64)
    X = rows((3, *stack.spec.input_shape)).requires_grad_()
    alone = [stack.network(i) for i in range(2)]
    values = [value.requires_grad_() for value in stack.parameters.values()]
    found = torch.autograd.grad(apply_stack(stack, X, training=True).square().sum(), [X, *values])
    total = torch.zeros_like(X)
    for i, network in enumerate(alone):
        wanted = torch.autograd.grad(network(X).square().sum(), [X, *network.parameters()])
        total += wanted[0]
        for stacked, single in zip(found[1:], wanted[1:], strict=True):
            torch.testing.assert_close(stacked[i], single, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(found[0], total, rtol=1e-8, atol=1e-9)


@every_spec
def test_stacking_and_taking_out_are_inverse(spec):
    stack = draw_networks(spec, 3, 0)
    networks = [stack.network(i) for i in range(3)]
    again = NetworkStack.of(networks)
    assert again.spec == spec
    for name, value in tensors(stack).items():
        assert torch.equal(tensors(again)[name], value)
    with torch.no_grad():
        networks[0].classifier.weight.zero_()
    assert again.parameters["classifier.weight"][0].any()
    assert stack.parameters["classifier.weight"][0].any()


def test_stacks_move_between_dtypes():
    stack = draw_networks(SPECS["batch"], 2, 0)
    moved = stack.to(dtype=torch.float64).to("cpu")
    assert {value.dtype for value in moved.parameters.values()} == {torch.float64}
    assert moved.buffers["features.1.num_batches_tracked"].dtype == torch.int64
    assert moved.buffers["features.1.running_var"].dtype == torch.float64


def test_threads_do_not_meet():
    spec = SPECS["instance"]
    stacks = [draw_networks(spec, 2, seed) for seed in range(2)]
    X = rows((4, *spec.input_shape), torch.float32)
    wanted = [apply_stack(stack, X) for stack in stacks]
    found = [[], []]

    def work(i):
        found[i] = [apply_stack(stacks[i], X) for _ in range(30)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for outputs, right in zip(found, wanted, strict=True):
        assert len(outputs) == 30
        assert all(torch.equal(output, right) for output in outputs)


@pytest.mark.parametrize("name", ["batch", "group", "instance"])
def test_per_sample_gradients_by_vmap(name):
    """A module may be called under torch.func, whatever layout it prefers."""
    network = build_network(SPECS[name], dtype=torch.float64).eval()
    X = rows((3, *network.spec.input_shape))
    weights = dict(network.named_parameters())

    def loss(values, row):
        return torch.func.functional_call(network, values, (row[None],)).square().sum()

    found = torch.vmap(torch.func.grad(loss), (None, 0))(weights, X)
    for i in range(3):
        wanted = torch.autograd.grad(network(X[i : i + 1]).square().sum(), list(weights.values()))
        for name, value in zip(weights, wanted, strict=True):
            torch.testing.assert_close(found[name][i], value)


def test_what_does_not_fit_is_refused():
    spec = SPECS["instance"]
    stack = draw_networks(spec, 2, 0)
    with pytest.raises(ValueError, match=r"take rows of shape \(3, 8, 8\), got inputs of shape \(3, 8, 8\)"):
        apply_stack(stack, torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match=r"got inputs of shape \(2, 3, 8, 9\)"):
        apply_stack(stack, torch.zeros(2, 3, 8, 9))
    with pytest.raises(ValueError, match="inputs for 3 networks, the stack has 2"):
        apply_stack(stack, torch.zeros(3, 4, 3, 8, 8))
    with pytest.raises(ValueError, match="needs one or more networks"):
        NetworkStack.of([])
    with pytest.raises(ValueError, match="networks of one spec, got 2"):
        NetworkStack.of([stack.network(0), build_network(SPECS["gray"])])
    with pytest.raises(ValueError, match="`count` must be an integer of at least 1"):
        draw_networks(spec, 0, 0)
    with pytest.raises(ValueError, match="`seed` must be an integer"):
        draw_networks(spec, 1, -1)


@every_spec
def test_files_keep_networks(spec, tmp_path):
    network = build_network(spec, 2)
    X = rows((3, *spec.input_shape), torch.float32)
    network(X)
    path, header = tmp_path / "network.safetensors", {"recipe": "dsa", "classes": ["a", "b"], "rate": 0.01}
    save_network(path, network, header)
    loaded, found = load_network(path)
    assert found == header
    assert loaded.spec == spec
    assert not loaded.training
    assert torch.equal(loaded(X), network.eval()(X))
    with pytest.raises(FileExistsError, match="exists"):
        save_network(path, network, header)
    save_network(path, network, force=True)
    assert load_network(path)[1] == {}


def test_bad_files_are_refused(tmp_path):
    network = build_network(SPECS["mlp"])
    path = tmp_path / "network.safetensors"
    with pytest.raises(ValueError, match="`header` must be plain JSON"):
        save_network(path, network, {"shape": (1, 2)})
    assert not path.exists()
    with pytest.raises(FileNotFoundError):
        load_network(path)
    document = {"network": network.spec.parameters(), "header": {}}
    weights = dict(network.state_dict())
    for bad_document, bad_weights, message in (
        ({"header": {}}, weights, "does not hold a network"),
        (
            document,
            {"classifier.weight": weights["classifier.weight"]},
            "does not hold a network.*Missing key",
        ),
        (document, weights | {"classifier.bias": torch.zeros(4)}, "does not hold a network.*size mismatch"),
        (document, weights | {"more": torch.zeros(4)}, "does not hold a network.*Unexpected key"),
        (document | {"network": {"name": "mlp"}}, weights, "not the parameters of a network"),
    ):
        write_file(path, "network", bad_document, bad_weights, force=True)
        with pytest.raises(ValueError, match=f"(?s){message}"):
            load_network(path)
    write_file(path, "distilled-set", document, weights, force=True)
    with pytest.raises(ValueError, match="holds 'distilled-set'"):
        load_network(path)
