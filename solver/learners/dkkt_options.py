"""Options of Deep-KKT, without data and with a little; the method is in `dkkt`."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from .dm import DM
from .images import NetworkMethod


class DKKT(NetworkMethod):
    """Options of DKKT: points from a trained network alone.

    Attributes
    ----------
    network : str, default "convnet"
        Name of a network (`networks`): what is trained for θ* where no network is given, and what the set is judged
        with.
    network_params : dict, default ``{"norm": "none"}``
        Further arguments of the network.
    distance : {"l1", "l2"}, default "l1"
        Mean of absolute or of squared residuals; the first is the paper's choice.
    decay : float, default 1
        s of the stationarity condition: a unit of the duals.
    eta : float, default 5
        Weight of the augmented points; 0 leaves them out.
    primal : float, default 2e-3
        β1. Published: 2e-3 for distillation, 2e-5 for ImageNet.
    total_variation, norm : float, default 0
        β2 and β3. Published: 0 for distillation, 40 and 1e-6 for ImageNet, of sums or means that the paper does not
        say; here they are means.
    augment : str, default "crop_flip"
        Operations on the augmented points: of those that the network was trained to ignore, as the method assumes.
        Others cost more than they bring (digits from networks trained without: ``eta=0`` was better).
    noise : float, default 0.01
        Standard deviation of what is added to them.
    lr : float, default 0.03
        Of pixels, in units of the transformed data.
    dual_lr : float, default 1
        Of duals, in units of λ₀. They have to grow with the points: a network that is sure of a point has a small
        gradient there. Neither rate is published: both were chosen in tries on digits.
    optimizer : {"adam", "adamw", "sgd", "adabelief", "lamb"}, default "adam"
    expert : str, optional
        File of the trained network (`TrainedNetwork`): taken from there, whatever its epochs, or written there if it
        is not there yet. Train it with the seed and holdout of the run, or it knows rows that judge. Without a file it
        is trained anew whenever a run is gone on with.
    expert_epochs : int, default 30
        Epochs of its training on all rows, where it has to be trained.
    fraction : float, default 0
        0: the loss looks at no row; what is known of the data besides the network is the transform, the rows held out
        that judge, and the start, by default noise of the mean and spread of the rows. `DKKTDM` has some.
    dm_weight : "auto" or float, default "auto"
        Weight of the loss of DM, above 0; "auto" balances the gradients (`dkkt`).
    dm : DM
        Options of that part. Its fraction is the one above; what it says of rates, steps and judges counts nothing.
    labels : {"fixed"}
    ridge : float, default 1e-3
        Of the ridge model that is stored with the set.
    judge_networks, judge_epochs : int, default 2 and 100
        Networks trained on the set at each evaluation, and how long.
    steps, evaluate_every : int, default 1000 and 100
        Where the loop does not say.
    """

    method: Literal["dkkt", "dkkt+dm"] = "dkkt"
    network_params: dict[str, Any] = Field(default_factory=lambda: {"norm": "none"})
    distance: Literal["l1", "l2"] = "l1"
    decay: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    eta: float = Field(default=5.0, ge=0, allow_inf_nan=False)
    primal: float = Field(default=2e-3, ge=0, allow_inf_nan=False)
    total_variation: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    norm: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    augment: str = "crop_flip"
    noise: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    lr: float = Field(default=0.03, gt=0, allow_inf_nan=False)
    dual_lr: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    optimizer: Literal["adam", "adamw", "sgd", "adabelief", "lamb"] = "adam"
    expert: str | None = None
    expert_epochs: int = Field(default=30, ge=1)
    fraction: float = Field(default=0.0, ge=0, le=1)
    dm_weight: Literal["auto"] | float = "auto"
    dm: DM = DM()
    steps: int = Field(default=1000, ge=0)
    evaluate_every: int = Field(default=100, ge=1)

    @field_validator("dm_weight")
    @classmethod
    def _positive(cls, weight: str | float) -> str | float:
        if weight != "auto" and not 0 < float(weight) < float("inf"):
            raise ValueError(
                f"dm_weight must be 'auto' or above 0 and finite, got {weight!r}; fraction=0 is no DM"
            )
        return weight

    @model_validator(mode="after")
    def _data_have_a_name(self) -> Self:
        if self.method == "dkkt" and self.fraction:
            raise ValueError(f"DKKT looks at no rows, got fraction={self.fraction}: use DKKTDM(fraction=...)")
        if self.method == "dkkt" and (self.dm != DM() or self.dm_weight != "auto"):
            raise ValueError("DKKT has no part of DM: leave out dm and dm_weight, or use DKKTDM")
        return self


class DKKTDM(DKKT):
    """Options of DKKT with DM: those of `DKKT`, and rows.

    Attributes
    ----------
    fraction : float, default 0.01
        Share of the rows of each class that DM may use (`TrainingRows.share` by the seed of the run), and that points
        start from. The trained network and the transform are of all rows unless they come from a file, and the rows
        held out that judge are on top of the share (none with `holdout` 0).
    """

    method: Literal["dkkt+dm"] = "dkkt+dm"  # pyright: ignore[reportIncompatibleVariableOverride]
    fraction: float = Field(default=0.01, gt=0, le=1)
