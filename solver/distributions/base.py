"""Distributions in the place of points: what a set of them can be asked for, and its form in a file."""

import abc
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

if TYPE_CHECKING:
    from ..encoder import Encoder
    from ..statistics import Statistics
    from ..targets import Targets


class Distribution(abc.ABC):
    """m distributions over transformed inputs, each of one class.

    Attributes
    ----------
    name : str
        Under which `restore_distribution` finds the class.
    """

    name: ClassVar[str]

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of distributions, m."""

    @property
    @abc.abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one transformed input."""

    @abc.abstractmethod
    def points(self) -> Tensor:
        """One transformed input that stands for each: (m, *input_shape), float64 on the CPU."""

    @abc.abstractmethod
    def draw(self, number: int, *, seed: int) -> Tensor:
        """One transformed input drawn of each.

        Parameters
        ----------
        number : int
            Of the draw: draws of different numbers are independent.
        seed : int

        Returns
        -------
        Tensor, shape (m, *input_shape), float32, on the CPU
            A function of (seed, number) and of the distributions alone.
        """

    def statistics(self, encoder: "Encoder", targets: "Targets", y: Tensor) -> "Statistics | None":
        """Expected sums of features and of these labels (m, k), where they are known in closed form.

        A set whose distributions know them trains its model on them; others on their points.
        """
        del encoder, targets, y
        return None

    @abc.abstractmethod
    def storage(self) -> dict[str, int]:
        """Bytes of everything that is stored, by what it is: "latents", "decoder", "covariances", ..."""

    @abc.abstractmethod
    def parameters(self) -> dict[str, Any]:
        """Plain JSON values; with `tensors` they make the distributions again."""

    @abc.abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Arrays, as they are stored."""

    @classmethod
    @abc.abstractmethod
    def restore(cls, parameters: dict[str, Any], tensors: dict[str, Tensor]) -> "Distribution":
        """Make the distributions that a file describes.

        Raises
        ------
        ValueError
            If the values are not consistent.
        """

    @classmethod
    @abc.abstractmethod
    def joined(cls, parts: "list[Any]") -> "Distribution":
        """The distributions of several of this kind, one after the other, each with the point that it had.

        A draw is keyed by the place of a distribution, so that draws of the whole are others than those of the parts.

        Raises
        ------
        ValueError
            If they are of inputs of different shapes.
        """
