"""Packaging, the direction of imports, the cost of import, and the public surface."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = {"kernels": 0, "solver": 1, "nn_baselines": 2, "api": 3}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def modules(layer):
    return sorted((ROOT / layer).rglob("*.py"))


def relative_targets(path, layer):
    """Dotted targets of the relative imports of a module, as paths below the package root."""
    package = [] if layer == "api" else [layer]
    package += path.relative_to(ROOT / layer).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            yield [*base, *(node.module.split(".") if node.module else [])]


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_only_layers_below_it(layer):
    for path in modules(layer):
        for target in relative_targets(path, layer):
            found = target[0] if target and target[0] in LAYERS else "api"
            if layer == "api" and found == "api":
                continue
            assert LAYERS[found] <= LAYERS[layer], f"{path.relative_to(ROOT)} imports {'.'.join(target)}"


@pytest.mark.parametrize("layer", LAYERS)
def test_library_modules_import_each_other_relatively(layer):
    banned = {"kernel_distill", *LAYERS}
    for path in modules(layer):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in names:
                assert name.split(".")[0] not in banned, f"{path.relative_to(ROOT)} imports {name}"


def test_every_folder_with_code_is_packaged():
    mapping = PROJECT["tool"]["setuptools"]["package-dir"]
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    found = set()
    for name, folder in mapping.items():
        for path in (ROOT / folder).rglob("*.py"):
            found.add(".".join([name, *path.parent.relative_to(ROOT / folder).parts]))
    assert found == listed


def test_nothing_below_the_tests_is_a_package():
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_import_is_light():
    heavy = ["torch", "sklearn", "triton", "cupy", "ray", "matplotlib", "pyarrow", "PIL", "typer", "datasets"]
    code = f"import sys, kernel_distill; print([name for name in {heavy} if name in sys.modules])"
    assert run(code) == "[]"


def test_first_use_loads_no_optional_library():
    heavy = ["triton", "cupy", "ray", "matplotlib", "pyarrow", "sklearn", "datasets", "torchvision"]
    code = f"import sys, kernel_distill as kd; kd.distill; print([n for n in {heavy} if n in sys.modules])"
    assert run(code) == "[]"


def test_public_surface():
    code = "import kernel_distill as kd; print(all(getattr(kd, n) is not None for n in kd.__all__))"
    assert run(code) == "True"
    import kernel_distill as kd

    assert set(kd.__all__) == {
        "Ablation",
        "Certificate",
        "ClassGaussians",
        "Coreset",
        "D3",
        "DC",
        "DKKT",
        "DKKTDM",
        "DM",
        "DSA",
        "Data",
        "DistilledSet",
        "DistributionalSet",
        "FRePo",
        "FullKIP",
        "KIP",
        "KernelDistiller",
        "KernelDistillerRegressor",
        "Loop",
        "MTT",
        "Pick",
        "RFAD",
        "RayExecutor",
        "Recipe",
        "Ridge",
        "RidgeModel",
        "SerialExecutor",
        "Shards",
        "Statistics",
        "Status",
        "TrainedNetwork",
        "TrainingRecipe",
        "__version__",
        "ablate",
        "accel",
        "all_reduce",
        "callbacks",
        "collect_statistics",
        "coreset",
        "distill",
        "distill_statistics",
        "evaluate",
        "feature_maps",
        "kernels",
        "list_recipes",
        "load",
        "load_data",
        "load_recipe",
        "merge",
        "support_vectors",
        "sweep",
        "train_network",
        "transforms",
    }
    assert kd.__version__ == PROJECT["project"]["version"]


def test_doctests():
    import doctest

    import kernel_distill as kd

    for function in (kd, kd.distill, kd.collect_statistics, kd.coreset, kd.ablate, kd.load_recipe):
        finder = doctest.DocTestFinder(recurse=False)
        for test in finder.find(function, function.__name__):
            result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test)
            assert result.attempted
            assert not result.failed


def test_ranges_in_pyproject_are_open_and_pins_cover_them():
    pinned = {
        line.partition("==")[0]
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    wanted = PROJECT["project"]["dependencies"]
    assert all("==" not in requirement and "<" not in requirement for requirement in wanted)
    assert {requirement.partition(">=")[0] for requirement in wanted} <= pinned


def run(code):
    """Output of a new interpreter, started away from the checkout."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd="/", check=True
    )
    return done.stdout.strip()
