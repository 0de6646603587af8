"""Banks of the user's own training function: what is recorded, refused, resumed and read."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tests.retraining.test_kill import check_ended_like, content
from torch import nn

from comove import OwnTraining, RetrainingBank, Scores
from comove.attribution import Datamodels, LeaveOneOut, SubsampledInfluence
from comove.data import ExampleSet, Splits
from comove.errors import FingerprintError, InputError, InputTypeError, NonFiniteError
from comove.evaluation import bank_lds, subsets
from comove.jobs import Local
from comove.tasks import Classification, Regression, Task

N, Q, C, R = 30, 6, 24, 2
TRAIN, QUERY = 100 + np.arange(N), 900 + np.arange(Q)
INPUTS = np.random.default_rng(0).normal(size=(1000, 4))
WEIGHTS = np.random.default_rng(1).normal(size=4)
PLAN = subsets.random(0.5, C)


def ridge(train_ids: Any, seed: int) -> dict[str, Any]:
    """Ridge regression on noisy targets: squared error of every query, and its prediction."""
    x = INPUTS[train_ids]
    y = x @ WEIGHTS + np.random.default_rng(seed).normal(size=len(x)) / 10
    theta = np.linalg.solve(x.T @ x + np.eye(4), x.T @ y)
    predicted = INPUTS[QUERY] @ theta
    return {"loss": (predicted - INPUTS[QUERY] @ WEIGHTS) ** 2, "value": predicted}


MINE = OwnTraining(ridge, name="ridge-1")


def made(folder: Path, own: OwnTraining = MINE, **changes: Any) -> RetrainingBank:
    asked: dict[str, Any] = {"subsets": PLAN, "seeds": R, "queries": QUERY, **changes}
    return RetrainingBank.create(folder, asked.pop("dataset", TRAIN), own, **asked)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> RetrainingBank:
    """Finished; read only."""
    return made(tmp_path_factory.mktemp("own") / "bank").run(executor="serial")


def scores(seed: int = 0) -> Scores:
    values = np.random.default_rng(seed).normal(size=(N, Q)).astype(np.float32)
    return Scores(values, TRAIN, QUERY, "drawn")


# --- what is recorded ----------------------------------------------------------------------------------------------


def test_each_model_is_the_functions_own_at_its_ids_and_seed(bank: RetrainingBank) -> None:
    for row, seed in ((0, 0), (3, 1), (C - 1, 1)):
        expected = ridge(TRAIN[bank.masks[row]], seed)
        np.testing.assert_array_equal(bank.outputs("loss")[row, seed], expected["loss"])
        np.testing.assert_array_equal(bank.outputs("value")[row, seed], expected["value"])
    assert bank.output_names == ("loss", "value")
    assert (bank.train_labels, bank.query_labels, bank.classes) == (None, None, None)


def test_lds_equals_scipy_and_turns_what_is_better_when_lower(bank: RetrainingBank) -> None:
    given = scores()
    for output, sign in (("loss", -1), ("value", 1)):
        truth = np.stack([[ridge(TRAIN[mask], seed)[output] for seed in range(R)] for mask in bank.masks]).mean(1)
        predicted = bank.masks.astype(float) @ given.values.astype(float)
        expected = [spearmanr(sign * truth[:, q], predicted[:, q]).statistic for q in range(Q)]
        np.testing.assert_allclose(bank.lds(given, output=output).per_query, expected, rtol=0, atol=1e-12)
        assert bank_lds([bank], [given], [output])[0].mean == bank.lds(given, output).mean


def test_higher_says_which_way_is_better(tmp_path: Path, bank: RetrainingBank) -> None:
    turned = made(tmp_path / "turned", OwnTraining(ridge, "ridge-1", higher={"value": False, "loss": True}))
    turned.run(executor="serial")
    for output in ("loss", "value"):
        a, b = bank.lds(scores(), output).per_query, turned.lds(scores(), output).per_query
        np.testing.assert_allclose(a, -b, atol=1e-12)


def test_the_default_output_is_the_only_one_or_the_measure(bank: RetrainingBank, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Say which output is meant \(output=\); there are: loss, value"):
        bank.lds(scores())
    one = made(tmp_path / "one", OwnTraining(lambda ids, seed: {"loss": ridge(ids, seed)["loss"]}, "one"))
    assert one.run(executor="serial").lds(scores()).output == "loss"
    both = made(tmp_path / "both", OwnTraining(lambda ids, seed: {"x": QUERY, "measure": -QUERY + ids[0]}, "both"))
    assert both.run(executor="serial").lds(scores()).output == "measure"
    with pytest.raises(InputError, match=r"no output 'los'. Did you mean 'loss'\? There are: loss, value"):
        bank.lds(scores(), "los")
    with pytest.raises(InputError, match="holds outputs, not logits"):
        bank.logits()


def test_methods_computed_from_banks_work_on_it(bank: RetrainingBank, tmp_path: Path) -> None:
    halves = bank.halves()
    for method in (SubsampledInfluence(output="loss"), Datamodels(output="loss", held_out=0.4)):
        fitted = method.fit(halves[0]).attribute()
        with pytest.raises(InputError, match="was fitted on"):
            halves[0].lds(fitted, "loss")
        assert np.isfinite(halves[1].lds(fitted, "loss").mean)
    one = OwnTraining(lambda ids, seed: {"loss": ridge(ids, seed)["loss"]}, "one")
    left = made(tmp_path, one, subsets=[subsets.leave_one_out(TRAIN[:3]), subsets.everything()], seeds=1)
    left.run(executor="serial")
    effects = LeaveOneOut().fit(left).attribute()  # the only output stands for the margin
    losses = [ridge(TRAIN[mask], 0)["loss"] for mask in left.masks]
    for row, removed in enumerate(TRAIN[:3]):
        others = np.mean([losses[other] for other in range(4) if other != row], 0)
        found = effects.subset(train_ids=[removed]).values[0]
        np.testing.assert_allclose(found, losses[row] - others, rtol=1e-5, atol=1e-7)  # positive: with it, it is lower


class Half(nn.Module):
    """A linear model solved in closed form, returned in training mode."""

    def __init__(self, ids: Any, data: ExampleSet, outputs: int) -> None:
        super().__init__()
        x, y = data.subset(ids).batch(np.arange(len(ids)))
        self.linear = nn.Linear(x.shape[1], outputs).double()
        self.dropout = nn.Dropout(0.9)
        targets = nn.functional.one_hot(y, outputs).double() if outputs > 1 else y.double()[:, None]
        solved = torch.linalg.lstsq(x.double(), targets).solution
        self.linear.weight.data, self.linear.bias.data = solved.T.contiguous(), torch.zeros(outputs).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.linear(self.dropout(x.double()))
        return found


@pytest.mark.parametrize("task", [Classification(), Regression()])
def test_a_module_is_measured_by_the_task_in_evaluation_mode(task: Task, tmp_path: Path) -> None:
    data = ExampleSet.from_arrays(INPUTS[:60].astype(np.float32), np.arange(60) % 3)
    train, queries = data.subset(np.arange(40)), data.subset(np.arange(40, 60))
    outputs = 3 if isinstance(task, Classification) else 1
    own = OwnTraining(lambda ids, seed: Half(ids, data, outputs), "half")
    bank = RetrainingBank.create(tmp_path, train, own, task=task, subsets=PLAN, queries=queries).run(executor="serial")
    model = Half(train.ids[bank.masks[2]], data, outputs).eval()
    x, y = queries.batch(np.arange(20))
    with torch.no_grad():
        logits = model(x)
    np.testing.assert_array_equal(bank.outputs("loss")[2, 0], task.loss(logits, (x, y)))
    np.testing.assert_array_equal(bank.outputs()[2, 0], task.measure(logits, (x, y)))
    if outputs == 3:
        np.testing.assert_array_equal(bank.outputs("predicted")[2, 0], logits.argmax(1))
        np.testing.assert_array_equal(bank.outputs("correct")[2, 0], logits.argmax(1) == y)
        with pytest.raises(InputError, match="measured by one of correct, loss, measure, got 'predicted'"):
            bank.lds(Scores(np.ones((40, 20), np.float32), train.ids, queries.ids, "x"), "predicted")
    else:
        assert bank.output_names == ("loss", "measure")
    assert json.loads((tmp_path / "manifest.json").read_text())["training"]["task"] == task.name
    again = RetrainingBank.load(tmp_path, training=own, task=task, queries=queries)
    assert again.run(executor="serial").pending == []
    with pytest.raises(FingerprintError, match="another set of queries"):
        RetrainingBank.load(tmp_path, training=own, task=task, queries=train)


def test_splits_give_queries_and_labels(small_digits: Splits, tmp_path: Path) -> None:
    def function(ids: Any, seed: int) -> dict[str, Any]:
        return {"correct": np.ones(len(small_digits.query), bool)}

    bank = RetrainingBank.create(tmp_path, small_digits, OwnTraining(function, "ones"), subsets=PLAN)
    bank.run(executor="serial")
    assert bank.query_labels is not None
    np.testing.assert_array_equal(bank.query_labels, small_digits.query.labels)
    assert bank.data_fingerprint == small_digits.fingerprint
    assert (bank.outputs("correct") == 1).all()


# --- where it is trained -------------------------------------------------------------------------------------------


def test_workers_give_the_same_bits_and_merge(bank: RetrainingBank, tmp_path: Path) -> None:
    other = made(tmp_path / "other", subsets=subsets.random(0.5, 4)).run(executor=Local(2))
    np.testing.assert_array_equal(other.outputs("loss"), bank.outputs("loss")[:4])
    target = made(tmp_path / "target")
    assert target.merge(other) == 4 * R
    assert target.run(executor="serial").pending == []
    np.testing.assert_array_equal(target.outputs("value"), bank.outputs("value"))
    named = made(tmp_path / "named", OwnTraining(lambda ids, seed: {"x": QUERY}, "ridge-1")).run(executor="serial")
    with pytest.raises(InputError, match=r"hold x, those in .* hold loss, value"):
        target.merge(named)


def test_a_scheduler_of_ones_own_gives_the_same_files(bank: RetrainingBank, tmp_path: Path) -> None:
    other = made(tmp_path / "other")
    jobs = json.loads(json.dumps(other.pending_jobs()))
    assert [(job["subset"], job["seed"]) for job in jobs] == other.jobs
    assert other.pending_jobs(3) == jobs[:3]
    for job in reversed(jobs):
        outputs = ridge(np.array(job["train_ids"]), job["seed"])
        plain = {name: values.tolist() for name, values in outputs.items()}
        RetrainingBank.load(other.path).record(job, plain)  # from anywhere: no function is needed
    assert other.pending_jobs() == []
    left, right = content(bank.path), content(other.path)
    assert left == right


def test_subsets_that_coincide_are_one_job(tmp_path: Path) -> None:
    twice = made(tmp_path, subsets=[subsets.without([TRAIN[:1], TRAIN[:1]]), subsets.leave_one_out(TRAIN[:1])], seeds=1)
    assert len(twice.jobs) == 3
    (job,) = twice.pending_jobs()
    twice.record(job["id"], ridge(np.array(job["train_ids"]), 0))
    assert twice.pending == []


RUN = """
import sys
import numpy as np
from comove import OwnTraining, RetrainingBank
from comove.evaluation import subsets

def function(train_ids, seed):
    noise = np.random.default_rng([seed, *train_ids.tolist()])
    return {"loss": noise.random(5), "measure": noise.random(5).astype(np.float32)}

bank = RetrainingBank.create(
    sys.argv[1],
    range(20),
    OwnTraining(function, "noise"),
    subsets=subsets.random(0.5, 12),
    seeds=2,
    queries=range(50, 55),
)
if sys.argv[2] == "run":
    bank.run(executor="serial")
else:
    for job in bank.pending_jobs():
        bank.record(job, function(np.array(job["train_ids"]), job["seed"]))
"""


@pytest.mark.parametrize("how", ["run", "record"])
def test_ten_kills_at_random_moments_lose_nothing(how: str, warm: Any, tmp_path: Path) -> None:
    warm.run(RUN, tmp_path / "whole", how)
    expected = content(tmp_path / "whole")
    started = time.monotonic()
    warm.run(RUN, tmp_path / "timed", how)
    whole = time.monotonic() - started
    moments, kills, banks = random.Random(0), 0, 0
    while kills < 10:
        folder, code = tmp_path / f"killed-{banks}", None
        while code != 0:
            warm.start(RUN, folder, how)
            time.sleep(moments.uniform(0, 0.8 * whole))
            code = warm.kill()
            assert code in (0, -9), warm.output.read_text()
            kills += code == -9
        check_ended_like(folder, expected)
        banks += 1


def test_several_processes_record_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, json\nimport numpy as np\nfrom comove import RetrainingBank\n"
        "bank = RetrainingBank.load(sys.argv[1])\n"
        "for job in bank.pending_jobs()[int(sys.argv[2])::2]:\n"
        "    bank.record(job, {'loss': np.arange(6.0) + job['seed']})\n"
    )
    bank = made(tmp_path)
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(i)]) for i in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    bank = RetrainingBank.load(tmp_path)
    while jobs := bank.pending_jobs():
        bank.record(jobs[0], {"loss": np.arange(6.0) + jobs[0]["seed"]})
    np.testing.assert_array_equal(bank.outputs()[3, 1], np.arange(6.0) + 1)


def test_damaged_results_are_set_aside_and_redone(bank: RetrainingBank, tmp_path: Path) -> None:
    other = made(tmp_path).run(executor="serial")
    for file in sorted((tmp_path / "results").glob("*.safetensors"))[:2]:
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(bytes(data))
    with pytest.warns(UserWarning, match="2 results in .* were damaged"):
        jobs = other.pending_jobs()
    assert len(jobs) == 2
    assert len(list(tmp_path.rglob("*.damaged"))) == 2
    other.run(executor="serial")
    np.testing.assert_array_equal(other.outputs("loss"), bank.outputs("loss"))


def test_a_compact_file_keeps_every_bit_and_a_bank_grows(bank: RetrainingBank, tmp_path: Path) -> None:
    compact = RetrainingBank.load(bank.compact(tmp_path / "bank.safetensors"))
    for output in bank.output_names:
        np.testing.assert_array_equal(compact.outputs(output), bank.outputs(output))
    assert compact.output_names == bank.output_names
    half = RetrainingBank.load(bank.compact(tmp_path / "half.safetensors", "float16"))
    np.testing.assert_array_equal(half.outputs("loss"), bank.outputs("loss").astype(np.float16))
    with pytest.raises(InputError, match="imported or compact bank, to be read only"):
        compact.pending_jobs()
    continued = made(tmp_path / "continued")
    assert continued.merge(compact) == 2 * C
    assert continued.pending == []
    for output in bank.output_names:
        np.testing.assert_array_equal(continued.outputs(output), bank.outputs(output))
    made(tmp_path / "grows", seeds=1).run(executor="serial")
    more = made(tmp_path / "grows", subsets=subsets.random(0.5, C + 2))
    assert len(more.pending) == 2 * (C + 2) - C
    assert f"{2 * (C + 2)} models trained" in str(RetrainingBank.load(more.run(executor="serial").path).status())
    np.testing.assert_array_equal(more.at(0.5).part([0, 1]).outputs("loss"), bank.part([0, 1]).outputs("loss"))


# --- what is refused -----------------------------------------------------------------------------------------------


def test_another_name_is_another_bank(bank: RetrainingBank, tmp_path: Path, small_digits: Splits) -> None:
    mine = made(tmp_path / "bank")
    renamed = OwnTraining(ridge, name="ridge-2")
    with pytest.raises(FingerprintError, match=r"training.name was ridge-1, now ridge-2"):
        made(mine.path, renamed)
    with pytest.raises(FingerprintError, match="name 'ridge-1' there, 'ridge-2' here"):
        RetrainingBank.load(mine.path, training=renamed)
    with pytest.raises(FingerprintError, match="task None there, 'Regression"):
        RetrainingBank.load(mine.path, training=MINE, task=Regression())
    with pytest.raises(FingerprintError):
        RetrainingBank.create(mine.path, small_digits, "mlp", subsets=PLAN)
    assert RetrainingBank.load(mine.path, training=MINE).run(executor="serial").pending == []
    with pytest.raises(InputError, match="trained by a function of your own, 'ridge-1'"):
        RetrainingBank.load(made(tmp_path / "other").path).run()
    text = "".join(file.read_text(errors="replace") for file in mine.path.rglob("*") if file.is_file())
    assert "def ridge" not in text
    assert "test_own" not in json.loads((mine.path / "manifest.json").read_text())["training"]["name"]


def refused(own: Callable[..., Any], words: str, kind: type[Exception], folder: Path) -> None:
    with pytest.raises(kind, match=words):
        made(folder, OwnTraining(own, "bad")).run(executor="serial")
    assert not list((folder / "results").glob("*.safetensors"))


@pytest.mark.parametrize(
    ("outputs", "words", "kind"),
    [
        ({"loss": np.ones(Q + 1)}, r"'loss' must be one number per query, \(6,\), got shape \(7,\)", InputError),
        ({"loss": np.ones((Q, 1))}, r"got shape \(6, 1\)", InputError),
        ({"loss": np.full(Q, np.nan)}, "'loss' is NaN or infinite for 6 of 6", NonFiniteError),
        ({"loss": np.array([1, 2, np.inf, 4, 5, 6])}, r"at positions 2: the model may", NonFiniteError),
        ({"loss": np.array(list("abcdef"))}, "must be real numbers", InputTypeError),
        ({"loss": np.ones(Q, complex)}, "must be real numbers", InputTypeError),
        ({}, "named by strings, as 'loss'; got none", InputTypeError),
        ({3: np.ones(Q)}, "named by strings", InputTypeError),
        (np.ones(Q), "an nn.Module, or a mapping of names", InputTypeError),
        (None, "got NoneType", InputTypeError),
    ],
)
def test_what_is_no_output_is_refused(outputs: Any, words: str, kind: type[Exception], tmp_path: Path) -> None:
    refused(lambda ids, seed: outputs, words, kind, tmp_path / "run")
    bank = made(tmp_path / "record")
    with pytest.raises(kind, match=words):
        bank.record(bank.pending_jobs()[0], outputs)
    assert len(bank.pending) == C * R


def test_a_function_that_raises_is_named(tmp_path: Path) -> None:
    def fails(ids: Any, seed: int) -> dict[str, Any]:
        raise KeyError(int(ids[0]))

    refused(fails, r"The training function 'bad' raised KeyError for 15 ids and seed 0: 1\d\d", InputError, tmp_path)


def test_a_module_needs_queries_that_are_examples(tmp_path: Path) -> None:
    refused(lambda ids, seed: nn.Linear(1, 1), "knows its queries by their ids alone", InputError, tmp_path)


def test_other_names_than_the_first_models_are_refused(tmp_path: Path) -> None:
    bank = made(tmp_path / "first")
    first, second = bank.pending_jobs(2)
    bank.record(first, {"loss": np.ones(Q)})
    cases: list[Mapping[str, Any]] = [{"los": np.ones(Q)}, {"loss": np.ones(Q), "more": np.ones(Q)}]
    for found, words in zip(cases, ("loss is missing, los is unexpected", "more is unexpected"), strict=True):
        with pytest.raises(InputError, match=words):
            bank.record(second, found)
    declared = made(tmp_path / "declared", OwnTraining(ridge, "ridge-1", outputs=("loss", "value")))
    with pytest.raises(InputError, match="value is missing"):
        declared.record(declared.pending_jobs()[0], {"loss": np.ones(Q)})


def test_a_job_is_known_by_its_bank_and_its_ids(tmp_path: Path, bank: RetrainingBank) -> None:
    mine, other = made(tmp_path / "mine"), made(tmp_path / "other", OwnTraining(ridge, "ridge-2"))
    job, outputs = mine.pending_jobs()[0], {"loss": np.ones(Q)}
    bad: list[tuple[Any, str]] = [
        (other.pending_jobs()[0], "of another bank"),
        ({**job, "train_ids": job["train_ids"][1:]}, "seed or train_ids have changed"),
        ({**job, "seed": 1}, "seed or train_ids have changed"),
        (job["id"][:-1] + "7", "asks for no such model"),
        ("nothing", "is no job of a bank"),
    ]
    for given, words in bad:
        with pytest.raises(InputError, match=words):
            mine.record(given, outputs)
    with pytest.raises(InputTypeError, match="A job is one of"):
        mine.record(3, outputs)  # type: ignore[arg-type]
    assert len(mine.pending) == C * R


def test_recording_again_must_give_the_same(tmp_path: Path) -> None:
    bank = made(tmp_path)
    job = bank.pending_jobs()[0]
    bank.record(job, {"loss": np.arange(Q), "x": np.zeros(Q, np.float32)})
    bank.record(job, {"x": np.zeros(Q), "loss": np.arange(Q)})
    with pytest.raises(InputError, match=r"recorded already, with other numbers of x: .* is not deterministic"):
        bank.record(job, {"loss": np.arange(Q), "x": np.ones(Q)})
    np.testing.assert_array_equal(bank.outputs("x")[0, 0], np.zeros(Q))


def test_what_is_not_deterministic_is_found_on_request(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0)
    bank = made(tmp_path, OwnTraining(lambda ids, seed: {"loss": drawn.random(Q), "one": QUERY}, "drawn"))
    with pytest.raises(InputError, match=r"not deterministic: trained twice on subset 0 with seed 0, .* of loss\."):
        bank.run(executor="serial", check=True)
    assert len(bank.pending) == C * R
    made(tmp_path / "fine").run(executor="serial", check=True)


def test_bad_arguments_are_refused(tmp_path: Path, small_bank: RetrainingBank, small_digits: Splits) -> None:
    with pytest.raises(InputTypeError, match="function must be a function"):
        OwnTraining("mlp", "x")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="1 to 100 characters"):
        OwnTraining(ridge, "")
    with pytest.raises(InputTypeError, match="higher must be a mapping"):
        OwnTraining(ridge, "x", higher={"loss": "no"})  # type: ignore[dict-item]
    with pytest.raises(InputError, match="Pass the queries too"):
        made(tmp_path / "a", queries=None)
    with pytest.raises(InputError, match="an own training has none of them"):
        made(tmp_path / "b", keep_weights=True)
    with pytest.raises(InputError, match="comove's own loop trains classifiers"):
        RetrainingBank.create(tmp_path / "c", small_digits, "mlp", subsets=PLAN, task=Regression())
    with pytest.raises(InputError, match="trained by comove itself"):
        small_bank.pending_jobs()
    with pytest.raises(FingerprintError, match=r"trained by comove \(mlp\)"):
        RetrainingBank.load(small_bank.path, training=MINE)
    assert not any((tmp_path / name).exists() for name in "abc")
