"""Recipes: every file is valid and says where its figures come from; names, variants, other data, the page."""

import datetime
import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest

from kernel_distill._methods import FITTED_METHODS, LEARNED, options_class
from kernel_distill._recipe import Measured, Published, Recipe, merged
from kernel_distill._recipe_docs import measured_text, published_text, render_recipes
from kernel_distill._recipes import list_recipes, load_recipe
from kernel_distill.solver.coresets import CORESETS
from kernel_distill.solver.data import Data
from kernel_distill.solver.loop import Loop
from kernel_distill.solver.reference import NEAR
from kernel_distill.solver.transforms import TRANSFORMS

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "bench" / "recipes").glob("*.toml"))

MINE = """
title = "Mine"
data = "toy"
shape = [1, 4, 4]
classes = 3
per_class = 2
near = "random"

[method]
method = "full-kip"
inner = 7

[loop]
steps = 5
"""
FAMILY = (
    MINE
    + """
[variants.more]
per_class = 4
method.memory = 3

[variants.total]
n_points = 7
"""
)


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    return path


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_is_valid_and_names_its_sources(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert type(recipe.method_options) is options_class(recipe.method["method"])
    assert type(recipe.loop_options) is Loop
    assert recipe.near in (*NEAR, *CORESETS) or recipe.method["method"] in FITTED_METHODS
    assert recipe.transform in TRANSFORMS
    assert recipe.points == (recipe.n_points or recipe.per_class * recipe.classes)
    assert recipe.changed == ()
    # What nobody published has a note that says so.
    assert recipe.published or "nothing was published" in " ".join(recipe.note.split())
    for figure in recipe.published:
        assert re.search(r"20\d\d|notebook|@|README", figure.source), figure
        # A share in place of a percentage would be a figure below one.
        assert figure.value > 1
    for figure in recipe.measured:
        assert figure.value > 1
        assert datetime.date(2026, 1, 1) <= figure.date
        assert "kernel-distill" in figure.command or "bench/" in figure.command


def test_recipes_come_from_all_files_and_their_names_are_distinct():
    names = list_recipes()
    assert len(set(names)) == len(names)
    for file in FILES:
        document = tomllib.loads(file.read_text())
        made = [f"{file.stem}-{variant}" for variant in document.get("variants", {})] or [file.stem]
        assert set(made) <= set(names)
        names = tuple(name for name in names if name not in made)
    assert names == ()


@pytest.mark.parametrize(
    ("name", "points", "tag"),
    [
        ("kip-fc1-cifar10-100", 100, "kip"),
        ("label-solve-fc1-cifar10-500", 500, "kip"),
        ("kip-conv-cifar10-ipc50", 500, "kip"),
        ("kip-fc-mnist-ipc1", 10, "kip"),
        ("rfad-cifar10-ipc1", 10, "rfad"),
        ("rfad-fashion-ipc10", 100, "rfad"),
        ("rfad-cifar10-ipc50-learned-labels", 500, "rfad"),
        ("frepo-mnist-ipc50", 500, "frepo"),
        ("frepo-cifar10-ipc1", 10, "frepo"),
        ("distil-boost-kip-fashion", 10, "kip"),
        ("distil-boost-rfad-cifar10", 10, "rfad"),
        ("full-kip-mnist-10", 10, "full-kip"),
    ],
)
def test_the_runs_that_are_promised_are_there(name, points, tag):
    recipe = load_recipe(name)
    assert (recipe.points, recipe.method_options.method) == (points, tag)


def test_every_learned_method_has_a_recipe():
    assert {load_recipe(name).method_options.method for name in list_recipes()} == set(LEARNED)


def test_boosted_recipes_differ_from_plain_ones_in_start_and_picks():
    plain, boosted = load_recipe("rfad-cifar10-ipc1"), load_recipe("distil-boost-rfad-cifar10")
    assert (plain.near, plain.method_options.pick.kind) == ("random", "uniform")
    assert (boosted.near, boosted.method_options.pick.kind) == ("rbf", "loss")
    same = plain.method_options.model_copy(update={"pick": boosted.method_options.pick})
    assert boosted.method_options == same


def test_the_page_is_that_of_the_files():
    page = (ROOT / "docs" / "recipes.md").read_text()
    assert page == render_recipes(), "run: kernel-distill recipes --markdown > docs/recipes.md"


def test_the_page_says_what_is_known_and_what_is_not():
    page = render_recipes()
    table = {line.split("|")[1].strip(" `"): line for line in page.splitlines() if line.startswith("| `")}
    assert set(table) == set(list_recipes())
    for name, line in table.items():
        recipe = load_recipe(name)
        assert line.count("(unconfirmed)") == sum(figure.recalled for figure in recipe.published)
        assert ("not run" in line) == (not recipe.measured)
        for figure in recipe.published:
            number = re.search(rf"^(\d+)\. {re.escape(figure.source)}$", page, re.MULTILINE)
            assert number, figure.source
            assert f"[{number[1]}]" in line


def test_figures_in_words():
    sure = Published(value=61.1, deviation=0.7, source="a paper, 2022")
    assert published_text(sure, 3) == "61.1 ± 0.7 [3]"
    assert published_text(sure.model_copy(update={"recalled": True})) == "61.1 ± 0.7 (unconfirmed)"
    assert (
        published_text(Published(metric="squared error", value=3.5, source="s"), 1) == "squared error 3.5 [1]"
    )
    measured = Measured(
        value=46.9,
        deviation=0.25,
        seeds=5,
        data="d",
        machine="2 cores",
        command="c",
        date=datetime.date(2026, 11, 21),
        seconds=63.4,
    )
    assert measured_text(measured) == "46.9 ± 0.25 (5 seeds, 2 cores, 63 s)"


def test_arguments_are_those_of_distill():
    import inspect

    from kernel_distill import distill

    recipe = load_recipe("full-kip-mnist-10")
    arguments = recipe.arguments()
    assert set(arguments) <= set(inspect.signature(distill).parameters)
    assert arguments["per_class"] == 1
    assert arguments["feature_params"] == {"n_features": 4096}
    assert arguments["provenance"] == {"recipe": {"name": "full-kip-mnist-10", "changed": []}}
    # What a recipe leaves out is left to distill.
    assert not {"storage", "targets", "holdout", "n_points"} & set(arguments)


def test_a_file_of_ones_own_runs(mine):
    import kernel_distill as kd

    recipe = load_recipe(mine)
    assert (recipe.name, recipe.method_options.inner, recipe.loop_options.steps) == ("mine", 7, 5)
    X = np.random.default_rng(0).normal(size=(60, 4, 4))
    data = Data(X[:, None], np.arange(60) % 3, class_names=("a", "b", "c"), name="toy")
    recipe.check(data)
    ds = kd.distill(data, **recipe.replaced({"loop.steps": 1}).arguments(), progress=False)
    assert len(ds) == 6
    assert ds.provenance["recipe"] == {"name": "mine", "changed": ["loop.steps"]}


def test_variants_replace_values_key_by_key(tmp_path):
    path = tmp_path / "family.toml"
    path.write_text(FAMILY)
    more, total = load_recipe(f"{path}:more"), load_recipe(f"{path}:total")
    assert (more.name, more.points) == ("family-more", 12)
    assert (more.method_options.inner, more.method_options.memory) == (7, 3)
    assert more.loop_options.steps == 5
    # A number of points in place of one for each class.
    assert (total.points, total.per_class) == (7, None)
    with pytest.raises(ValueError, match=r"choose one: .*family.toml:more, .*family.toml:total"):
        load_recipe(path)
    with pytest.raises(ValueError, match=r"unknown variant .* 'mor'; did you mean 'more'"):
        load_recipe(f"{path}:mor")


def test_merging_leaves_its_arguments_alone():
    base, values = {"a": {"b": 1, "c": {"d": 2}}, "e": [1]}, {"a": {"c": {"d": 3}}, "e": [2]}
    assert merged(base, values) == {"a": {"b": 1, "c": {"d": 3}}, "e": [2]}
    assert base == {"a": {"b": 1, "c": {"d": 2}}, "e": [1]}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rfad-cifar10-ipc2", r"unknown recipe 'rfad-cifar10-ipc2'; did you mean 'rfad-cifar10-ipc"),
        ("kip-fc1-cifar-100", "did you mean 'kip-fc1-cifar10-100'"),
        ("rfad-cifar10", "family of recipes, choose one of them: rfad-cifar10-ipc1, "),
        ("", "unknown recipe"),
    ],
)
def test_unknown_names_suggest_the_nearest(name, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(name)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_recipe(tmp_path / "none.toml")
    (tmp_path / "plain.toml").write_text(MINE)
    with pytest.raises(ValueError, match=r"unknown variant of .* 'more'"):
        load_recipe(f"{tmp_path / 'plain.toml'}:more")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("per_class = 2", ""), "either per_class or n_points"),
        (("per_class = 2", "per_class = 2\nn_points = 5"), "either per_class or n_points"),
        (("per_class = 2", "per_class = 0"), "per_class: Input should be greater"),
        (("per_class = 2", "per_clas = 2"), "per_clas: no such option"),
        (("inner = 7", "iner = 7"), r"\[method\] is not valid: iner: no such option"),
        (('"full-kip"', '"full-kp"'), "unknown learned method 'full-kp'; did you mean 'full-kip'"),
        (('method = "full-kip"', ""), "unknown learned method"),
        (("steps = 5", "steps = -5"), r"\[loop\] is not valid: steps"),
        (("classes = 3", ""), "classes: Field required"),
        (('title = "Mine"', 'title = "Mine"\nname = "other"'), "sets name: leave that out"),
        (("[loop]", "[loop"), "mine.toml is not a recipe"),
        (("[loop]", "[[published]]\nvalue = 0.5\n[loop]"), "published.0.source: Field required"),
        (("per_class = 2", "per_class = 2\nvariants = 3"), "variants must be tables"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(mine, change, message):
    text = mine.read_text()
    assert change[0] in text
    mine.write_text(text.replace(*change))
    with pytest.raises(ValueError, match=message) as error:
        load_recipe(mine)
    assert "\n" not in str(error.value)


def test_values_can_be_replaced_and_are_named(mine):
    recipe = load_recipe(mine)
    changed = recipe.replaced({"loop.steps": 9, "method.inner": 3, "n_points": 4, "near": "noise"})
    assert (changed.loop_options.steps, changed.method_options.inner) == (9, 3)
    assert (changed.points, changed.per_class, changed.near) == (4, None, "noise")
    assert changed.changed == ("loop.steps", "method.inner", "n_points", "near")
    assert changed.replaced({"near": "data"}).changed == changed.changed
    # The recipe itself stays what it was.
    assert (recipe.loop_options.steps, recipe.points, recipe.changed) == (5, 6, ())
    for values, message in [
        ({"loop.step": 3}, r"\[loop\] is not valid: step: no such option"),
        ({"title": "x"}, "no value 'title' to set"),
        ({"data.x": 1}, "no value 'data.x' to set"),
        ({"per_class": 0}, "per_class"),
    ]:
        with pytest.raises(ValueError, match=message):
            recipe.replaced(values)


@pytest.mark.parametrize(
    ("shape", "classes"), [((1, 4, 5), 3), ((16,), 3), ((3, 4, 4), 3), ((1, 4, 4), 2), ((1, 4, 4), 0)]
)
def test_other_data_are_refused(mine, shape, classes):
    names = tuple("abc"[:classes])
    data = Data(np.zeros((6, *shape)), np.zeros(6), class_names=names, name="other")
    with pytest.raises(ValueError, match=r"is for toy \(3 classes of 1x4x4\), and 'other' has .*--any-data"):
        load_recipe(mine).check(data)


def test_recipes_travel_with_the_package(tmp_path):
    """The files are found as resources of a package, wherever it lies."""
    import subprocess
    import sys

    package = tmp_path / "kernel_distill"
    shutil.copytree(ROOT / "api", package, ignore=shutil.ignore_patterns("__pycache__"))
    for layer in ("kernels", "solver", "nn_baselines"):
        (package / layer).symlink_to(ROOT / layer)
    shutil.copytree(ROOT / "bench" / "recipes", package / "recipes")
    code = "import kernel_distill._recipes as made; print(made.__file__, len(made.list_recipes()))"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()
    assert Path(found[0]) == package / "_recipes.py"
    assert int(found[1]) == len(list_recipes())


def test_a_recipe_is_a_value(mine):
    assert load_recipe(mine) == load_recipe(mine)
    assert isinstance(load_recipe(mine), Recipe)
