"""What is guaranteed of a distilled set, and how it was measured."""

import enum

from pydantic import BaseModel, ConfigDict


class Status(enum.StrEnum):
    """Kind of guarantee. Each value explains itself."""

    EXACT = "exact"
    ROUNDED = "rounded"
    LOW_RANK = "low-rank"
    PROJECTED = "projected"
    REFINED = "refined"

    @property
    def explanation(self) -> str:
        """One sentence for people."""
        return {
            Status.EXACT: "training on the set gives the full model, up to the stated rounding",
            Status.ROUNDED: "exact before storage; the stored type rounds the points, labels were solved again",
            Status.LOW_RANK: "fewer points than the model's rank: the set gives the nearest model of lower rank",
            Status.PROJECTED: "the points do not span the model: the set gives its projection on their span",
            Status.REFINED: "no exact set exists in the input space: points minimise the full-data loss",
        }[self]


class Certificate(BaseModel):
    """Certificate of a distilled set.

    Attributes
    ----------
    status : Status
        Kind of guarantee; `status.explanation` says it in words.
    weight_error : float
        ``||W_S - W||_F / ||W||_F`` in feature space, W_S recomputed from the features and labels of the
        closed form, W the full-data model (intercepts are compared by predictions: `prediction_error`).
    stored_error : float
        The same, recomputed from x and y exactly as they are stored: after the preimage and the cast.
    prediction_error : float
        Root mean squared difference between the predictions of the stored set's model and of the full
        model over the training data, relative to the root mean square of the latter.
    ridge : float
        λ of the full model (absolute: what was added to Φ'Φ).
    ridge_rule : str
        How it was chosen: "given", "holdout", "loo" or "gcv".
    distilled_ridge : float
        λ_S to train on the set with (absolute).
    rank : int
        Rank of the set's features.
    model_rank : int
        Rank of W.
    condition : float
        Condition number of the set's features (centred where there is an intercept).
    max_abs_x : float
        Largest absolute value in x, in the units in which x is stored.
    out_of_range : float or None
        Share of values of x outside the range of the training data; None for sets that are not in the units of
        the data, or where the range is not known (statistics hold none).
    n_rows : int
        Rows of training data behind the full model.
    notes : tuple of str
        What was clamped, added, scaled or left out, in words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Status
    weight_error: float
    stored_error: float
    prediction_error: float
    ridge: float
    ridge_rule: str
    distilled_ridge: float
    rank: int
    model_rank: int
    condition: float
    max_abs_x: float
    out_of_range: float | None
    n_rows: int
    notes: tuple[str, ...] = ()
