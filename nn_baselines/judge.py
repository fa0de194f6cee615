"""A judge of learned sets: how well networks trained on a set do on rows held out."""

from torch import Tensor

from ..solver._check import check_count
from ..solver.learners.rows import TrainingRows
from ..solver.networks import NetworkSpec
from .accuracy import network_accuracies
from .baseline_points import network_labels
from .training import train_networks
from .training_recipes import TrainingRecipe, training_recipe


class NetworkJudge:
    """Trains networks on points and labels, and measures them on the rows held out.

    The same networks, in the same order of rows, at every call: differences between calls are differences between
    sets, and the same set gets the same figures.

    Parameters
    ----------
    rows : TrainingRows
        Rows with classes. Where none are held out, training rows are judged on.
    spec : NetworkSpec
    recipe : str or TrainingRecipe
        Short ones judge as well as long ones, for an order is all that is asked.
    count : int, default 2
        Number of networks.
    seed : int

    Raises
    ------
    ValueError
        If rows have no classes, or do not fit the network.
    """

    def __init__(
        self,
        rows: TrainingRows,
        spec: NetworkSpec,
        recipe: str | TrainingRecipe,
        *,
        count: int = 2,
        seed: int,
    ) -> None:
        if rows.classes is None:
            raise ValueError("networks judge by accuracy, which needs classes: judge regression by its loss")
        shapes = (rows.transform.input_shape, rows.targets.n_outputs)
        if shapes != (spec.input_shape, spec.n_outputs):
            raise ValueError(
                f"the network takes rows of shape {spec.input_shape} to {spec.n_outputs} outputs, the rows have"
                f" {shapes[0]} and {shapes[1]}"
            )
        self._rows, self._spec, self._recipe = rows, spec, training_recipe(recipe)
        self._count, self._seed = check_count(count, "count"), seed

    def __call__(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Held-out figures of a set.

        Parameters
        ----------
        x : Tensor, shape (m, *input_shape)
            Transformed points.
        y : Tensor, shape (m, k)
            Their target rows.

        Returns
        -------
        dict
            "score", the mean accuracy of the networks, and "loss", 1 - score.
        """
        rows = self._rows
        if self._recipe.labels != "hard":
            y = network_labels(self._recipe, y, None, rows.targets.n_outputs)
        stack = train_networks(
            self._spec,
            x.detach().to(rows.device, rows.dtype),
            y.detach().to(rows.device),
            self._recipe,
            count=self._count,
            seed=self._seed,
            stream="judge",
        )
        held_out = ((inputs, targets.argmax(1)) for inputs, targets in rows.held_out())
        score = float(network_accuracies(stack, held_out).mean())
        return {"loss": 1.0 - score, "score": score}
