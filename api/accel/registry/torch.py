"""No targets yet."""

from .._target import Target

TARGETS: tuple[Target, ...] = ()
