"""Figures of a hunt for wrong labels show what the results say."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex

from comove.data import ExampleSet
from comove.errors import InputError
from comove.evaluation.label_errors.detection import detect
from comove.evaluation.label_errors.suspicion import Suspicion
from comove.plots.drawing import HURT, NEUTRAL


@pytest.fixture
def suspicion(images: ExampleSet) -> Suspicion:
    """Two rankings of 40 images; class ``a`` is suggested for all (but not by networks)."""
    values = {"one": np.arange(40, dtype=np.float32), "random": np.random.default_rng(0).random(40, np.float32)}
    classes = ("a", "$b$", "c", "d")
    return Suspicion(images.ids, images.labels, values, (), classes, np.zeros(40, int), np.full(40, 0.5))


def test_the_gallery_shows_the_worst_first_with_label_suggestion_and_id(
    suspicion: Suspicion, images: ExampleSet
) -> None:
    figure = suspicion.plot(images, 12, "one", wrong_ids=np.array([1039, 1036]))
    titles = [axes.get_title() for axes in figure.axes]
    assert len(titles) == 20  # two rows of ten
    assert titles[:4] == ["d\n\u2192 a\n#1039", "c\n\u2192 a\n#1038", "\\$b\\$\n\u2192 a\n#1037", "a\n\u2192 a\n#1036"]
    assert titles[11] == "a\n\u2192 a\n#1028"
    assert titles[12:] == [""] * 8
    colours = [to_hex(axes.title.get_color()) for axes in figure.axes[:4]]
    assert colours == [HURT, "#000000", "#000000", HURT]
    shown = np.asarray(figure.axes[0].images[0].get_array())
    np.testing.assert_allclose(shown, images.raw(np.array([39]))[0].numpy().transpose(1, 2, 0) / 255, atol=1e-6)
    unknown = suspicion.plot(images, 3, ["one", "random"])
    assert len(unknown.axes) == 6
    assert to_hex(unknown.axes[0].title.get_color()) == NEUTRAL


def test_the_lines_of_a_detection_are_its_precision_recall_and_average_precision(suspicion: Suspicion) -> None:
    found = detect(suspicion, np.arange(1030, 1040), bootstrap=30)
    precise, recall, areas = found.plot().axes
    x, y = precise.lines[0].get_data()
    np.testing.assert_allclose(np.asarray(x), 100 * found.hits("one") / 10)
    np.testing.assert_allclose(np.asarray(y), 100 * found.hits("one") / np.arange(1, 41))
    np.testing.assert_allclose(np.asarray(recall.lines[1].get_ydata()), 100 * found.hits("random") / 10)
    assert recall.lines[1].get_color() == NEUTRAL
    widths = [bar.get_width() for bar in areas.patches]  # type: ignore[attr-defined]
    np.testing.assert_allclose(widths, [found.average_precision(method).value for method in ("one", "random")])


def test_a_gallery_of_nothing_or_of_too_many_is_refused(suspicion: Suspicion, images: ExampleSet) -> None:
    with pytest.raises(InputError, match="no picture to draw"):
        suspicion.plot(images, 3, [])
    with pytest.raises(InputError, match="from 1 to 40"):
        suspicion.plot(images, 41)
    with pytest.raises(InputError, match="Unknown ids"):
        suspicion.plot(images.subset(images.ids[:5]), 3)
