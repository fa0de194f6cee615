"""A local Ray cluster for the tests of a module.

A test module takes the fixtures by name: ``from . import ray_cluster as fixtures``, and then
``ray_cluster, ray_executor = fixtures.ray_cluster, fixtures.ray_executor``.
"""

import os
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

# "local": a cluster that another process runs on this machine is left alone. The object store is small because the
# /dev/shm of a container may be.
OPTIONS = dict(
    address="local",
    num_cpus=2,
    include_dashboard=False,
    object_store_memory=150 * 2**20,
    logging_level="error",
    log_to_driver=False,
)


def loaded_test_modules():
    """The modules below tests/ that are loaded, which workers cannot import."""
    files = {module: getattr(module, "__file__", None) for module in list(sys.modules.values())}
    return [module for module, file in files.items() if file and TESTS in Path(file).parents]


@pytest.fixture(scope="module")
def ray_cluster():
    """Two CPUs, for all tests of a module; what test modules define travels by value."""
    ray = pytest.importorskip("ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(**OPTIONS)
    modules = loaded_test_modules()
    for module in modules:
        ray.cloudpickle.register_pickle_by_value(module)
    yield ray
    for module in modules:
        ray.cloudpickle.unregister_pickle_by_value(module)
    ray.shutdown()


@pytest.fixture
def ray_executor(ray_cluster):
    """An executor on it."""
    from kernel_distill.solver.executors.ray import RayExecutor

    return RayExecutor()
