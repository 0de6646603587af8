"""Holding methods to real retraining: banks, the linear datamodeling score, coreset curves."""

from comove.evaluation.agreement import Agreement, agreement
from comove.evaluation.alignment import Diagnosis, diagnose
from comove.evaluation.coreset_curves.curve import Curve, CurveFolders, CurvePoint, coreset_curve
from comove.evaluation.costs.formulas import PAPER, Cost, Scenario, cost, storage
from comove.evaluation.label_errors.detection import Detection, detect
from comove.evaluation.label_errors.ranking import rank_labels
from comove.evaluation.label_errors.suspicion import Suspicion
from comove.evaluation.lds_benchmark.benchmark import (
    Benchmark,
    FitSubsets,
    Runs,
    at_alphas,
    attribution_runs,
    lds_benchmark,
    plans_of,
    score_methods,
)
from comove.evaluation.lds_benchmark.known_scores import lds_of_scores, read_scores
from comove.evaluation.prediction_brittleness.benchmark import brittleness
from comove.evaluation.prediction_brittleness.counterfactual import counterfactual_sizes
from comove.evaluation.prediction_brittleness.counterfactual_result import Counterfactual
from comove.evaluation.prediction_brittleness.result import Brittleness
from comove.evaluation.prediction_brittleness.top_share import TopShare, top_share_removal
from comove.evaluation.sanity import SanityChecks, check_methods
from comove.lds.against_bank import bank_lds
from comove.lds.difference import Difference, paired_difference
from comove.lds.score import LDS, GroundTruth, linear_datamodeling_score, spearman_columns
from comove.models.measured_outputs import OUTPUTS, output_of
from comove.retraining import subsets
from comove.retraining.bank import RetrainingBank
from comove.retraining.layouts import LAYOUTS, export_bank, import_bank
from comove.retraining.status import BankStatus

__all__ = [
    "LAYOUTS",
    "LDS",
    "OUTPUTS",
    "PAPER",
    "Agreement",
    "BankStatus",
    "Benchmark",
    "Brittleness",
    "Cost",
    "Counterfactual",
    "Curve",
    "CurveFolders",
    "CurvePoint",
    "Detection",
    "Diagnosis",
    "Difference",
    "FitSubsets",
    "GroundTruth",
    "RetrainingBank",
    "Runs",
    "SanityChecks",
    "Scenario",
    "Suspicion",
    "TopShare",
    "agreement",
    "at_alphas",
    "attribution_runs",
    "bank_lds",
    "brittleness",
    "check_methods",
    "coreset_curve",
    "cost",
    "counterfactual_sizes",
    "detect",
    "diagnose",
    "export_bank",
    "import_bank",
    "lds_benchmark",
    "lds_of_scores",
    "linear_datamodeling_score",
    "output_of",
    "paired_difference",
    "plans_of",
    "rank_labels",
    "read_scores",
    "score_methods",
    "spearman_columns",
    "storage",
    "subsets",
    "top_share_removal",
]
