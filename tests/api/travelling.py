"""An executor in this process whose tasks travel all the same: what cannot be sent to a worker fails here too."""

import pickle

from kernel_distill.solver.executors import Executor, Retry, SerialExecutor, Task


class Travelling(Executor):
    """Everything that goes to a task, and everything that comes back, is pickled on the way.

    `lost` is how many tasks, from the first one on, run twice, as if a worker had died.
    """

    def __init__(self, lost=0):
        self.retries = []
        self.lost = lost
        self.tasks = []

    def _run(self, call):
        assert call.merge is None
        lost = call.tasks[: self.lost]
        self.tasks += call.tasks
        self.retries += [Retry(task.name, "its worker died") for task in lost]
        again = {task.name for task in lost}
        sent = pickle.dumps(call.shared)

        def run(name, payload):
            for _ in range(1 + (name in again)):
                called, arguments = pickle.loads(payload)
                result = pickle.dumps(called(*pickle.loads(sent), *arguments))
            return pickle.loads(result)

        boxed = [
            Task(task.name, (task.name, pickle.dumps((call.function, task.arguments)))) for task in call.tasks
        ]
        return SerialExecutor().map(run, boxed, label=call.label, store=call.store, progress=call.progress)
