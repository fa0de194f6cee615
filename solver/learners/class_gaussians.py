"""Options of class-Gaussian sets: Gaussians over the inputs whose expected Gram matrix is known (`fourier_moments`)."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ClassGaussians(BaseModel):
    """Gaussians fitted to the rows of each class; the ridge model of what is expected over them, in closed form.

    With the map "identity" and full covariances that is the model of the rows themselves, and there is nothing to
    gain from several Gaussians a class. With Fourier features it is the model of infinitely many rows drawn from
    the Gaussians.

    Attributes
    ----------
    covariance : {"low-rank", "full", "diagonal"}, default "low-rank"
        What is kept of the covariance of each Gaussian: its largest principal axes and all variances, everything
        (d²/2 numbers, or those of the rows where they are fewer than d), or the variances.
    rank : int, default 32
        Number of principal axes of "low-rank".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["class-gaussians"] = "class-gaussians"
    covariance: Literal["low-rank", "full", "diagonal"] = "low-rank"
    rank: int = Field(default=32, ge=1)
