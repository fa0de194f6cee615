"""Tasks on a Ray cluster. What it gives is what `SerialExecutor` gives, whatever the workers do."""

import math
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from .._check import check_non_negative
from ..progress import track
from .base import Call, Executor, Retry, Task
from .faults import Attempts, check_retries
from .ray_work import RayWork, Submit
from .ray_worker import WorkerSettings, call_task, library_version
from .stored import StoredResults
from .wheel import check_wheel, unpack_wheel

# Of a cluster that is started here. A handful of results is in flight at a time, and what does not fit goes to the
# disk; the default of Ray, 30 % of the machine, is more than the /dev/shm of many containers, and then it takes a file.
_STORE_BYTES = 2 * 2**30
_LEAST_STORE_BYTES = 100 * 2**20


class RayExecutor(Executor):
    """Runs tasks on the workers of a Ray cluster.

    That of `address`, or of the environment variable RAY_ADDRESS; without either the Ray that this process already
    uses, or else one on this machine that lasts until `close`, the end of a ``with`` block or of the process. A
    cluster that was not started here is never stopped.

    Results are equal to those of `SerialExecutor`: bit for bit where the tasks' arithmetic does not depend on the
    number of threads. A task whose process, machine or result was lost runs again, as does one that raised an error
    that may have been the machine's; `retries` says which, and the logger "kernel_distill" too.

    Parameters
    ----------
    address : str, optional
        Of a cluster: ``host:port`` of its head, or "auto" for one that runs on this machine.
    cpus_per_task : float, default 1
        CPUs that Ray sets aside for a task, and threads that torch uses in it (at least one). One, because many tasks
        of one thread do more than one of many, and do not depend on how sums are split among threads.
    gpus_per_task : "auto" or float
        Factor on `Task.gpus`; "auto" is 1. With 0.25 four tasks that can use a GPU share one. On a cluster without
        GPUs none is asked for.
    retries : int, default 3
        How often one task is run again before it is given up.
    wheel : path, optional
        A wheel of this library, whose modules workers use in place of what is installed there; they must be those that
        run here. What the library depends on is not sent: workers need it installed.
    num_cpus : int, optional
        Of a cluster that is started here; by default those of the machine.

    Raises
    ------
    ImportError
        If Ray is not installed.
    ValueError
        If an option is wrong, the wheel is of other sources, or `address` or `wheel` is given while this process
        already uses a Ray that was started otherwise.
    ConnectionError
        If there is no cluster at `address`.

    Notes
    -----
    Workers get installed code only: their path holds neither the folder of the calling script nor the current one, and
    a worker with another version of this library is refused. Functions, classes and what they import must be of
    installed modules, or of the script itself, which Ray sends along.

    An interrupt (KeyboardInterrupt) hands out nothing more. What runs is ended and the executor closed, if it started
    the cluster or connected to it; otherwise it runs to its end. An error likewise lets what runs run to its end.

    Shared arguments are stored once and read by reference. On a machine all workers share them: NumPy arrays are
    read-only there.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        cpus_per_task: float = 1,
        gpus_per_task: Literal["auto"] | float = "auto",
        retries: int = 3,
        wheel: str | os.PathLike[str] | None = None,
        num_cpus: int | None = None,
    ) -> None:
        self._retries = check_retries(retries)
        self._cpus = check_non_negative(cpus_per_task, "cpus_per_task")
        if self._cpus == 0:
            raise ValueError(
                "`cpus_per_task` must be greater than 0: Ray would start any number of tasks at once"
            )
        self._gpu_factor = (
            1.0 if gpus_per_task == "auto" else check_non_negative(gpus_per_task, "gpus_per_task")
        )
        self.retries: list[Retry] = []
        self._ray = _import_ray()
        self._private_paths = _private_paths()
        self._started = self._connect(address, None if wheel is None else check_wheel(wheel), num_cpus)
        # Errors of Ray's own only: `call_task` returns those of the task. Its retries are off; see `ray_work`.
        self._remote = self._ray.remote(num_returns=2, max_retries=0, num_cpus=self._cpus)(call_task)

    def close(self) -> None:
        """Stop the cluster if it was started here, for whoever else uses it in this process too."""
        if self._started:
            self._started = False
            self._ray.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, call: Call) -> list[Any]:
        if not self._ray.is_initialized():
            raise RuntimeError("this executor is closed, or Ray was shut down: make a new RayExecutor")
        stored = StoredResults(call.store, call.tasks)
        work = RayWork(
            self._submitting(call.tasks),
            call.function,
            call.merge,
            [self._ray.put(value) for value in call.shared],
            call.tasks,
            stored,
            Attempts(self._retries, self.retries),
        )
        try:
            for _ in track(work.finished(), call.label, len(call.tasks), show=call.progress):
                pass
        except KeyboardInterrupt:
            # Ray ends the tasks of a process that leaves. Of a Ray that is not ours they run to their end.
            self.close()
            raise
        return work.results

    def _submitting(self, tasks: list[Task]) -> Submit:
        """How tasks are handed to Ray, on the cluster as it is now."""
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        most_cpus = max((resources.get("CPU", 0.0) for resources in machines), default=0.0)
        most_gpus = max((resources.get("GPU", 0.0) for resources in machines), default=0.0)
        if tasks and self._cpus > most_cpus:
            raise ValueError(
                f"`cpus_per_task` is {self._cpus:g}, but the largest machine of the cluster has {most_cpus:g} CPUs:"
                " no task would ever start"
            )
        factor = self._gpu_factor if most_gpus else 0.0
        for task in tasks:
            self._check_gpus(task, factor * task.gpus, most_gpus)
        settings = WorkerSettings(library_version(), max(1, int(self._cpus)), self._private_paths)

        def submit(name: str, gpus: float, *arguments: Any) -> tuple[Any, Any]:
            return self._remote.options(name=name, num_gpus=factor * gpus).remote(settings, name, *arguments)

        return Submit(self._ray, submit, self._limit)

    def _check_gpus(self, task: Task, gpus: float, most: float) -> None:
        if gpus > 1 and gpus != math.floor(gpus):
            raise ValueError(
                f"task {task.name!r} asks for {gpus:g} GPUs: more than one must be a whole number"
            )
        if gpus > most:
            raise ValueError(
                f"task {task.name!r} asks for {gpus:g} GPUs, but the largest machine of the cluster has {most:g}"
            )

    def _limit(self) -> int:
        """Some more tasks than can run, so that the next is there when one ends."""
        slots = int(self._ray.cluster_resources().get("CPU", 0.0) / self._cpus)
        return slots + max(1, slots // 4)

    def _connect(self, address: str | None, wheel: Path | None, num_cpus: int | None) -> bool:
        """Have this process use a cluster; whether it was connected or started here."""
        ray = self._ray
        if ray.is_initialized():
            here = ray.get_runtime_context().gcs_address
            if address not in (None, "auto", here):
                raise ValueError(
                    f"this process uses the Ray at {here} already, not {address}: call ray.shutdown() first"
                )
            if wheel is not None:
                raise ValueError(
                    "this process uses Ray already, and workers get a wheel only as it starts: call ray.shutdown()"
                    " first, and let this executor start it or connect to it"
                )
            return False
        options: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
        if not (address := address or os.environ.get("RAY_ADDRESS")):
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            # "local": without it Ray would join a cluster that somebody else runs on this machine.
            address = "local"
            options |= {
                "num_cpus": num_cpus,
                "include_dashboard": False,
                "object_store_memory": _store_bytes(),
            }
        with tempfile.TemporaryDirectory() as folder:
            if wheel is not None:
                options["runtime_env"] = {"py_modules": [unpack_wheel(wheel, folder)]}
            ray.init(address, **options)
        return True


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            "the Ray executor needs Ray, which is not installed: pip install 'kernel-distill[ray]'"
        ) from error
    return ray


def _store_bytes() -> int:
    """Memory for the object store of a cluster on this machine."""
    shared_memory = Path("/dev/shm")
    free = shutil.disk_usage(shared_memory).free if shared_memory.is_dir() else _STORE_BYTES
    return max(_LEAST_STORE_BYTES, min(_STORE_BYTES, free // 2))


def _private_paths() -> tuple[str, ...]:
    """What Ray adds to the path of workers: the folder of the script, and the current one."""
    return os.path.dirname(os.path.realpath(sys.argv[0])), os.path.abspath(os.curdir)
