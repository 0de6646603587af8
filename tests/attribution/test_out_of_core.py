"""Traces and scores larger than the memory there is: the same numbers, in a process that could not hold them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from comove.attribution import CLD, Scores
from comove.correlation import per_class
from comove.trace import Trace

ROWS, N, Q = 61, 600_000, 10

LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from comove.attribution import CLD
from comove.attribution.score_blocks import top_in_blocks, write_scores_in_blocks
from comove.coreset.cld import CLDCoreset
from comove.correlation import pairwise, sizes
from comove.training.sources import Source
from comove.trace import Trace

folder = Path(sys.argv[1])
sizes.PANEL = 1 << 21  # of the core's half a gigabyte, a tenth: the trace of this test is small
small = Trace.from_arrays(
    train_losses=np.random.rand(5, 3000), query_losses=np.random.rand(5, 9),
    train_labels=np.arange(3000) % 3, query_labels=np.arange(9) % 3,
)
CLDCoreset()._scores((Source(small),))  # libraries take what they take once
write_scores_in_blocks(folder / "small", CLD(), small, executor="serial")
top_in_blocks(CLD(), small, 3)
used = int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 110_000_000,) * 2)
trace = Trace.load(folder / "trace")
try:
    trace.train_losses
    raise SystemExit("the limit does not bite")
except MemoryError:
    pass
np.save(folder / "per_class.npy", CLDCoreset()._scores((Source(trace),)))
write_scores_in_blocks(folder / "scores", CLD(), trace, executor="serial", block_bytes=8_000_000)
best = top_in_blocks(CLD(), trace, 5)
np.save(folder / "best.npy", [[ranking.ids, ranking.scores] for ranking in best])
mapped = np.memmap(folder / "pairwise", np.float32, "w+", shape=(trace.train_ids.size, trace.query_ids.size))
pairwise(trace.lazy("train"), trace.lazy("query"), out=mapped)
mapped.flush()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts all memory on Linux")
def test_a_process_without_the_memory_for_a_trace_scores_it_to_the_same_bits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train, query = rng.random((ROWS, N), np.float32), rng.random((ROWS, Q), np.float32)
    labels, query_labels = rng.integers(0, 5, N), np.arange(Q) % 5
    trace = Trace.from_arrays(train_losses=train, query_losses=query, train_labels=labels, query_labels=query_labels)
    trace.save(tmp_path / "trace")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "per_class.npy"), per_class(train, labels, query, query_labels))
    expected = CLD().fit(trace).attribute(trace.query_ids)
    np.testing.assert_array_equal(Scores.load(tmp_path / "scores").values, expected.values)
    np.testing.assert_array_equal(np.fromfile(tmp_path / "pairwise", np.float32), expected.values.ravel())
    best = [expected.top(5, query=query) for query in trace.query_ids.tolist()]
    np.testing.assert_array_equal(np.load(tmp_path / "best.npy"), [[one.ids, one.scores] for one in best])
