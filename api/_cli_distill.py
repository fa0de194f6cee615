"""The command `distill`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ._cli_support import (
    LEARNED_METHODS,
    SOURCE,
    Executor,
    Force,
    Seed,
    number_or_name,
    option,
    parameter,
    print_evaluation,
    spelled_out,
)


def distill(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help=SOURCE, show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="OUT.safetensors", show_default=False)],
    method: Annotated[
        str,
        option(f"closed-form, theorem, all-ridges or label-solve; learned: {LEARNED_METHODS}."),
    ] = "closed-form",
    recipe: Annotated[
        str | None,
        option("A published run by name (see `recipes`), or a .toml file; what else is given replaces."),
    ] = None,
    per_class: Annotated[int, option("Points a class (an output, for regression).")] = 1,
    n_points: Annotated[int | None, option("Number of points instead.")] = None,
    feature_map: Annotated[
        str, option("identity, fourier, fcnn, deep-linear, conv, coupling or patches.")
    ] = "fcnn",
    param: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Argument of the map, its value as JSON; repeatable."),
    ] = None,
    transform: Annotated[str, option("auto, none, standardize, zca-kip, zca-rfad or zca-kornia.")] = "auto",
    ridge: Annotated[str, option("Of the full model: auto, holdout, loo, gcv, or a number.")] = "auto",
    distilled_ridge: Annotated[float, option("With which the set is to be trained, absolute.")] = 0.0,
    near: Annotated[
        str, option("Where points are placed, or start: auto, noise, data, or a coreset (k-center, ...).")
    ] = "auto",
    labels: Annotated[str, option("Of closed forms: auto, one-hot or solved.")] = "auto",
    space: Annotated[str, option("auto, input or features.")] = "auto",
    bounds: Annotated[str, option("free, or data: stay in the range of the data.")] = "free",
    storage: Annotated[str, option("float64, float32, float16 or uint8.")] = "float64",
    targets: Annotated[str, option("auto, one-hot or centred.")] = "auto",
    intercept: Annotated[bool, typer.Option("--intercept", help="Unpenalised intercept.")] = False,
    precision: Annotated[str, option("auto, high (float32 features) or exact (float64).")] = "auto",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Option of a learned method, such as pick.kind=loss; repeatable.",
        ),
    ] = None,
    holdout: Annotated[float, option("Share of the rows that a learned method chooses by.")] = 0.05,
    steps: Annotated[int | None, option("Of a learned method; its own number by default.")] = None,
    time_limit: Annotated[float | None, option("Seconds, after which it ends with the best set.")] = None,
    checkpoint: Annotated[
        Path | None, option("File to go on from, if it is there, and to write on the way.")
    ] = None,
    log: Annotated[Path | None, option("File of JSON lines about its steps.")] = None,
    subtasks: Annotated[int, option("Blocks of classes, distilled apart and merged.")] = 1,
    executor: Executor = None,
    device: Annotated[str, option("Of learned methods: auto, cpu, cuda.")] = "auto",
    any_data: Annotated[
        bool, typer.Option("--any-data", help="Use a recipe on other data than it is for.")
    ] = False,
    seed: Seed = 0,
    force: Force = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Distil the training split of SOURCE and write the set to OUT."""
    from ._export import check_new

    if out.suffix != ".safetensors":
        raise ValueError(f"the name of the set must end in .safetensors, got {str(out)!r}")
    check_new(out, force)
    given: dict[str, Any] = dict(
        method=method,
        per_class=per_class,
        n_points=n_points,
        feature_map=feature_map,
        feature_params=dict(parameter(text) for text in param or ()) or None,
        transform=transform,
        ridge=number_or_name(ridge),
        distilled_ridge=distilled_ridge,
        near=near,
        labels=labels,
        space=space,
        bounds=bounds,
        storage=storage,
        targets=targets,
        intercept=intercept,
        precision=precision,
        holdout=holdout,
        subtasks=subtasks,
        executor=executor,
        device=device,
    )
    loop = {"steps": steps, "time_limit": time_limit, "checkpoint": checkpoint, "log": log}
    from ._request import from_recipe, learned_options

    changes = dict(parameter(text, "--set") for text in set_ or ())
    wanted = {name: value for name, value in loop.items() if value is not None}
    if recipe is None:
        options = {**given, **learned_options(method, changes, wanted)}
    else:
        options = from_recipe(recipe, spelled_out(context, given), changes, wanted)
    from ._describe import certificate_table
    from ._distill import distill
    from ._evaluate import evaluate
    from ._tables import emit, shape, size
    from .solver.data import load_data

    data = load_data(source)
    if recipe is not None and not any_data:
        from ._recipes import load_recipe

        load_recipe(recipe).check(data)
    task = "classification" if data.class_names else "regression"
    ds = distill(data, task=task, seed=seed, progress=False if quiet else None, **options)
    ds.save(out, force=force)
    if quiet:
        return
    kind = getattr(ds, "distribution", None)
    what = f"points of {shape(tuple(ds.x.shape[1:]))} {str(ds.x.dtype).removeprefix('torch.')}"
    if kind is not None:
        what = f"{kind.name} over {shape(kind.input_shape)}"
    typer.echo(f"wrote {out}: {len(ds)} {what} ({ds.space} space), {size(out.stat().st_size)}")
    emit(certificate_table(ds.certificate))
    if data.x_test is not None:
        print_evaluation(evaluate({out.name: ds}, data))
