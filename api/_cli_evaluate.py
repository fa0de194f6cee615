"""The command `evaluate`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ._cli_support import SOURCE, AsJson, Executor, Seed, option, parameter, print_evaluation

# Where files are given as NAME=FILE, several may have one name.
_FILES = "Distilled sets; several given as NAME=FILE with one NAME are one method with several seeds."


def evaluate(
    files: Annotated[list[str], typer.Argument(metavar="[NAME=]FILE...", help=_FILES, show_default=False)],
    data: Annotated[str, typer.Option(help=f"Its test split is used: {SOURCE}", show_default=False)],
    recipe: Annotated[
        str,
        option(
            "ridge: the model of the set itself; networks: dc-bench, dsa, kip-finite, frepo, soft-label or d3."
        ),
    ] = "ridge",
    networks: Annotated[
        str | None, typer.Option(metavar="NAMES", help="convnet (default), mlp, resnet18, ...: by commas.")
    ] = None,
    count: Annotated[
        int | None, typer.Option(help="Networks for each set: 5 by default.", show_default=False)
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Of training; the recipe's by default.", show_default=False)
    ] = None,
    baselines: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAMES",
            help="Real rows in place of the points, by commas or repeated. ridge: random. Networks: random and"
            " k-center always (but for none), herding, k-means, label-solve, full.",
        ),
    ] = None,
    rates: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS", help="Learning rates to choose from on held-out training rows, by commas."
        ),
    ] = None,
    choose_epoch: Annotated[
        bool, typer.Option("--choose-epoch", help="Stop after the epoch that is best on those rows.")
    ] = False,
    full_accuracy: Annotated[
        float | None, typer.Option(help="Of all training rows, if known: a fraction.", show_default=False)
    ] = None,
    full_epochs: Annotated[
        int | None, typer.Option(help="Of baseline full: at most 50 by default.", show_default=False)
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Field of the recipe, such as augment=crop; repeatable."
        ),
    ] = None,
    confidence: Annotated[float, option("Of the intervals.")] = 0.95,
    device: Annotated[str, option("Of networks: auto, cpu, cuda.")] = "auto",
    workers: Annotated[
        int | None, typer.Option(help="Threads that train networks on a CPU.", show_default=False)
    ] = None,
    executor: Executor = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Score models trained on distilled sets on the test split of a data set."""
    changes = dict(parameter(text, "--set") for text in set_ or ())
    if epochs is not None:
        changes["epochs"] = epochs
    from ._evaluate import evaluate
    from .nn_baselines.training_recipes import TrainingRecipe
    from .solver._check import check_name

    for name in changes:
        check_name(name, TrainingRecipe.model_fields, "field of a recipe")
    # Files first: they are read in no time, the data may take minutes.
    sets = _named_files(files)
    from .solver.data import load_data

    result = evaluate(
        sets,
        load_data(data),
        recipe=recipe,
        networks=None if networks is None else _names(networks),
        count=count,
        baselines=_baselines(baselines),
        rates=[] if rates is None else [_number(text) for text in _names(rates)],
        choose_epoch=choose_epoch,
        full_accuracy=full_accuracy,
        full_epochs=full_epochs,
        confidence=confidence,
        seed=seed,
        device=device,
        workers=workers,
        executor=executor,
        **changes,
    )
    typer.echo(result.to_json()) if as_json else print_evaluation(result)


def _named_files(files: list[str]) -> dict[str, Any]:
    """Sets by the names they are given, or by their files."""
    from ._evaluation_data import unused
    from .solver.distilled_set import DistilledSet

    sets: dict[str, Any] = {}
    for text in files:
        name, separator, path = text.partition("=")
        if not separator or not name or Path(text).exists():
            # A file that is given twice is no second set of its method.
            name, path = unused(text, sets), text
        sets.setdefault(name, []).append(DistilledSet.load(path))
    return sets


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _baselines(given: list[str] | None) -> list[str] | None:
    if given is None:
        return None
    names = [name for text in given for name in _names(text)]
    return [] if names == ["none"] else names


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--rates takes numbers, got {text!r}") from None
