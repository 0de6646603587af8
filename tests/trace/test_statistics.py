"""The per-example statistics equal their definitions, computed in float64 numpy, and the figures worked by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from comove.errors import InputError
from comove.trace.statistics import kd, statistics

Array = npt.NDArray[np.float64]


def reference(logits: Array, labels: npt.NDArray[np.int64]) -> dict[str, Array]:
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    p = np.exp(log_p)
    rows = np.arange(len(labels))
    onehot = np.eye(logits.shape[1])[labels]
    others = onehot.astype(bool)
    return {
        "loss": -log_p[rows, labels],
        "target_probability": p[rows, labels],
        "margin_logit": logits[rows, labels] - np.where(others, -np.inf, logits).max(1),
        "margin_prob": p[rows, labels] - np.where(others, -np.inf, p).max(1),
        "el2n": np.sqrt(((p - onehot) ** 2).sum(1)),
        "correct": (logits.argmax(1) == labels).astype(float),
    }


def draw(classes: int, scale: float, count: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(classes)
    logits = torch.from_numpy((scale * generator.standard_normal((count, classes))).astype(np.float32))
    return logits, torch.from_numpy(generator.integers(0, classes, count))


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_statistics_equal_their_definitions_in_float64(classes: int, scale: float) -> None:
    logits, labels = draw(classes, scale)
    values, probabilities = statistics(logits, labels)
    expected = reference(logits.double().numpy(), labels.numpy())
    assert set(values) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(values[name].numpy(), value, rtol=2e-5, atol=2e-6, err_msg=name)
        assert values[name].dtype == (torch.uint8 if name == "correct" else torch.float32)
    np.testing.assert_allclose(probabilities.sum(1).numpy(), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("probabilities", "el2n", "margin"), [((0.7, 0.2, 0.1), 0.374166, 0.5), ((0.1, 0.6, 0.3), 1.122497, -0.5)]
)
def test_el2n_and_margin_of_the_specification(probabilities: tuple[float, ...], el2n: float, margin: float) -> None:
    values, _ = statistics(torch.tensor([probabilities]).log(), torch.tensor([0]))
    assert values["el2n"].item() == pytest.approx(el2n, abs=1e-6)
    assert values["margin_prob"].item() == pytest.approx(margin, abs=1e-6)
    assert values["margin_logit"].item() == pytest.approx(np.log(probabilities[0] / max(probabilities[1:])), abs=1e-6)
    assert values["loss"].item() == pytest.approx(-np.log(probabilities[0]), abs=1e-6)
    assert values["target_probability"].item() == pytest.approx(probabilities[0], abs=1e-6)


def test_kd_of_the_specification() -> None:
    p = torch.tensor([0.5, 0.6, 0.8, 0.9])
    pairs = torch.stack([p, 1 - p], 1)
    np.testing.assert_allclose(kd(pairs[1:], pairs[:-1]).numpy(), (0.198650, 0.368775, 0.175319), atol=2e-6)


def test_kd_puts_the_absolute_value_inside_the_sum() -> None:
    now, before = torch.tensor([[0.6, 0.4]]), torch.tensor([[0.5, 0.5]])
    divergence = (now * (now / before).log()).sum().item()
    assert divergence == pytest.approx(0.020136, abs=1e-5)
    assert kd(now, before).item() > 9 * divergence


def test_kd_is_finite_where_a_probability_is_zero_and_zero_without_change() -> None:
    now, before = torch.tensor([[1.0, 0.0], [0.3, 0.7]]), torch.tensor([[0.0, 1.0], [0.3, 0.7]])
    value = kd(now, before)
    assert torch.isfinite(value).all()
    assert value[1] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_logits_of_any_float_type_are_taken_to_float32(dtype: torch.dtype) -> None:
    logits, labels = draw(5, 2.0)
    rounded = logits.to(dtype)
    values, probabilities = statistics(rounded, labels)
    expected, _ = statistics(rounded.float(), labels)
    assert all(torch.equal(values[name], expected[name]) for name in expected)
    assert probabilities.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16])
def test_labels_of_any_integer_type_give_the_same(dtype: torch.dtype) -> None:
    logits, labels = draw(5, 2.0)
    values, _ = statistics(logits, labels.to(dtype))
    expected, _ = statistics(logits, labels)
    assert all(torch.equal(values[name], expected[name]) for name in expected)


def test_statistics_do_not_depend_on_the_batch() -> None:
    logits, labels = draw(10, 3.0)
    whole, _ = statistics(logits, labels)
    parts = [statistics(logits[part], labels[part])[0] for part in (slice(0, 7), slice(7, 64))]
    for name, value in whole.items():
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), value, rtol=0, atol=1e-6)


def test_statistics_keep_no_graph_and_change_nothing() -> None:
    logits, labels = draw(4, 1.0)
    before = logits.clone()
    logits.requires_grad_(True)
    values, probabilities = statistics(logits, labels)
    assert not any(value.requires_grad for value in (*values.values(), probabilities))
    assert torch.equal(logits, before)


def test_extreme_logits_stay_finite() -> None:
    values, _ = statistics(torch.tensor([[1e4, -1e4], [1e4, -1e4]]), torch.tensor([0, 1]))
    assert values["loss"].tolist() == [0.0, 2e4]
    assert values["el2n"].tolist() == pytest.approx([0.0, 2**0.5])


def test_an_empty_batch_gives_empty_statistics() -> None:
    values, probabilities = statistics(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert {value.shape for value in values.values()} == {(0,)}
    assert probabilities.shape == (0, 3)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(2), torch.tensor([0, 1]), r"\(2,\)"),
        (torch.zeros(2, 1), torch.tensor([0, 0]), "C >= 2"),
        (torch.zeros(2, 3), torch.tensor([0]), r"\(2, 3\) and \(1,\)"),
        (torch.zeros(2, 3), torch.tensor([[0], [1]]), r"\(2, 1\)"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), r"0 \.\.\. 2 \(C = 3\), found 0 \.\.\. 3"),
        (torch.zeros(2, 3), torch.tensor([-100, 1]), "found -100"),
        (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), "float32"),
        (torch.zeros(2, 3), torch.tensor([True, False]), "bool"),
    ],
)
def test_bad_batches_are_refused_in_words(logits: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        statistics(logits, labels)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_label_out_of_range_on_a_gpu_is_a_nan_loss_and_leaves_the_gpu_usable() -> None:
    values, _ = statistics(torch.zeros(3, 2, device="cuda"), torch.tensor([0, 5, -100]))
    assert values["loss"].isnan().tolist() == [False, True, True]
