"""What is guaranteed of a distilled set, and how it was measured."""

import enum
from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer


class Status(enum.StrEnum):
    """Kind of guarantee. Each value explains itself."""

    EXACT = "exact"
    ROUNDED = "rounded"
    LOW_RANK = "low-rank"
    PROJECTED = "projected"
    REFINED = "refined"
    LEARNED = "learned"
    MOMENTS = "moments"

    @property
    def explanation(self) -> str:
        """One sentence for people."""
        return {
            Status.EXACT: "training on the set gives the full model, up to the stated rounding",
            Status.ROUNDED: "exact before storage; the stored type rounds the points, labels were solved again",
            Status.LOW_RANK: "fewer points than the model's rank: the set gives the nearest model of lower rank",
            Status.PROJECTED: "the points do not span the model: the set gives its projection on their span",
            Status.REFINED: "points minimise the full-data loss; the errors say how near the full model they come",
            Status.LEARNED: "points were learned by gradient steps: nothing is guaranteed beyond the held-out figures",
            Status.MOMENTS: "the model is that of Gaussians with the means and covariances of the classes: exact for"
            " Gaussian classes, and judged by the held-out figures for others",
        }[self]


class Certificate(BaseModel):
    """Certificate of a distilled set.

    Fields that do not apply are None, and are left out of files and tables: a learned set has no full model to be
    compared with, and only a learned set has figures of held-out rows.

    Attributes
    ----------
    status : Status
        Kind of guarantee; `status.explanation` says it in words.
    weight_error : float or None
        ``||W_S - W||_F / ||W||_F`` in feature space, W_S recomputed from the features and labels of the
        closed form, W the full-data model (intercepts are compared by predictions: `prediction_error`).
    stored_error : float or None
        The same, recomputed from x and y exactly as they are stored: after the preimage and the cast.
    prediction_error : float or None
        Root mean squared difference between the predictions of the stored set's model and of the full
        model over the training data, relative to the root mean square of the latter.
    ridge : float or None
        λ of the full model (absolute: what was added to Φ'Φ).
    ridge_rule : str or None
        How it was chosen: "given", "holdout", "loo" or "gcv".
    distilled_ridge : float
        λ_S to train on the set with (absolute).
    rank : int
        Rank of the set's features; of K_SS, for sets with a kernel.
    model_rank : int or None
        Rank of W.
    condition : float
        Condition number of the set's features (centred where there is an intercept); for sets with a kernel, the
        root of that of K_SS, which is the same number where the kernel has features.
    max_abs_x : float
        Largest absolute value in x, in the units in which x is stored.
    out_of_range : float or None
        Share of values of x outside the range of the training data; None for sets that are not in the units of
        the data, or where the range is not known (statistics hold none).
    n_rows : int
        Rows of training data behind the full model, or learned from.
    notes : tuple of str
        What was clamped, added, scaled or left out, in words.
    heldout_score : float or None
        Accuracy (R² for values) of the set's model on rows held out of the training data.
    heldout_loss : float or None
        The loss on them by which the set was chosen among those of the run.
    heldout_rows : int or None
        How many they are; 0 where training rows stood in for them.
    selected_step, steps : int or None
        Step after which the set was taken, and steps of the run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Status
    weight_error: float | None = None
    stored_error: float | None = None
    prediction_error: float | None = None
    ridge: float | None = None
    ridge_rule: str | None = None
    distilled_ridge: float
    rank: int
    model_rank: int | None = None
    condition: float
    max_abs_x: float
    out_of_range: float | None
    n_rows: int
    notes: tuple[str, ...] = ()
    heldout_score: float | None = None
    heldout_loss: float | None = None
    heldout_rows: int | None = None
    selected_step: int | None = None
    steps: int | None = None

    @model_serializer(mode="wrap")
    def _without_none(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what does not apply, so that files hold no more than their kind of set has."""
        fields = type(self).model_fields
        return {
            name: value
            for name, value in write(self).items()
            if value is not None or fields[name].is_required()
        }
