"""Drop-in acceleration of other people's code: published distillation code, copied snippets, scikit-learn.

>>> from kernel_distill import accel
>>> with accel.patched("sklearn.rbf_kernel"):
...     accel.report().rows[0]["target"]
'sklearn.rbf_kernel'

Functions are recognised by their source (`explain` lists what is known), replaced where they are defined and wherever
they were imported, and put back as they were. From the shell: ``python -m kernel_distill.accel script.py arguments``.

Environment: KERNEL_DISTILL_ACCEL is "0" (nothing is installed) or the targets that `install()` means, with commas;
KERNEL_DISTILL_ACCEL_VERIFY is the number of calls that are verified; KERNEL_DISTILL_ACCEL_LOG says how much is told
(`_log`); KERNEL_DISTILL_ACCEL_CACHE is the number of bytes that replacements may keep between calls.
"""

from ._call import VerificationError
from ._install import install, patched, uninstall
from ._report import Report, explain, report
from ._target import Region, Target
from .registry import all_targets

__all__ = [
    "Region",
    "Report",
    "Target",
    "VerificationError",
    "all_targets",
    "explain",
    "install",
    "patched",
    "report",
    "uninstall",
]
