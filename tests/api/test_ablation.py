"""Ablations: statistics against values worked out by hand, the grid of runs, and going on with one."""

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from kernel_distill import _ablation, distill, evaluate, load_data
from kernel_distill._ablation import ablate
from kernel_distill._ablation_arms import parse_pick, pick_label
from kernel_distill._ablation_result import Ablation, Run, paired_difference
from kernel_distill._ablation_store import data_digest
from kernel_distill._tasks import RunRecord, run_record
from kernel_distill.solver.data import Data
from kernel_distill.solver.learners.dm import DM
from kernel_distill.solver.learners.full_kip import FullKIP
from kernel_distill.solver.learners.kip import KIP
from kernel_distill.solver.learners.pick import Pick
from kernel_distill.solver.loop import Loop

from .travelling import Travelling


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 3)), np.arange(40) % 2
    return Data(X[:30], y[:30], X[30:], y[30:], ("a", "b"), "toy")


@pytest.fixture
def calls(monkeypatch):
    """`distill` gives scores that follow from its arguments, and notes what it was called with."""
    made = []

    def distill(data, **arguments):
        made.append(arguments)
        kind = getattr(getattr(arguments["method"], "pick", None), "kind", "none")
        score = 0.5 + 0.01 * arguments["seed"] + 0.1 * (kind == "loss") + 0.2 * (arguments["near"] == "noise")
        record = {"seconds": 2.0, "steps": 7, "selected_step": 5, "stopped": "time", "init_seconds": 0.5}
        return SimpleNamespace(
            provenance={"run": record},
            certificate=SimpleNamespace(heldout_score=0.4, heldout_loss=0.03),
            score=lambda X, y: score if len(X) == len(data.x_test) else math.nan,
        )

    monkeypatch.setattr(_ablation, "distill", distill)
    return made


def two_sided_of_four(t):
    """p of a t with 4 degrees of freedom, whose distribution function is elementary."""
    return 1 - 3 / 4 * t / math.sqrt(1 + t * t / 4) * (1 - t * t / 12 / (1 + t * t / 4))


def test_paired_difference_is_what_the_textbook_gives():
    # d = 2, 2, 2, 5, -1 hundredths: mean 2, sum of squares about it 18, so s^2 = 4.5 and t = 2 / sqrt(4.5 / 5).
    scores, reference = [0.50, 0.52, 0.49, 0.55, 0.51], [0.48, 0.50, 0.47, 0.50, 0.52]
    found = paired_difference(scores, reference)
    t = 2 / math.sqrt(0.9)
    assert found.mean == pytest.approx(0.02)
    assert found.t_pvalue == pytest.approx(two_sided_of_four(t), rel=1e-10)
    # The 97.5 % point with 4 degrees of freedom is 2.7764451 (any table).
    error = math.sqrt(0.9) / 100
    assert found.interval == pytest.approx((0.02 - 2.7764451 * error, 0.02 + 2.7764451 * error), rel=1e-7)
    # Ranks 3, 3, 3, 5, -1: of 32 choices of signs 2 reach +13 and 2 reach -13.
    assert found.wilcoxon_pvalue == 4 / 32


@pytest.mark.parametrize(
    ("difference", "t_pvalue", "wilcoxon"),
    [
        ([1, 2, 3, 4, 5], two_sided_of_four(3 / math.sqrt(2.5 / 5)), 2 / 32),
        ([0, 0, 3, 4, 5], None, 2 / 8),  # zeros are dropped: three pairs
        ([-1, 1], 1.0, 1.0),
        ([9, 9, 9], None, 2 / 8),  # which binary fractions are not
        ([0, 0, 0], None, None),
    ],
    ids=["ordered", "zeros", "opposite", "all alike", "nothing"],
)
def test_signed_ranks_by_counting(difference, t_pvalue, wilcoxon):
    reference = np.array([0.1, 0.7, 0.3, 0.2, 0.9])[: len(difference)]
    found = paired_difference(reference + np.array(difference) / 1000, reference)
    assert found.wilcoxon_pvalue == (None if wilcoxon is None else pytest.approx(wilcoxon))
    if t_pvalue is not None:
        assert found.t_pvalue == pytest.approx(t_pvalue, rel=1e-9)
    assert (found.t_pvalue is None) == (len(set(difference)) == 1)


@pytest.mark.parametrize("n", [2, 11, 30])
def test_signed_ranks_without_ties_are_those_of_scipy(n):
    from scipy import stats

    difference = np.random.default_rng(1).normal(0.3, 1, n)
    found = paired_difference(difference, np.zeros(n))
    assert found.wilcoxon_pvalue == pytest.approx(stats.wilcoxon(difference, method="exact").pvalue)
    assert found.t_pvalue == pytest.approx(stats.ttest_1samp(difference, 0).pvalue)


def test_one_seed_has_no_spread():
    found = paired_difference([0.5], [0.25])
    assert (found.mean, found.interval, found.t_pvalue, found.wilcoxon_pvalue) == (0.25, None, None, None)
    with pytest.raises(ValueError, match="as many scores as references, got 2 and 1"):
        paired_difference([0.5, 0.6], [0.25])


def run(init, pick, seed, score, stopped="time"):
    return Run(init, pick, seed, score, 0.4, 0.03, 7, 5, 2.0, 0.5, stopped)


def result(runs, metric="accuracy"):
    settings = {
        "data": {"name": "toy"},
        "metric": metric,
        "method": {"method": "kip"},
        "points": "1 a class",
        "budget": "2 s each",
    }
    return Ablation(settings, tuple(sorted({made.seed for made in runs})), tuple(runs))


def test_a_table_says_what_the_runs_say():
    runs = [run("random", "uniform", s, 0.5 + 0.01 * s) for s in range(3)]
    runs += [run("random", "loss", s, 0.52 + 0.02 * s) for s in range(3)]
    first, second = result(runs).arms
    assert (first.mean, first.deviation) == pytest.approx((0.51, 0.01))
    assert first.difference is None
    assert (first.steps, first.seconds, first.init_seconds) == (7, 2, 0.5)
    assert second.difference is not None
    assert second.difference.mean == pytest.approx(0.03)
    lines = str(result(runs)).splitlines()
    assert lines[0] == "toy, kip, 1 a class, 2 s each, 3 seeds"
    cells = [cell.strip() for cell in next(line for line in lines if "| loss" in line).strip("|").split("|")]
    # 3 +- 4.3027 * 1 / sqrt(3) points; t = 3 sqrt(3) with 2 degrees of freedom: p = 1 - t / sqrt(2 + t^2).
    assert cells[:5] == ["random", "loss", "54.00 ± 2.00 %", "+3.00", "+0.52 .. +5.48"]
    p = 1 - math.sqrt(27) / math.sqrt(29)
    assert cells[5:] == [f"{p:.3g}", "0.25", "7", "2", "0.5"]
    assert "Wilcoxon's p below 0.25" in lines[-1]


def test_remarks_count_comparisons_and_name_runs_that_diverged():
    runs = [run("random", "uniform", s, 0.5) for s in range(6)]
    runs += [run("noise", "uniform", s, 0.4, "diverged" if s == 2 else "time") for s in range(6)]
    runs += [run("herding", "uniform", s, 0.6) for s in range(6)]
    text = result(runs).remarks()
    assert len(text) == 2
    assert "0.05 / 2 = 0.025" in text[0]
    assert text[1].startswith("The run of noise, uniform, seed 2 diverged")


def test_regression_is_told_in_r2():
    lines = str(result([run("random", None, s, 0.5 + s / 10) for s in range(2)], "r2"))
    assert "test r2" in lines
    assert "0.5500 ± 0.0707" in lines


def test_json_is_strict_and_complete():
    made = result([run("random", "uniform", 0, 0.5), run("random", "loss", 0, math.nan)])
    found = json.loads(made.to_json())
    assert found["runs"][0]["score"] == 0.5
    assert found["arms"][1]["mean"] is None
    assert found["arms"][1]["difference"]["interval"] is None


def test_the_grid_runs_every_arm_with_every_seed(data, calls):
    made = ablate(
        data,
        "kip",
        inits=["data", "noise"],
        picks=["uniform", "loss"],
        seeds=[3, 5],
        time_limit=9,
        per_class=4,
    )
    assert [(arm.init, arm.pick) for arm in made.arms] == [
        ("data", "uniform"),
        ("data", "loss"),
        ("noise", "uniform"),
        ("noise", "loss"),
    ]
    assert [arm.mean for arm in made.arms] == pytest.approx([0.54, 0.64, 0.74, 0.84])
    assert [(r.init, r.pick, r.seed) for r in made.runs[:3]] == [
        ("data", "uniform", 3),
        ("data", "uniform", 5),
        ("data", "loss", 3),
    ]
    # Seed by seed, and the second seed begins with the second arm.
    assert [call["seed"] for call in calls] == [3] * 4 + [5] * 4
    assert [(call["near"], call["method"].pick.kind) for call in calls[4:]] == [
        ("data", "loss"),
        ("noise", "uniform"),
        ("noise", "loss"),
        ("data", "uniform"),
    ]
    assert all(call["per_class"] == 4 and call["progress"] is False for call in calls)
    assert len({id(call["transform"]) for call in calls}) == 1
    assert made.runs[0] == run("data", "uniform", 3, 0.53)


def test_every_run_gets_the_whole_budget(data, calls, tmp_path):
    loop = Loop(steps=3, patience=1, evaluate_every=2, checkpoint=tmp_path / "c", log=tmp_path / "l")
    ablate(data, "kip", seeds=1, time_limit=9, loop=loop)
    ablate(data, "kip", seeds=1, steps=11, loop=loop)
    timed, counted = (call["loop"] for call in calls)
    assert (timed.time_limit, counted.time_limit, counted.steps) == (9, None, 11)
    assert timed.steps > 10**6
    for made in (timed, counted):
        assert (made.patience, made.checkpoint, made.log, made.evaluate_every) == (None, None, None, 2)


def test_only_the_pick_of_the_method_changes(data, calls):
    method = KIP(pick=Pick(kind="balanced"))
    made = ablate(data, method, seeds=1, steps=1)
    assert made.arms[0].pick == "balanced"
    ablate(data, method, seeds=1, steps=1, picks=[Pick(kind="loss")])
    assert calls[0]["method"] == method
    assert calls[1]["method"] == method.model_copy(update={"pick": Pick(kind="loss")})


def test_a_method_without_batches_has_arms_without_pick(data, calls):
    made = ablate(data, FullKIP(), inits=["data", "noise"], seeds=1, steps=1)
    assert [(arm.init, arm.pick) for arm in made.arms] == [("data", None), ("noise", None)]
    with pytest.raises(ValueError, match="draws no batches"):
        ablate(data, FullKIP(), picks=["uniform"], seeds=1, steps=1)


def test_a_pick_and_its_label_are_the_same_text():
    assert parse_pick("loss") == Pick(kind="loss")
    changed = parse_pick("loss, mixing=0.25")
    assert changed == Pick(kind="loss", mixing=0.25)
    assert pick_label(changed) == "loss,mixing=0.25"
    assert parse_pick(pick_label(changed)) == changed
    for text, message in [("loss,0.2", "KEY=VALUE"), ("los", "not a pick"), ("loss,mixing=x", "mixing")]:
        with pytest.raises(ValueError, match=message):
            parse_pick(text)


def test_a_killed_ablation_goes_on(data, calls, tmp_path, monkeypatch):
    arguments = dict(picks=["uniform", "loss"], seeds=3, time_limit=9, out=tmp_path / "runs")
    whole = ablate(data, "kip", **{**arguments, "out": None})
    del calls[:]
    working = _ablation.distill

    def killed(data, **given):
        if len(calls) == 4:
            raise KeyboardInterrupt
        return working(data, **given)

    monkeypatch.setattr(_ablation, "distill", killed)
    with pytest.raises(KeyboardInterrupt):
        ablate(data, "kip", **arguments)
    assert len(list((tmp_path / "runs").glob("*-seed?.json"))) == 4
    monkeypatch.setattr(_ablation, "distill", working)
    again = ablate(data, "kip", **arguments)
    assert len(calls) == 6
    assert again == whole
    # More seeds go on with the same files, more time does not.
    assert len(ablate(data, "kip", **{**arguments, "seeds": 4}).runs) == 8
    assert len(calls) == 8
    with pytest.raises(
        ValueError, match=r"other work \(budget was .* loop.time_limit was .*give another folder"
    ):
        ablate(data, "kip", **{**arguments, "time_limit": 10})


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"per_class": 2}, "points was .*options.per_class was null, is 2"),
        ({"method": KIP(steps=3)}, "method.steps was 300, is 3"),
        ({"loop": Loop(evaluate_every=3)}, "loop.evaluate_every was null, is 3"),
    ],
)
def test_runs_with_other_settings_are_refused(data, calls, tmp_path, change, key):
    arguments = {"method": "kip", "seeds": 1, "steps": 5, "out": tmp_path}
    ablate(data, **arguments)
    with pytest.raises(ValueError, match=rf"other work \({key}"):
        ablate(data, **{**arguments, **change})
    with pytest.raises(ValueError, match=r"other work \(data.digest was"):
        ablate(
            Data(data.x_train, data.y_train, data.x_test + 1, data.y_test, data.class_names, "toy"),
            **arguments,
        )
    assert len(calls) == 1


def test_a_file_that_is_no_run_is_named(data, calls, tmp_path):
    ablate(data, "kip", seeds=1, steps=5, out=tmp_path)
    (path,) = tmp_path.glob("*-seed0.json")
    assert path.name == "random-default-seed0.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match=f"{path.name}, cannot be read: it is not a run of an ablation"):
        ablate(data, "kip", seeds=1, steps=5, out=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "closed-form"}, "learned methods"),
        ({"inits": ["herdin"]}, "did you mean 'herding'"),
        ({"inits": "random"}, "must be a list"),
        ({"picks": []}, "must be a list"),
        ({"picks": ["loss", Pick(kind="loss")]}, "once only"),
        ({"seeds": 0}, "at least 1"),
        ({"seeds": [1, 1]}, "distinct"),
        ({"steps": None}, "either time_limit"),
        ({"time_limit": 3}, "either time_limit"),
        ({"steps": None, "time_limit": 0}, "more than 0"),
        ({"confidence": 1}, "between 0 and 1"),
        ({"near": "data"}, "sets `near` itself"),
        ({"transform": object()}, "must be plain values"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(data, calls, change, message):
    with pytest.raises(ValueError, match=message):
        ablate(data, **{"method": "kip", "steps": 3, **change})
    assert not calls


def test_a_test_split_is_needed(data, calls):
    with pytest.raises(ValueError, match="no test split"):
        ablate(Data(data.x_train, data.y_train, class_names=("a", "b"), name="toy"), "kip", steps=3)
    assert not calls


def test_options_and_arguments_vary(data, calls):
    vary = {"batch_size": [10, 20], "per_class": [1, 4], "kernel_params.depth": [1]}
    made = ablate(data, "kip", picks=["uniform", "loss"], vary=vary, seeds=[2], steps=1)
    expected = [
        {"batch_size": size, "per_class": number, "kernel_params.depth": 1}
        for size in (10, 20)
        for number in (1, 4)
    ]
    assert [(arm.pick, arm.varied) for arm in made.arms] == [
        *(("uniform", each) for each in expected),
        *(("loss", each) for each in expected),
    ]
    assert [(call["method"].batch_size, call["per_class"]) for call in calls] == [
        (10, 1),
        (10, 4),
        (20, 1),
        (20, 4),
    ] * 2
    assert all(call["method"].kernel_params == {"depth": 1} for call in calls)
    assert [call["method"].pick.kind for call in calls] == ["uniform"] * 4 + ["loss"] * 4
    assert made.arms[0].difference is None
    assert made.arms[5].difference is not None
    assert made.settings["varied"] == ["batch_size", "kernel_params.depth", "per_class"]
    found = json.loads(made.to_json())
    assert found["arms"][1]["varied"] == found["runs"][1]["varied"] == expected[1]
    lines = str(made).splitlines()
    assert lines[0] == "toy, kip, 1 steps each, 1 seed"  # points a class differ
    assert [cell.strip() for cell in lines[2].strip("|").split("|")][:5] == ["init", "pick", *vary]
    assert [cell.strip() for cell in lines[5].strip("|").split("|")][:5] == [
        "random",
        "uniform",
        "10",
        "4",
        "1",
    ]


def test_values_of_several_kinds_vary(data, calls):
    """A mean and a list are two values; a name is shown as it is."""
    made = ablate(
        data,
        "dm",
        vary={"network_params.width": [4, 8], "transform": ["none", "standardize"]},
        seeds=1,
        steps=1,
    )
    assert [call["method"].network_params["width"] for call in calls] == [4, 4, 8, 8]
    assert [call["transform"].name for call in calls] == ["none", "standardize"] * 2
    assert len({id(call["transform"]) for call in calls}) == 2
    runs = [dataclasses.replace(run, stopped="diverged") for run in made.runs]
    remarks = dataclasses.replace(made, runs=tuple(runs)).remarks()
    assert (
        "The run of random, balanced, network_params.width=4, transform=none, seed 0 diverged" in remarks[1]
    )


def test_varied_runs_are_found_again(data, calls, tmp_path):
    arguments = dict(vary={"kernel": ["ntk", "nngp"], "ridge": [1e-6]}, seeds=2, steps=1, out=tmp_path)
    whole = ablate(data, "kip", **arguments)
    assert ablate(data, "kip", **arguments) == whole
    assert len(calls) == 4
    for path in list(tmp_path.glob("*seed1*.json")):
        path.unlink()
    more = {**arguments, "vary": {"kernel": ["ntk", "nngp"], "ridge": [1e-6, 1e-3]}}
    assert len(ablate(data, "kip", **more).runs) == 8
    assert len(calls) == 4 + 2 + 4
    with pytest.raises(ValueError, match=r"other work .*varied"):
        ablate(data, "kip", **{**arguments, "vary": {"kernel": ["ntk"]}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vary": {"batchsize": [1]}}, "unknown option to vary 'batchsize'; did you mean 'batch_size'"),
        ({"vary": {"batch_size": []}}, "must be a list with something in it"),
        ({"vary": {"batch_size": 3}}, "must be a list with something in it, got 3"),
        ({"vary": {"kernel": "ntk"}}, "must be a list with something in it, got 'ntk'"),
        ({"vary": {"batch_size": [0]}}, "batch_size=0 is not valid: batch_size: "),
        ({"vary": {"kernel_params": [object()]}}, "must be plain values"),
        ({"vary": {"batch_size": [3, 3]}}, "once only"),
        ({"vary": {"near": ["data"]}}, "give `inits`"),
        ({"vary": {"pick.mixing": [0.1]}}, "give `picks`"),
        ({"vary": {"seed": [1]}}, "give `seeds`"),
        ({"vary": {"steps": [1]}}, "give `steps or time_limit`"),
        ({"vary": {"device": ["cpu"]}}, "unknown option to vary 'device'"),
        ({"vary": {"per_class.x": [1]}}, "'per_class' is an argument of distill, which has no 'x'"),
        ({"vary": {"per_class": [1]}, "per_class": 2}, "per_class: given both once and to vary"),
        ({"executor": "rya"}, "unknown executor 'rya'; did you mean 'ray'"),
    ],
)
def test_what_cannot_vary_is_refused_before_anything_runs(data, calls, change, message):
    with pytest.raises(ValueError, match=message):
        ablate(data, **{"method": "kip", "steps": 3, **change})
    assert not calls


def test_a_method_without_steps_has_neither_start_nor_budget(data):
    options = dict(feature_map="identity", vary={"per_class": [1, 2]}, seeds=2)
    made = ablate(data, "class-gaussians", **options)
    assert [(arm.init, arm.pick, arm.varied) for arm in made.arms] == [
        (None, None, {"per_class": 1}),
        (None, None, {"per_class": 2}),
    ]
    assert {(run.steps, run.seconds, run.stopped) for run in made.runs} == {(0, 0, "fitted")}
    assert made.runs[0].score == pytest.approx(
        distill(data, method="class-gaussians", feature_map="identity").score(data.x_test, data.y_test)
    )
    assert str(made).splitlines()[0] == "toy, class-gaussians, 2 seeds"
    with pytest.raises(ValueError, match="takes no steps: leave out"):
        ablate(data, "class-gaussians", steps=3, **options)
    with pytest.raises(ValueError, match="starts from no points: leave `inits` out"):
        ablate(data, "class-gaussians", inits=["data"], **options)


def test_subtasks_vary_and_their_runs_add_up():
    digits = load_data("digits")
    few = dataclasses.replace(digits, x_train=digits.x_train[::8], y_train=digits.y_train[::8])
    method = DM(network_params={"width": 4, "depth": 1}, judge_networks=1, judge_epochs=1)
    made = ablate(few, method, vary={"subtasks": [1, 2]}, seeds=1, steps=2, device="cpu")
    assert [(run.varied["subtasks"], run.steps, run.stopped) for run in made.runs] == [
        (1, 2, "steps"),
        (2, 4, "steps"),
    ]
    parts = [{"steps": 3, "selected_step": 1, "seconds": 2.0, "init_seconds": 0.5, "stopped": end} for end in
             ("steps", "time", "diverged")]  # fmt: skip
    merged = SimpleNamespace(provenance={"subtasks": [{"provenance": {"run": part}} for part in parts]})
    assert run_record(merged) == RunRecord(9, 3, 6.0, 1.5, "diverged")


def test_networks_may_be_the_judges():
    digits = load_data("digits")
    networks = {"recipe": "dc-bench", "networks": {"mlp": {"width": 8}}, "count": 2, "epochs": 2}
    options = {"storage": "float32", "device": "cpu"}
    made = ablate(digits, "kip", seeds=[3], steps=1, evaluate=networks, executor=Travelling(), **options)
    ds = distill(digits, method="kip", near="random", seed=3, loop=Loop(steps=1), **options)
    [row] = evaluate(ds, digits, baselines=(), seed=3, **networks).rows
    assert made.runs[0].score == pytest.approx(row.score)
    assert row.score != ds.score(digits.x_test, digits.y_test)
    assert made.settings["evaluated"]["evaluate"] == networks
    assert "evaluated by dc-bench (networks=" in str(made)
    with pytest.raises(ValueError, match="did you mean 'epochs'"):
        ablate(digits, "kip", steps=1, evaluate={**networks, "epoch": 2})


def test_equal_differences_have_no_interval():
    """Two seeds on a test split of twenty rows often differ alike: an interval of no width would be a claim."""
    found = paired_difference([0.45, 0.50], [0.50, 0.55])
    assert (found.mean, found.interval, found.t_pvalue) == (pytest.approx(-0.05), None, None)


def test_networks_that_diverge_are_counted(data):
    networks = {
        "recipe": "dc-bench",
        "networks": {"mlp": {"width": 8}},
        "count": 2,
        "epochs": 2,
        "rate": 1e30,
    }
    made = ablate(data, "kip", seeds=1, steps=1, evaluate=networks, device="cpu", transform="none")
    assert made.runs[0].networks_diverged == 2
    assert made.remarks() == ["2 networks on the set of random, default, seed 0 diverged."]


@pytest.mark.parametrize(
    ("targets", "names", "task", "metric"),
    [
        (np.arange(40) % 2, ("a", "b"), "auto", "accuracy"),
        (np.arange(40) % 2, ("a", "b"), "regression", "r2"),
        (np.arange(40) % 2, (), "auto", "accuracy"),
        (np.array(["aa", "bb"] * 20), (), "auto", "accuracy"),
        (np.linspace(0, 1, 40), (), "auto", "r2"),
        (np.arange(40) % 2.0, (), "classification", "accuracy"),
    ],
)
def test_the_metric_is_that_of_the_scores(calls, targets, names, task, metric):
    X = np.random.default_rng(0).normal(size=(40, 3))
    data = Data(X[:30], targets[:30], X[30:], targets[30:], names, "toy")
    made = ablate(data, "kip", seeds=1, steps=1, task=task)
    assert made.settings["metric"] == metric
    assert f"test {metric}" in str(made)


def test_the_digest_of_data_is_of_values_and_of_names(data):
    def texts():
        labels = np.array(["".join(["cla", "ss", str(i % 2)]) for i in range(40)], dtype=object)
        return Data(data.x_train, labels[:30], data.x_test, labels[30:])

    assert data_digest(texts()) == data_digest(texts())
    others = [
        dataclasses.replace(data, class_names=("b", "a")),
        dataclasses.replace(data, y_test=None),
        texts(),
    ]
    assert len({data_digest(each) for each in [data, *others]}) == 4


def test_unknown_arguments_are_refused_before_the_first_run(data, calls):
    with pytest.raises(
        ValueError, match="unknown argument of ablate, or of distill, 'per_clas'; did you mean"
    ):
        ablate(data, "kip", steps=1, per_clas=2)
    with pytest.raises(ValueError, match="an ablation sets `X` itself"):
        ablate(data, "kip", steps=1, X=data.x_train)
    assert not calls


def test_runs_are_tasks(data, calls):
    arguments = dict(inits=["data", "noise"], seeds=2, steps=1)
    executor = Travelling(lost=1)
    found = ablate(data, "kip", executor=executor, device="cpu", **arguments)
    plain = ablate(data, "kip", device="cpu", **arguments)
    assert found == dataclasses.replace(plain, retried=("data-default-seed0 (its worker died)",))
    assert "1 task was run again: data-default-seed0 (its worker died)" in found.remarks()
    assert json.loads(found.to_json())["retried"] == list(found.retried)
    names = [
        f"{init}-default-seed{seed}" for seed, init in [(0, "data"), (0, "noise"), (1, "noise"), (1, "data")]
    ]
    assert [task.name for task in executor.tasks] == names
    assert {task.gpus for task in executor.tasks} == {0}
    ablate(data, "kip", executor=executor, **arguments)
    assert executor.tasks[-1].gpus == 1


def test_equal_time_elsewhere_is_other_work(data, calls, tmp_path):
    arguments = dict(seeds=1, out=tmp_path / "runs")
    ablate(data, "kip", time_limit=9, **arguments)
    with pytest.raises(ValueError, match=r'other work \(executor was null, is "Travelling"'):
        ablate(data, "kip", time_limit=9, executor=Travelling(), **arguments)
    counted = {**arguments, "out": tmp_path / "counted"}
    assert ablate(data, "kip", steps=9, **counted) == ablate(
        data, "kip", steps=9, executor=Travelling(), **counted
    )


def test_digits_for_real():
    digits = load_data("digits")
    made = ablate(digits, "kip", inits=["random", "k-center"], picks=["uniform", "loss"], seeds=2, steps=4)
    assert [r.steps for r in made.runs] == [4] * 8
    assert all(0.3 < r.score < 1 and r.heldout_loss > 0 and r.seconds > 0 for r in made.runs)
    # Picks change the steps, and starts the points: no two arms end the same.
    assert len({(r.heldout_loss, r.seed) for r in made.runs}) == 8
