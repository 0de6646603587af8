"""Holding methods to real retraining: banks, the linear datamodeling score, coreset curves."""

from comove.evaluation import subsets
from comove.evaluation.alignment import Diagnosis, diagnose
from comove.evaluation.bank.retraining import RetrainingBank
from comove.evaluation.bank.status import BankStatus
from comove.evaluation.costs.formulas import PAPER, Cost, Scenario, cost, storage
from comove.evaluation.curves.curve import Curve, CurvePoint, coreset_curve
from comove.evaluation.lds.benchmark import (
    Benchmark,
    at_alphas,
    attribution_runs,
    lds_benchmark,
    plans_of,
    score_methods,
)
from comove.evaluation.lds.difference import Difference, paired_difference
from comove.evaluation.lds.from_bank import bank_lds
from comove.evaluation.lds.score import LDS, GroundTruth, linear_datamodeling_score, spearman_columns
from comove.evaluation.mislabels.detection import Detection, detect
from comove.evaluation.mislabels.ranking import rank_labels
from comove.evaluation.mislabels.suspicion import Suspicion
from comove.evaluation.outputs import OUTPUTS, output_of
from comove.evaluation.removals.counterfactual import counterfactual_sizes
from comove.evaluation.removals.counterfactual_result import Counterfactual
from comove.evaluation.removals.prediction import brittleness
from comove.evaluation.removals.result import Brittleness

__all__ = [
    "LDS",
    "OUTPUTS",
    "PAPER",
    "BankStatus",
    "Benchmark",
    "Brittleness",
    "Cost",
    "Counterfactual",
    "Curve",
    "CurvePoint",
    "Detection",
    "Diagnosis",
    "Difference",
    "GroundTruth",
    "RetrainingBank",
    "Scenario",
    "Suspicion",
    "at_alphas",
    "attribution_runs",
    "bank_lds",
    "brittleness",
    "coreset_curve",
    "cost",
    "counterfactual_sizes",
    "detect",
    "diagnose",
    "lds_benchmark",
    "linear_datamodeling_score",
    "output_of",
    "paired_difference",
    "plans_of",
    "rank_labels",
    "score_methods",
    "spearman_columns",
    "storage",
    "subsets",
]
