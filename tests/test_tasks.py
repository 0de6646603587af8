"""Tasks: each loss is torch's own, the measured output its log odds; what cannot be a task is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from comove.data.batches import batch_size, concatenate, map_tensors, rows_of
from comove.errors import InputError, InputTypeError, NonFiniteError
from comove.tasks import (
    CausalLM,
    Classification,
    MultiLabel,
    PerExample,
    Regression,
    Segmentation,
    SequenceClassification,
    Task,
    check_task,
    log_odds,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(high: int, *shape: int) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(1))


class Tokens(nn.Module):
    """Logits (B, T, V) of token ids; the mask is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 7, dtype=torch.float64)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.table(input_ids)}


# --- the losses are torch's ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [Classification(), SequenceClassification()])
def test_classification_is_cross_entropy_and_the_log_odds_of_the_label(task: Task) -> None:
    logits, labels = draw(6, 4), whole(4, 6)
    batch = {"input_ids": logits, "labels": labels} if isinstance(task, SequenceClassification) else (logits, labels)
    torch.testing.assert_close(task.loss(logits, batch), F.cross_entropy(logits, labels, reduction="none"))
    p = logits.softmax(1)[torch.arange(6), labels]
    torch.testing.assert_close(task.measure(logits, batch), torch.log(p / (1 - p)))
    assert task.labels(batch) is labels


def test_multi_label_is_the_mean_binary_cross_entropy() -> None:
    logits, targets = draw(5, 3), whole(2, 5, 3)
    expected = torch.stack(
        [F.binary_cross_entropy_with_logits(z, t.double()) for z, t in zip(logits, targets, strict=True)]
    )
    torch.testing.assert_close(MultiLabel().loss(logits, (logits, targets)), expected)
    assert MultiLabel().labels((logits, targets)) is None


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 3)])
def test_regression_is_half_the_squared_error_and_its_negative_is_measured(shape: tuple[int, ...]) -> None:
    outputs, targets = draw(*shape), draw(*shape, seed=1)
    expected = 0.5 * ((outputs - targets) ** 2).reshape(5, -1).sum(1)
    torch.testing.assert_close(Regression().loss(outputs, (None, targets)), expected)
    torch.testing.assert_close(Regression().measure(outputs, (None, targets)), -expected)
    if shape == (5, 1):
        torch.testing.assert_close(Regression().loss(outputs, (None, targets[:, 0])), expected)


def test_a_causal_model_predicts_the_next_token_and_padding_does_not_count() -> None:
    ids = whole(7, 3, 6)
    logits = draw(3, 6, 7)
    mask = torch.ones(3, 6, dtype=torch.int64)
    mask[1, 4:] = 0
    labels = ids.clone()
    labels[2, 2] = -100
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    expected = []
    for b in range(3):
        kept = [t for t in range(1, 6) if mask[b, t] and labels[b, t] != -100]
        expected.append(sum(F.cross_entropy(logits[b, t - 1], ids[b, t]) for t in kept) / len(kept))
    torch.testing.assert_close(CausalLM().loss(logits, batch), torch.stack(expected))  # type: ignore[arg-type]
    counts = torch.tensor([5, 3, 4])
    torch.testing.assert_close(CausalLM("sum").loss(logits, batch), counts * torch.stack(expected))  # type: ignore[arg-type]
    one = F.cross_entropy(logits[:, 2], ids[:, 3], reduction="none")
    torch.testing.assert_close(CausalLM(position=3).measure(logits, {"input_ids": ids}), log_odds(one))
    torch.testing.assert_close(CausalLM().loss(logits, ids), CausalLM().loss(logits, {"input_ids": ids}))


def test_segmentation_is_the_mean_over_the_pixels_that_count() -> None:
    logits, targets = draw(2, 3, 4, 4), whole(3, 2, 4, 4)
    targets[0, :2] = 255
    expected = torch.stack(
        [F.cross_entropy(z[None], t[None], ignore_index=255) for z, t in zip(logits, targets, strict=True)]
    )
    torch.testing.assert_close(Segmentation().loss(logits, (None, targets)), expected)


def test_log_odds_is_exact_where_p_rounds_to_one() -> None:
    loss = torch.tensor([1e-12, 0.5, 40.0], dtype=torch.float64)
    expected = [-1e-12 - math.log(-math.expm1(-1e-12)), math.log(math.exp(-0.5) / (1 - math.exp(-0.5))), -40.0]
    torch.testing.assert_close(log_odds(loss), torch.tensor(expected, dtype=torch.float64))


def test_a_task_of_two_functions_says_its_name() -> None:
    task = PerExample(lambda outputs, batch: outputs.abs().sum(1), name="size-1")
    assert task.name == "PerExample(size-1)"
    outputs = draw(4, 2).requires_grad_()
    torch.testing.assert_close(task.measure(outputs, None), log_odds(outputs.abs().sum(1)))
    assert PerExample(F.mse_loss, lambda o, b: -o[:, 0], "x").measure(outputs, None)[0] == -outputs[0, 0]
    assert Classification().name == "Classification()"
    assert CausalLM("sum").name == "CausalLM(reduction='sum', position=None)"


# --- forward passes -------------------------------------------------------------------------------------------------


def test_dictionaries_go_to_the_model_by_keyword_without_labels_and_what_it_does_not_take() -> None:
    model, ids = Tokens(), whole(7, 2, 5)
    batch = {"input_ids": ids, "labels": ids, "sample_idx": torch.arange(2)}
    torch.testing.assert_close(CausalLM().outputs(model, batch), model.table(ids))
    with pytest.raises(InputError, match="forward takes"):
        CausalLM().outputs(model, {"tokens": ids})


def test_tuples_give_their_first_entry() -> None:
    model = nn.Linear(3, 2).double()
    inputs = draw(4, 3)
    torch.testing.assert_close(Classification().outputs(model, (inputs, whole(2, 4))), model(inputs))
    torch.testing.assert_close(Regression().outputs(model, inputs), model(inputs))


# --- what is refused ------------------------------------------------------------------------------------------------


def reduced(outputs: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(outputs, batch[1])


def frozen(outputs: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(outputs.detach(), batch[1], reduction="none")


def broken(outputs: Tensor, batch: Any) -> Tensor:
    return outputs.sum(1) * torch.tensor([1.0] * 3 + [torch.nan])


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (reduced, InputError, r"loss must return one number per example, \(4,\), got \(\)"),
        (frozen, InputError, "no gradient flows through loss"),
        (broken, NonFiniteError, r"loss is NaN or infinite for 1 of 4 examples, rows 3"),
        (lambda outputs, batch: 3.0, InputTypeError, "loss must return a tensor, got float"),
    ],
)
def test_a_task_that_cannot_work_is_refused_before_anything_long_begins(
    function: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_task(PerExample(function), nn.Linear(3, 2), (torch.ones(4, 3), whole(2, 4)))


def test_missing_targets_are_named() -> None:
    with pytest.raises(InputError, match=r"no targets.*a tensor alone"):
        check_task(Classification(), nn.Linear(3, 2), torch.ones(4, 3))
    with pytest.raises(InputError, match=r"no targets.*dictionary with input"):
        Classification().loss(torch.ones(4, 2), {"input": torch.ones(4, 3)})
    with pytest.raises(InputTypeError, match="must be a Task"):
        check_task("classification", nn.Linear(3, 2), torch.ones(4, 3))  # type: ignore[arg-type]
    check_task(Classification(), nn.Linear(3, 2), (torch.ones(4, 3), whole(2, 4)))


@pytest.mark.parametrize("made", [lambda: CausalLM("max"), lambda: CausalLM(position=0), lambda: PerExample(3)])  # type: ignore[arg-type]
def test_options_are_checked_when_a_task_is_built(made: Any) -> None:
    with pytest.raises((InputError, InputTypeError)):
        made()


# --- batches --------------------------------------------------------------------------------------------------------


def test_batches_of_any_structure_are_cut_and_joined() -> None:
    batch: dict[str, Any] = {"ids": whole(9, 5, 3), "pair": (draw(5), [draw(5, 2)]), "note": "one for all"}
    assert batch_size(batch) == 5
    parts = [rows_of(batch, slice(0, 2)), rows_of(batch, [2, 3, 4])]
    joined = concatenate(parts)
    assert joined["note"] == "one for all"
    torch.testing.assert_close(joined["pair"][1][0], batch["pair"][1][0])
    torch.testing.assert_close(joined["ids"], batch["ids"])
    assert map_tensors(lambda tensor: tensor.ndim, batch)["pair"] == (1, [2])


@pytest.mark.parametrize("batch", [{}, "text", torch.tensor(3.0), (torch.ones(2), torch.ones(3))])
def test_batches_without_a_common_first_axis_are_refused(batch: Any) -> None:
    with pytest.raises(InputError, match="first axis"):
        batch_size(batch)
    with pytest.raises(InputError, match="pad them"):
        concatenate([torch.ones(2, 3), torch.ones(2, 4)])


# --- the Hessian in the outputs -----------------------------------------------------------------------------------


def log_cosh(outputs: Tensor, batch: Any) -> Tensor:
    return torch.log(torch.cosh(outputs)).sum(1)


def curved() -> list[tuple[Task, Tensor, Any]]:
    """Tasks with outputs and a batch of three examples."""
    mask = torch.ones(3, 4, dtype=torch.int64)
    mask[1, 2:] = 0
    tokens = {"input_ids": whole(3, 3, 4), "attention_mask": mask}
    pixels = whole(2, 3, 2, 2)
    pixels[0, 0] = 255
    return [
        (Classification(), 3 * draw(3, 4), (None, whole(4, 3))),
        (Classification(), draw(3, 2), (None, whole(2, 3))),
        (MultiLabel(), draw(3, 4), (None, whole(2, 3, 4))),
        (Regression(), draw(3), (None, draw(3, seed=1))),
        (Regression(), draw(3, 2), (None, draw(3, 2, seed=1))),
        (CausalLM(), draw(3, 4, 3), tokens),
        (CausalLM("sum"), draw(3, 4, 3), whole(3, 3, 4)),
        (Segmentation(), draw(3, 2, 2, 2), (None, pixels)),
        (PerExample(log_cosh), draw(3, 2), None),
    ]


def true_hessians(task: Task, outputs: Tensor, batch: Any) -> Tensor:
    def total(flat: Tensor) -> Tensor:
        return task.loss(flat.reshape(outputs.shape), batch).sum()

    size, entries = len(outputs), outputs[0].numel()
    hessian: Tensor = torch.func.jacrev(torch.func.jacrev(total))(outputs.reshape(size, -1))
    whole_hessian = hessian.reshape(size, entries, size, entries)
    return torch.stack([whole_hessian[b, :, b] for b in range(size)])


@pytest.mark.parametrize("case", range(9))
def test_the_factor_s_square_is_the_hessian_of_the_loss_in_the_outputs(case: int) -> None:
    task, outputs, batch = curved()[case]
    factor = task.output_curvature(outputs, batch)
    torch.testing.assert_close(factor @ factor.mT, true_hessians(task, outputs, batch), rtol=1e-9, atol=1e-12)
    assert not outputs.requires_grad
    assert not factor.requires_grad


@pytest.mark.parametrize("case", range(9))
def test_the_default_by_autograd_is_the_closed_form(case: int) -> None:
    task, outputs, batch = curved()[case]
    factor = Task.output_curvature(task, outputs.clone().requires_grad_(), batch)
    torch.testing.assert_close(factor @ factor.mT, true_hessians(task, outputs, batch), rtol=1e-9, atol=1e-12)
    assert not factor.requires_grad


@pytest.mark.parametrize("case", range(9))
def test_pseudo_gradients_have_the_hessian_as_their_second_moment(case: int) -> None:
    task, outputs, batch = curved()[case]
    generator, draws = torch.Generator().manual_seed(3), 4000
    u_SBK = torch.stack([task.pseudo_gradients(outputs, batch, generator) for _ in range(draws)])
    found = torch.einsum("sbk,sbj->bkj", u_SBK, u_SBK) / draws
    truth = true_hessians(task, outputs, batch)
    assert (found - truth).abs().max() < 6 * 3**0.5 / draws**0.5 * truth.abs().max()
    again = task.pseudo_gradients(outputs, batch, torch.Generator().manual_seed(3))
    torch.testing.assert_close(again, u_SBK[0])


def test_a_confident_classifier_s_factor_is_finite() -> None:
    logits = torch.tensor([[0.0, 200.0, -200.0], [200.0, 0.0, 0.0]])
    factor = Classification().output_curvature(logits, None)
    assert torch.isfinite(factor).all()
    assert factor.abs().max() < 1e-6


def test_a_loss_that_is_not_convex_in_the_outputs_is_refused_by_name() -> None:
    task = PerExample(lambda outputs, batch: outputs.cos().sum(1), name="waves-1")
    with pytest.raises(InputError, match=r"PerExample\(waves-1\): the loss must be convex.*eigenvalue -"):
        task.output_curvature(draw(3, 2), None)
    with pytest.raises(InputError, match="convex"):
        task.pseudo_gradients(draw(3, 2), None, torch.Generator())


def test_a_loss_linear_in_the_outputs_has_no_curvature() -> None:
    task = PerExample(lambda outputs, batch: outputs["a"].sum(1) + outputs["b"])
    outputs = {"a": draw(3, 2), "b": draw(3), "tokens": whole(2, 3)}
    torch.testing.assert_close(task.output_curvature(outputs, None), torch.zeros(3, 3, 3, dtype=torch.float64))
