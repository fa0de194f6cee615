"""For published scripts on a machine without a GPU: `.cuda()` is the identity, in both arms of a comparison.

Put on PYTHONPATH by `bench/accel.py`. A torchvision that was built for another torch is taken without its compiled
operators, which these scripts do not use. Where WEIGHT_ERRORS names a file, every pair of weights that a script gives
to `CosineSimilarity` is compared, and their relative distance is a line of that file.
"""

import os
import sys
import types

import torch

sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
torch.Tensor.cuda = lambda self, *args, **kwargs: self
torch.nn.Module.cuda = lambda self, *args, **kwargs: self

if "WEIGHT_ERRORS" in os.environ:
    cosine = torch.nn.CosineSimilarity.forward

    def noting(self, x1, x2):
        error = (x2.double() - x1.double()).norm() / x1.double().norm()
        with open(os.environ["WEIGHT_ERRORS"], "a") as file:
            file.write(f"{float(error)}\n")
        return cosine(self, x1, x2)

    torch.nn.CosineSimilarity.forward = noting
