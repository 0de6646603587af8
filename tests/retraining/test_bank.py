"""The retraining bank: what a model depends on, what a bank is, and what extends it; matched by ids."""

from __future__ import annotations

import dataclasses
import json
import pickle
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.calls import grouped
from torch import nn

from comove.attribution import Scores
from comove.data import ExampleSet, Splits
from comove.errors import CorruptFileError, FingerprintError, InputError, NonFiniteError
from comove.evaluation import RetrainingBank, linear_datamodeling_score, output_of, subsets
from comove.jobs import Executor, Serial
from comove.jobs.base import Work
from comove.models import ModelSpec
from comove.training import Engine, Recipe, fit, predict, train_many
from comove.training.randomness import derived_seed

RECIPE = Recipe(epochs=2, batch_size=32, lr=0.05)
PLAN = subsets.random(0.5, 5, seed=1)
ONE = Engine("one-by-one", 1, "for a test")
"""Named where models are compared with such as ``fit`` trains."""


def create(folder: Path, data: Splits, **changes: object) -> RetrainingBank:
    plain: dict[str, object] = {"model": "mlp", "recipe": RECIPE, "subsets": PLAN, "seeds": 2}
    return RetrainingBank.create(folder, data, **grouped({**plain, **changes}))


def results_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    """The bytes and time of writing of every result."""
    files = sorted((folder / "results").glob("*.safetensors"))
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def file_of(bank: RetrainingBank, subset: int, seed: int) -> Path:
    return bank.path / "results" / f"{bank.digests[subset]}-{seed:03d}.safetensors"


class Watching(Executor):
    """Runs jobs here and remembers what they were."""

    def __init__(self) -> None:
        self.jobs: list[Any] = []

    def results(self, work: Work) -> Any:
        self.jobs += list(work.jobs)
        yield from Serial().results(work)

    def session(self) -> Any:
        return nullcontext()


@pytest.fixture(scope="module")
def bank(small_digits: Splits, tmp_path_factory: pytest.TempPathFactory) -> RetrainingBank:
    """Five halves x two seeds, finished; read only."""
    return create(tmp_path_factory.mktemp("bank") / "bank", small_digits).run(engine=ONE)


def shuffled_scores(bank: RetrainingBank, seed: int = 0) -> Scores:
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(bank.train_ids.size), rng.permutation(bank.query_ids.size)
    values = rng.normal(size=(rows.size, columns.size)).astype(np.float32)
    return Scores(values, bank.train_ids[rows], bank.query_ids[columns], "shuffled")


# --- what a model depends on --------------------------------------------------------------------------------------


def test_masks_hold_exactly_half_and_name_ids(bank: RetrainingBank, small_digits: Splits) -> None:
    np.testing.assert_array_equal(bank.masks, PLAN.masks(200))
    assert (bank.masks.sum(1) == 100).all()
    np.testing.assert_array_equal(bank.train_ids, small_digits.train.ids)
    np.testing.assert_array_equal(bank.query_ids, small_digits.query.ids)
    np.testing.assert_array_equal(bank.query_labels, small_digits.query.labels)


def test_each_model_is_trained_from_its_own_seed_on_its_own_subset(bank: RetrainingBank, small_digits: Splits) -> None:
    spec = ModelSpec.of("mlp", num_classes=10, input_shape=(1, 8, 8))
    for subset, number in ((0, 0), (3, 1)):
        seed = derived_seed(0, "bank", int(bank.digests[subset][:15], 16), number)
        model = spec.build(seed)
        fit(model, small_digits.train.subset(bank.train_ids[bank.masks[subset]]), RECIPE, seed=seed)
        expected = predict(model, small_digits.query).numpy()
        np.testing.assert_allclose(bank.logits()[subset, number], expected, rtol=1e-5, atol=1e-6)


def test_any_subset_of_jobs_trained_first_gives_the_same_logits(
    bank: RetrainingBank, small_digits: Splits, tmp_path: Path
) -> None:
    other = create(tmp_path / "bank", small_digits).run(engine=ONE)
    for subset, seed in ((4, 1), (0, 0), (2, 0)):
        file_of(other, subset, seed).unlink()
    assert other.pending == [(0, 0), (2, 0), (4, 1)]
    other.run()
    assert other.pending == []
    np.testing.assert_array_equal(other.logits(), bank.logits())


def test_how_jobs_are_grouped_does_not_change_a_bit(small_digits: Splits, tmp_path: Path) -> None:
    engine = Engine("stacked", 4, "for a test")
    whole, parts = (create(tmp_path / name, small_digits) for name in ("whole", "parts"))
    whole.run(engine=engine)
    parts.part([3, 1]).run(engine=engine)
    parts.part([4]).run()
    parts.run()
    np.testing.assert_array_equal(parts.logits(), whole.logits())


def test_jobs_hold_models_of_one_size_seed_by_seed(small_digits: Splits, tmp_path: Path) -> None:
    plans = [subsets.random(0.5, 3), subsets.random(0.25, 2), subsets.everything()]
    made = create(tmp_path / "bank", small_digits, subsets=plans, seeds=2)
    watching = Watching()
    made.run(executor=watching, engine=Engine("stacked", 4, "for a test"))
    sizes = made.masks.sum(1)
    named = [[(int(sizes[subset]), seed) for subset, seed in job] for job in watching.jobs]
    assert named == [
        [(100, 0), (100, 0), (100, 0), (100, 1)],
        [(50, 0), (50, 0), (50, 1), (50, 1)],
        [(200, 0), (200, 1)],
        [(100, 1), (100, 1)],
    ]
    assert made.pending == []


def test_all_seeds_and_subsets_differ(bank: RetrainingBank) -> None:
    flat = bank.logits().reshape(10, -1)
    assert np.unique(flat, axis=0).shape[0] == 10


def test_another_seed_gives_another_bank(bank: RetrainingBank, small_digits: Splits, tmp_path: Path) -> None:
    other = create(tmp_path / "bank", small_digits, seed=1, seeds=1).run(engine=ONE)
    assert not (other.logits()[:, 0] == bank.logits()[:, 0]).any()


def test_some_queries_only(bank: RetrainingBank, small_digits: Splits, tmp_path: Path) -> None:
    ids = small_digits.query.ids[[7, 3]]
    some = create(tmp_path / "bank", small_digits, queries=ids, seeds=1).run(engine=ONE)
    np.testing.assert_array_equal(some.query_ids, ids)
    np.testing.assert_allclose(some.logits()[:, 0], bank.logits()[:, 0][:, [7, 3]], rtol=1e-5, atol=1e-6)


def test_a_finished_bank_trains_nothing(bank: RetrainingBank) -> None:
    before = results_of(bank.path)
    bank.run()
    RetrainingBank.load(bank.path).run()
    assert results_of(bank.path) == before


def test_a_diverging_model_is_an_error_that_keeps_what_was_finished(
    small_digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = create(tmp_path / "bank", small_digits)
    calls: list[Any] = []

    def second_group_diverges(*args: Any, **options: Any) -> Any:
        calls.append(train_many(*args, **options))
        if len(calls) == 2:
            calls[-1][1].logits[3, 2] = np.inf
        return calls[-1]

    monkeypatch.setattr("comove.retraining.training.train_many", second_group_diverges)
    with pytest.raises(
        NonFiniteError, match=r"of subset 4 \(random-0\.5-1\), seed 0 diverged .* lower the learning rate"
    ):
        other.run(executor="serial", engine=Engine("stacked", 3, "for a test"))
    assert other.pending == [(4, 0), (1, 1), (2, 1), (3, 1), (4, 1)]  # its neighbours in the group are kept
    assert np.isfinite(other.run().logits()).all()


# --- what extends a bank ------------------------------------------------------------------------------------------


def test_more_subsets_and_seeds_extend_a_bank_and_leave_what_is_there(small_digits: Splits, tmp_path: Path) -> None:
    folder = tmp_path / "bank"
    small = create(folder, small_digits).run()
    before = results_of(folder)
    larger = create(folder, small_digits, subsets=subsets.random(0.5, 6, seed=1), seeds=3)
    assert larger.pending == [(5, 0), (5, 1), *((subset, 2) for subset in range(6))]
    larger.run()
    after = results_of(folder)
    assert len(after) == 18
    assert {name: after[name] for name in before} == before  # not even written again
    np.testing.assert_array_equal(larger.logits()[:5, :2], small.logits())


def test_less_is_a_view_and_takes_nothing_away(small_digits: Splits, tmp_path: Path) -> None:
    folder = tmp_path / "bank"
    whole = create(folder, small_digits).run()
    few = create(folder, small_digits, subsets=subsets.random(0.5, 2, seed=1), seeds=1)
    assert (few.masks.shape, few.seeds, few.pending) == ((2, 200), 1, [])
    np.testing.assert_array_equal(few.logits(), whole.logits()[:2, :1])
    everything = RetrainingBank.load(folder)
    assert (everything.masks.shape, everything.seeds, len(everything.jobs)) == ((5, 200), 2, 10)


def test_load_asks_for_what_was_asked_for_and_no_more(small_digits: Splits, tmp_path: Path) -> None:
    create(tmp_path, small_digits, subsets=subsets.random(0.5, 4), seeds=1)
    create(tmp_path, small_digits, subsets=subsets.random(0.5, 2), seeds=3)
    found = RetrainingBank.load(tmp_path).run()
    assert found.jobs == [(0, 0), (1, 0), (2, 0), (3, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    assert found.pending == []
    np.testing.assert_array_equal(np.isnan(found.outputs()).all(-1), [[0, 0, 0]] * 2 + [[0, 1, 1]] * 2)


def test_another_alpha_is_another_plan_of_the_same_bank(small_digits: Splits, tmp_path: Path) -> None:
    first = create(tmp_path, small_digits, seeds=1).run(engine=ONE)
    before = results_of(tmp_path)
    both = create(tmp_path, small_digits, subsets=[PLAN, subsets.random(0.3, 2)], seeds=1).run()
    assert (both.plans, both.alphas, both.masks.shape) == (("random-0.5-1", "random-0.3-0"), (0.5, 0.3), (7, 200))
    np.testing.assert_array_equal(both.at(0.5).logits(), first.logits())
    assert both.at(0.3).masks.sum(1).tolist() == [60, 60]
    assert both.at(0.3).plans == ("random-0.3-0",)
    np.testing.assert_array_equal(both.plan("random-0.3-0").digests, both.digests[5:])
    np.testing.assert_array_equal(both.plan(PLAN).masks, both.masks[:5])
    after = results_of(tmp_path)
    assert {name: after[name] for name in before} == before
    assert sorted(RetrainingBank.load(tmp_path).plans) == ["random-0.3-0", "random-0.5-1"]
    assert create(tmp_path, small_digits, seeds=1).plans == ("random-0.5-1",)
    with pytest.raises(InputError, match=r"no random subsets with alpha 0\.7; it has 0\.5, 0\.3"):
        both.at(0.7)
    with pytest.raises(InputError, match=r"no plan 'everything'; it has random-0\.5-1, random-0\.3-0"):
        both.plan(subsets.everything())


def test_coinciding_subsets_are_trained_once(small_digits: Splits, tmp_path: Path) -> None:
    a, b = small_digits.train.ids[[3, 8]].tolist()
    plans = [subsets.leave_one_out([a, b]), subsets.without([[b], [a, b], [b]]), subsets.without([[]])]
    made = create(tmp_path, small_digits, subsets=[*plans, subsets.everything()], seeds=2)
    assert (made.masks.shape, len(made.jobs)) == ((7, 200), 14)
    assert "0 of 14 models trained" in repr(made)
    made.run()
    assert len(results_of(tmp_path)) == 4 * 2
    logits = made.logits()
    for same in ((1, 2, 4), (5, 6)):
        for subset in same:
            np.testing.assert_array_equal(logits[subset], logits[same[0]])
    assert np.unique(logits[:, 0].reshape(7, -1), axis=0).shape[0] == 4
    assert made.status().done == made.status().total == 8
    assert [plan.total for plan in made.status().plans] == [4, 6, 2, 2]


def test_removals_of_two_methods_share_what_they_agree_on(
    bank: RetrainingBank, small_digits: Splits, tmp_path: Path
) -> None:
    scores = shuffled_scores(bank)
    changed = scores.values.copy()
    changed[:, scores.query_ids.tolist().index(int(bank.query_ids[1]))] *= -1
    other = Scores(changed, scores.train_ids, scores.query_ids, "other")
    plans = [subsets.removals(item, [1, 3], bank.query_ids[:2]) for item in (scores, other)]
    made = create(tmp_path, small_digits, subsets=plans, seeds=1)
    assert len(set(made.plan(plans[0]).digests) & set(made.plan(plans[1]).digests)) == 2  # query 0; query 1 is reversed
    assert made.status().total == 6


def test_weights_are_kept_where_asked_for(small_digits: Splits, tmp_path: Path) -> None:
    create(tmp_path, small_digits, seeds=1).run(engine=ONE)
    without = RetrainingBank.load(tmp_path).logits()
    kept = create(tmp_path, small_digits, subsets=subsets.random(0.5, 2, seed=1), seeds=1, keep_weights=True)
    assert kept.pending == [(0, 0), (1, 0)]  # trained without them, and trained again
    with pytest.raises(InputError, match="no weights of subset 1, seed 0: create the bank with keep_weights=True"):
        kept.weights(1, 0)
    kept.run()
    np.testing.assert_array_equal(kept.logits(), without[:2])
    model = ModelSpec.from_json(kept.manifest["model"]).build(0)
    model.load_state_dict(kept.weights(1, 0))
    np.testing.assert_allclose(predict(model.eval(), small_digits.query).numpy(), without[1, 0], rtol=1e-5, atol=1e-6)
    assert create(tmp_path, small_digits, seeds=1).pending == []  # does not ask for weights
    assert RetrainingBank.load(tmp_path).pending == [(2, 0), (3, 0), (4, 0)]  # the plan does


# --- unfinished ---------------------------------------------------------------------------------------------------


def test_pending_models_are_nan_and_only_they(small_digits: Splits, bank: RetrainingBank, tmp_path: Path) -> None:
    other = create(tmp_path / "bank", small_digits).run()
    file_of(other, 1, 0).unlink()
    for kind in ("margin", "correct", "loss", "probability", "predicted"):
        values = other.outputs(kind)
        assert values.shape == (5, 2, 40)
        assert np.argwhere(np.isnan(values).all(-1)).tolist() == [[1, 0]]
        assert np.isnan(values).sum() == 40
    with pytest.raises(NonFiniteError, match=r"1 of 10 models are NaN for every query \(subset 1 seed 0\)"):
        other.lds(shuffled_scores(other))
    assert "9 of 10 models trained" in repr(other)


def test_outputs_are_those_of_the_logits(bank: RetrainingBank) -> None:
    for kind in ("margin", "correct", "loss", "probability", "predicted"):
        assert bank.query_labels is not None
        np.testing.assert_array_equal(bank.outputs(kind), output_of(bank.logits(), bank.query_labels, kind))
    with pytest.raises(InputError, match="Unknown output 'margins'"):
        bank.outputs("margins")


def test_an_empty_bank_is_all_pending(small_digits: Splits, tmp_path: Path) -> None:
    planned = create(tmp_path / "bank", small_digits)
    assert planned.pending == planned.jobs
    assert len(planned.jobs) == 10
    assert np.isnan(planned.logits()).all()


@pytest.mark.parametrize("missing", [["examples.safetensors"], ["plans", "results", "examples.safetensors"], ["plans"]])
def test_a_bank_interrupted_while_it_was_made_is_completed(
    missing: list[str], small_digits: Splits, bank: RetrainingBank, tmp_path: Path
) -> None:
    planned = create(tmp_path, small_digits)
    for name in missing:
        for file in [*tmp_path.glob(f"{name}/*"), tmp_path / name]:
            file.rmdir() if file.is_dir() else file.unlink()
    with pytest.raises(CorruptFileError, match=r"does not exist|bank without plans"):
        RetrainingBank.load(tmp_path)
    assert create(tmp_path, small_digits).pending == planned.jobs
    found = RetrainingBank.load(tmp_path)
    np.testing.assert_array_equal(found.masks, planned.masks)
    np.testing.assert_array_equal(found.train_labels, small_digits.train.labels)


# --- what belongs to a bank ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": dataclasses.replace(RECIPE, lr=0.1)}, r"recipe\.lr was 0\.05, now 0\.1"),
        ({"seed": 1}, r"seed was 0, now 1"),
        ({"model_options": {"hidden": [8]}}, r"model\.options was .* now \{'hidden': \[8\]\}"),
    ],
)
def test_another_bank_in_the_folder_is_refused_and_says_what_differs(
    changes: dict[str, object], message: str, bank: RetrainingBank, small_digits: Splits
) -> None:
    with pytest.raises(FingerprintError, match=message):
        create(bank.path, small_digits, **changes)


def test_other_data_are_refused(bank: RetrainingBank, digits: Splits) -> None:
    with pytest.raises(FingerprintError, match="another data set"):
        RetrainingBank.load(bank.path, dataset=digits)


def test_what_is_no_bank_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match="is not a folder"):
        RetrainingBank.load(tmp_path / "none")


def test_a_bank_of_the_older_format_is_refused(small_digits: Splits, tmp_path: Path) -> None:
    made = create(tmp_path, small_digits)
    content = json.loads((made.path / "manifest.json").read_text())
    del content["checksum"]  # which it had not in those days
    (made.path / "manifest.json").write_text(json.dumps({**content, "format_version": 1}))
    older = r"made by an older comove \(format 1, now 2\).*make it again"
    with pytest.raises(CorruptFileError, match=older):
        RetrainingBank.load(tmp_path)
    with pytest.raises(CorruptFileError, match=older):
        create(tmp_path, small_digits)


def test_a_plan_that_names_other_subsets_is_refused(small_digits: Splits, tmp_path: Path) -> None:
    class Other:
        name = PLAN.name

        def masks_for(self, train_ids: Any) -> Any:
            return PLAN.masks_for(train_ids)[::-1]

        def to_json(self) -> dict[str, Any]:
            return {"kind": "own"}

    create(tmp_path, small_digits)
    with pytest.raises(FingerprintError, match="holds other subsets than this plan of the same name"):
        create(tmp_path, small_digits, subsets=Other())


def test_no_plan_is_refused_before_the_folder_is_taken(small_digits: Splits, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one plan"):
        create(tmp_path / "bank", small_digits, subsets=[])
    with pytest.raises(InputError, match="gives subsets of 1"):
        create(tmp_path / "bank", small_digits, subsets=[PLAN, subsets.random(0.005, 3)])
    assert not (tmp_path / "bank").exists()


def test_no_seed_is_refused(small_digits: Splits, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="seeds must be a whole number from 1 on, got 0"):
        create(tmp_path / "bank", small_digits, seeds=0)


def test_a_negative_seed_and_an_unknown_device_are_refused(small_digits: Splits, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="seed must be a whole number"):
        create(tmp_path / "bank", small_digits, seed=-1)
    with pytest.raises(InputError, match="Unknown device 'gpu'"):
        create(tmp_path / "bank", small_digits).run(device="gpu")


def linear(*, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """A user's own factory."""
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(input_shape)), num_classes))


def test_own_data_and_an_own_factory_must_be_passed_again(images: ExampleSet, tmp_path: Path) -> None:
    import comove

    own = comove.split(images, validation=0.1, query=0.2)
    made = create(tmp_path / "bank", own, model=linear, subsets=subsets.random(0.5, 2), seeds=1)
    with pytest.raises(InputError, match=r"data of your own .*pass it again as dataset="):
        RetrainingBank.load(made.path).run()
    with pytest.raises(InputError, match="pass the factory again"):
        RetrainingBank.load(made.path, dataset=own).run()
    assert np.isfinite(RetrainingBank.load(made.path, dataset=own, model=linear).run().logits()).all()


def test_an_own_factory_may_be_named(images: ExampleSet, tmp_path: Path) -> None:
    import comove

    own = comove.split(images, validation=0.1, query=0.2)
    named = f"{linear.__module__}:linear"
    by_name, by_itself = (
        create(tmp_path / folder, own, model=model, subsets=subsets.random(0.5, 2), seeds=1).run(engine=ONE)
        for folder, model in (("named", named), ("itself", linear))
    )
    np.testing.assert_array_equal(by_name.logits(), by_itself.logits())
    assert RetrainingBank.load(by_name.path, dataset=own, model=named).run().pending == []


# --- LDS against the bank -----------------------------------------------------------------------------------------


def test_lds_matches_scores_by_ids_whatever_their_order(bank: RetrainingBank) -> None:
    scores = shuffled_scores(bank)
    rows = [scores.train_ids.tolist().index(id_) for id_ in bank.train_ids]
    columns = [scores.query_ids.tolist().index(id_) for id_ in bank.query_ids]
    expected = linear_datamodeling_score(scores.values[rows][:, columns], bank.masks, bank.outputs("margin"))
    found = bank.lds(scores)
    np.testing.assert_allclose(found.per_query, expected.per_query, equal_nan=True)
    np.testing.assert_array_equal(found.query_ids, bank.query_ids)
    assert (found.method, found.subsets, found.seeds) == ("shuffled", 5, 2)
    by_position = linear_datamodeling_score(scores.values, bank.masks, bank.outputs("margin"))
    assert not np.allclose(by_position.per_query, expected.per_query)


def test_the_sign_of_the_loss_is_turned(bank: RetrainingBank) -> None:
    scores = shuffled_scores(bank)
    matched = scores.subset(train_ids=bank.train_ids, query_ids=bank.query_ids)
    expected = linear_datamodeling_score(matched, bank.masks, -bank.outputs("loss"))
    np.testing.assert_array_equal(bank.lds(scores, "loss").per_query, expected.per_query)
    np.testing.assert_array_equal(bank.lds(scores, "margin").per_query.shape, (40,))


def test_a_method_that_helps_the_margin_helps_by_every_output(small_digits: Splits, bank: RetrainingBank) -> None:
    labels = dict(zip(small_digits.train.ids.tolist(), small_digits.train.labels.tolist(), strict=True))
    same = np.array([labels[id_] for id_ in bank.train_ids])[:, None] == bank.query_labels
    noise = 1e-3 * np.random.default_rng(0).random(same.shape)
    scores = Scores((same + noise).astype(np.float32), bank.train_ids, bank.query_ids, "same class")
    for output in ("margin", "probability", "loss"):
        assert bank.lds(scores, output).mean > 0


def test_scores_that_lack_ids_or_have_others_are_refused(bank: RetrainingBank) -> None:
    scores = shuffled_scores(bank)
    with pytest.raises(InputError, match="Unknown train ids"):
        bank.lds(scores.subset(train_ids=scores.train_ids[1:]))
    with pytest.raises(InputError, match="Unknown query ids"):
        bank.lds(scores.subset(query_ids=scores.query_ids[1:]))
    more = Scores(np.zeros((201, 40), np.float32), np.append(scores.train_ids, -1), scores.query_ids, "more")
    with pytest.raises(InputError, match="201 training ids, the bank 200"):
        bank.lds(more)


def test_a_predicted_class_is_nothing_to_hold_scores_to(bank: RetrainingBank) -> None:
    with pytest.raises(InputError, match="got 'predicted'"):
        bank.lds(shuffled_scores(bank), "predicted")


def test_other_queries_make_another_bank(bank: RetrainingBank, small_digits: Splits) -> None:
    with pytest.raises(FingerprintError, match="query_ids was 40 values, now 3"):
        create(bank.path, small_digits, queries=small_digits.query.ids[:3])


def test_workers_are_sent_all_they_need(bank: RetrainingBank, small_digits: Splits, tmp_path: Path) -> None:
    class Posting(Executor):
        """Sends everything through the post, as to another machine."""

        def results(self, work: Work) -> Any:
            setup, payload = pickle.loads(pickle.dumps((work.setup, work.payload)))  # noqa: S301  # our own
            do = setup(payload)
            for index, job in enumerate(work.jobs):
                yield index, pickle.loads(pickle.dumps(do(pickle.loads(pickle.dumps(job)))))  # noqa: S301

        def session(self) -> Any:
            return nullcontext()

    posted = create(tmp_path, small_digits, keep_weights=True).run(executor=Posting(), engine=ONE)
    np.testing.assert_array_equal(posted.logits(), bank.logits())
    assert posted.weights(4, 1).keys() == ModelSpec.from_json(bank.manifest["model"]).build(0).state_dict().keys()


def test_subsets_that_coincide_may_be_asked_for_different_numbers_of_seeds(
    small_digits: Splits, tmp_path: Path
) -> None:
    create(tmp_path, small_digits, subsets=subsets.without([[]]), seeds=1)
    create(tmp_path, small_digits, subsets=subsets.everything(), seeds=3)
    found = RetrainingBank.load(tmp_path).run()
    assert (found.jobs, found.pending) == ([(0, 0), (1, 0), (0, 1), (0, 2)], [])
    assert len(results_of(tmp_path)) == 3
