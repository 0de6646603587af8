"""A real Ray cluster of several nodes on this machine: nothing is lost and no bit differs, whatever dies."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from comove.execution import RayCluster

if TYPE_CHECKING:
    from tests.execution.conftest import Training


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and two more nodes with a core each, and all that Ray writes in a folder that is removed."""
    pytest.importorskip("ray", reason="the extra comove[ray] is not installed")
    from ray.cluster_utils import Cluster

    # Not tmp_path: Ray's sockets lie there, and a socket's path may have 107 characters at most.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", folder)  # where ray.init writes a token
        patch.setenv("RAY_TMPDIR", folder)
        patch.delenv("RAY_ADDRESS", raising=False)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=1, resources={"doomed": 1})
        cluster.add_node(num_cpus=1)
        yield cluster
        cluster.shutdown()


def test_a_cluster_that_loses_a_node_and_a_worker_trains_the_same_bits_as_one_process(
    cluster: Any, training: Training
) -> None:
    doomed = [node for node in cluster.worker_nodes if node.get_resource_and_label_spec().resources.get("doomed")]

    def harm(job: tuple[int, float], result: Any) -> None:
        if len(training.done) == 3:
            os.kill(result.process, signal.SIGKILL)
        if len(training.done) == 6:
            cluster.remove_node(doomed[0], allow_graceful=False)
            cluster.add_node(num_cpus=1)

    t = time.time()
    training.run([(seed, 0.5) for seed in range(30)], RayCluster(cluster.address), harm)
    print(time.time() - t)
    results = training.done.values()
    print([r.process for r in results])
    assert {result.threads for result in results} == {1}
    assert {result.setups for result in results} == {1}
    assert training.equals_one_process()
