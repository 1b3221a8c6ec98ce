"""A corpus is spread over a Dask or Ray cluster through joblib, and a worker may die on the way."""

import os
import signal
import sys
import threading
import time

import joblib
import numpy as np
import pytest
import ray
import xarray as xr
from conftest import FIXTURES
from dask.distributed import Client, LocalCluster
from ray.util.joblib import register_ray

from moe_probe import dynamic

pytestmark = [pytest.mark.thorough, pytest.mark.xdist_group("clusters")]  # on one worker: a cluster is started once
RESTART = {"max_restarts": -1, "max_task_retries": -1}


class Trap(dynamic.GateChoices):
    """Waits in the first process that comes along, to be killed there."""

    def __init__(self, marker):
        super().__init__()
        self.marker = marker

    def update(self, batch):
        try:
            with open(self.marker, "x") as file:
                file.write(str(os.getpid()))
            time.sleep(120)
        except FileExistsError:
            super().update(batch)


@pytest.fixture(scope="module")
def dask():
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster):
        yield {"backend": "dask"}


@pytest.fixture(scope="module")
def ray_cluster():
    importable = {"env_vars": {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=importable)
    register_ray()
    yield {"backend": "ray", "ray_remote_args": RESTART}
    ray.shutdown()


@pytest.fixture(params=["dask", "ray_cluster"])
def backend(request):
    return request.getfixturevalue(request.param)


def run(analyses, **options):
    generator = np.random.default_rng(0)
    texts = [generator.integers(4, 60, int(length)).tolist() for length in generator.integers(1, 40, 30)]
    return dynamic.run(FIXTURES / "mixtral" / "checkpoint", texts, analyses, progress=False, **options)


def test_workers_of_a_cluster_share_the_corpus(backend, tmp_path):
    analyses = [dynamic.NormScoreRanks(), dynamic.Coactivation(), dynamic.GateChoices()]
    expected = run(analyses)
    with joblib.parallel_config(**backend):
        found = run([*analyses, dynamic.RoutingTrace(tmp_path / "trace")], n_jobs=2)
    for name, dataset in expected.items():
        xr.testing.assert_allclose(found[name], dataset, atol=1e-5)
    xr.testing.assert_equal(
        dynamic.from_trace(tmp_path / "trace", [dynamic.Coactivation()])["coactivation"], found["coactivation"]
    )


def test_the_work_of_a_killed_worker_is_done_by_another(backend, tmp_path):
    marker = tmp_path / "marker"

    def kill():
        while not (marker.exists() and marker.read_text()):
            time.sleep(0.05)
        os.kill(int(marker.read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with joblib.parallel_config(**backend):
        found = run([Trap(marker)], n_jobs=2)
    killer.join()
    xr.testing.assert_allclose(found["gate_choices"], run([dynamic.GateChoices()])["gate_choices"], atol=1e-5)
