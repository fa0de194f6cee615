"""Lines for the user, each reason once: what was replaced, what was left alone and why.

Environment: KERNEL_DISTILL_ACCEL_LOG is "debug", "info", "warning" (the default) or "silent".
"""

import logging
import os

logger = logging.getLogger("kernel_distill.accel")
_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "silent": logging.CRITICAL + 1,
}


def set_level(name: str | None = None) -> None:
    """Take the level from the argument or the environment, and write lines to standard error.

    Raises
    ------
    ValueError
        If there is no such level.
    """
    name = name or os.environ.get("KERNEL_DISTILL_ACCEL_LOG")
    if name is None:
        return
    if name not in _LEVELS:
        raise ValueError(f"KERNEL_DISTILL_ACCEL_LOG must be one of {', '.join(_LEVELS)}, got {name!r}")
    logger.setLevel(_LEVELS[name])
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("kernel_distill.accel: %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
