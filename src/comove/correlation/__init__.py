r"""CLD: how strongly the losses of two examples move together while a model trains.

.. math:: \mathrm{CLD}(m, q) = \rho(\Delta_m, \Delta_q), \qquad \Delta_t = \ell_t - \ell_{t-1}

A training example matters to a query when the updates that lower the one's loss lower the other's. Only recorded losses
are needed, so everything here runs on arrays from any framework (NumPy, torch on any device, nested lists, JAX through
NumPy). Differences, means and norms are taken in float64, a block of columns at a time; what remains is one float32
matrix product of unit columns. CUDA tensors go the same way on their device, without TF32 unless torch has been told to
use it. On the processor, tiles of the product are shared out among ``torch.get_num_threads()`` threads, whose number
changes no bit of any score.

**Out of core.** Losses need not lie in memory: a NumPy memory map, or any object with ``shape``, ``dtype`` and
``object[:, columns]`` (an h5py or zarr array, say), is read a block of columns at a time, by one thread at a time and
possibly more than once. :func:`top_k` and :func:`per_class` return little; :func:`pairwise` fills a memory map;
:func:`blocks` hands out the scores block by block, for any part of the training examples, in the very bits that
:func:`pairwise` gives: such parts are independent jobs.

References: Nagaraj, Ravikumar, Roy, "Coresets from Trajectories", TMLR 2025, eq. 64 and Algorithm 1.

Shape suffixes: T loss differences (R = T+1 recorded losses), N training examples, Q queries, B columns of one block,
C classes, K kept by ``top_k``.
"""

from comove.correlation.best import top_k
from comove.correlation.classes import per_class
from comove.correlation.constants import constant
from comove.correlation.pairs import blocks, pairwise
from comove.correlation.whitening import whitened

__all__ = ["blocks", "constant", "pairwise", "per_class", "top_k", "whitened"]
