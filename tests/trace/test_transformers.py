"""transformers' Trainer with the callback writes the losses that the model gives, through its own checkpoints too."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from comove import Trace
from comove.data import Splits
from comove.errors import InputError, MissingExamplesError
from comove.trace.token_loss import IGNORED, token_loss

for package in ("transformers", "accelerate"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'comove[transformers]'", allow_module_level=True)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations within transformers' own imports
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        BertForSequenceClassification,
        GPT2Config,
        GPT2LMHeadModel,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    from comove.trace.transformers import CLDCallback, CLDTrainerMixin

EPOCHS, BATCH, N, Q = 3, 16, 60, 20
Examples = list[dict[str, Any]]


class RecordingTrainer(CLDTrainerMixin, Trainer):
    """The Trainer with the mixin."""


@pytest.fixture(scope="module")
def pixels(digits: Splits) -> tuple[Examples, Examples]:
    """Digits as sentences: the brightness of the first pixels as words; lengths differ, ids are no positions."""

    def sentences(part: Any, size: int) -> Examples:
        words = (torch.as_tensor(part.held[:size]).flatten(1) * 16).long()
        return [
            {
                "input_ids": row[: 16 + number % 9],
                "labels": int(part.labels[number]),
                "sample_idx": int(part.ids[number]),
            }
            for number, row in enumerate(words)
        ]

    return sentences(digits.train, N), sentences(digits.query, Q)


def padded(examples: Examples) -> dict[str, Tensor]:
    """A collator of variable lengths: pads words with 0, and labels of words with IGNORED."""
    longest = max(len(example["input_ids"]) for example in examples)

    def pad(values: Tensor, filler: int) -> Tensor:
        return F.pad(values, (0, longest - len(values)), value=filler)

    words = torch.stack([pad(example["input_ids"], 0) for example in examples])
    attention = torch.stack([pad(torch.ones(len(example["input_ids"]), dtype=torch.long), 0) for example in examples])
    labels = [example["labels"] for example in examples]
    whole = (
        torch.stack([pad(one, IGNORED) for one in labels]) if isinstance(labels[0], Tensor) else torch.tensor(labels)
    )
    batch = {"input_ids": words, "attention_mask": attention, "labels": whole}
    if "sample_idx" in examples[0]:
        batch["sample_idx"] = torch.tensor([example["sample_idx"] for example in examples])
    return batch


def as_language(examples: Examples) -> Examples:
    """The same sentences for a causal model; the first third of each is a prompt that is not predicted."""
    return [
        {**example, "labels": example["input_ids"].masked_fill(torch.arange(len(example["input_ids"])) < 5, IGNORED)}
        for example in examples
    ]


def classifier() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=17,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            num_labels=10,
            max_position_embeddings=24,
            hidden_dropout_prob=0,
            attention_probs_dropout_prob=0,
        )
    )


def language_model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=17, n_embd=16, n_layer=1, n_head=2, n_positions=24, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def train(
    folder: Path,
    data: tuple[Any, Any],
    model: Any = None,
    mode: Any = "sweep",
    trainer: type[Trainer] = Trainer,
    others: Any = (),
    resume: Path | None = None,
    collator: Any = padded,
    loss_function: Any = None,
    cld: dict[str, Any] | None = None,
    **changes: Any,
) -> tuple[Trace, Trainer]:
    options: dict[str, Any] = {
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 0.01,
        "remove_unused_columns": False,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    arguments = TrainingArguments(str(folder / "output"), **{**options, **changes})
    callback = CLDCallback(folder / "trace", data[1], mode=mode, **(cld or {}))
    mixed = issubclass(trainer, CLDTrainerMixin)
    own: dict[str, Any] = {"cld": callback, "callbacks": [*others]} if mixed else {"callbacks": [callback, *others]}
    built = trainer(
        model or classifier(),
        arguments,
        train_dataset=data[0],
        data_collator=collator,
        compute_loss_func=loss_function,
        **own,
    )
    built.train(resume_from_checkpoint=None if resume is None else str(resume))
    assert callback.trace is not None
    return callback.trace, built


def losses_of(model: Any, examples: Examples) -> Tensor:
    """The model's own loss of each example alone, without any padding."""
    model.eval()
    with torch.no_grad():
        batches = [padded([{k: v for k, v in example.items() if k != "sample_idx"}]) for example in examples]
        return torch.stack([model(**batch).loss for batch in batches])


# --- the identity ------------------------------------------------------------------------------------------------


def test_classification_records_the_models_own_loss_of_each_example(
    pixels: tuple[Examples, Examples], tmp_path: Path
) -> None:
    before = losses_of(classifier(), pixels[0])
    trace, trainer = train(tmp_path, pixels, gradient_accumulation_steps=2, dataloader_drop_last=True)
    assert [(row.epoch, row.step) for row in trace.rows] == [(0, 0), (1, 2), (2, 4), (3, 6)]
    np.testing.assert_array_equal(trace.train_ids, [example["sample_idx"] for example in pixels[0]])
    np.testing.assert_array_equal(trace.query_labels, [example["labels"] for example in pixels[1]])
    np.testing.assert_allclose(trace.train_losses[0], before, atol=2e-6)
    for recorded, examples in ((trace.train_losses, pixels[0]), (trace.query_losses, pixels[1])):
        np.testing.assert_allclose(recorded[-1], losses_of(trainer.model, examples), atol=2e-6)
    assert set(trace.fields) > {"margin_logit", "el2n", "kd"}


@pytest.mark.parametrize("masked", [True, False])
def test_a_language_model_records_its_own_mean_loss_per_token(
    masked: bool, pixels: tuple[Examples, Examples], tmp_path: Path
) -> None:
    def collator(examples: Examples) -> dict[str, Tensor]:
        batch = padded(examples)
        if not masked:  # padding whose label is a word: the attention mask alone says that it is padding
            batch["labels"] = batch["labels"].masked_fill(batch["attention_mask"] == 0, 3)
        return batch

    data = as_language(pixels[0]), as_language(pixels[1])
    trace, trainer = train(tmp_path, data, language_model(), collator=collator)
    assert trace.fields == ("loss",)
    assert trace.train_labels is None
    np.testing.assert_allclose(trace.train_losses[0], losses_of(language_model(), data[0]), atol=2e-6)
    np.testing.assert_allclose(trace.query_losses[-1], losses_of(trainer.model, data[1]), atol=2e-6)


@pytest.mark.parametrize("language", [False, True])
def test_a_pass_records_what_a_sweep_would_where_weights_stand_still(
    language: bool, pixels: tuple[Examples, Examples], tmp_path: Path
) -> None:
    data = (as_language(pixels[0]), as_language(pixels[1])) if language else pixels
    make = language_model if language else classifier
    sweep, _ = train(tmp_path / "sweep", data, make(), learning_rate=0.0)
    in_pass, _ = train(tmp_path / "pass", data, make(), mode="in_pass", learning_rate=0.0)
    mixed, _ = train(tmp_path / "mixed", data, make(), mode="in_pass", trainer=RecordingTrainer, learning_rate=0.0)
    for other in (in_pass, mixed):
        assert [row.epoch for row in other.rows] == [row.epoch for row in sweep.rows]
        np.testing.assert_allclose(other.train_losses, sweep.train_losses, atol=2e-6)
        np.testing.assert_allclose(other.query_losses, sweep.query_losses, atol=2e-6)


def test_training_is_the_same_with_and_without_the_callback(pixels: tuple[Examples, Examples], tmp_path: Path) -> None:
    plain = [{k: v for k, v in example.items() if k != "sample_idx"} for example in pixels[0]]
    weights = []
    for recorded in (True, False):
        torch.manual_seed(0)
        model = classifier()
        model.config.hidden_dropout_prob = 0.2
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.2
        if recorded:
            train(tmp_path, pixels, model)
        else:
            arguments = TrainingArguments(
                str(tmp_path / "plain"), num_train_epochs=EPOCHS, per_device_train_batch_size=BATCH, learning_rate=0.01,
                save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
            )  # fmt: skip
            Trainer(model, arguments, train_dataset=plain, data_collator=padded).train()
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_evaluation_takes_examples_with_ids_before_during_and_after_training(
    pixels: tuple[Examples, Examples], tmp_path: Path
) -> None:
    trace, trainer = train(tmp_path, pixels, mode="in_pass", eval_strategy="no")
    metrics = trainer.evaluate(pixels[1])
    np.testing.assert_allclose(metrics["eval_loss"], trace.query_losses[-1].mean(), atol=2e-3)
    assert trainer.predict(pixels[1]).predictions.shape == (Q, 10)


def test_under_mixed_precision_losses_are_float32(pixels: tuple[Examples, Examples], tmp_path: Path) -> None:
    half, _ = train(tmp_path / "half", pixels, bf16=True, num_train_epochs=1)
    whole, _ = train(tmp_path / "whole", pixels, num_train_epochs=1)
    assert half.train_losses.dtype == np.float32
    gap = np.abs(half.train_losses[0] - whole.train_losses[0])
    assert 0 < gap.max() < 0.05  # computed in half precision, kept in full
    assert (torch.from_numpy(half.train_losses.copy()).bfloat16().float().numpy() != half.train_losses).any()


# --- label smoothing, own losses, other models -------------------------------------------------------------------


def test_smoothed_labels_reach_the_mixin_and_recorded_losses_are_not_smoothed(
    pixels: tuple[Examples, Examples], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"labels do not reach the model.*CLDTrainerMixin"):
        train(tmp_path / "callback", pixels, mode="in_pass", label_smoothing_factor=0.1)
    expected, _ = train(tmp_path / "still", pixels, learning_rate=0.0)

    def own(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return F.cross_entropy(outputs.logits, labels)

    ways: dict[str, dict[str, Any]] = {"smoothed": {"label_smoothing_factor": 0.1}, "own": {"loss_function": own}}
    for name, changes in ways.items():
        mixin: dict[str, Any] = {"mode": "in_pass", "trainer": RecordingTrainer}
        trace, _ = train(tmp_path / name, pixels, learning_rate=0.0, **mixin, **changes)
        np.testing.assert_allclose(trace.train_losses, expected.train_losses, atol=2e-6)
    sweep, _ = train(tmp_path / "sweep", pixels, learning_rate=0.0, label_smoothing_factor=0.1)
    np.testing.assert_allclose(sweep.train_losses, expected.train_losses, atol=2e-6)


def test_a_model_of_unknown_loss_needs_a_function(pixels: tuple[Examples, Examples], tmp_path: Path) -> None:
    model = BertForMaskedLM(classifier().config)
    data = as_language(pixels[0]), as_language(pixels[1])
    with pytest.raises(InputError, match=r"per-example loss of BertForMaskedLM .*Pass per_sample_loss="):
        train(tmp_path / "a", data, model)

    def of_own_place(outputs: Any, inputs: Any) -> Tensor:
        return token_loss(outputs.logits, inputs["labels"], shift=False)

    trace, _ = train(tmp_path / "b", data, model, cld={"per_sample_loss": of_own_place}, learning_rate=0.0)
    np.testing.assert_allclose(trace.train_losses[0], losses_of(model, data[0]), atol=2e-6)


# --- resuming ----------------------------------------------------------------------------------------------------


class InterruptError(Exception):
    """A job that was killed."""


class Stop(TrainerCallback):
    """Breaks training off after a step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 10:
            raise InterruptError


SAVES = {"epoch": 8, 4: 8, 3: 9, 5: 10}
"""When checkpoints are saved (at the ends of epochs, which are 4 steps, or every so many steps), and the last one."""


@pytest.mark.parametrize("mode", ["sweep", "in_pass"])
@pytest.mark.parametrize("every", SAVES)
def test_interrupted_and_resumed_is_uninterrupted(
    every: str | int, mode: str, pixels: tuple[Examples, Examples], tmp_path: Path
) -> None:
    saving = {"save_strategy": "epoch"} if every == "epoch" else {"save_strategy": "steps", "save_steps": every}
    whole, _ = train(tmp_path / "whole", pixels, mode=mode, **saving)
    with pytest.raises(InterruptError):
        train(tmp_path / "broken", pixels, mode=mode, others=[Stop()], **saving)
    latest = tmp_path / "broken" / "output" / f"checkpoint-{SAVES[every]}"
    resumed, _ = train(tmp_path / "broken", pixels, mode=mode, resume=latest, **saving)
    assert [(row.epoch, row.step) for row in resumed.rows] == [(float(e), 4 * e) for e in range(EPOCHS + 1)]
    for side in ("train", "query"):
        for field in whole.fields:
            np.testing.assert_array_equal(resumed.read(side, field), whole.read(side, field))


def test_a_checkpoint_elsewhere_is_named_and_one_without_state_refused(
    pixels: tuple[Examples, Examples], tmp_path: Path
) -> None:
    whole, _ = train(tmp_path / "a", pixels, save_strategy="epoch")
    moved = tmp_path / "moved"
    (tmp_path / "a" / "output" / "checkpoint-4").rename(moved)
    resumed, _ = train(tmp_path / "a", pixels, resume=moved, cld={"resume_from": moved})
    np.testing.assert_array_equal(resumed.train_losses, whole.train_losses)
    (moved / "comove.safetensors").unlink()
    with pytest.raises(InputError, match=r"goes on from step 4, but no state of the recorder was found.*resume_from="):
        train(tmp_path / "a", pixels, resume=moved)


# --- what is missing, what is wrong --------------------------------------------------------------------------------


def test_remove_unused_columns_is_refused_before_training(pixels: tuple[Examples, Examples], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"silently drops the column 'sample_idx'.*remove_unused_columns=False"):
        train(tmp_path, pixels, remove_unused_columns=True)
    assert not (tmp_path / "trace").exists()


def test_a_pass_that_drops_its_last_batch_is_refused_or_carried(
    pixels: tuple[Examples, Examples], tmp_path: Path
) -> None:
    with pytest.raises(MissingExamplesError, match=r"12 of 60 train examples.*drop_last"):
        train(tmp_path / "a", pixels, mode="in_pass", dataloader_drop_last=True)
    trace, _ = train(tmp_path / "b", pixels, mode="in_pass", dataloader_drop_last=True, cld={"missing": "previous"})
    assert [row.filled for row in trace.rows] == [0, 12, 12, 12]


def test_training_that_stops_within_an_epoch(pixels: tuple[Examples, Examples], tmp_path: Path) -> None:
    trace, _ = train(tmp_path / "a", pixels, max_steps=6)
    assert [(row.epoch, row.step) for row in trace.rows] == [(0, 0), (1, 4), (1.5, 6)]
    with pytest.warns(UserWarning, match="stopped within epoch 2"):
        trace, _ = train(tmp_path / "b", pixels, mode="in_pass", max_steps=6)
    assert [row.epoch for row in trace.rows] == [0, 1]


def test_examples_without_ids_are_refused(pixels: tuple[Examples, Examples], tmp_path: Path) -> None:
    bare = [{name: value for name, value in example.items() if name != "sample_idx"} for example in pixels[0]]
    with pytest.raises(InputError, match=r"integer 'sample_idx', and the train data set has none.*id_column="):
        train(tmp_path / "a", (bare, pixels[1]))

    def forgets(examples: Examples) -> dict[str, Tensor]:
        return {name: value for name, value in padded(examples).items() if name != "sample_idx"}

    with pytest.raises(InputError, match=r"a train batch has none.*let the collator keep it"):
        train(tmp_path / "b", pixels, collator=forgets)


def test_a_stream_is_refused(pixels: tuple[Examples, Examples], tmp_path: Path) -> None:
    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(pixels[0])

    with pytest.raises(InputError, match="a stream cannot be recorded"):
        train(tmp_path, (Stream(), pixels[1]), max_steps=2)


def test_a_folder_with_a_trace_is_begun_anew_only_when_asked(pixels: tuple[Examples, Examples], tmp_path: Path) -> None:
    train(tmp_path, pixels, num_train_epochs=1)
    with pytest.raises(InputError, match=r"already holds a trace.*overwrite=True"):
        train(tmp_path, pixels, num_train_epochs=2)
    trace, _ = train(tmp_path, pixels, num_train_epochs=2, cld={"overwrite": True})
    assert [row.epoch for row in trace.rows] == [0, 1, 2]


def test_events_outside_of_train_say_so(pixels: tuple[Examples, Examples], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="outside of Trainer"):
        CLDCallback(tmp_path / "t", pixels[1]).on_train_end(None, None, None)
