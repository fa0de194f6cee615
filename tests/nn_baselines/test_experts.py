"""Networks trained on all rows: the plain loop of torch, whatever the pieces; trajectories in memory and in folders."""

import numpy as np
import pytest
import torch

from kernel_distill.kernels.augmentation import augment_images, draw_augmentation
from kernel_distill.nn_baselines import experts
from kernel_distill.nn_baselines.experts import expert_trajectories, train_expert
from kernel_distill.nn_baselines.network_gradient import flat_parameters, named_parameters
from kernel_distill.nn_baselines.schedule import row_orders
from kernel_distill.nn_baselines.training_recipes import TrainingRecipe
from kernel_distill.solver.learners.rows import TrainingRows
from kernel_distill.solver.networks import build_network, network_spec
from kernel_distill.solver.source import ArraySource
from kernel_distill.solver.store import write_file
from kernel_distill.solver.targets import Targets
from kernel_distill.solver.transforms import make_transform

from .image_rows import CLASSES, SHAPE, image_rows

RECIPES = {
    "sgd": TrainingRecipe(schedule="constant", epochs=3, batch_size=17, rate=0.05),
    "drop": TrainingRecipe(epochs=3, batch_size=17, rate=0.05),
    "adam": TrainingRecipe(
        optimizer="adam", weight_decay=0.005, schedule="constant", epochs=3, batch_size=17
    ),
    "augmented": TrainingRecipe(schedule="constant", epochs=2, batch_size=17, augment="crop_flip"),
}
TINY = TrainingRecipe(schedule="constant", epochs=2, batch_size=32, weight_decay=0.0, momentum=0.0)


def spec_of(name="convnet", n_outputs=CLASSES, **options):
    options = {"width": 4, "depth": 1, **options} if name.startswith(("convnet", "mlp")) else options
    return network_spec(name, SHAPE, n_outputs, **options)


def trained_by_torch(rows, spec, recipe, seed, single=True):
    """The loop as one would write it, with orders and augmentation of the same streams."""
    network = build_network(spec, seed, "expert.network", dtype=rows.dtype).train()

    def optimizer(rate):
        if recipe.optimizer == "adam":
            return torch.optim.Adam(network.parameters(), rate, weight_decay=recipe.weight_decay)
        options = {"momentum": recipe.momentum, "weight_decay": recipe.weight_decay}
        return torch.optim.SGD(network.parameters(), rate, **options)

    step = optimizer(recipe.rate)
    for epoch in range(recipe.epochs + (recipe.schedule == "drop")):
        order = row_orders(rows.n, epoch, range(1), seed=seed, stream="expert")[0]
        for number, index in enumerate(order.split(recipe.batch_size)):
            groups, stream = torch.full((len(index),), number), f"expert.augment.{epoch}"
            drawn = draw_augmentation(recipe.augment, groups, SHAPE, seed=seed, stream=stream, single=single)
            outputs = network(augment_images(rows.inputs(index), drawn))
            step.zero_grad()
            torch.nn.functional.cross_entropy(outputs, rows.classes[index]).backward()
            step.step()
        if recipe.schedule == "drop" and epoch == recipe.epochs // 2 + 1:
            step = optimizer(recipe.rate * 0.1)
    return network


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("network", ["convnet", "convnet-bn"])
def test_training_is_the_plain_loop(name, network):
    rows, spec = image_rows(), spec_of(network)
    found = train_expert(rows, spec, RECIPES[name], seed=3)
    wanted = trained_by_torch(rows, spec, RECIPES[name], seed=3)
    assert not found.training
    for (key, a), (_, b) in zip(found.state_dict().items(), wanted.state_dict().items(), strict=True):
        # A few dozen steps of float64, each of which loses a few units in the last place.
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=key)


def test_all_operations_may_be_done_to_every_image():
    rows, spec, recipe = image_rows(), spec_of(), RECIPES["augmented"]
    found = train_expert(rows, spec, recipe, seed=3, single=False)
    wanted = trained_by_torch(rows, spec, recipe, seed=3, single=False)
    torch.testing.assert_close(flat_parameters(found), flat_parameters(wanted), rtol=1e-9, atol=1e-11)


def test_pieces_and_caches_do_not_matter(monkeypatch):
    spec, recipe = spec_of(), RECIPES["sgd"]
    wanted = flat_parameters(train_expert(image_rows(), spec, recipe, seed=3))
    uncached = image_rows(cache_bytes=0)
    uncached.chunk = 7
    assert torch.equal(flat_parameters(train_expert(uncached, spec, recipe, seed=3)), wanted)
    for size in (3, 1000):
        monkeypatch.setattr("kernel_distill.nn_baselines.pieces.PIECE_ROWS", size)
        found = flat_parameters(train_expert(image_rows(), spec, recipe, seed=3))
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


def test_training_is_a_function_of_seed_and_stream():
    rows, spec = image_rows(dtype=torch.float32), spec_of()

    def train(**arguments):
        return flat_parameters(train_expert(rows, spec, RECIPES["augmented"], **arguments))

    assert torch.equal(train(seed=3), train(seed=3))
    assert not torch.equal(train(seed=3), train(seed=4))
    assert not torch.equal(train(seed=3), train(seed=3, stream="other"))


def test_epochs_are_shown_as_they_pass():
    rows, spec, seen = image_rows(), spec_of(), []
    last = train_expert(
        rows,
        spec,
        RECIPES["drop"],
        seed=0,
        on_epoch=lambda epoch, network: seen.append((epoch, flat_parameters(network))),
    )
    assert [epoch for epoch, _ in seen] == [0, 1, 2, 3, 4]
    start = build_network(spec, 0, "expert.network", dtype=torch.float64)
    assert torch.equal(seen[0][1], flat_parameters(start))
    assert torch.equal(seen[-1][1], flat_parameters(last))
    assert len({tuple(values.tolist()) for _, values in seen}) == 5


def test_values_are_learned_by_a_recipe_for_them():
    rows = image_rows(values=True, holdout=0.0)
    recipe = TrainingRecipe(loss="mse", labels="scores", schedule="constant", epochs=20, batch_size=60)

    def loss(network):
        index = torch.arange(rows.n)
        return float((network(rows.inputs(index)) - rows.outputs(index)).square().mean().detach())

    spec = spec_of("mlp", 2, width=16, depth=2)
    losses = []
    train_expert(rows, spec, recipe, seed=0, on_epoch=lambda _, network: losses.append(loss(network)))
    assert losses[-1] < 0.5 * losses[0]


def test_networks_and_recipes_that_do_not_fit_are_refused():
    rows = image_rows()
    with pytest.raises(ValueError, match="4 outputs"):
        train_expert(rows, spec_of(n_outputs=4), TINY, seed=0)
    with pytest.raises(ValueError, match="probabilities"):
        train_expert(rows, spec_of(), TrainingRecipe(labels="probabilities", epochs=1), seed=0)
    vectors = TrainingRows(
        ArraySource(np.zeros((9, 4)), np.arange(9) % 3),
        make_transform("none", lambda: [], (4,)),
        Targets("centred", 3, (0, 1, 2)),
        seed=0,
    )
    with pytest.raises(
        ValueError, match=r"'mine' augments images \(c, h, w\), got rows of shape \(4,\): use aug"
    ):
        train_expert(
            vectors, network_spec("mlp", (4,), 3), TrainingRecipe(name="mine", augment="flip"), seed=0
        )
    recipe = TrainingRecipe(loss="mse", rate=1e6, epochs=5, schedule="constant")
    with pytest.raises(ValueError, match="diverged"):
        train_expert(rows, spec_of("mlp"), recipe, seed=0)


def test_parameters_are_one_vector():
    network = build_network(spec_of(), 0)
    flat = flat_parameters(network)
    named = named_parameters(network, flat)
    assert flat.shape == (sum(value.numel() for value in network.parameters()),)
    for name, value in network.named_parameters():
        assert torch.equal(named[name], value)


# --- Trajectories --------------------------------------------------------------------------------------------


def snapshots(trajectories):
    return np.stack(
        [
            [trajectories.snapshot(expert, epoch).numpy() for epoch in range(trajectories.epochs + 1)]
            for expert in range(len(trajectories))
        ]
    )


def test_a_trajectory_is_that_of_its_training():
    rows, spec = image_rows(dtype=torch.float32), spec_of()
    made = expert_trajectories(rows, spec, TINY, count=2, seed=5)
    seen = []
    train_expert(
        rows,
        spec,
        TINY,
        seed=5,
        stream="expert.1",
        on_epoch=lambda _, network: seen.append(flat_parameters(network).numpy()),
    )
    assert (len(made), made.epochs, made.spec) == (2, 2, spec)
    assert np.array_equal(snapshots(made)[1], np.stack(seen))
    assert not np.array_equal(snapshots(made)[0], snapshots(made)[1])


def test_a_folder_is_gone_on_with(tmp_path, monkeypatch):
    rows, spec, folder = image_rows(), spec_of(), tmp_path / "new" / "experts"
    wanted = snapshots(expert_trajectories(rows, spec, TINY, count=3, seed=5))
    assert np.array_equal(
        snapshots(expert_trajectories(rows, spec, TINY, count=2, seed=5, folder=folder)), wanted[:2]
    )
    trained, train = [], experts.train_expert
    monkeypatch.setattr(
        experts, "train_expert", lambda *args, **kw: trained.append(kw["stream"]) or train(*args, **kw)
    )
    renamed = TINY.model_copy(update={"name": "other"})
    again = expert_trajectories(rows, spec, renamed, count=3, seed=5, folder=folder)
    assert trained == ["expert.2"]
    assert np.array_equal(snapshots(again), wanted)
    assert sorted(path.name for path in folder.iterdir()) == [f"expert-000{i}.safetensors" for i in range(3)]


CHANGES = {
    "network": {"spec": spec_of(width=5)},
    "recipe": {"recipe": TINY.model_copy(update={"rate": 0.02})},
    "seed": {"seed": 6},
    "rows": {"rows": image_rows(seed=1)},
}


@pytest.mark.parametrize("key", CHANGES)
def test_other_experts_are_refused(key, tmp_path):
    arguments = {"rows": image_rows(), "spec": spec_of(), "recipe": TINY, "seed": 5}

    def make(rows, spec, recipe, seed):
        return expert_trajectories(rows, spec, recipe, count=1, seed=seed, folder=tmp_path)

    make(**arguments)
    with pytest.raises(ValueError, match=f"another {key}"):
        make(**{**arguments, **CHANGES[key]})


def test_damaged_files_are_refused(tmp_path):
    rows, spec, path = image_rows(), spec_of(), tmp_path / "expert-0000.safetensors"
    made = expert_trajectories(rows, spec, TINY, count=1, seed=5, folder=tmp_path)
    header = {"expert": 0, **made.identity}
    values = torch.from_numpy(snapshots(made)[0]).clone()
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="cannot be read"):
        expert_trajectories(rows, spec, TINY, count=1, seed=5, folder=tmp_path)
    values[1, 3] = torch.nan
    write_file(path, "trajectory", header, {"snapshots": values}, force=True)
    with pytest.raises(ValueError, match="NaN in row 1"):
        expert_trajectories(rows, spec, TINY, count=1, seed=5, folder=tmp_path)
