"""`ablate`: whether another initialisation, or another way to draw batches, helps at equal time.

Every arm, a pair of both, runs once with each seed. Runs of one seed share its held-out rows, so arms are compared
in pairs (`_ablation_result`). The set of a run is chosen on held-out rows, and the test split is looked at once,
for the set that was chosen.
"""

import functools
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ._ablation_result import Ablation, Run
from ._ablation_store import RunFolder, shared_settings
from ._distill import distill
from ._inputs import fit_transform
from ._methods import LEARNED, method_options
from .solver._check import check_count, check_name, check_non_negative
from .solver.coresets import CORESETS
from .solver.data import Data
from .solver.learners.pick import Pick
from .solver.loop import Loop
from .solver.progress import track
from .solver.reference import NEAR
from .solver.source import as_source

# Steps of a run that only time ends.
_UNLIMITED = 10**9


def ablate(
    data: Data,
    method: Any,
    *,
    inits: Sequence[str] = ("random",),
    picks: Sequence[str | Pick] | None = None,
    seeds: int | Sequence[int] = 5,
    time_limit: float | None = None,
    steps: int | None = None,
    loop: Loop | None = None,
    out: str | os.PathLike[str] | None = None,
    confidence: float = 0.95,
    progress: bool | None = None,
    **options: Any,
) -> Ablation:
    """Compare initialisations, and ways to draw batches, of a learned method.

    Parameters
    ----------
    data : Data
        What `load_data` returns, with a test split.
    method : KIP, RFAD, FRePo or FullKIP, or the name of one
        Its own ``pick`` is replaced.
    inits : sequence of str, default ("random",)
        What points start from: "data", "noise", or coresets by name.
    picks : sequence of str or Pick, optional
        How batches are drawn: "uniform", "balanced", "loss", with options after commas
        (``"loss,mixing=0.2"``), or `Pick`. By default as
        the method's options say.
    seeds : int or sequence of int, default 5
        How many (0, 1, ...), or which.
    time_limit : float, optional
        Seconds of the loop, the same for every run; finding the first points comes before it and is reported.
    steps : int, optional
        Steps of the loop instead.
    loop : Loop, optional
        The other options of the loop. What ends a run early or writes files of its own (`patience`,
        `checkpoint`, `log`, `callbacks`) is taken out: every arm gets the whole budget.
    out : path, optional
        Folder for one JSON file a run. Runs that are there already are not repeated, so an ablation that was
        killed goes on where it was.
    confidence : float, default 0.95
        Of the intervals.
    progress : bool, optional
        True, False, or (default) after two seconds of work.
    **options
        Further arguments of `distill`: per_class, n_points, transform, storage, holdout, device, ...

    Returns
    -------
    Ablation
        ``arms``, ``runs``, ``to_dict()``, ``to_json()``; prints as a table. The first arm, the first of `inits`
        with the first of `picks`, is the one that others are compared with.

    Raises
    ------
    ValueError
        If an argument cannot be used, or `out` holds runs with other settings.

    Notes
    -----
    Runs follow each other seed by seed, and each seed begins with another arm, so that a machine that slows
    down, or the first run's warming up, is not charged to one arm alone. On a busy machine equal time is not
    equal work: give `steps` then, or look at the steps in the table.

    Examples
    --------
    >>> import kernel_distill as kd
    >>> data = kd.load_data("digits")
    >>> ablate(data, "kip", picks=["uniform", "loss"], seeds=2, steps=3).arms[1].pick
    'loss'
    """
    arms = _arms(method, inits, picks)
    numbers = _seeds(seeds)
    budget, shared = _budget(loop, time_limit, steps)
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie between 0 and 1, got {confidence!r}")
    if data.x_test is None or data.y_test is None:
        raise ValueError(
            f"{data.name!r} has no test split to compare on: load it with load_data(..., test=0.2)"
        )
    for name in {"seed", "near", "method"} & set(options):
        raise ValueError(f"an ablation sets `{name}` itself: leave it out")
    options = {"progress": False, **options}
    # Fitted once for all runs: whitening takes as long as many steps.
    transform = functools.cache(
        lambda: fit_transform(as_source(data.x_train, data.y_train), options.get("transform", "auto"))
    )
    settings = shared_settings(data, arms[0][2], shared, budget, options)
    folder = None if out is None else RunFolder(Path(out), settings)
    # Seed by seed, each beginning with the next arm.
    order = [
        (seed, arms[(index + turn) % len(arms)])
        for turn, seed in enumerate(numbers)
        for index in range(len(arms))
    ]
    done = {} if folder is None else folder.read([(init, pick, seed) for seed, (init, pick, _) in order])
    missing = [(seed, arm) for seed, arm in order if (*arm[:2], seed) not in done]
    for seed, (init, pick, changed) in track(missing, "runs", len(missing), show=progress):
        given = {**options, "transform": transform()}
        ds = distill(data, method=changed, near=init, seed=seed, loop=shared, **given)
        run = done[init, pick, seed] = _run(init, pick, seed, ds, data)
        if folder is not None:
            folder.write(run)
    runs = tuple(done[init, pick, seed] for init, pick, _ in arms for seed in numbers)
    return Ablation(settings, numbers, runs, float(confidence))


def parse_pick(text: str) -> Pick:
    """Read a `Pick` from its kind and options: ``loss`` or ``loss,mixing=0.2,corrected=true``."""
    kind, *values = text.split(",")
    document: dict[str, Any] = {"kind": kind.strip()}
    for value in values:
        key, separator, number = (part.strip() for part in value.partition("="))
        if not separator or not key:
            raise ValueError(f"expected KEY=VALUE after the kind of a pick, got {value!r} in {text!r}")
        try:
            document[key] = json.loads(number)
        except json.JSONDecodeError:
            document[key] = number
    try:
        return Pick.model_validate(document)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ValueError(f"{text!r} is not a pick: {problems}") from None


def _label(pick: Pick) -> str:
    """What `parse_pick` would read; defaults are left out."""
    values = pick.model_dump(mode="json", exclude_defaults=True)
    values.pop("kind", None)
    return ",".join([pick.kind, *(f"{key}={json.dumps(value)}" for key, value in values.items())])


def _arms(
    method: Any, inits: Sequence[str], picks: Sequence[str | Pick] | None
) -> list[tuple[str, str | None, Any]]:
    """(init, pick, options of the method) of each arm."""
    options = method_options(method)
    if options is None:
        raise ValueError(
            f"an ablation compares learned methods, got {method!r}: use one of {', '.join(LEARNED)}"
        )
    for name, values in {"inits": inits, "picks": picks}.items():
        if isinstance(values, str) or (values is not None and not len(values)):
            raise ValueError(f"`{name}` must be a list with something in it, got {values!r}")
    has_pick = "pick" in type(options).model_fields
    for init in inits:
        check_name(init, (*NEAR, *CORESETS), "initialisation")
    if picks is None:
        variants: list[tuple[str | None, Any]] = [(_own_label(options) if has_pick else None, options)]
    elif has_pick:
        made = [pick if isinstance(pick, Pick) else parse_pick(pick) for pick in picks]
        variants = [(_label(pick), options.model_copy(update={"pick": pick})) for pick in made]
    else:
        raise ValueError(f"method {options.method!r} draws no batches: leave `picks` out")
    arms = [(init, label, changed) for init, (label, changed) in itertools.product(inits, variants)]
    if len({arm[:2] for arm in arms}) < len(arms):
        raise ValueError("every initialisation and every pick can be given once only")
    return arms


def _own_label(options: Any) -> str:
    """Name of the pick that a method has by itself; KIP's depends on the data where it is not given."""
    return "default" if options.pick is None else _label(options.pick)


def _seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    if isinstance(seeds, Sequence) and not isinstance(seeds, str):
        found = tuple(check_count(seed, "seeds", 0) for seed in seeds)
        if not found or len(set(found)) < len(found):
            raise ValueError(f"`seeds` must be distinct numbers, one or more, got {list(seeds)}")
        return found
    return tuple(range(check_count(seeds, "seeds")))


def _budget(loop: Loop | None, time_limit: float | None, steps: int | None) -> tuple[str, Loop]:
    """The budget in words, and the loop that every run gets."""
    if (time_limit is None) == (steps is None):
        raise ValueError("give either time_limit (seconds, equal time) or steps (equal steps)")
    if time_limit is not None:
        if check_non_negative(time_limit, "time_limit") == 0:
            raise ValueError("`time_limit` must be more than 0 seconds")
        words = f"{time_limit:g} s each"
    else:
        words = f"{check_count(steps, 'steps')} steps each"
    plain = {"patience": None, "checkpoint": None, "log": None, "callbacks": ()}
    limits = {"time_limit": time_limit, "steps": _UNLIMITED if steps is None else steps}
    return words, (loop or Loop()).model_copy(update={**plain, **limits})


def _run(init: str, pick: str | None, seed: int, ds: Any, data: Data) -> Run:
    record, certificate = ds.provenance["run"], ds.certificate
    return Run(
        init=init,
        pick=pick,
        seed=seed,
        score=float(ds.score(data.x_test, data.y_test)),
        heldout_score=certificate.heldout_score,
        heldout_loss=certificate.heldout_loss,
        steps=record["steps"],
        selected_step=record["selected_step"],
        seconds=record["seconds"],
        init_seconds=record["init_seconds"],
        stopped=record["stopped"],
    )
