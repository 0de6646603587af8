"""Arrays of other libraries and ours are the same scores: dattri's, captum's and kronfluence's in, ours in quanda's."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.test_examples import loaded

from comove import Scores
from comove.attribution import GradDot
from comove.training import Run

REASON = "the independent implementation is a test-only dependency"


@pytest.mark.filterwarnings("ignore")
def test_dattri_and_captum_rank_as_grad_dot_does_in_one_lds_and_one_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("captum", "dattri"):
        pytest.importorskip(package, reason=REASON)
    scores = loaded("with_other_libraries").main(tmp_path)
    ours = scores["grad-dot"]
    for name in ("dattri", "captum"):
        np.testing.assert_allclose(scores[name].values, ours.values, atol=1e-4 * np.abs(ours.values).max())
    assert capsys.readouterr().out.count("10 queries, 20 subsets x 1 seed, margin, alpha 0.5") == 4
    page = (tmp_path / "report.html").read_text()
    assert all(name in page for name in ("captum", "dattri", "grad-dot", "cld"))


@pytest.mark.filterwarnings("ignore")
def test_kronfluence_without_a_hessian_is_grad_dot(run: Run, tmp_path: Path) -> None:
    analyzer = pytest.importorskip("kronfluence.analyzer", reason=REASON)
    from kronfluence.arguments import FactorArguments
    from kronfluence.task import Task

    class Loss(Task):  # type: ignore[misc]
        def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> Any:
            return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")

        def compute_measurement(self, batch: Any, model: Any) -> Any:
            return self.compute_train_loss(batch, model)

    data = run.data()
    train, queries = data.train.subset(run.trace.train_ids[:30]), data.query.subset(data.query.ids[:6])
    sets = [torch.utils.data.TensorDataset(*part.batch(np.arange(len(part)))) for part in (train, queries)]
    made = analyzer.Analyzer(
        "run", analyzer.prepare_model(run.load_model(), Loss()), Loss(), cpu=True, output_dir=str(tmp_path)
    )
    made.fit_all_factors("f", sets[0], factor_args=FactorArguments(strategy="identity"), per_device_batch_size=30)
    made.compute_pairwise_scores("s", "f", sets[1], sets[0], 6, 30)
    theirs = made.load_pairwise_scores("s")["all_modules"]
    named: dict[str, Any] = {"train_ids": train.ids, "query_ids": queries.ids, "method": "kronfluence"}
    scores = Scores.from_arrays(theirs, axes="query train", **named)
    ours = GradDot().fit(run).attribute(queries.ids)
    kept = [ours.train_ids.tolist().index(id_) for id_ in train.ids.tolist()]
    np.testing.assert_allclose(scores.values, ours.values[kept], atol=1e-4 * np.abs(ours.values).max())
    assert torch.equal(torch.from_numpy(scores.as_array(axes="query train")), theirs.float())


@pytest.mark.filterwarnings("ignore")
def test_our_scores_are_quandas_explanations(run: Run) -> None:
    ours = GradDot().fit(run).attribute()
    explanations = torch.from_numpy(ours.as_array(axes="query train"))  # (test, train), positive = helps, as quanda's
    assert explanations.shape == (len(ours.query_ids), len(ours.train_ids))
    best = explanations.argmax(1).numpy()
    assert ours.train_ids[best].tolist() == [int(ours.top(1, query=int(q)).ids[0]) for q in ours.query_ids]
    if importlib.util.find_spec("quanda") is None:
        pytest.skip(f"quanda is not installed; {REASON}")
    from quanda.metrics.heuristics import TopKCardinalityMetric

    metric = TopKCardinalityMetric(run.load_model(), run.data().train, top_k=1)
    metric.update(explanations)
    assert metric.compute()["score"] == pytest.approx(np.unique(best).size / best.size)
