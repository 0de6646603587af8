"""Figures: each draws what it is given, odd cases included, or says why it cannot."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest
import torch

from comove.attribution import Scores
from comove.attribution.cld import CLD
from comove.coreset import Coreset, select
from comove.data import ExampleSet, Splits
from comove.display import scored
from comove.errors import InputError, StorageError
from comove.evaluation import LDS, Curve, CurvePoint, linear_datamodeling_score
from comove.plots import save_figure, thumbnail
from comove.trace import Trace
from comove.training import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def pixels(figure: Figure) -> npt.NDArray[np.uint8]:
    """The figure rendered, (H, W, 4)."""
    from matplotlib import image

    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=50)
    picture.seek(0)
    return np.round(255 * image.imread(picture)).astype(np.uint8)


def ink(figure: Figure) -> float:
    """The share of pixels that are not white."""
    return float((pixels(figure)[..., :3] < 250).any(-1).mean())


def texts(figure: Figure) -> str:
    """Everything written in a figure."""
    from matplotlib.text import Text

    return "\n".join(item.get_text() for item in figure.findobj(Text) if isinstance(item, Text))


@pytest.fixture(scope="module")
def scores(runs: tuple[Run, ...]) -> Scores:
    return CLD().fit(runs).attribute()


def lds(seeds: int = 2, *, bootstrap: int = 50, method: str = "cld", constant: bool = False) -> LDS:
    rng = np.random.default_rng(0)
    outputs = np.ones((6, seeds, 3)) if constant else rng.random((6, seeds, 3))
    masks = rng.permuted(np.tile([True, False] * 5, (6, 1)), axis=1)
    return linear_datamodeling_score(rng.normal(size=(10, 3)), masks, outputs, bootstrap=bootstrap, method=method)


def curve_of(*accuracies: float, methods: tuple[str, ...] = ("cld", "random")) -> Curve:
    points = [CurvePoint("full data", 1.0, 200, s, 0.9) for s in range(len(accuracies))]
    points += [
        CurvePoint(method, budget, int(200 * budget), s, accuracy - 0.1 * place + 0.5 * budget)
        for place, method in enumerate(methods)
        for budget in (0.3, 0.1)
        for s, accuracy in enumerate(accuracies)
    ]
    return Curve(tuple(points), 200, 40, {})


# --- influence grid -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("queries", "k"), [(1, 1), (1, 5), (3, 2)])
def test_an_influence_grid_shows_each_query_and_its_top_and_bottom(
    queries: int, k: int, scores: Scores, small_digits: Splits
) -> None:
    chosen = scores.query_ids[:queries].tolist()
    figure = scores.plot(chosen, splits=small_digits, k=k)
    assert len(figure.axes) == queries * (2 * k + 1)
    assert ink(figure) > 0.05
    written = texts(figure)
    for query in chosen:
        assert f"query {query}\n" in written
        for id_, score in [*scores.top(k, query=query), *scores.bottom(k, query=query)]:
            assert f"\n#{id_}  {scored(score)}" in written


def test_the_files_of_examples_stand_under_their_pictures_in_place_of_ids(scores: Scores, small_digits: Splits) -> None:
    train, query = (
        part.with_sources([f"{id_}.png" for id_ in part.ids]) for part in (small_digits.train, small_digits.query)
    )
    first = int(scores.query_ids[0])
    written = texts(scores.plot([first], splits=replace(small_digits, train=train, query=query), k=2))
    assert "#" not in written
    assert f"query {first}" not in written
    for id_ in (first, *scores.top(2, query=first).ids, *scores.bottom(2, query=first).ids):
        assert f"\n{id_}.png" in written


def test_every_cell_of_the_grid_shows_the_image_of_its_own_id(scores: Scores, small_digits: Splits) -> None:
    query = int(scores.query_ids[4])
    figure = scores.plot([query], splits=small_digits, k=2)
    wanted = [*scores.top(2, query=query).ids, *scores.bottom(2, query=query).ids]
    for axes, id_ in zip(figure.axes[1:], wanted, strict=True):
        image = np.asarray(axes.get_images()[0].get_array())
        np.testing.assert_allclose(image, thumbnail(small_digits.train.image(int(id_))))


def test_a_grid_without_queries_or_with_too_many_columns_is_refused(scores: Scores, small_digits: Splits) -> None:
    with pytest.raises(InputError, match="at least one query"):
        scores.plot([], splits=small_digits)
    with pytest.raises(InputError, match="k must be a whole number from 1 to 200, got 201"):
        scores.plot([int(scores.query_ids[0])], splits=small_digits, k=201)
    with pytest.raises(InputError, match="k must be a whole number from 1 to 200, got 0"):
        scores.plot([int(scores.query_ids[0])], splits=small_digits, k=0)
    with pytest.raises(InputError, match="Unknown"):
        scores.plot([-7], splits=small_digits)


def test_class_names_are_text_and_no_formulas() -> None:
    inputs = torch.rand(4, 1, 6, 6)
    names = [r"$\frac{$", "<b>a_b^c</b>", "100$ or 200$"]

    def part(ids: list[int], labels: list[int]) -> ExampleSet:
        return ExampleSet.from_arrays(inputs[: len(ids)], labels, ids=ids, classes=names)

    splits = Splits(part([0, 1, 2], [0, 1, 2]), None, part([9], [2]))
    scores = Scores(np.array([[1.0], [0], [-1]]), splits.train.ids, splits.query.ids, "m$_2$", splits.train.labels)
    scores = Scores(scores.values, scores.train_ids, scores.query_ids, "m$_2$", scores.train_labels, None, tuple(names))
    assert ink(scores.plot([9], splits=splits, k=1)) > 0.05
    coreset = Coreset(splits.train.ids, np.ones(3), np.ones(3), splits.train.labels, "$m$", 3, tuple(names))  # type: ignore[arg-type]
    assert ink(coreset.plot(splits.train, per_class=2)) > 0.02
    assert ink(curve_of(0.5, 0.6, methods=(r"$\frac{$",)).plot()) > 0.01


# --- thumbnails ---------------------------------------------------------------------------------------------------


def test_eight_bit_images_keep_their_brightness_and_others_are_stretched(images: ExampleSet) -> None:
    colour = thumbnail(images.image(1003))
    assert colour.shape == (12, 12, 3)
    np.testing.assert_allclose(colour, images.raw(np.array([3]))[0].numpy().transpose(1, 2, 0) / 255, rtol=1e-6)
    grey = ExampleSet.from_arrays(torch.full((1, 1, 4, 4), 51, dtype=torch.uint8), [0])
    np.testing.assert_allclose(thumbnail(grey.image(0)), np.full((4, 4), 0.2), rtol=1e-6)
    floats = ExampleSet.from_arrays(torch.linspace(-3, 5, 48).reshape(1, 3, 4, 4), [0])
    stretched = thumbnail(floats.image(0))
    assert (stretched.min(), stretched.max(), stretched.shape) == (0, 1, (4, 4, 3))


def test_a_constant_image_is_drawn(images: ExampleSet) -> None:
    flat = ExampleSet.from_arrays(torch.full((2, 1, 4, 4), 3.0), [0, 0])
    assert (thumbnail(flat.image(0)) == 0).all()
    coreset = Coreset(flat.ids, np.ones(2), np.ones(2), flat.labels, "m", 2)  # type: ignore[arg-type]
    pixels(coreset.plot(flat))


@pytest.mark.parametrize("shape", [(5,), (4, 4), (2, 4, 4), (4, 4, 3)])
def test_inputs_that_are_no_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="are no images"):
        thumbnail(np.zeros(shape))


# --- trajectories -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3])
def test_trajectories_are_the_recorded_losses(k: int, trace: Trace, scores: Scores) -> None:
    query = int(scores.query_ids[3])
    figure = scores.plot_losses(trace, query, k=k)
    lines = figure.axes[0].get_lines()
    assert len(lines) == 2 * k + 1
    for line, id_ in zip(lines, [*scores.top(k, query=query).ids, *scores.bottom(k, query=query).ids], strict=False):
        expected = trace.train_losses[:, trace.train_ids == id_][:, 0]
        np.testing.assert_allclose(np.asarray(line.get_ydata(), float), expected, rtol=1e-6)
    own = trace.query_losses[:, trace.query_ids == query][:, 0]
    np.testing.assert_allclose(np.asarray(lines[-1].get_ydata(), float), own, rtol=1e-6)
    assert ink(figure) > 0.01
    assert {text.get_text() for text in figure.axes[1].get_legend().get_texts()} == {"helps", "hurts", f"query {query}"}  # type: ignore[union-attr]


def test_beside_losses_on_a_logarithmic_axis_stand_their_changes_on_a_linear_one(trace: Trace, scores: Scores) -> None:
    query = int(scores.query_ids[3])
    losses, changes = scores.plot_losses(trace, query, k=2).axes
    assert (losses.get_yscale(), changes.get_yscale()) == ("log", "linear")
    assert "log scale" in losses.get_ylabel()
    drawn = [
        np.asarray(line.get_ydata(), float) for line in changes.get_lines() if len(np.asarray(line.get_ydata())) > 2
    ]
    columns = [*scores.top(2, query=query).ids, *scores.bottom(2, query=query).ids]
    wanted = [np.diff(trace.train_losses[:, trace.train_ids == id_][:, 0]) for id_ in columns]
    np.testing.assert_allclose(drawn, [*wanted, np.diff(trace.query_losses[:, trace.query_ids == query][:, 0])])
    correlations = [np.corrcoef(line, drawn[-1])[0, 1] for line in drawn[:-1]]
    assert min(correlations[:2]) > max(correlations[2:])  # of one run; the scores are means over two


def test_a_title_says_that_scores_are_of_several_runs_and_losses_of_one(trace: Trace, scores: Scores) -> None:
    query = int(scores.query_ids[3])
    assert "scores of 2 runs, losses of one" in texts(scores.plot_losses(trace, query))
    assert "runs" not in texts(CLD().fit(trace).attribute([query]).plot_losses(trace, query))


def test_a_loss_of_zero_stays_on_the_logarithmic_axis() -> None:
    losses = np.array([[1.0, 0.0], [0.5, 0.0], [0.0, 0.0]])
    flat = Trace.from_arrays(train_losses=losses, query_losses=losses[:, :1])
    assert ink(CLD().fit(flat).attribute().plot_losses(flat, 0, k=1)) > 0.01


def test_trajectories_refuse_an_unknown_query_and_too_many_lines(trace: Trace, scores: Scores) -> None:
    with pytest.raises(InputError, match="Unknown query ids"):
        scores.plot_losses(trace, -3)
    with pytest.raises(InputError, match="k must be a whole number from 1 to 200"):
        scores.plot_losses(trace, int(scores.query_ids[0]), k=201)


# --- curve --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accuracies", [(0.5,), (0.5, 0.6, 0.7)])
def test_a_curve_has_a_line_a_method_and_the_full_data_dotted(accuracies: tuple[float, ...]) -> None:
    figure = curve_of(*accuracies).plot()
    axes = figure.axes[0]
    legend = axes.get_legend()
    assert legend is not None
    assert sorted(text.get_text() for text in legend.get_texts()) == ["cld", "full data", "random"]
    mean = float(np.mean(accuracies))
    drawn = [np.asarray(line.get_xydata(), float) for line in axes.get_lines()]
    for place in range(2):  # shares 10 and 30 %, in this order though the points came in the other
        expected = [[10, 100 * (mean - 0.1 * place + 0.05)], [30, 100 * (mean - 0.1 * place + 0.15)]]
        assert any(line.shape == (2, 2) and np.allclose(line, expected) for line in drawn)
    assert any(np.allclose(line[:, 1], 90) for line in drawn)
    assert ink(figure) > 0.01


@pytest.mark.parametrize(("budgets", "scale"), [((0.1, 0.3), "linear"), ((0.01, 0.012, 0.1, 0.9), "log")])
def test_shares_far_apart_are_on_a_logarithmic_axis_that_says_so(budgets: tuple[float, ...], scale: str) -> None:
    points = [CurvePoint("cld", budget, int(200 * budget), 0, 0.5) for budget in budgets]
    axes = Curve(tuple(points), 200, 40, {}).plot().axes[0]
    assert axes.get_xscale() == scale
    assert ("log scale" in axes.get_xlabel()) == (scale == "log")
    shown = [label.get_text() for label in axes.get_xticklabels()]
    assert set(shown) == ({"10", "30"} if scale == "linear" else {"1.2", "10", "90"})  # 1 would overlap 1.2


def test_many_methods_still_have_a_line_each() -> None:
    names = tuple(f"method {n}" for n in range(12))
    figure = curve_of(0.9, 0.8, methods=names).plot()
    assert all(name in texts(figure) for name in names)


def test_the_full_data_line_alone_is_drawn() -> None:
    assert ink(curve_of(0.5, methods=()).plot()) > 0.005


# --- gallery ------------------------------------------------------------------------------------------------------


def test_a_gallery_has_a_row_a_class_best_on_the_left(run: Run, small_digits: Splits) -> None:
    coreset = select("cld", run, 60)
    figure = coreset.plot(small_digits.train, per_class=3)
    assert len(figure.axes) == 10 * 3
    assert coreset.labels is not None
    for label in range(10):
        kept = coreset.ids[coreset.labels == label][:3]
        row = [axes for axes in figure.axes[3 * label : 3 * label + 3] if axes.get_images()]
        for axes, id_ in zip(row, kept, strict=True):
            np.testing.assert_allclose(
                np.asarray(axes.get_images()[0].get_array()), thumbnail(small_digits.train.image(int(id_)))
            )
    assert ink(figure) > 0.05


def test_one_class_one_example_and_more_columns_than_examples_are_drawn(run: Run, small_digits: Splits) -> None:
    for budget in ({4: 1}, {4: 2}):
        figure = select("cld", run, budget).plot(small_digits.train, per_class=5)
        assert len(figure.axes) == 5
        assert ink(figure) > 0.01


def test_a_coreset_without_labels_takes_those_of_the_examples(run: Run, small_digits: Splits) -> None:
    whole = select("cld", run, 30)
    bare = Coreset(whole.ids, whole.scores, whole.weights, None, whole.method, whole.n_candidates)
    first, second = (pixels(coreset.plot(small_digits.train, per_class=3)) for coreset in (whole, bare))
    np.testing.assert_array_equal(first, second)


def test_of_a_thousand_classes_the_first_twenty_are_shown() -> None:
    many = ExampleSet.from_arrays(torch.rand(1000, 1, 2, 2), np.arange(1000))
    coreset = Coreset(many.ids, np.ones(1000), np.ones(1000), many.labels, "m", 1000)  # type: ignore[arg-type]
    assert len(coreset.plot(many, per_class=1).axes) == 20


def test_a_coreset_of_other_examples_is_refused(run: Run, small_digits: Splits) -> None:
    with pytest.raises(InputError, match="Unknown ids"):
        select("random", run, 5).plot(small_digits.query)


# --- files --------------------------------------------------------------------------------------------------------


def test_a_figure_is_written_whole_as_png(tmp_path: Path) -> None:
    path = save_figure(lds().plot(), tmp_path / "new" / "lds.png")
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
    assert [file.name for file in path.parent.iterdir()] == ["lds.png"]


def test_an_unwritable_place_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="Cannot make the folder"):
        save_figure(lds().plot(), tmp_path / "file" / "lds.png")


def test_drawing_sets_up_no_display_and_no_global_figure() -> None:
    import sys

    lds().plot()
    if "matplotlib.pyplot" in sys.modules:  # another test's import; ours must have registered nothing there
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []
