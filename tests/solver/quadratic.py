"""The smallest learner that has everything a loop can go wrong on, and a run of it that can be killed.

As a program, ``quadratic.py FOLDER SEED``: takes the run in `FOLDER` to its end through kills at random moments, and
prints how many there were.
"""

import json
import math
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from kernel_distill.kernels import random as keyed
from kernel_distill.solver.learners.gradient import GradientLearner
from kernel_distill.solver.loop import Loop, run_loop
from kernel_distill.solver.optimizers import cosine, make_optimizer

TARGET = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)


class Quadratic(GradientLearner):
    """Points that follow a target through noise: loss ½|x + s - target - noise(step)|².

    `offset` moves with the steps and is state besides the parameters; `losses` replaces the held-out loss by a
    list, `bad_step` makes the loss of one step NaN, `before` is called at the start of each step.
    """

    def __init__(self, optimizer="adam", lr=0.05, seed=3, losses=None, bad_step=None, before=None, noise=0.3):
        self.parameters = {
            "x": torch.zeros(2, 3, dtype=torch.float64, requires_grad=True),
            "s": torch.zeros((), dtype=torch.float64, requires_grad=True),
        }
        self.optimizer = make_optimizer(
            optimizer,
            [{"params": [self.parameters["x"]], "lr": lr}, {"params": [self.parameters["s"]], "lr": lr / 5}],
        )
        self.offset = torch.zeros(3, dtype=torch.float64)
        self.options = {"optimizer": optimizer, "lr": lr, "seed": seed}
        self.losses, self.bad_step, self.before, self.noise = losses, bad_step, before, noise
        self.advanced, self.evaluations = [], 0

    @property
    def identity(self):
        return {"method": "quadratic", "options": self.options, "shape": (2, 3)}

    def rate(self, step):
        return cosine(step % 50, 50, 5)

    def loss(self, step):
        if self.before:
            self.before(step)
        self.advanced.append(step)
        noise = self.noise * keyed.normal(self.options["seed"], f"noise.{step}", (2, 3))
        residual = self.parameters["x"] + self.parameters["s"] + self.offset - TARGET - noise
        loss = residual.square().sum() / 2
        if step == self.bad_step:
            loss = loss * math.nan
        return loss, {"s": self.parameters["s"].detach(), "step_is": float(step)}

    def after_step(self, step):
        self.offset += 0.01 / (step + 1)

    def evaluate(self):
        self.evaluations += 1
        if self.losses is not None:
            return {"loss": self.losses[min(self.evaluations, len(self.losses)) - 1]}
        x = self.parameters["x"].detach()
        return {"loss": (x - TARGET).square().sum().item() / 2, "size": x.norm().item()}

    def learned(self):
        return {"x": self.parameters["x"].detach().clone(), "y": self.offset.clone()}

    def extra_state(self):
        return {"offset": self.offset}, {"offsets": [0.1, None, True]}

    def restore_extra(self, tensors, plain):
        assert plain == {"offsets": [0.1, None, True]}
        self.offset = tensors["offset"].clone()


def run(learner, **options):
    """40 steps with an evaluation every 10, unless `options` of the loop say otherwise."""
    return run_loop(learner, Loop(**options), steps=40, evaluate_every=10, label="test", progress=False)


def outcome(result):
    """What two runs have to have in common: everything but the seconds, tensors as bytes."""
    learned = {name: (value.dtype, value.numpy().tobytes()) for name, value in result.learned.items()}
    return learned, result.step, result.figures, result.steps, result.stopped, result.history


def lines(path):
    """Records of a log, without their seconds."""
    records = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


STEPS = 200


def whole_run(folder, **options):
    """The run that is killed: result, and what its files are called."""
    loop = Loop(
        checkpoint=Path(folder) / "run.ckpt",
        log=Path(folder) / "run.jsonl",
        checkpoint_every=0.02,
        log_every=7,
    )
    loop = loop.model_copy(update=options)
    # A step is long enough that the first kill comes before the end.
    learner = Quadratic(before=lambda step: time.sleep(0.001))
    return run_loop(learner, loop, steps=STEPS, evaluate_every=20, label="test", progress=False)


def run_through_kills(folder, seed):
    """Fork runs and kill them, sooner or later, until one reaches its end. How many were killed."""
    # What the first step imports is imported once, not in every fork.
    run_loop(
        Quadratic(),
        Loop(checkpoint=Path(folder) / "warm"),
        steps=1,
        evaluate_every=1,
        label="",
        progress=False,
    )
    choose, kills, longest = random.Random(seed), 0, 0.2
    while True:
        child = os.fork()
        if child == 0:
            whole_run(folder)
            os._exit(0)
        deadline = time.monotonic() + choose.uniform(0.02, longest)
        while time.monotonic() < deadline:
            if os.waitpid(child, os.WNOHANG)[0]:
                return kills
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills, longest = kills + 1, longest * 1.2


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(run_through_kills(sys.argv[1], int(sys.argv[2])))
