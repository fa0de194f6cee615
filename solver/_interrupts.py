"""Ctrl-C that waits until what it would tear apart is complete."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def interrupts_held(hold: bool) -> Iterator[list[int]]:
    """Collect the first Ctrl-C instead of raising it; a second one is raised at once.

    Amid a step, the state of a learner is neither the old nor the new one. The caller looks at the list between
    steps; an interrupt still in it is raised at the end. Only if `hold` is set, where Python's own handler is in
    place, and in the main thread, which is the one that handles signals.
    """
    held: list[int] = []
    default = signal.default_int_handler
    main = threading.current_thread() is threading.main_thread()
    if not hold or not main or signal.getsignal(signal.SIGINT) is not default:
        yield held
        return

    def handler(number: int, frame: Any) -> None:
        if held:
            default(number, frame)
        held.append(number)

    signal.signal(signal.SIGINT, handler)
    try:
        yield held
    finally:
        signal.signal(signal.SIGINT, default)
    if held:
        raise KeyboardInterrupt
