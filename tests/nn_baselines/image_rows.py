"""Small images in classes, for learners that train networks: `from .image_rows import ...`."""

import numpy as np
import torch

from kernel_distill.solver.learners.rows import TrainingRows
from kernel_distill.solver.source import ArraySource
from kernel_distill.solver.targets import Targets
from kernel_distill.solver.transforms import make_transform

CLASSES, SHAPE = 3, (2, 8, 8)


def image_rows(n=60, *, values=False, holdout=0.1, dtype=torch.float64, seed=0, cache_bytes=2**30):
    """Noisy images of three patterns."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % CLASSES
    patterns = rng.normal(size=(CLASSES, *SHAPE))
    X = patterns[y] + 0.7 * rng.normal(size=(n, *SHAPE))
    if values:
        y = X.reshape(n, -1)[:, :2]
    targets = Targets.from_values(2) if values else Targets.from_labels(y, "centred")
    transform = make_transform("none", lambda: [], SHAPE)
    return TrainingRows(
        ArraySource(X, y), transform, targets, seed=0, holdout=holdout, dtype=dtype, cache_bytes=cache_bytes
    )


def start_of(rows, per_class=2):
    """Points near rows, in class order: points, labels, classes."""
    index = torch.cat([(rows.classes == c).nonzero().flatten()[:per_class] for c in range(CLASSES)])
    return rows.inputs(index) + 0.3, rows.outputs(index), rows.classes[index]


def no_judge(x, y):
    """Of a set, nothing."""
    return {"loss": 0.0, "score": 0.0}


def bits(tensors):
    """Everything a state holds, to be compared exactly."""
    return {name: value.numpy().tobytes() for name, value in tensors.items()}
