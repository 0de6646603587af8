"""TRAK against its formula, against plain traker, and against kill -9."""

from __future__ import annotations

import logging
import time
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tests.fork_server import Warm
from torch import Tensor, nn

from comove.attribution import TRAK
from comove.attribution import trak_features as features_module
from comove.attribution.trak import cholesky_of, trak_scores
from comove.attribution.trak_features import Featuriser
from comove.data import ExampleSet, Splits
from comove.errors import InputError, NonFiniteError, NotFittedError
from comove.gradients.per_example import PerExampleGradients
from comove.gradients.projections import Projection
from comove.store import digest
from comove.training import Checkpoint, Recipe, Resident, Run, train

CPU = torch.device("cpu")
RIDGE = 1e-2
SCALES: tuple[Literal["margin", "traker"], ...] = ("margin", "traker")


def correlation(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def close(found: npt.NDArray[Any], true: npt.NDArray[Any], tolerance: float = 1e-4) -> None:
    np.testing.assert_allclose(found, true, rtol=tolerance, atol=tolerance * np.abs(true).max())


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Logistic regression on 3 classes, 5 features: 18 parameters, 120 training examples, 12 queries; two epochs."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(132, 5, generator=generator)
    labels = (inputs[:, :3] + 0.5 * torch.randn(132, 3, generator=generator)).argmax(1).numpy()
    inputs[:2], labels[:2] = inputs[120:122], labels[120:122]  # the first two queries stand in the training set
    ids = 900 - 5 * np.arange(132)
    whole = ExampleSet.from_arrays(inputs, labels, ids=ids, classes=list("abc"))
    splits = Splits(whole.subset(ids[:120]), None, whole.subset(ids[120:]))
    folder = tmp_path_factory.mktemp("linear") / "run"
    recipe = Recipe(epochs=2, batch_size=32, lr=0.05)
    return train(splits, "mlp", recipe, 0, folder, model_options={"hidden": []})


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small resnet9 with batch norm, 60 training images."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (70, 3, 12, 12), dtype=torch.uint8, generator=generator)
    whole = ExampleSet.from_arrays(pixels, np.arange(70) % 4, classes=list("abcd"))
    splits = Splits(whole.subset(np.arange(60)), None, whole.subset(np.arange(60, 70)))
    folder = tmp_path_factory.mktemp("resnet") / "run"
    recipe = Recipe(epochs=2, batch_size=20, lr=0.05)
    return train(splits, "resnet9", recipe, 0, folder, model_options={"width": 0.0625})


class Tokens(nn.Module):
    """Embedding, mean, linear: a text classifier of token ids (B, T)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 6), nn.Linear(6, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.head(self.embedding(tokens).mean(1))
        return found


def tokens_model(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    return Tokens(num_classes)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Run:
    generator = torch.Generator().manual_seed(2)
    words = torch.randint(0, 20, (90, 7), generator=generator)
    labels = (words < 10).sum(1).gt(3).long().numpy()
    whole = ExampleSet.from_arrays(words, labels, classes=["left", "right"])
    splits = Splits(whole.subset(np.arange(80)), None, whole.subset(np.arange(80, 90)))
    recipe = Recipe(epochs=3, batch_size=16, lr=0.1)
    return train(splits, tokens_model, recipe, 0, tmp_path_factory.mktemp("text") / "run")


def _rows(featuriser: Featuriser, sizes: dict[str, int], units: Tensor) -> Tensor:
    """Rows of the projection matrix (P, K): unit vectors, projected."""
    flat = torch.nn.functional.one_hot(units, sum(sizes.values())).float()
    return featuriser.projector.project(zip(sizes, torch.split(flat, list(sizes.values()), 1), strict=True))


def plain_traker(
    folder: Path, models: list[tuple[Featuriser, float]], train_set: ExampleSet, queries: ExampleSet
) -> npt.NDArray[np.float32]:
    """The scores of traker.TRAKer with its own gradients, saver, scorer, and the featurisers' matrices.

    One TRAKer a model (its lambda is absolute), combined as its own finalize_scores does for several.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trak import TRAKer
    kernel, weight = np.zeros(()), np.zeros(())
    for index, (featuriser, ridge) in enumerate(models):
        sizes = {name: p.numel() for name, p in featuriser.gradients.parameters.items()}
        units = torch.arange(sum(sizes.values())).chunk(8)
        matrix_PK = torch.cat([_rows(featuriser, sizes, some) for some in units])

        class Dense:
            proj_dim, proj_type = matrix_PK.shape[1], "dense"

            def project(self, grads: dict[str, Tensor], model_id: int, matrix_PK: Tensor = matrix_PK) -> Tensor:
                return torch.cat([g.flatten(1) for g in grads.values()], 1).detach() @ matrix_PK

            def free_memory(self) -> None: ...

        def made(name: str, lambda_reg: float = 0.0, featuriser: Featuriser = featuriser, index: int = index) -> Any:
            model = featuriser.run.load_model(featuriser.checkpoint)
            traker = TRAKer(
                model,
                "image_classification",
                len(train_set),
                save_dir=str(folder / f"{index}-{name}"),
                device="cpu",
                projector=Dense(),
                use_half_precision=False,
                lambda_reg=lambda_reg,
                logging_level=logging.ERROR,
            )
            traker.load_checkpoint(model.state_dict(), model_id=0)
            traker.featurize(train_set.batch(np.arange(len(train_set))), num_samples=len(train_set))
            return traker

        phi = np.array(made("gram").saver.current_store["grads"], np.float64)
        traker = made("scores", ridge * float(np.trace(phi.T @ phi)) / phi.shape[1])
        traker.finalize_features(model_ids=[0])
        traker.start_scoring_checkpoint(
            "q", featuriser.run.load_model(featuriser.checkpoint).state_dict(), 0, len(queries)
        )
        traker.score(queries.batch(np.arange(len(queries))), num_samples=len(queries))
        one = np.array(traker.finalize_scores("q", model_ids=[0]))
        rest = np.array(traker.saver.current_store["out_to_loss"])
        kernel, weight = kernel + one / rest, weight + rest
    found: npt.NDArray[np.float32] = (kernel / len(models) * weight / len(models)).astype(np.float32)
    return found


def featuriser_of(method: TRAK, run: Run, checkpoint: Checkpoint | None = None) -> Featuriser:
    projection = Projection(method.projector, method.proj_dim, method.nonzeros, method.seed)
    return Featuriser(run, checkpoint or run.checkpoints[-1], projection, run.trace.train_ids.size, CPU)


# --- the formula ---------------------------------------------------------------------------------------------------


def test_linear_regression_scores_are_the_formula_by_hand(linear: Run) -> None:
    method = TRAK(projector="none", ridge=RIDGE)
    fitted = method.fit(linear)
    data, model = linear.data(), linear.load_model().double()

    def by_hand(examples: ExampleSet) -> tuple[Tensor, Tensor]:
        x, y = examples.batch(np.arange(len(examples)))
        p = model(x.double()).softmax(1).detach()
        own = p.gather(1, y[:, None])
        # d margin / d z_c = 1 for c = y, else -p_c / (1 - p_y)
        dz = torch.where(torch.arange(3) == y[:, None], 1.0, -p / (1 - own))
        gradient = torch.cat([(dz[:, :, None] * x.double()[:, None, :]).flatten(1), dz], 1)
        return gradient, 1 - own[:, 0]

    phi, rest = by_hand(data.train)
    phi_q, _ = by_hand(data.query)
    gram = phi.T @ phi
    lifted = gram + RIDGE * gram.diagonal().mean() * torch.eye(18, dtype=torch.float64)
    kernel = phi @ torch.linalg.inv(lifted)
    close(fitted.attribute().values, (rest[:, None] * (kernel @ phi_q.T)).numpy(), 1e-5)
    close(fitted.self_influence(), (rest * (kernel * phi).sum(1)).numpy(), 1e-5)
    close(trak_scores(phi, phi_q, rest, RIDGE).numpy(), (rest[:, None] * (kernel @ phi_q.T)).numpy(), 1e-12)


def test_a_copy_of_the_query_in_training_helps_and_its_mislabelled_copy_hurts(linear: Run) -> None:
    for method in (TRAK(), TRAK(projector="none"), TRAK(projector="rademacher"), TRAK(scale="traker")):
        fitted = method.fit(linear)
        scores = fitted.attribute()
        for place in range(2):
            assert scores.values[place, place] > 0
        twins = fitted.attribute(linear.trace.query_ids[:2]).values[:2].diagonal()
        np.testing.assert_allclose(twins, fitted.self_influence()[:2], rtol=1e-4)


def test_the_ridge_is_relative_so_that_the_scale_of_features_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    phi, phi_q, rest = torch.randn(40, 8, generator=generator), torch.randn(3, 8, generator=generator), torch.rand(40)
    close(trak_scores(1e-4 * phi, 1e-4 * phi_q, rest).numpy(), trak_scores(phi, phi_q, rest).numpy(), 1e-5)


def test_vanishing_gradients_score_zero_not_nan() -> None:
    assert trak_scores(torch.zeros(5, 3), torch.ones(2, 3), torch.ones(5)).abs().sum() == 0


def test_a_ridge_too_small_for_the_rank_is_refused() -> None:
    with pytest.raises(InputError, match="ridge=1e-300 is too small"):
        cholesky_of(torch.tensor([[1.0, 1.0], [1.0, 1.0]]), 1e-300)


# --- plain traker --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("projector", ["sparse", "rademacher"])
def test_equals_plain_traker_on_an_mlp(run: Run, projector: Any, tmp_path: Path) -> None:
    method = TRAK(proj_dim=120, ridge=RIDGE, projector=projector, scale="traker")
    data = run.data()
    theirs = plain_traker(tmp_path, [(featuriser_of(method, run), RIDGE)], data.train, data.query)
    close(method.fit(run).attribute().values, theirs)


def test_equals_plain_traker_on_a_resnet_with_batch_norm(resnet: Run, tmp_path: Path) -> None:
    method = TRAK(proj_dim=30, ridge=RIDGE, scale="traker")
    data = resnet.data()
    theirs = plain_traker(tmp_path, [(featuriser_of(method, resnet), RIDGE)], data.train, data.query)
    fitted = method.fit(resnet)
    scores = fitted.attribute()
    assert str(scores.info["gradients"]).startswith("per-sample rules")
    close(scores.values, theirs)


def test_our_scale_is_trakers_times_the_mean_absolute_entry_of_the_inverse(run: Run) -> None:
    ours, theirs = (TRAK(proj_dim=100, scale=scale).fit(run) for scale in SCALES)
    factor = ours._fitted[1].models[0].factor
    divisor = torch.linalg.inv(factor @ factor.T).abs().mean().item()
    close(theirs.attribute().values * divisor, ours.attribute().values, 1e-5)
    close(theirs.self_influence() * divisor, ours.self_influence(), 1e-5)


def test_several_runs_and_checkpoints_equal_plain_traker_with_several_models(
    runs: tuple[Run, ...], tmp_path: Path
) -> None:
    method = TRAK(proj_dim=60, ridge=RIDGE, checkpoints=2, scale="traker")
    data = runs[0].data()
    chosen = [(run, run.checkpoints[index]) for run in runs for index in (2, 6)]
    assert len(runs[0].checkpoints) == 7
    models = [(featuriser_of(method, run, checkpoint), RIDGE) for run, checkpoint in chosen]
    theirs = plain_traker(tmp_path, models, data.train, data.query)
    scores = method.fit(runs).attribute()
    assert scores.info["used_checkpoints"] == 4
    close(scores.values, theirs)


def test_an_ensemble_is_the_mean_kernel_times_the_mean_weight_of_the_single_models(runs: tuple[Run, ...]) -> None:
    method = TRAK(proj_dim=60)
    singles = [method.fit(run) for run in runs]
    weights = [single._fitted[1].mean_one_minus_p() for single in singles]
    kernel = np.mean([s.attribute().values / w[:, None] for s, w in zip(singles, weights, strict=True)], 0)
    both = method.fit(runs)
    close(both.attribute().values, kernel * np.mean(weights, 0)[:, None], 1e-5)
    diagonal = np.mean([s.self_influence() / w for s, w in zip(singles, weights, strict=True)], 0)
    close(both.self_influence(), diagonal * np.mean(weights, 0), 1e-5)


# --- invariances ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [5, 37])
def test_the_batch_size_does_not_matter(resnet: Run, batch: int) -> None:
    close(TRAK(batch=batch).fit(resnet).attribute().values, TRAK().fit(resnet).attribute().values)


def test_the_block_size_does_not_matter(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = TRAK().fit(run).attribute().values
    monkeypatch.setattr(features_module, "BLOCK", 33)
    monkeypatch.setattr("comove.attribution.trak.BLOCK", 33)
    fitted = TRAK().fit(run)
    close(fitted.attribute().values, whole)
    assert fitted.self_influence().shape == (200,)


def test_same_seed_same_bits_other_seed_other_projection(run: Run) -> None:
    first, again, other = (TRAK(seed=seed).fit(run).attribute().values for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert 0 < correlation(first, other) < 0.999


def test_each_checkpoint_of_each_run_has_a_projection_of_its_own(runs: tuple[Run, ...]) -> None:
    seen = []
    for run in runs:
        for checkpoint in run.checkpoints[-2:]:
            featuriser = featuriser_of(TRAK(proj_dim=16), run, checkpoint)
            ones = [(name, torch.ones(1, *p.shape)) for name, p in featuriser.gradients.parameters.items()]
            seen.append(featuriser.projector.project(ones).flatten())
    assert all((a != b).any() for i, a in enumerate(seen) for b in seen[:i])


def test_a_larger_projection_comes_nearer_to_the_full_kernel(run: Run) -> None:
    data, stream = run.data(), PerExampleGradients(run.load_model(), "margin")

    def flat(examples: ExampleSet) -> Tensor:
        return torch.cat([g.flatten(1) for g in stream(*examples.batch(np.arange(len(examples)))).values()], 1)

    def near(dim: int) -> float:
        featuriser = featuriser_of(TRAK(proj_dim=dim), run)
        blocks = [torch.from_numpy(featuriser.block(Resident(part, CPU), 0)[0]) for part in (data.train, data.query)]
        return correlation((blocks[0] @ blocks[1].T).numpy(), truth)

    truth = (flat(data.train) @ flat(data.query).T).numpy()
    found = [near(dim) for dim in (4, 30, 200)]
    assert found == sorted(found)
    assert found[-1] > 0.96
    assert found[0] < 0.95


def test_scores_do_not_depend_on_the_random_state_or_change_it(run: Run) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = TRAK().fit(run).attribute().values
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    np.testing.assert_array_equal(TRAK().fit(run).attribute().values, first)


def test_logging_and_the_working_folder_are_left_alone(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    before = (list(root.handlers), root.level, logging.getLogger("TRAK").level)
    monkeypatch.setattr(root, "handlers", [])
    TRAK().fit(run).attribute()
    assert root.handlers == []
    monkeypatch.undo()
    assert (list(root.handlers), root.level, logging.getLogger("TRAK").level) == before
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


# --- tasks and queries ---------------------------------------------------------------------------------------------


def test_text_classification_of_token_ids(text: Run) -> None:
    fitted = TRAK(proj_dim=40).fit(text)
    scores = fitted.attribute()
    assert scores.values.shape == (80, 10)
    assert np.isfinite(scores.values).all()
    assert text.data().train.raw(np.array([0])).dtype == torch.int64
    words, labels = text.data().train.batch(np.arange(2))
    twins = ExampleSet.from_arrays(words, labels.numpy(), ids=[1000, 1001], classes=["left", "right"])
    np.testing.assert_allclose(fitted.attribute(twins).values[:2].diagonal(), fitted.self_influence()[:2], rtol=1e-4)


def test_a_model_without_per_sample_rules_gets_the_same_features(resnet: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = TRAK().fit(resnet).attribute()
    monkeypatch.setattr(PerExampleGradients, "_problem", lambda *_: "told so")
    fallen = TRAK().fit(resnet).attribute()
    assert "told so" in str(fallen.info["gradients"])
    close(fallen.values, plain.values)


def test_new_queries_after_fit_equal_recorded_ones(run: Run) -> None:
    fitted, data = TRAK().fit(run), run.data()
    some = data.query.subset(data.query.ids[3:8])
    new = ExampleSet.from_arrays(some.held, some.labels, ids=np.arange(5), classes=data.classes,
                                 normalization=some.normalization)  # fmt: skip
    np.testing.assert_array_equal(fitted.attribute(new).values, fitted.attribute(some.ids).values)


def test_queries_of_unknown_classes_are_refused(run: Run) -> None:
    wrong = ExampleSet.from_arrays(torch.zeros(1, *run.model_spec.input_shape), np.array([10]))
    with pytest.raises(InputError, match="labels below 10"):
        TRAK().fit(run).attribute(wrong)


def test_more_dimensions_than_training_examples_are_refused(run: Run) -> None:
    with pytest.raises(InputError, match="proj_dim, 201, must not exceed the 200 training examples"):
        TRAK(proj_dim=201).fit(run)


@pytest.mark.parametrize("where", ["train", "query"])
def test_non_finite_features_name_the_ids(linear: Run, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = TRAK().fit(linear)
    data = linear.data()
    chosen = data.train if where == "train" else data.query
    spoilt = chosen.held
    assert spoilt is not None
    spoilt = spoilt.clone()
    spoilt[torch.tensor([3, 5])] = torch.inf
    bad = ExampleSet.from_arrays(spoilt, chosen.labels, ids=chosen.ids, classes=chosen.classes)
    if where == "train":
        monkeypatch.setattr(Run, "data", lambda _: Splits(bad, None, data.query))

    def asked() -> object:
        return fitted.attribute(bad) if where == "query" else TRAK().fit(linear)

    with pytest.raises(NonFiniteError, match=f"of 2 examples .* epoch 2 .* ids {chosen.ids[3]}, {chosen.ids[5]}"):
        asked()


def test_self_influence_needs_a_fit() -> None:
    with pytest.raises(NotFittedError):
        TRAK().self_influence()


@pytest.mark.parametrize(
    "options",
    [
        {"proj_dim": 0}, {"proj_dim": 1.5}, {"proj_dim": True}, {"ridge": 0}, {"ridge": -1.0}, {"ridge": np.inf},
        {"ridge": "x"}, {"checkpoints": 0}, {"checkpoints": "first"}, {"projector": "dense"}, {"nonzeros": 0},
        {"seed": -1}, {"scale": "paper"}, {"batch": 0},
    ],
    ids=str,
)  # fmt: skip
def test_options_out_of_range_are_refused_when_built(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"trak: {next(iter(options))} must be"):
        TRAK(**options)


def test_fast_jl_without_cuda_is_refused(run: Run) -> None:
    with pytest.raises(InputError, match=r"fast_jl.*(exceed the 200|needs a CUDA device)"):
        TRAK(projector="fast_jl", proj_dim=128).fit(run)


# --- the cache -----------------------------------------------------------------------------------------------------


def files(cache: Path) -> dict[str, str]:
    return {str(f.relative_to(cache)): digest(f.read_bytes().hex()) for f in cache.rglob("*.safetensors")}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The starts of the blocks that are computed."""
    starts: list[int] = []
    plain = Featuriser.block

    def block(self: Featuriser, data: Any, start: int) -> Any:
        starts.append(start)
        return plain(self, data, start)

    monkeypatch.setattr(Featuriser, "block", block)
    return starts


def test_a_second_fit_reads_the_cache(run: Run, tmp_path: Path, counted: list[int]) -> None:
    method = TRAK(cache=str(tmp_path / "cache"))
    first = method.fit(run).attribute().values
    counted.clear()
    second = method.fit(run)
    assert counted == []
    np.testing.assert_array_equal(second.attribute().values, first)
    np.testing.assert_array_equal(TRAK().fit(run).attribute().values, first)


@pytest.mark.parametrize("change", [{"seed": 1}, {"proj_dim": 50}, {"nonzeros": 2}, {"projector": "rademacher"}])
def test_another_projection_in_the_same_cache_is_not_mixed_up(
    run: Run, tmp_path: Path, change: dict[str, Any], counted: list[int]
) -> None:
    cache = str(tmp_path)
    TRAK(cache=cache).fit(run)
    counted.clear()
    fitted = TRAK(cache=cache, **change).fit(run)
    assert counted == [0]
    np.testing.assert_array_equal(fitted.attribute().values, TRAK(**change).fit(run).attribute().values)
    assert len(list(tmp_path.iterdir())) == 2


def test_another_ridge_or_scale_uses_the_same_features(run: Run, tmp_path: Path, counted: list[int]) -> None:
    TRAK(cache=str(tmp_path)).fit(run)
    counted.clear()
    TRAK(cache=str(tmp_path), ridge=0.1, scale="traker").fit(run)
    assert counted == []


def test_a_folder_that_holds_other_features_is_set_aside_and_made_anew(run: Run, tmp_path: Path) -> None:
    before = TRAK(cache=str(tmp_path)).fit(run).attribute()
    manifest = next(tmp_path.iterdir()) / "manifest.json"
    manifest.write_text(
        manifest.read_text().replace('"seed": 0', '"seed": 7').replace('"fingerprint": "', '"fingerprint": "x')
    )
    with pytest.warns(UserWarning, match="has changed since it was written"):
        again = TRAK(cache=str(tmp_path)).fit(run).attribute()
    assert np.array_equal(again.values, before.values)


def test_the_temporary_folder_goes_with_the_fitted_method(run: Run) -> None:
    fitted = TRAK().fit(run)
    folder = fitted._fitted[1].folder.path
    assert files(folder)
    del fitted
    assert not folder.exists()


CHILD = """
import sys, time
import comove
from comove.attribution import TRAK, trak_features, trak
from comove.training import Run
trak_features.BLOCK = trak.BLOCK = 20
plain = trak_features.Featuriser.block
def slow(self, data, start):
    found = plain(self, data, start)
    time.sleep(0.1)
    return found
trak_features.Featuriser.block = slow
TRAK(proj_dim=64, cache=sys.argv[2]).fit(Run.load(sys.argv[1]))
"""


def test_featurising_goes_on_after_kill_9_with_the_same_bits(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: list[int], warm: Warm
) -> None:
    monkeypatch.setattr(features_module, "BLOCK", 20)
    monkeypatch.setattr("comove.attribution.trak.BLOCK", 20)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    warm.start(CHILD, run.path, killed)
    until = time.monotonic() + 60
    while len(list(killed.rglob("*.safetensors"))) < 3 and time.monotonic() < until:
        time.sleep(0.02)
    assert warm.kill() == -9, warm.errors.read_text()
    before = files(killed)
    assert 3 <= len(before) < 10
    TRAK(proj_dim=64, cache=str(killed)).fit(run)
    assert counted == [20 * block for block in range(len(before), 10)]
    TRAK(proj_dim=64, cache=str(whole)).fit(run)
    assert files(killed) == files(whole)
    assert before.items() <= files(killed).items()
