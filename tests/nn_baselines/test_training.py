"""Training many networks: the published loop step for step, whatever the strategy, pieces and workers."""

import copy
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn import functional as F

from kernel_distill.kernels.augmentation import augment_images, draw_augmentation
from kernel_distill.nn_baselines import training
from kernel_distill.nn_baselines.schedule import make_schedule, row_orders
from kernel_distill.nn_baselines.training import train_networks
from kernel_distill.nn_baselines.training_recipes import TrainingRecipe, training_recipe
from kernel_distill.solver.networks import draw_networks, network_spec

SHAPE, K, M = (3, 8, 8), 4, 11
DSA = "color_crop_cutout_flip_scale_rotate"


def spec(norm="instance", name="convnet", **options):
    if name == "mlp":
        return network_spec("mlp", SHAPE, K, width=8, depth=1)
    return network_spec(name, SHAPE, K, width=4, depth=2, norm=norm, **options)


def points(dtype=torch.float64, m=M):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(m, *SHAPE, generator=generator, dtype=dtype)
    return X, torch.randn(m, K, generator=generator, dtype=dtype)


def difference(a, b):
    """Largest difference of two stacks' tensors."""
    tensors = [(a.parameters[key], b.parameters[key]) for key in a.parameters]
    tensors += [(a.buffers[key], b.buffers[key]) for key in a.buffers]
    return max(float((x.double() - y.double()).abs().max()) for x, y in tensors)


def plain_loss(recipe, outputs, Y):
    if recipe.loss == "mse":
        rows = F.one_hot(Y.argmax(1), K) - 1 / K if recipe.labels == "hard" else Y
        return F.mse_loss(outputs, recipe.label_scale * rows) / recipe.label_scale**2
    if recipe.labels == "hard":
        return F.cross_entropy(outputs, Y.argmax(1))
    rows = (Y / recipe.temperature).softmax(1) if recipe.labels == "scores" else Y
    return F.cross_entropy(outputs / recipe.temperature, rows)


def plain_training(spec, X, Y, recipe, number, seed):
    """Network `number` by torch.optim and the loop of `evaluate_synset`, with the same draws."""
    network = draw_networks(spec, number + 1, seed, "train.network", dtype=X.dtype).network(number).train()

    def optimizer(rate):
        if recipe.optimizer == "sgd":
            return torch.optim.SGD(
                network.parameters(), rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
            )
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
        return kind(network.parameters(), rate, weight_decay=recipe.weight_decay)

    schedule = make_schedule(recipe, len(X))
    rates = iter(schedule.rates.tolist())
    steps, rate = optimizer(recipe.rate), recipe.rate
    drop = recipe.schedule == "drop"
    for epoch in range(recipe.epochs + 1 if drop else recipe.epochs):
        order = row_orders(len(X), epoch, range(number, number + 1), seed=seed, stream="train")[0]
        for b, rows in enumerate(order.split(recipe.batch_size)):
            inputs = X[rows]
            if recipe.augment:
                group = torch.full((len(rows),), number * schedule.batches + b)
                drawn = draw_augmentation(
                    recipe.augment, group, SHAPE, seed=seed, stream=f"train.augment.{epoch}"
                )
                inputs = augment_images(inputs, drawn)
            expected = next(rates)
            if drop:
                assert expected == pytest.approx(rate, rel=1e-12)
            else:
                steps.param_groups[0]["lr"] = expected
            loss = plain_loss(recipe, network(inputs), Y[rows])
            steps.zero_grad()
            loss.backward()
            steps.step()
        if drop and epoch == recipe.epochs // 2 + 1:
            rate *= 0.1
            steps = optimizer(rate)
    assert next(rates, None) is None
    return network


RECIPES = {
    "sgd, one batch": TrainingRecipe(epochs=5, rate=0.1),
    "sgd, partial batches": TrainingRecipe(epochs=5, rate=0.1, batch_size=4),
    "sgd, augmented": TrainingRecipe(epochs=4, rate=0.1, batch_size=6, augment=DSA),
    "adam, restarted": TrainingRecipe(epochs=4, rate=0.01, optimizer="adam", batch_size=4),
    "adamw, cosine": TrainingRecipe(
        epochs=4, rate=0.01, optimizer="adamw", weight_decay=0.1, schedule="cosine", warmup=3, batch_size=5
    ),
    "soft": TrainingRecipe(epochs=3, rate=0.1, labels="scores", temperature=2.0, schedule="constant"),
    "squared": TrainingRecipe(epochs=3, rate=0.1, loss="mse", label_scale=8.0, schedule="constant"),
}


@pytest.mark.parametrize("strategy", ["serial", "stacked"])
@pytest.mark.parametrize("name", RECIPES)
def test_is_the_published_loop(name, strategy):
    X, Y = points()
    # Without a norm every gradient is far from 0, which Adam would divide by its own rounding.
    kind = spec("none") if "adam" in name else spec()
    found = train_networks(kind, X, Y, RECIPES[name], count=2, seed=3, strategy=strategy)
    for number in range(2):
        expected = dict(plain_training(kind, X, Y, RECIPES[name], number, 3).named_parameters())
        for key, value in expected.items():
            # Float64 through some twenty steps.
            torch.testing.assert_close(found.parameters[key][number], value.detach(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "kind", [spec("batch"), spec("none"), spec("layer"), spec("group"), spec(name="mlp")]
)
def test_stacked_is_serial(kind):
    X, Y = points()
    recipe = TrainingRecipe(epochs=3, rate=0.05, batch_size=6)
    serial, stacked = (
        train_networks(kind, X, Y, recipe, count=3, seed=5, strategy=strategy)
        for strategy in ("serial", "stacked")
    )
    assert difference(serial, stacked) < 1e-10
    # And it did train.
    start = draw_networks(kind, 3, 5, "train.network", dtype=X.dtype)
    assert all(not torch.equal(serial.parameters[key], start.parameters[key]) for key in start.parameters)


@pytest.mark.parametrize("strategy", ["serial", "stacked"])
def test_starts_from_networks_that_are_given_and_says_what_it_met(strategy):
    X, Y = points()
    kind, recipe = spec("batch"), TrainingRecipe(epochs=3, rate=0.05, batch_size=6)
    start = draw_networks(kind, 3, 5, "train.network", dtype=X.dtype)
    before = copy.deepcopy(start)
    expected = train_networks(kind, X, Y, recipe, count=3, seed=5, strategy=strategy)
    met = torch.full((3, 2), math.nan, dtype=torch.float64)
    found = train_networks(kind, X, Y, recipe, count=3, seed=5, strategy=strategy, start=start, met=met)
    assert difference(expected, found) == 0
    assert difference(start, before) == 0
    other = draw_networks(kind, 3, 6, dtype=X.dtype)
    assert difference(expected, train_networks(kind, X, Y, recipe, count=3, seed=5, start=other)) > 1e-3

    # The last epoch again, from the networks after the one before.
    kept = {}

    def keep(epoch, networks, stack):
        if epoch == recipe.epochs - 1:
            kept.update({i: copy.deepcopy(stack.network(i - networks.start)) for i in networks})

    train_networks(kind, X, Y, recipe, count=3, seed=5, strategy=strategy, on_epoch=keep)
    rows = row_orders(len(X), recipe.epochs, range(3), seed=5, stream="train")
    for number in range(3):
        first = rows[number][:6]
        outputs = kept[number].train()(X[first]).detach()
        losses = F.cross_entropy(outputs, Y[first].argmax(1), reduction="none")
        # The other batch comes after a step, and its share is not more than its rows.
        assert float(losses.sum()) / len(X) < float(met[number, 0])
        hits = int((outputs.argmax(1) == Y[first].argmax(1)).sum())
        assert hits / len(X) <= float(met[number, 1]) <= (hits + len(X) - 6) / len(X)
    whole = TrainingRecipe(epochs=1, rate=0.05, schedule="constant")
    train_networks(kind, X, Y, whole, count=3, seed=5, strategy=strategy, start=start, met=met)
    for number in range(3):
        outputs = start.network(number)(X).detach()
        assert float(met[number, 0]) == pytest.approx(float(F.cross_entropy(outputs, Y.argmax(1))), rel=1e-8)
        assert float(met[number, 1]) == pytest.approx(
            float((outputs.argmax(1) == Y.argmax(1)).double().mean())
        )


def test_networks_to_start_from_must_fit():
    X, Y = points()
    start = draw_networks(spec(), 2, 5, dtype=X.dtype)
    recipe = TrainingRecipe(epochs=1)
    with pytest.raises(ValueError, match="`start` must hold 3 networks"):
        train_networks(spec(), X, Y, recipe, count=3, seed=5, start=start)
    with pytest.raises(ValueError, match="`start` must hold 2 networks"):
        train_networks(spec("none"), X, Y, recipe, count=2, seed=5, start=start)
    with pytest.raises(ValueError, match="`met` must be float64 of shape"):
        train_networks(spec(), X, Y, recipe, count=2, seed=5, start=start, met=torch.zeros(2, 2))


def test_batch_norm_gathers_running_statistics():
    X, Y = points()
    kind, recipe = spec("batch"), TrainingRecipe(epochs=3, rate=0.05, batch_size=6)
    found = train_networks(kind, X, Y, recipe, count=2, seed=5)
    plain = dict(plain_training(kind, X, Y, recipe, 1, 5).named_buffers())
    assert any(key.endswith("running_var") for key in plain)
    for key, value in plain.items():
        torch.testing.assert_close(found.buffers[key][1], value, rtol=1e-8, atol=1e-10)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_the_captured_step_is_the_step(norm):
    X, Y = points()
    # Two shapes of batches, each of them run before it is captured, captured and replayed; a restart in between.
    recipe = TrainingRecipe(epochs=8, rate=0.05, batch_size=6, augment=DSA)
    expected = train_networks(spec(norm), X, Y, recipe, count=3, seed=5, strategy="serial")
    found = train_networks(spec(norm), X.cuda(), Y.cuda(), recipe, count=3, seed=5)
    assert found.parameters["classifier.weight"].is_cuda
    assert difference(expected, found.to("cpu")) < 1e-8


@pytest.mark.parametrize("workers", [2, 3])
def test_same_bits_for_any_number_of_workers_and_networks(workers):
    X, Y = points(torch.float32)
    recipe = TrainingRecipe(epochs=2, rate=0.1, batch_size=6, augment=DSA)
    one = train_networks(spec(), X, Y, recipe, count=4, seed=1, workers=1)
    more = train_networks(spec(), X, Y, recipe, count=5, seed=1, workers=workers)
    assert all(torch.equal(one.parameters[key], more.parameters[key][:4]) for key in one.parameters)
    assert any(not torch.equal(one.parameters[key][0], one.parameters[key][1]) for key in one.parameters)


def test_threads_are_as_before():
    X, Y = points(torch.float32)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        train_networks(spec(), X, Y, TrainingRecipe(epochs=1), count=2, seed=1, workers=2)
        assert torch.get_num_threads() == 3
        # What threads made later begin with is kept apart from what this one has.
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [1, 3, 4, 100])
def test_pieces_of_a_batch_have_its_gradient(rows, monkeypatch):
    X, Y = points()
    recipe = TrainingRecipe(epochs=2, rate=0.1)
    whole = train_networks(spec(), X, Y, recipe, count=1, seed=0)
    monkeypatch.setattr("kernel_distill.nn_baselines.pieces.PIECE_ROWS", rows)
    assert difference(whole, train_networks(spec(), X, Y, recipe, count=1, seed=0)) < 1e-12


def test_a_batch_is_whole_for_batch_norm(monkeypatch):
    X, Y = points()
    recipe = TrainingRecipe(epochs=2, rate=0.1)
    whole = train_networks(spec("batch"), X, Y, recipe, count=1, seed=0)
    monkeypatch.setattr("kernel_distill.nn_baselines.pieces.PIECE_ROWS", 3)
    assert difference(whole, train_networks(spec("batch"), X, Y, recipe, count=1, seed=0)) == 0


def test_stacks_that_do_not_fit_are_trained_in_turn(monkeypatch):
    X, Y = points()
    recipe = TrainingRecipe(epochs=2, rate=0.1, batch_size=6, augment=DSA)
    seen = []
    arguments = {"count": 5, "seed": 0, "strategy": "stacked"}
    whole = train_networks(spec("batch"), X, Y, recipe, **arguments)
    one_row = training._bytes_per_row(whole.network(0), X[:2])
    monkeypatch.setattr(training, "STACK_BYTES", 2 * 6 * one_row)
    parts = train_networks(
        spec("batch"),
        X,
        Y,
        recipe,
        on_epoch=lambda epoch, networks, _: seen.append((epoch, networks)),
        **arguments,
    )
    assert difference(whole, parts) < 1e-12
    assert seen == [(e, n) for n in (range(0, 2), range(2, 4), range(4, 5)) for e in range(3)]


@pytest.mark.parametrize("strategy", ["serial", "stacked"])
def test_epochs_are_told(strategy):
    X, Y = points()
    seen = {}

    def note(epoch, networks, stack):
        assert stack.count == len(networks)
        for place, number in enumerate(networks):
            seen[epoch, number] = copy.deepcopy(stack.parameters["classifier.bias"][place].detach())

    recipe = TrainingRecipe(epochs=3, rate=0.1)
    found = train_networks(spec(), X, Y, recipe, count=3, seed=0, strategy=strategy, workers=2, on_epoch=note)
    assert sorted(seen) == [(epoch, number) for epoch in range(4) for number in range(3)]
    shorter = train_networks(
        spec(),
        X,
        Y,
        TrainingRecipe(epochs=2, rate=0.1, schedule="constant"),
        count=3,
        seed=0,
        strategy=strategy,
    )
    for number in range(3):
        torch.testing.assert_close(seen[3, number], found.parameters["classifier.bias"][number])
        torch.testing.assert_close(seen[1, number], shorter.parameters["classifier.bias"][number])


def test_streams_and_seeds_are_independent():
    X, Y = points()
    found = [
        train_networks(spec(), X, Y, TrainingRecipe(epochs=1), count=1, **more).parameters[
            "classifier.weight"
        ]
        for more in ({"seed": 0}, {"seed": 1}, {"seed": 0, "stream": "other"})
    ]
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_torchs_generator_is_left_alone():
    X, Y = points(torch.float32)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    train_networks(spec(), X, Y, TrainingRecipe(epochs=1, augment=DSA), count=2, seed=0)
    assert torch.equal(before, torch.get_rng_state())


def test_hard_labels_look_at_the_largest_entry_only():
    X, Y = points()
    recipe = TrainingRecipe(epochs=2, rate=0.1)
    rows = F.one_hot(Y.argmax(1), K).double()
    assert difference(*(train_networks(spec(), X, y, recipe, count=1, seed=0) for y in (Y, rows))) == 0


def test_trains_inside_no_grad_and_leaves_the_set_alone():
    X, Y = points()
    kept = X.clone(), Y.clone()
    with torch.no_grad():
        for strategy in ("serial", "stacked"):
            train_networks(
                spec(), X, Y, training_recipe("frepo", epochs=1), count=1, seed=0, strategy=strategy
            )
    assert torch.equal(X, kept[0])
    assert torch.equal(Y, kept[1])


def test_a_failing_callback_ends_the_training_of_all():
    X, Y = points()
    epochs = {1: [], 2: []}

    def fail(epoch, networks, stack):
        if networks.start == 0:
            raise RuntimeError("enough")
        epochs[networks.start].append(epoch)

    recipe = TrainingRecipe(epochs=3000, rate=0.1)
    with pytest.raises(RuntimeError, match="enough"):
        train_networks(spec(), X, Y, recipe, count=3, seed=0, workers=2, on_epoch=fail)
    assert all(len(seen) < 3000 for seen in epochs.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": torch.randn(M, 3, 8, 9)}, "must hold one or more rows of shape"),
        ({"X": torch.randn(0, *SHAPE)}, "must hold one or more rows of shape"),
        ({"X": torch.zeros(M, *SHAPE, dtype=torch.int64)}, "must be floating point"),
        ({"Y": torch.randn(M, K + 1)}, "`Y` must have shape"),
        ({"Y": torch.ones(M, K, dtype=torch.int64)}, "one-hot rows"),
        ({"Y": torch.full((M, K), float("nan"))}, "`Y` holds NaN"),
        ({"recipe": "dcbench"}, "did you mean 'dc-bench'"),
        ({"recipe": TrainingRecipe(labels="probabilities")}, "sum to 1"),
        ({"strategy": "parallel"}, "unknown strategy"),
        ({"count": 0}, "`count` must be"),
        ({"workers": 0}, "`workers` must be"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    X, Y = points(torch.float32)
    arguments = {"X": X, "Y": Y, "recipe": "dc-bench", "count": 1, "seed": 0} | change
    with pytest.raises(ValueError, match=message):
        train_networks(spec(), arguments.pop("X"), arguments.pop("Y"), arguments.pop("recipe"), **arguments)


def test_rows_that_are_no_images_are_not_augmented():
    with pytest.raises(ValueError, match='use augment=""'):
        train_networks(
            network_spec("mlp", (5,), K, width=4), torch.randn(3, 5), torch.eye(K)[:3], "dsa", count=1, seed=0
        )
