"""Holding methods to real retraining: banks, the linear datamodeling score, coreset curves."""

from comove.evaluation import subsets
from comove.evaluation.bank import RetrainingBank
from comove.evaluation.benchmark import Benchmark, attribution_runs, lds_benchmark, score_methods
from comove.evaluation.curve import Curve, CurvePoint, coreset_curve
from comove.evaluation.lds import LDS, linear_datamodeling_score, spearman_columns
from comove.evaluation.outputs import OUTPUTS, output_of

__all__ = [
    "LDS",
    "OUTPUTS",
    "Benchmark",
    "Curve",
    "CurvePoint",
    "RetrainingBank",
    "attribution_runs",
    "coreset_curve",
    "lds_benchmark",
    "linear_datamodeling_score",
    "output_of",
    "score_methods",
    "spearman_columns",
    "subsets",
]
