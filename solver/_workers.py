"""Threads that each compute on one core: small networks gain more from company than from a second core of their own."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from ._check import check_count


@contextlib.contextmanager
def single_core_workers(workers: int | None) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads in each of which torch uses one thread: the same bits for any number of them.

    Parameters
    ----------
    workers : int, optional
        By default as many as torch would use threads.

    Notes
    -----
    The number of threads is kept per thread by OpenMP, but the last one set is also what threads made later begin
    with: it is set back on leaving. Work that has not begun is dropped if the body raises.
    """
    before = torch.get_num_threads()
    count = before if workers is None else check_count(workers, "workers")
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)
