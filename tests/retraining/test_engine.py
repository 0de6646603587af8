"""A bank's bits do not depend on how its work was cut, and its engine is part of what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.calls import grouped
from torch import nn

from comove.data import ExampleSet, Splits
from comove.errors import CorruptFileError, FingerprintError, InputError
from comove.evaluation import RetrainingBank, subsets
from comove.models import ModelSpec
from comove.retraining.subsets import without
from comove.training import Engine, Engines, Recipe, choose_engine, engines_for

pytestmark = pytest.mark.usefixtures("two_threads")  # as against one in workers, or within the work

RECIPE = Recipe(epochs=2, batch_size=16, lr=0.05, momentum=0.9)
NEWER = Recipe(epochs=2, batch_size=16, lr=0.01, optimizer="adamw", clip_norm=0.5, warmup_epochs=1, ema=0.9)
ONE = Engine("one-by-one", 1, "for a test")
COUNT = 24


class Odd(nn.Module):
    """Odd widths, batch norm, and a channel count that fills no vector register."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(180, classes)
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.body(inputs)
        return out


def odd(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    return Odd(num_classes)


def dropping(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Dropout(0.5), nn.Linear(20, num_classes))


MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"model": "mlp"},
    "mlp of odd widths": {"model": "mlp", "model_options": {"hidden": (30, 17)}},
    "cnn": {"model": "cnn-small", "model_options": {"width": 0.3}},
    "odd": {"model": odd},
    "dropout": {"model": dropping},
    "adamw": {"model": "mlp", "recipe": NEWER},
    "early stop": {"model": "mlp", "recipe": Recipe(epochs=9, batch_size=16, lr=0.3, early_stop_patience=1)},
}


@pytest.fixture(scope="module")
def data() -> Splits:
    from comove.data.builtin import load_dataset

    return load_dataset("digits", limit=97, queries=11)


def planned(folder: Path, data: Splits, count: int = COUNT, **changes: Any) -> RetrainingBank:
    plain: dict[str, Any] = {"recipe": RECIPE, "subsets": subsets.random(0.5, count, seed=1)}
    return RetrainingBank.create(folder, data, **grouped({**plain, **changes}))


@pytest.mark.parametrize("name", MODELS)
def test_bits_do_not_depend_on_how_the_work_was_cut(data: Splits, tmp_path: Path, name: str) -> None:
    model = MODELS[name]
    whole = planned(tmp_path / "whole", data, **model).run(executor="serial").logits()

    for count in (3, 4, 16, COUNT):
        grown = planned(tmp_path / "grown", data, count, **model).run(executor="serial")
    np.testing.assert_array_equal(grown.logits(), whole)

    shuffled = planned(tmp_path / "shuffled", data, **model)
    order = np.random.default_rng(0).permutation(COUNT)
    for few in (order[:1], order[1:3], order[3:8], order[8:]):
        shuffled.part(few).run(executor="serial")
    np.testing.assert_array_equal(shuffled.logits(), whole)

    here, there = (planned(tmp_path / side, data, **model) for side in ("here", "there"))
    here.part(order[:5]).run(executor="serial")
    there.part(order[5:]).run(executor="serial")
    assert here.merge(there) == COUNT - 5
    np.testing.assert_array_equal(here.logits(), whole)


def test_bits_do_not_depend_on_workers_nor_on_threads(data: Splits, tmp_path: Path) -> None:
    from comove.jobs import Local

    model, before = MODELS["cnn"], torch.get_num_threads()
    whole = planned(tmp_path / "serial", data, **model).run(executor="serial").logits()
    np.testing.assert_array_equal(planned(tmp_path / "two", data, **model).run(executor=Local(2)).logits(), whole)
    try:
        torch.set_num_threads(3)
        threads = planned(tmp_path / "threads", data, **model).run(executor="serial").logits()
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(threads, whole)


def test_subsets_of_several_sizes_and_seeds_may_be_cut_as_well(data: Splits, tmp_path: Path) -> None:
    ids = data.train.ids
    sets = [ids[:0], ids[:1], ids[:2], ids[5:7], ids[9:40]]
    whole = planned(tmp_path / "whole", data, model="mlp", subsets=without(sets), seeds=3).run().logits()
    for seeds, some in ((1, sets[:2]), (2, sets[3:]), (3, sets)):
        cut = planned(tmp_path / "cut", data, model="mlp", subsets=without(some), seeds=seeds).run()
    np.testing.assert_array_equal(cut.logits(), whole)


def test_models_of_a_bank_end_early_by_the_validation_examples_of_its_data(data: Splits, tmp_path: Path) -> None:
    arguments = MODELS["early stop"]
    bank = planned(tmp_path / "bank", data, 3, **arguments).run(executor="serial")
    whole = arguments["recipe"].to_json() | {"early_stop_patience": None}
    assert not np.allclose(
        bank.logits(), planned(tmp_path / "whole", data, 3, model="mlp", recipe=whole).run().logits()
    )
    assert Engines.from_json(bank.manifest["engine"]).cpu.kind == "one-by-one"
    without_validation = Splits(data.train, None, data.query)
    with pytest.raises(InputError, match="no validation examples"):
        planned(tmp_path / "none", without_validation, 3, **arguments)
    assert not (tmp_path / "none").exists()


# --- what it is ------------------------------------------------------------------------------------------------------


def test_the_engine_is_decided_when_the_bank_is_made_and_told_by_its_manifest(data: Splits, tmp_path: Path) -> None:
    small = planned(tmp_path / "small", data, 3, model="mlp")
    found = Engines.from_json(small.manifest["engine"])
    assert (found.cpu.kind, found.cpu.group) == ("stacked", 16)
    large = planned(tmp_path / "large", data, 300, model="mlp")
    assert large.manifest["engine"] == small.manifest["engine"]
    assert large.manifest["fingerprint"] == small.manifest["fingerprint"]
    plain = planned(tmp_path / "plain", data, model=dropping)
    assert Engines.from_json(plain.manifest["engine"]).cpu.kind == "one-by-one"


def test_an_engine_can_be_named_until_a_model_is_trained_and_stays_then(data: Splits, tmp_path: Path) -> None:
    bank = planned(tmp_path / "bank", data, 4, model="mlp")
    part, opened = bank.part([1]), RetrainingBank.load(bank.path)
    part.run(engine=ONE)
    assert bank.manifest["engine"]["cpu"] == {"kind": "one-by-one", "group": 1}
    assert opened.run().logits().shape[0] == 4  # sees what was named since it was opened
    made = planned(tmp_path / "made", data, 4, model="mlp", engine=ONE).run()
    np.testing.assert_array_equal(opened.logits(), made.logits())
    assert made.manifest["fingerprint"] == RetrainingBank.load(bank.path).manifest["fingerprint"]
    more = planned(bank.path, data, 6, model="mlp")
    with pytest.raises(
        InputError, match=r"trained one-by-one, 1 at a time; leave out engine=, .* stacked, 3 at a time"
    ):
        more.run(engine=Engine("stacked", 3, ""))
    with pytest.raises(FingerprintError, match=r"engine\.cpu was .*one-by-one.*, now .*stacked"):
        planned(bank.path, data, 6, model="mlp", engine=Engine("stacked", 3, ""))
    more.run(engine=ONE)
    assert more.pending == []


def test_banks_of_other_engines_are_not_merged_but_an_empty_one_takes_the_others(data: Splits, tmp_path: Path) -> None:
    one = planned(tmp_path / "one", data, 4, model="mlp", engine=ONE).run()
    other = planned(tmp_path / "other", data, 4, model="mlp")
    assert other.merge(one) == 4
    np.testing.assert_array_equal(RetrainingBank.load(other.path).logits(), one.logits())
    third = planned(tmp_path / "third", data, 4, model="mlp").run()
    with pytest.raises(FingerprintError, match="differs from this bank in how models are trained"):
        third.merge(one)


def aged(bank: RetrainingBank) -> Path:
    """The folder as an earlier comove would have left it: no engine in the manifest."""
    from comove.store import digest, write_json

    found = dict(bank.manifest)
    for name in ("engine", "subsets", "seeds", "fingerprint"):
        del found[name]
    head = ("kind", "format_version", "versions", "command")
    counted = {name: value for name, value in found.items() if name not in head}
    counted["dataset"] = {name: value for name, value in counted["dataset"].items() if name != "source"}
    write_json(bank.path / "manifest.json", {**found, "fingerprint": digest(counted)})
    return bank.path


def test_a_bank_of_before_opens_and_goes_on_with_the_engine_it_noted_or_a_new_ones(
    data: Splits, tmp_path: Path
) -> None:
    new = planned(tmp_path / "new", data, 6, model="mlp").run()
    for folder, engine in (("noted", ONE), ("not", None)):
        old = aged(planned(tmp_path / folder, data, 2, model="mlp"))
        if engine is not None:
            (old / "engine.json").write_text(json.dumps(engine.to_json()))
        RetrainingBank.load(old).run()
        grown = planned(old, data, 6, model="mlp").run()
        assert "engine" not in grown.manifest
        wanted = new if engine is None else planned(tmp_path / "wanted", data, 6, model="mlp", engine=engine).run()
        np.testing.assert_array_equal(grown.logits(), wanted.logits())
        with pytest.raises(InputError, match="leave out engine="):
            planned(old, data, 7, model="mlp").run(engine=Engine("stacked", 3, ""))


def test_a_damaged_note_of_the_engine_says_what_to_do(data: Splits, tmp_path: Path) -> None:
    old = aged(planned(tmp_path / "old", data, 2, model="mlp"))
    (old / "engine.json").write_text("{}")
    with pytest.raises(CorruptFileError, match=r"engine\.json is damaged .*Delete it and run again"):
        RetrainingBank.load(old).run()


@pytest.mark.parametrize(
    "entry",
    [None, "stacked", [], {}, {"cpu": {}}, {"cpu": 1, "cuda": 2}]
    + [
        {"cpu": {"kind": kind, "group": group}, "cuda": {"kind": "one-by-one", "group": 1}}
        for kind, group in (
            ("vmap", 1),
            ("stacked", 0),
            ("stacked", 2.5),
            ("stacked", True),
            (["stacked"], 4),
            ("one-by-one", 2),
        )
    ],
)
def test_a_damaged_entry_is_refused_in_one_line(entry: object) -> None:
    with pytest.raises(InputError, match=r"Engines are|An engine is|A group must be") as refused:
        Engines.from_json(entry)
    assert "\n" not in str(refused.value)


# --- the rule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "options", "shape", "kind"),
    [
        ("mlp", {}, (1, 8, 8), "stacked"),
        ("mlp", {"hidden": (1024, 1024)}, (3, 32, 32), "one-by-one"),
        ("cnn-small", {}, (1, 8, 8), "stacked"),
        ("cnn-small", {}, (3, 32, 32), "one-by-one"),  # few weights, but each is used in many places
        ("resnet9", {"width": 0.125}, (3, 32, 32), "one-by-one"),
        (dropping, {}, (1, 8, 8), "one-by-one"),
        (odd, {}, (1, 8, 8), "stacked"),
    ],
)
def test_small_networks_are_stacked_and_all_others_trained_one_by_one(
    model: Any, options: dict[str, Any], shape: tuple[int, ...], kind: str
) -> None:
    rng = np.random.default_rng(0)
    train = ExampleSet.from_arrays(rng.normal(size=(20, *shape)).astype(np.float32), np.arange(20) % 4)
    spec = ModelSpec.of(model, num_classes=4, input_shape=shape, **options)
    state = torch.get_rng_state()
    found = engines_for(spec, train, Recipe())
    assert found.cpu.kind == kind
    assert found.cuda.kind == ("stacked" if kind == "stacked" else "captured")
    assert torch.equal(torch.get_rng_state(), state)
    assert engines_for(spec, train, Recipe(precision="float16")).cuda.kind == "captured"  # no loss scale is shared


def test_work_is_counted_as_by_hand() -> None:
    from comove.training.loop import Resident
    from comove.training.many.choice import _multiply_adds

    train = ExampleSet.from_arrays(np.zeros((4, 1, 8, 8), np.float32), [0, 1, 2, 3])
    spec = ModelSpec.of("cnn-small", num_classes=4, input_shape=(1, 8, 8))
    by_hand = 16 * 9 * 64 + 32 * 16 * 9 * 16 + 64 * 32 * 9 * 4 + 64 * 4
    assert _multiply_adds(spec.build(0), Resident(train, torch.device("cpu"))) == by_hand


def test_the_timing_is_still_there_for_those_who_ask(data: Splits) -> None:
    from comove.training.loop import Resident

    train = Resident(data.train, torch.device("cpu"))
    spec = ModelSpec.of("mlp", num_classes=10, input_shape=(1, 8, 8))
    assert choose_engine(spec, train, RECIPE, 40, models=100).reason.endswith("(timed)")


# --- edited manifests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("recipe", "epochs"), 3),
        (("recipe", "lr"), 0.5),
        (("seed",), 1),
        (("query_ids",), [1, 2]),
        (("model", "name"), "this:s"),
        (("engine", "cpu"), {"kind": "one-by-one", "group": 1}),
        (("engine",), None),
        (("dataset",), 7),
        (("dataset", "fingerprint"), "0" * 32),
        (("fingerprint",), 7),
        (("classes",), {}),
    ],
)
def test_an_edited_manifest_is_refused_by_opening_planning_and_merging(
    data: Splits, tmp_path: Path, where: tuple[str, ...], value: object
) -> None:
    bank, other = (planned(tmp_path / name, data, 2, model="mlp") for name in ("bank", "other"))
    content = json.loads((bank.path / "manifest.json").read_text())
    inner = content
    for name in where[:-1]:
        inner = inner[name]
    inner[where[-1]] = value
    content.pop("checksum", None)
    (bank.path / "manifest.json").write_text(json.dumps(content))
    for attempt in (
        lambda: RetrainingBank.load(bank.path),
        lambda: planned(bank.path, data, 4, model="mlp"),
        lambda: other.merge(bank.path),
        bank.run,  # opened before
    ):
        with pytest.raises((CorruptFileError, FingerprintError), match=r"manifest\.json") as refused:
            attempt()
        assert "\n" not in str(refused.value)
