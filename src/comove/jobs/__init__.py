"""Where many independent jobs run: in this process, in worker processes, or on a Ray cluster.

:func:`run_jobs` hands every result to one function in the calling process, the driver, which alone writes. All
executors give the same bits on processors of one kind: a job runs with torch on one thread wherever it is done.
"""

from comove.jobs.base import Executor, JobLostError, Serial
from comove.jobs.compute import Compute
from comove.jobs.local import Local
from comove.jobs.ray_cluster import RayCluster
from comove.jobs.run import as_executor, run_jobs

__all__ = [
    "Compute",
    "Executor",
    "JobLostError",
    "Local",
    "RayCluster",
    "Serial",
    "as_executor",
    "run_jobs",
]
