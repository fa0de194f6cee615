r"""How networks are trained on a distilled set: the published recipes by name.

With z the scores of a network (b, k) for a batch and y its target rows, the losses are, averaged over the batch,

.. math:: -\sum_c p_c \log \operatorname{softmax}(z/T)_c \quad\text{("cross-entropy")}, \qquad
          \tfrac{1}{k s^2} \|z - s y\|^2 \quad\text{("mse")},

where p is the class (labels "hard": one-hot at the largest target), the row itself ("probabilities"), or softmax(y/T)
("scores"). Squared errors take the row as it is ("scores"), or the centred class, one-hot - 1/k ("hard"). s is
`label_scale` and T is `temperature`.

Schedules, with E `epochs`:

- "drop", as the evaluation of dataset condensation has it (`evaluate_synset` in utils.py of
  VICO-UoE/DatasetCondensation, copied by most later work): E + 1 epochs are run, and after epoch number E // 2 + 1,
  counted from 0, the rate is multiplied by 0.1 by making the optimiser anew, so that its momentum is lost.
- "cosine": E epochs; the rate rises linearly from 0 over `warmup` steps, but at most over half of all, and then falls
  on a cosine to `final_rate` times itself, step by step.
- "constant": E epochs.

Recipes differ in the networks they train as well (`network_params`), so accuracies of different recipes are not
comparable.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..solver._check import check_name


class TrainingRecipe(BaseModel):
    """How a network is trained on a set; the defaults are those of dataset condensation without augmentation.

    Attributes
    ----------
    name : str, default "custom"
    loss : {"cross-entropy", "mse"}
    labels : {"hard", "probabilities", "scores"}, default "hard"
        What target rows are: only their largest entry counts, or they are classes' probabilities, or real scores.
    temperature : float, default 1
        T, of cross-entropy with "scores": of targets and of networks alike.
    label_scale : float, default 1
        s, of squared errors.
    optimizer : {"sgd", "adam", "adamw"}, default "sgd"
    rate : float, default 0.01
    momentum : float, default 0.9
        Of "sgd".
    weight_decay : float, default 5e-4
        Added to the gradient; of "adamw", decoupled.
    schedule : {"drop", "cosine", "constant"}, default "drop"
    warmup : int, default 0
        Steps of the rise of "cosine".
    final_rate : float, default 0
        Last rate of "cosine", as a share of `rate`.
    epochs : int, default 300
        E.
    steps : tuple of (int, int), default none
        Where given, sets of up to so many points are trained for so many steps (the last entry holds for all larger
        sets), and `epochs` is not looked at.
    batch_size : int, default 256
        Rows are reshuffled every epoch; the last batch of an epoch may be smaller.
    augment : str, default ""
        DSA strategy, one random operation a batch: "color_crop_cutout_flip_scale_rotate". Leave "flip" out for digits.
    fresh : int, default 0
        How many draws of a set of distributions join its points at every epoch, new ones each time; sets of points
        have none.
    network_params : dict
        What the recipe asks of the network, for the caller to make it with.

    Raises
    ------
    ValueError
        If a field is out of range, or squared errors are to be taken of probabilities.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "custom"
    loss: Literal["cross-entropy", "mse"] = "cross-entropy"
    labels: Literal["hard", "probabilities", "scores"] = "hard"
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    label_scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    rate: float = Field(default=0.01, gt=0, allow_inf_nan=False)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0, allow_inf_nan=False)
    schedule: Literal["drop", "cosine", "constant"] = "drop"
    warmup: int = Field(default=0, ge=0)
    final_rate: float = Field(default=0.0, ge=0, le=1)
    epochs: int = Field(default=300, ge=1)
    steps: tuple[tuple[int, int], ...] = ()
    batch_size: int = Field(default=256, ge=1)
    augment: str = ""
    fresh: int = Field(default=0, ge=0)
    network_params: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits(self) -> "TrainingRecipe":
        if self.loss == "mse" and self.labels == "probabilities":
            raise ValueError('loss "mse" takes labels "hard" or "scores", not "probabilities"')
        sizes = [size for size, _ in self.steps]
        if sizes != sorted(set(sizes)) or any(min(entry) < 1 for entry in self.steps):
            raise ValueError(f"`steps` must be pairs (points, steps) of growing points, got {self.steps}")
        return self


_DSA = "color_crop_cutout_flip_scale_rotate"

TRAINING_RECIPES: Mapping[str, TrainingRecipe] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            # DC-BENCH (evaluator/evaluator.py of justincui03/dc_benchmark) unless asked to augment, and the DC of
            # VICO (main.py), both but for MNIST, where they augment by crops, scales and rotations of their own
            # (`get_daparam`) and train for 1000 epochs.
            TrainingRecipe(name="dc-bench"),
            # VICO's main.py with method DSA, and main_DM.py.
            TrainingRecipe(name="dsa", epochs=1000, augment=_DSA),
            # Finite networks of KIP as RFAD trains them (training.py, eval_distilled_set.py and the CIFAR-10 entry for
            # one point a class of `get_best_finite_hypers` in utils.py of yolky/RFAD). Published but not done here:
            # up to 20000 steps, stopped 500 steps after the best validation accuracy. The number of steps is ours,
            # and so are initial weights.
            TrainingRecipe(
                name="kip-finite",
                loss="mse",
                label_scale=8.0,
                rate=1e-3,
                weight_decay=0.0,
                schedule="constant",
                epochs=5000,
                batch_size=513,
                network_params={"width": 1024, "norm": "none"},
            ),
            # script/eval.py and lib/models/networks.py of yongchaoz/FRePo, normalised while distilling only. Ours:
            # initial weights, one width where theirs doubles (128, 256, 512), and DSA for their own augmentation.
            TrainingRecipe(
                name="frepo",
                loss="mse",
                labels="scores",
                optimizer="adam",
                rate=3e-4,
                weight_decay=0.0,
                schedule="cosine",
                warmup=500,
                final_rate=0.01,
                steps=((10, 1000), (100, 2000), (500, 5000), (1000, 10000)),
                batch_size=500,
                augment="color_crop_cutout_flip_rotate",
                network_params={"norm": "none"},
            ),
            # DATM (`evaluate_synset` with its soft cross-entropy): the schedule of DSA on learned scores.
            TrainingRecipe(name="soft-label", labels="scores", epochs=1000, augment=_DSA),
            # D3 (`evaluate_synset_batch` in utils.py with --soft_label, and clean_script.md): means and one sample of
            # each. The rate is that of the small decoder, 0.05, to which eval_federated.py adds 1e-4; of the medium
            # one it is 0.02 (0.0014 for ResNet-18), of the large one 0.005. Published but not done here: the best of
            # the accuracies on the test rows, at which they look every 200 epochs.
            TrainingRecipe(
                name="d3", labels="probabilities", rate=0.0501, epochs=2000, augment=_DSA, fresh=1
            ),
        )
    }
)


def training_recipe(recipe: str | TrainingRecipe, **changes: Any) -> TrainingRecipe:
    """A recipe, by name or as it is, with fields changed.

    Parameters
    ----------
    recipe : {"dc-bench", "dsa", "kip-finite", "frepo", "soft-label", "d3"} or TrainingRecipe
    **changes
        Fields of `TrainingRecipe`; `epochs` takes the place of `steps`.

    Returns
    -------
    TrainingRecipe
        Of the same name.

    Raises
    ------
    ValueError
        If the name or a field is not known, or a value is out of range.

    Examples
    --------
    >>> training_recipe("dsa", epochs=10).augment
    'color_crop_cutout_flip_scale_rotate'
    """
    if not isinstance(recipe, TrainingRecipe):
        recipe = TRAINING_RECIPES[check_name(recipe, TRAINING_RECIPES, "training recipe")]
    if not changes:
        return recipe
    if "epochs" in changes:
        changes = {"steps": (), **changes}
    for name in changes:
        check_name(name, TrainingRecipe.model_fields, "field of a training recipe")
    try:
        return TrainingRecipe(**{**recipe.model_dump(), **changes})
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ValueError(f"recipe {recipe.name!r} with these changes is not valid: {problems}") from None
