r"""D3: latent Gaussians and a decoder, whose images train networks as all rows do and have features like theirs.

An entry of the set is a mean μ and a log-variance ℓ of z numbers, one or several for each class, and stands for
:math:`\mathrm{dec}(\mu + \varepsilon\, e^{\ell/2})`, ε standard normal, with one decoder for all. A step descends
twice:

1. on the trajectory loss (`student`) of a student that is trained on images decoded anew for each of its steps, in
   means, log-variances, the student's learning rate and the decoder;
2. on the sum over classes of the squared MMD between features of decoded images and of rows (`feature_mmd`), in means,
   log-variances and the decoder,

the latents and the rate by gradient descent with momentum, the decoder by Adam. Source: Qin et al., "Distributional
Dataset Distillation with Subtask Decomposition" (2024), and ``distill_distribution.py`` of their code, whose loop this
is. Means and log-variances start standard normal, as there. Labels: a class's own; or, when all is learned, what an
expert makes of the decoded means (``soft_label.py``).

**Memory.** Both parts are losses of decoded images. Images are decoded without a graph and the gradient of a loss in
all of them is computed in bounded memory, by the adjoint of the student's steps or some classes at a time. Then each
batch is decoded again and its part of the gradient pushed through the decoder (`decoded_points`). That is the gradient
of the published loop, which keeps the activations of all 30 draws of all classes in network and decoder. Batch norm in
the decoder has the statistics of a batch: the points of one student's step, or one draw of all Gaussians.

**Differences.** The student's rate is learned as it is and kept at `LEAST_RATE` or above, a projection, as for MTT;
published is LeakyReLU(rate) + 1e-4, which has the same derivative wherever the rate is positive, and lets it be below
zero. Experts of the first part serve in turn. What is stored is a decoder whose batch norm has fixed statistics, those
of `CALIBRATION` draws (`calibrate`), so that an image does not depend on those that it is decoded with.
"""

import copy
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels import normal, uniform
from ..solver.conv_networks import repeatable
from ..solver.decoders import build_decoder, calibrate, decode, decoder_of
from ..solver.encoder import arrays_of
from ..solver.learner import Figures, State
from ..solver.learners.gradient import GradientLearner
from ..solver.learners.images import Judge
from ..solver.learners.rows import TrainingRows
from ..solver.networks import build_network
from ..solver.optimizer_state import optimizer_state, restore_optimizer
from ..solver.optimizers import make_optimizer
from .d3_features import FeatureMatching, expert_function
from .d3_options import D3
from .decoded_points import LatentBatch, decoded
from .expert_options import LEAST_RATE
from .experts import Trajectories
from .student import matching_loss

# Draws of every Gaussian whose statistics the stored decoder has.
CALIBRATION = 10


class D3Learner(GradientLearner):
    """Learner of latent Gaussians, a decoder and a student's rate by D3.

    Parameters
    ----------
    rows : TrainingRows
        Images with classes.
    classes : Tensor, shape (m,), int64
        Of the Gaussians, in class order. Rows of other classes are not looked at.
    options : D3
    trajectories : Trajectories or None
        Of experts of the network that the options name; None where ``options.needs_experts`` is not set.
    seed : int
        Decides the start, and the noise, rows, batches, networks and experts of each step.
    judge : Judge

    Attributes
    ----------
    classes : Tensor, shape (m,), int64
        On the device of the rows.

    Raises
    ------
    ValueError
        If rows are no images or have no classes, `classes` do not fit them, a class has fewer than two rows, experts
        are missing or of other networks or rows, or network or decoder cannot take such images.

    Notes
    -----
    Figures of a step: the losses of both parts, not weighted; "feature_distance", the median distance of the features
    of two rows of one class; and the rate.

    First part: as MTT. Second: one pass over the rows, one forward and one backward over the draws, and twice their
    decoding. Memory: all draws of a step and their gradient, the activations of one draw of the decoder, and
    `memory_budget`.
    """

    def __init__(
        self,
        rows: TrainingRows,
        classes: Tensor,
        options: D3,
        *,
        trajectories: Trajectories | None,
        seed: int,
        judge: Judge,
    ) -> None:
        options.check_rows(rows, classes)
        options.check_experts(trajectories, rows)
        self._rows, self._options, self._seed, self._judge = rows, options, seed, judge
        self._trajectories = trajectories
        self.classes = classes.to(rows.device)
        like = {"device": rows.device, "dtype": rows.dtype}
        # Of experts only the form is used: the parameters are those of trajectories.
        self._network = (
            build_network(options.spec(rows), seed, "d3.form", **like).train().requires_grad_(False)
        )
        spec = options.decoder_spec(rows)
        self._decoder = build_decoder(spec, seed, "d3.decoder", **like).train()
        shape = (len(classes), spec.latent_dim)
        self.parameters = {
            name: normal(seed, f"d3.{name}", shape).to(**like).requires_grad_()
            for name in ("mean", "log_variance")
        }
        self.parameters["rate"] = torch.tensor(options.rate, requires_grad=True, **like)
        of_decoder = {f"decoder.{name}": value for name, value in self._decoder.named_parameters()}
        rates = {"mean": options.lr_latent, "log_variance": options.lr_latent, "rate": options.rate_lr}
        self.optimizer = make_optimizer(
            "sgd",
            [{"params": [self.parameters[name]], "lr": lr} for name, lr in rates.items()],
            momentum=options.momentum,
        )
        self._decoder_optimizer = make_optimizer(
            "adam", list(of_decoder.values()), lr=options.lr_decoder, weight_decay=options.weight_decay
        )
        self.parameters |= of_decoder
        self._matching = None
        if options.matches_features:
            self._matching = FeatureMatching(
                rows, self.classes, options, self._network, trajectories=trajectories, seed=seed
            )
        self._identity = {
            "method": options.method,
            # A trajectory is the same wherever it is kept.
            "options": options.model_dump(mode="json", exclude={"steps", "evaluate_every", "experts_folder"}),
            "decoder": spec.parameters(),
            "classes": hashlib.sha256(classes.cpu().numpy().tobytes()).hexdigest(),
            "seed": seed,
            "data": rows.identity,
            "experts": None if trajectories is None else trajectories.identity,
        }

    @property
    def identity(self) -> dict[str, Any]:
        return self._identity

    def loss(self, step: int) -> tuple[Tensor, Figures]:
        """Weighted sum of the losses of both parts at the parameters as they are."""
        parts = [(weight * part(step)[0]).double() for _, weight, part in self._parts()]
        return torch.stack(parts).sum(), {}

    def advance(self, step: int) -> Figures:
        total: Tensor | float = 0.0
        figures: dict[str, Tensor | float] = {}
        for name, weight, part in self._parts():
            with repeatable():
                loss, more = part(step)
                weighted = weight * loss
                self.optimizer.zero_grad(set_to_none=True)
                self._decoder_optimizer.zero_grad(set_to_none=True)
                weighted.backward()
            # What has no gradient in a part, the rate in the second, does not move: not by its momentum either.
            self.optimizer.step()
            self._decoder_optimizer.step()
            with torch.no_grad():
                self.parameters["rate"].clamp_(min=LEAST_RATE)
            total = total + weighted.detach().double()
            figures |= {name: loss.detach(), **more}
        return {"loss": total, **figures, "rate": self.parameters["rate"].detach().clone()}

    def extra_state(self) -> State:
        tensors, groups = optimizer_state(self._decoder_optimizer)
        return tensors, {"decoder": groups}

    def restore_extra(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        restore_optimizer(self._decoder_optimizer, tensors, plain["decoder"])

    def evaluate(self) -> dict[str, float]:
        """What the judge says of the decoded means with `judge_draws` draws of each Gaussian, always the same noise.

        NaN if a parameter, a deviation or an image is not finite.
        """
        values = [*self.parameters.values(), (self.parameters["log_variance"] / 2).exp()]
        if all(bool(value.isfinite().all()) for value in values):
            learned = self.learned()
            x = torch.cat([learned["x"], *self._draws(learned)])
            if bool(x.isfinite().all()):
                return self._judge(x, learned["y"].repeat(len(x) // len(learned["y"]), 1))
        return {"loss": math.nan, "score": math.nan}

    @torch.no_grad()
    def learned(self) -> dict[str, Tensor]:
        """Decoded means "x" and their labels "y", float64; and what they are made of.

        That is "latent.mean" and "latent.log_variance" (m, z), the state of the calibrated decoder under "decoder.",
        and the student's "rate", 0-d, float64.
        """
        decoder = copy.deepcopy(self._decoder)
        mean, log_variance = (self.parameters[name].detach().clone() for name in ("mean", "log_variance"))
        noise = self._noise("calibration", CALIBRATION * len(mean)).view(CALIBRATION, *mean.shape)
        calibrate(decoder, [mean + eps * (log_variance / 2).exp() for eps in noise])
        x = decode(decoder.eval(), mean)
        return {
            "x": x.double(),
            "y": self._labels(x),
            "rate": self.parameters["rate"].detach().double().clone(),
            "latent.mean": mean,
            "latent.log_variance": log_variance,
            **{f"decoder.{name}": value for name, value in decoder.state_dict().items()},
        }

    def _parts(self) -> list[tuple[str, float, Callable[[int], tuple[Tensor, Figures]]]]:
        """Name, weight and loss of the parts of a step."""
        options = self._options
        both = [
            ("trajectory_loss", options.trajectory_weight, self._trajectory_loss),
            ("mmd_loss", options.mmd_weight, self._mmd_loss),
        ]
        return [part for part in both if part[1] > 0]

    def _trajectory_loss(self, step: int) -> tuple[Tensor, Figures]:
        options, rows, seed = self._options, self._rows, self._seed
        assert self._trajectories is not None
        ends = options.stretch(self._trajectories, step, seed=seed, stream="d3")
        start, target = (end.to(rows.device, rows.dtype) for end in ends)
        parts = options.batches(len(self.classes), step, seed=seed, stream="d3")
        images = self._decoded(parts, f"student.{step}")
        # An image belongs to one batch, where its Gaussian may belong to several.
        places = torch.arange(len(images), device=rows.device).split([len(part) for part in parts])
        classes = self.classes[torch.cat(parts).to(rows.device)]
        batches = options.student_batches(
            places, classes, rows.transform.input_shape, step, seed=seed, stream="d3"
        )
        return matching_loss(self._network, images, self.parameters["rate"], batches, start, target), {}

    def _mmd_loss(self, step: int) -> tuple[Tensor, Figures]:
        matching = self._matching
        assert matching is not None
        images = self._decoded([torch.arange(len(self.classes))] * matching.draws, f"draws.{step}")
        return matching.loss(step, images)

    def _decoded(self, parts: Sequence[Tensor], what: str) -> Tensor:
        """Images of batches of Gaussians, each with noise of its own."""
        lengths = [len(part) for part in parts]
        noise = self._noise(what, sum(lengths)).split(lengths)
        batches = [LatentBatch(part.to(eps.device), eps) for part, eps in zip(parts, noise, strict=True)]
        return decoded(self._decoder, self.parameters["mean"], self.parameters["log_variance"], batches)

    def _noise(self, what: str, count: int) -> Tensor:
        """Standard normals (count, z)."""
        like = self.parameters["mean"]
        return normal(self._seed, f"d3.noise.{what}", (count, like.shape[1])).to(like)

    def _draws(self, learned: dict[str, Tensor]) -> list[Tensor]:
        """Images (m, *input_shape), float64, for the judge: each of one draw of all Gaussians."""
        decoder = decoder_of(self._decoder.spec, arrays_of(learned, "decoder.")).eval()
        mean, deviation = learned["latent.mean"], (learned["latent.log_variance"] / 2).exp()
        noise = (self._noise(f"judge.{number}", len(mean)) for number in range(self._options.judge_draws))
        return [decode(decoder, mean + eps * deviation).double() for eps in noise]

    def _labels(self, x: Tensor) -> Tensor:
        """Target rows (m, k), float64, of decoded means."""
        targets, trajectories = self._rows.targets, self._trajectories
        assert targets.classes is not None
        table = targets.encode(list(targets.classes)).to(x.device)
        if self._options.labels == "hard":
            return table[self.classes]
        assert trajectories is not None
        expert = int(float(uniform(self._seed, "d3.labels", 1)) * len(trajectories))
        scores = expert_function(self._network, trajectories, expert, self._options.label_epoch, like=x)
        chunk = len(x) if self._network.has_batch_statistics else self._rows.chunk
        probabilities = torch.cat([scores(part).double().softmax(1) for part in x.split(chunk)])
        return probabilities @ table
