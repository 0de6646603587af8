"""Ids survive everything done to a set; shares are exact; held and streamed sets are the same; bad sets are refused."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples_of
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder

import comove.data
from comove.data import (
    ExampleSet,
    IdIndex,
    Normalization,
    Splits,
    largest_remainder,
    positions_of,
    split,
    stratified_sample,
)
from comove.errors import InputError, InputTypeError


class Items(Dataset[Any]):
    """A map-style dataset of given (input, label) pairs that counts how often it is read."""

    def __init__(self, items: list[tuple[Any, Any]]) -> None:
        self.items, self.reads = items, 0

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        self.reads += 1
        return self.items[index]


def pixels(count: int = 6, shape: tuple[int, ...] = (3, 4, 4)) -> torch.Tensor:
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def numbered(count: int, classes: int = 3, first: int = 0) -> ExampleSet:
    """A set whose every input holds its own id."""
    ids = first + np.arange(count)
    return ExampleSet.from_arrays(ids[:, None].astype(np.float32), np.arange(count) % classes, ids=ids)


# --- ids ---------------------------------------------------------------------------------------------------------


def test_ids_labels_and_inputs_stay_together_through_subset_shuffle_and_removal() -> None:
    whole = numbered(30, first=100)
    shuffled = whole.subset(np.random.default_rng(0).permutation(whole.ids))
    kept = shuffled.without([105, 129, 100]).subset([128, 101, 117])
    for examples in (shuffled, shuffled.without([105, 129, 100]), kept):
        inputs, labels = examples.batch(np.arange(len(examples)))
        assert inputs[:, 0].tolist() == examples.ids.tolist()
        assert labels.tolist() == ((examples.ids - 100) % 3).tolist()
    assert kept.ids.tolist() == [128, 101, 117]
    assert len(shuffled.without([105, 129, 100])) == 27
    assert whole.ids.tolist() == list(range(100, 130))


def test_positions_are_found_by_id_in_any_order() -> None:
    ids = np.array([40, 10, 30], np.int64)
    assert positions_of([30, 40, 30], ids).tolist() == [2, 0, 2]
    assert positions_of(torch.tensor([10]), ids).tolist() == [1]
    assert positions_of([], ids).tolist() == []
    places, known = IdIndex(ids).find([30, 35, 50, -1])
    assert known.tolist() == [True, False, False, False]
    assert places[0] == 2
    assert not IdIndex(np.zeros(0, np.int64)).find([1])[1].any()


def test_unknown_ids_are_named(images: ExampleSet) -> None:
    for act in (images.subset, images.without, images.positions):
        with pytest.raises(InputError, match=r"7, 9; 40 ids are known here: 1000, 1001, 1002 and 37 more"):
            act([1000, 7, 9])


def test_repeated_ids_are_named() -> None:
    with pytest.raises(InputError, match=r"1 are repeated, among them \[4\]"):
        ExampleSet.from_arrays(np.zeros((3, 2)), [0, 1, 0], ids=[4, 4, 5])
    with pytest.raises(InputError, match="repeated"):
        numbered(5).subset([1, 1])


def test_as_many_ids_as_examples() -> None:
    with pytest.raises(InputError, match="3 examples but 2 ids"):
        ExampleSet.from_arrays(np.zeros((3, 2)), [0, 1, 0], ids=[4, 5])


def test_a_subset_is_a_view_that_copies_no_input(images: ExampleSet) -> None:
    part = images.subset([1003, 1001])
    assert part._held is images._held
    assert images.held is images._held
    assert images.subset(images.ids).held is images._held
    source = Items([(torch.zeros(2), 0), (torch.ones(2), 1)])
    streamed = ExampleSet(source, hold_bytes=0)
    before = source.reads
    assert streamed.subset([1])._source is source
    assert source.reads == before


def test_a_subset_keeps_classes_that_none_of_its_examples_have(images: ExampleSet) -> None:
    part = images.subset([1000, 1004])
    assert set(part.labels) == {0}
    assert part.classes == ("a", "b", "c", "d")
    assert part.n_classes == 4


def test_an_empty_subset_is_refused(images: ExampleSet) -> None:
    with pytest.raises(InputError, match="at least one id"):
        images.subset([])
    with pytest.raises(InputError, match="at least one id"):
        images.without(images.ids)


# --- shares ------------------------------------------------------------------------------------------------------


def test_largest_remainder_of_the_specification() -> None:
    assert largest_remainder([5, 3, 2], 4).tolist() == [2, 1, 1]


def test_largest_remainder_gives_ties_to_the_lower_class() -> None:
    assert largest_remainder([1, 1, 1, 1], 2).tolist() == [1, 1, 0, 0]


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=30).filter(any), st.data())
@examples_of(deadline=None, max_examples=100)
def test_shares_sum_exactly_and_stay_within_one_of_proportional(weights: list[int], data: st.DataObject) -> None:
    total = data.draw(st.integers(0, sum(weights)))
    shares = largest_remainder(weights, total).tolist()
    assert sum(shares) == total
    for share, weight in zip(shares, weights, strict=True):
        assert 0 <= share <= weight
        assert abs(share * sum(weights) - weight * total) < sum(weights)  # exact in Python integers


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=10).filter(any), st.data())
@examples_of(deadline=None, max_examples=50)
def test_a_larger_class_never_gets_less(weights: list[int], data: st.DataObject) -> None:
    total = data.draw(st.integers(0, sum(weights)))
    shares = largest_remainder(weights, total)
    for i, larger in enumerate(weights):
        assert all(shares[i] >= shares[j] for j, smaller in enumerate(weights) if larger > smaller)


@pytest.mark.parametrize("total", [-1, 11])
def test_more_than_there_is_cannot_be_shared(total: int) -> None:
    with pytest.raises(InputError, match=f"{total} of 10"):
        largest_remainder([5, 3, 2], total)


def test_stratified_sample_takes_each_class_in_proportion_and_in_order() -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 20])[np.random.default_rng(1).permutation(100)]
    chosen = stratified_sample(labels, 40, np.random.default_rng(0))
    assert np.bincount(labels[chosen]).tolist() == [20, 12, 8]
    assert (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(chosen, stratified_sample(labels, 40, np.random.default_rng(0)))
    assert not np.array_equal(chosen, stratified_sample(labels, 40, np.random.default_rng(1)))
    assert stratified_sample(labels, 100, np.random.default_rng(0)).tolist() == list(range(100))
    assert stratified_sample(labels, 0, np.random.default_rng(0)).size == 0


# --- splits ------------------------------------------------------------------------------------------------------


def test_splits_are_disjoint_whole_and_stratified() -> None:
    examples = numbered(300, first=7)
    splits = split(examples, validation=0.1, query=60)
    assert splits.validation is not None
    parts = (splits.train, splits.validation, splits.query)
    assert [len(part) for part in parts] == [210, 30, 60]
    assert sorted(np.concatenate([part.ids for part in parts])) == examples.ids.tolist()
    assert [np.bincount(part.labels).tolist() for part in parts] == [[70] * 3, [10] * 3, [20] * 3]
    for part in parts:
        assert part.batch(np.arange(len(part)))[0][:, 0].tolist() == part.ids.tolist()


def test_a_split_depends_on_its_seed_alone() -> None:
    examples = numbered(60)
    first, again, other = (split(examples, seed=seed) for seed in (3, 3, 4))
    assert first.fingerprint == again.fingerprint
    assert first.query.ids.tolist() == again.query.ids.tolist() != other.query.ids.tolist()
    assert split(examples, validation=0, seed=3).validation is None
    assert split(examples, validation=0, seed=3).query.ids.tolist() == first.query.ids.tolist()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"query": 0}, "cannot give"),
        ({"query": 30, "validation": 30}, "cannot give"),
        ({"query": 60}, "query must be a share"),
        ({"query": -1}, "got -1"),
        ({"validation": 1.0}, r"validation must be a share.*got 1\.0"),
        ({"validation": 2.5}, r"got 2\.5"),
    ],
)
def test_impossible_split_sizes_are_refused(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        split(numbered(60), **sizes)


def test_splits_that_share_an_id_are_refused() -> None:
    with pytest.raises(InputError, match="share no ids"):
        Splits(numbered(5), None, numbered(3))


def test_classes_without_names_are_as_many_as_any_split_has() -> None:
    inputs = np.zeros((4, 2), np.float32)
    train = ExampleSet.from_arrays(inputs, [0, 1, 2, 2])
    query = ExampleSet.from_arrays(inputs[:1], [0], ids=[9])
    splits = Splits(train, None, query)
    assert splits.query.classes == splits.train.classes == ("0", "1", "2")
    assert query.classes == ("0",)  # what was passed is not changed
    with pytest.raises(InputError, match="same class names"):
        Splits(ExampleSet.from_arrays(inputs, [0, 1, 2, 2], classes=["a", "b", "c"]), None, query)


def test_splits_of_different_classes_are_refused() -> None:
    with pytest.raises(InputError, match="same class names"):
        Splits(numbered(6, classes=3).with_classes("abc"), None, numbered(6, classes=2, first=10).with_classes("ab"))


def test_the_fingerprint_of_splits_tells_the_parts_apart() -> None:
    a, b, c = numbered(6), numbered(6, first=10), numbered(6, first=20)
    prints = {s.fingerprint for s in (Splits(a, b, c), Splits(a, c, b), Splits(b, a, c), Splits(a, None, c))}
    assert len(prints) == 4
    assert Splits(a, b, c, "x").describe() == {
        "name": "x", "source": {}, "fingerprint": Splits(a, b, c).fingerprint
    }  # fmt: skip


# --- inputs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tensor", "array", "image"])
def test_held_and_streamed_sets_give_the_same_batches(kind: str) -> None:
    raw = pixels()
    turn: dict[str, Any] = {
        "tensor": lambda x: x,
        "array": lambda x: x.numpy(),
        "image": lambda x: Image.fromarray(x.permute(1, 2, 0).numpy()),
    }
    items = Items([(turn[kind](x), i % 2) for i, x in enumerate(raw)])
    normalization = Normalization((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    held = ExampleSet(items, normalization=normalization)
    streamed = ExampleSet(items, normalization=normalization, hold_bytes=0)
    assert held.held is not None
    assert streamed.held is None
    assert held.input_shape == streamed.input_shape == (3, 4, 4)
    for positions in (np.arange(6), np.array([4, 1, 1])):
        for a, b in zip(held.batch(positions), streamed.batch(positions), strict=True):
            assert torch.equal(a, b)
    part_held, part_streamed = held.subset([5, 2]), streamed.subset([5, 2])
    assert torch.equal(part_held.batch(np.array([1, 0]))[0], part_streamed.batch(np.array([1, 0]))[0])
    assert torch.equal(part_streamed.raw(np.array([0, 1])), raw[[5, 2]])
    assert part_held[1][0].equal(raw[2])
    assert part_streamed[-1][1] == 0
    assert held.fingerprint == streamed.fingerprint  # below 64 examples every one counts


def test_what_fits_is_held_and_what_does_not_is_streamed() -> None:
    items = Items([(torch.zeros(4), 0)] * 3)
    assert ExampleSet(items, hold_bytes=3 * 16).held is not None
    assert ExampleSet(items, hold_bytes=3 * 16 - 1).held is None


def test_8_bit_inputs_are_scaled_then_normalised_by_channel() -> None:
    raw = pixels()
    plain = ExampleSet.from_arrays(raw, np.zeros(6, int))
    np.testing.assert_array_equal(plain.batch(np.arange(6))[0].numpy(), raw.numpy().astype(np.float32) / 255)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    normal = ExampleSet.from_arrays(raw, np.zeros(6, int), normalization=Normalization(mean, std))
    expected = (raw.numpy() / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(normal.batch(np.arange(6))[0].numpy(), expected, atol=1e-6)
    assert normal.raw(np.arange(6)).dtype == torch.uint8


def test_other_inputs_are_left_as_they_are() -> None:
    doubles = torch.rand(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inputs, labels = ExampleSet.from_arrays(doubles, [0, 1, 0, 1]).batch(np.arange(4))
    assert torch.equal(inputs, doubles.float())
    assert labels.dtype == torch.int64
    tokens = torch.arange(12).reshape(4, 3)
    assert torch.equal(ExampleSet.from_arrays(tokens, [0, 1, 0, 1]).batch(np.arange(4))[0], tokens)


def test_grey_and_read_only_and_reversed_inputs_are_taken_without_a_warning() -> None:
    grey = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = ExampleSet(Items([(Image.fromarray(image), 0) for image in grey]))
        frozen = grey[::-1]
        frozen.flags.writeable = False
        arrays = ExampleSet.from_arrays(frozen, [0, 0])
        items = ExampleSet(Items([(image, 0) for image in frozen]))
    assert images.input_shape == (1, 4, 4)
    np.testing.assert_array_equal(images.raw(np.arange(2))[:, 0].numpy(), grey)
    np.testing.assert_array_equal(arrays.raw(np.arange(2)).numpy(), grey[::-1])
    np.testing.assert_array_equal(items.raw(np.arange(2)).numpy(), grey[::-1])


def test_labels_are_those_of_the_items() -> None:
    read = ExampleSet(TensorDataset(torch.zeros(3, 2), torch.tensor([2, 0, 1])))
    assert read.labels.tolist() == [2, 0, 1]
    assert read.classes == ("0", "1", "2")
    items = Items([(torch.zeros(2), label) for label in (0, np.int32(1), torch.tensor(1))])
    for listed in (None, [0, 1, 1], torch.tensor([0, 1, 1]), np.array([0, 1, 1], ">i8")):
        items.targets = listed  # type: ignore[attr-defined]
        for hold_bytes in (0, 1 << 20):
            assert ExampleSet(items, hold_bytes=hold_bytes).labels.tolist() == [0, 1, 1]
    assert ExampleSet(items, labels=[1, 0, 0]).labels.tolist() == [1, 0, 0]  # the user's own word


@pytest.mark.parametrize("attribute", ["targets", "labels"])
@pytest.mark.parametrize("hold_bytes", [0, 1 << 20])
def test_a_list_of_labels_that_the_items_contradict_is_refused_with_counts(attribute: str, hold_bytes: int) -> None:
    items = Items([(torch.zeros(2), label // 2) for label in range(4)])
    setattr(items, attribute, [0, 1, 2, 3])
    told = rf"\.{attribute} must have the same labels, but 3 of 4 differ, .*positions 1 \(item 0, \.{attribute} 1\), 2"
    with pytest.raises(InputError, match=told) as raised:
        ExampleSet(items, hold_bytes=hold_bytes)
    assert f"labels=dataset.{attribute}" in str(raised.value)
    assert "target_transform" in str(raised.value)
    for labels in ([label // 2 for label in range(4)], [0, 1, 2, 3]):
        assert ExampleSet(items, labels=labels, hold_bytes=hold_bytes).labels.tolist() == labels


@pytest.mark.parametrize("listed", [[0, 1], ["a", "b", "a", "b"], np.eye(4, dtype=int), len, [[0], [1, 2], [0], [1]]])
def test_an_attribute_that_is_no_list_of_the_items_classes_is_no_contradiction(listed: Any) -> None:
    items = Items([(torch.zeros(2), label % 2) for label in range(4)])
    items.labels = listed  # type: ignore[attr-defined]
    assert ExampleSet(items).labels.tolist() == [0, 1, 0, 1]


def test_folders_of_torchvision_with_transformed_and_with_noisy_labels(tmp_path: Any) -> None:
    for name in "abcd":
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / name / f"{number}.png")
    assert ExampleSet(ImageFolder(str(tmp_path))).labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    paired = ImageFolder(str(tmp_path), target_transform=lambda label: label // 2)
    with pytest.raises(InputError, match="9 of 12 differ"):
        ExampleSet(paired)
    given = ExampleSet(paired, labels=[paired[i][1] for i in range(12)])
    assert given.classes == ("0", "1")

    class Noisy(ImageFolder):  # type: ignore[misc]  # torchvision has no types
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index)[0], 3 - index // 3

    with pytest.raises(InputError, match="12 of 12 differ"):
        ExampleSet(Noisy(str(tmp_path)))


def test_parts_and_joined_data_sets_have_the_labels_of_their_items() -> None:
    whole = Items([(torch.full((2,), float(label)), label) for label in range(6)])
    whole.targets = list(range(6))  # type: ignore[attr-defined]
    part = Subset(whole, [4, 0, 5])
    assert ExampleSet(part).labels.tolist() == [4, 0, 5]
    joined = ExampleSet(ConcatDataset([part, whole]))
    assert joined.labels.tolist() == [4, 0, 5, 0, 1, 2, 3, 4, 5]
    assert joined.raw(np.arange(9))[:, 0].tolist() == joined.labels.tolist()


@pytest.mark.parametrize(
    ("label", "told"),
    [
        (1.0, "a float: cast it to int"),
        (True, "a boolean"),
        (np.True_, "a boolean"),
        (torch.tensor(0.5), "a float"),
        (torch.tensor([1]), "a single number in a list"),
        (torch.tensor([0, 1, 0]), "one-hot rows"),
        ("cat", "a class name: number the classes"),
        (None, "pass the class indices as labels="),
        (np.datetime64("2020-01-01"), "pass the class indices"),
    ],
)
def test_a_label_of_an_item_that_is_no_whole_number_is_refused_with_its_position(label: Any, told: str) -> None:
    items = Items([(torch.zeros(2), 0), (torch.zeros(2), label), (torch.zeros(2), 1)])
    with pytest.raises(InputError, match=f"The label of item 1 .*{told}"):
        ExampleSet(items)
    assert ExampleSet(items, labels=[0, 1, 1]).labels.tolist() == [0, 1, 1]


def test_items_of_their_own_structure_are_collated_and_need_no_labels() -> None:
    mapped: Any = [
        {"image": torch.full((2,), float(i)), "label": i % 2} for i in range(5)
    ]  # as Hugging Face gives them
    examples = ExampleSet(mapped, ids=[9, 8, 7, 6, 5])
    assert examples.structured
    assert not examples.labelled
    batch = examples.subset([7, 9]).collated(np.array([1, 0]))
    assert batch["image"].tolist() == [[0.0, 0.0], [2.0, 2.0]]
    assert batch["label"].tolist() == [0, 0]
    with pytest.raises(InputError, match="have no labels"):
        _ = examples.labels
    with pytest.raises(InputError, match="needs pairs"):
        examples.batch(np.array([0]))
    assert ExampleSet(mapped, labels=[0, 1, 0, 1, 0]).classes == ("0", "1")
    assert examples[1] is mapped[1]
    alone: Any = [torch.arange(3)] * 3
    assert ExampleSet(alone).collated(np.array([2])).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("hold_bytes", [0, 1 << 20])
def test_items_held_whole_and_read_batch_by_batch_give_the_same_batches(hold_bytes: int) -> None:
    items: Any = [(torch.arange(i + 1), f"text {i}") for i in range(6)]

    def pad(some: list[Any]) -> dict[str, Any]:
        ids = torch.stack([torch.nn.functional.pad(tokens, (0, 6 - len(tokens))) for tokens, _ in some])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}

    examples = ExampleSet(items, collate=pad, hold_bytes=hold_bytes)
    assert examples.collated(np.array([4, 1]))["input_ids"].tolist() == [[0, 1, 2, 3, 4, 0], [0, 1, 0, 0, 0, 0]]
    assert examples.fingerprint == ExampleSet(items, collate=pad).fingerprint
    assert (
        examples.fingerprint
        != ExampleSet([*items[:-1], (torch.zeros(6, dtype=torch.int64), "")], collate=pad).fingerprint
    )
    halves = split(examples, query=2, validation=1)
    assert (len(halves.train), len(halves.query)) == (3, 2)


def test_what_cannot_be_collated_is_refused_with_what_to_do() -> None:
    ragged: Any = [{"ids": torch.zeros(n)} for n in (2, 3)]
    with pytest.raises(InputError, match=r"cannot be collated.*Pass collate="):
        ExampleSet(ragged)
    pairs: Any = [(torch.zeros(2), 0.5), (torch.zeros(2), 1.5)]
    with pytest.raises(InputError, match=r"collate=torch\.utils\.data\.default_collate"):
        ExampleSet(pairs)
    assert ExampleSet(pairs, collate=torch.utils.data.default_collate).structured
    with pytest.raises(InputError, match="made a batch of 1 examples of 2 items"):
        ExampleSet(pairs, collate=lambda items: torch.zeros(1, 2) if len(items) > 1 else torch.zeros(1))
    draws = np.random.default_rng(0)
    with pytest.raises(InputError, match="differ from one reading to the next"):
        ExampleSet(pairs, collate=lambda items: torch.from_numpy(draws.normal(size=(len(items), 2))))
    with pytest.raises(InputError, match="got tuple at position 0"):
        ExampleSet([(torch.zeros(2),)])


@pytest.mark.parametrize("hold_bytes", [0, 1 << 20])
def test_transforms_and_labels_drawn_at_random_are_refused(hold_bytes: int) -> None:
    rng = np.random.default_rng(0)

    class Flipping(Items):
        def __getitem__(self, index: int) -> Any:
            value, label = super().__getitem__(index)
            return (value.flip(0) if rng.random() < 0.5 else value), label

    class Relabelling(Items):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index)[0], int(rng.integers(5))

    pairs = [(torch.arange(3.0), 0)] * 40
    with pytest.raises(InputError, match="another input each time it is read"):
        ExampleSet(Flipping(pairs), hold_bytes=hold_bytes)
    with pytest.raises(InputError, match="another label each time it is read"):
        ExampleSet(Relabelling(pairs), hold_bytes=hold_bytes)
    broken = [(torch.tensor([np.nan, 1.0]), 0)] * 3
    assert len(ExampleSet(Items(broken), hold_bytes=hold_bytes)) == 3  # NaN is the same NaN each time


def test_an_item_that_cannot_be_read_is_named_with_the_reason() -> None:
    class Broken(Items):
        def __getitem__(self, index: int) -> Any:
            if index == 17:
                raise KeyError("gone")
            return super().__getitem__(index)

    with pytest.raises(InputError, match=r"Item 17 of 'examples' cannot be read. KeyError: 'gone'"):
        ExampleSet(Broken([(torch.zeros(2), index % 2) for index in range(20)]))


def test_a_set_too_large_to_hold_is_read_once_for_its_labels_or_not_at_all_where_they_are_given() -> None:
    items = Items([(torch.zeros(2), index % 2) for index in range(500)])
    ExampleSet(items, hold_bytes=0)
    assert 500 <= items.reads <= 540
    items.reads = 0
    ExampleSet(items, labels=np.zeros(500, int), hold_bytes=0)
    assert items.reads < 40


# --- classes that are not trained on -----------------------------------------------------------------------------


def of_labels(labels: Any) -> ExampleSet:
    return ExampleSet.from_arrays(np.zeros((len(labels), 2), np.float32), labels)


def test_a_split_that_queries_only_classes_that_nothing_is_left_of_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"no class of the 8 queries has an example left .*40 examples have 40 classes"
    ):
        split(of_labels(np.arange(40)), validation=4, query=8, seed=3)


def test_queries_and_validation_examples_of_classes_that_are_not_trained_on_are_counted_and_named() -> None:
    whole = of_labels([0, 0, 0, 1, 1, 1, 2, 3])
    train = whole.subset(np.array([0, 1, 3, 4]))
    with pytest.warns(UserWarning, match=r"2 of 3 query examples are of classes that no training example has \(2, 3\)"):
        Splits(train, None, whole.subset(np.array([2, 6, 7])))
    with pytest.warns(UserWarning, match=r"1 of 1 validation examples are of classes .* \(3\)"):
        Splits(train, whole.subset(np.array([7])), whole.subset(np.array([2])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Splits(train, whole.subset(np.array([5])), whole.subset(np.array([2])))


@pytest.mark.parametrize("share", [True, np.float32(0.1), "0.1", 0.5 + 0j, np.nan, -0.001, 1.0, 40, -1, 2.5, None])
def test_a_share_is_read_as_it_is_meant_or_refused(share: Any) -> None:
    if isinstance(share, np.float32):
        assert len(split(of_labels(np.arange(40) % 2), query=share).query) == 4  # type: ignore[arg-type]  # NumPy's
        return
    with pytest.raises((InputError, InputTypeError), match="query"):
        split(of_labels(np.arange(40) % 2), query=share)


# --- bad sets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("label", "found"), [(4, "label 4"), (-1, "label -1")])
def test_a_label_out_of_range_names_its_position(label: int, found: str) -> None:
    with pytest.raises(InputError, match=rf"0 \.\.\. 3: 1 are out of range, the first at position 2 with {found}"):
        ExampleSet.from_arrays(np.zeros((3, 2)), [0, 1, label], classes=list("abcd"))


@pytest.mark.parametrize("labels", [[0, 1], [0.0, 1.0, 1.0], [[0], [1], [1]], ["a", "b", "c"]])
def test_labels_must_be_one_integer_each(labels: Any) -> None:
    with pytest.raises(InputError, match=r"1-D array of integers|entries for 3 examples"):
        ExampleSet.from_arrays(np.zeros((3, 2)), labels)


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(InputError, match="'mine' is empty"):
        ExampleSet(Items([]), name="mine")
    with pytest.raises(InputError, match=r"shape \(0, 3\)"):
        ExampleSet.from_arrays(np.zeros((0, 3)), [])
    with pytest.raises(InputError, match=r"shape \(3,\)"):
        ExampleSet.from_arrays(np.zeros(3), [0, 0, 0])


def test_unequal_shapes_are_shown_held_and_streamed() -> None:
    items = Items([(torch.zeros(3, 4, 4), 0), (torch.zeros(3, 5, 4), 0)])
    with pytest.raises(InputError, match=r"\(3, 4, 4\), \(3, 5, 4\); resize"):
        ExampleSet(items)
    with pytest.raises(InputError, match=r"\(3, 4, 4\), \(3, 5, 4\); resize"):
        ExampleSet(items, hold_bytes=0).batch(np.arange(2))


def test_an_input_of_no_known_type_is_refused() -> None:
    with pytest.raises(InputTypeError, match="got str"):
        ExampleSet(Items([("a cat", 0)]))


def test_a_position_out_of_range_ends_iteration(images: ExampleSet) -> None:
    assert len(list(iter(images))) == 40
    with pytest.raises(IndexError, match="position 40 of 40"):
        images[40]


# --- fingerprints ------------------------------------------------------------------------------------------------


def made(
    raw: torch.Tensor,
    labels: npt.ArrayLike = (0, 1, 0, 1, 0, 1),
    ids: npt.ArrayLike = (0, 1, 2, 3, 4, 5),
    classes: tuple[str, ...] = ("a", "b"),
    normalization: Normalization | None = None,
) -> ExampleSet:
    return ExampleSet.from_arrays(raw, np.asarray(labels), ids=ids, classes=classes, normalization=normalization)


def test_the_fingerprint_changes_with_everything_that_matters() -> None:
    raw = pixels()
    flipped = raw.clone()
    flipped[3, 1, 2, 2] ^= 1
    sets = [
        made(raw),
        made(flipped),
        made(raw, labels=(0, 1, 0, 1, 1, 1)),
        made(raw, ids=(0, 1, 2, 3, 4, 6)),
        made(raw, classes=("a", "c")),
        made(raw, normalization=Normalization((0.5,) * 3, (0.5,) * 3)),
        made(raw).subset([0, 1, 2, 3, 5, 4]),
        made(raw).without([5]),
        made(raw.float()),
    ]
    assert len({examples.fingerprint for examples in sets}) == len(sets)


def test_the_fingerprint_is_of_content_not_of_how_the_set_was_made() -> None:
    raw = pixels()
    assert made(raw).fingerprint == made(raw.clone()).fingerprint
    part = made(raw).subset([4, 1])
    again = made(raw[[4, 1]], labels=(0, 1), ids=(4, 1))
    assert part.fingerprint == again.fingerprint
    assert made(raw).subset(np.arange(6)).fingerprint == made(raw).fingerprint


def test_a_set_read_from_disk_is_fingerprinted_by_64_of_its_inputs() -> None:
    items = Items([(torch.full((2,), float(i)), 0) for i in range(1000)])
    streamed = ExampleSet(items, labels=np.zeros(1000, int), hold_bytes=0)
    before = items.reads
    assert streamed.fingerprint == streamed.fingerprint
    assert items.reads - before == 64


def test_public_names_exist() -> None:
    assert all(hasattr(comove.data, name) for name in comove.data.__all__)


# --- what inputs may be -------------------------------------------------------------------------------------------


class _Stream(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(torch.zeros(3), 0)])


PAIRS = [(torch.zeros(3), 0), (torch.ones(3), 1)]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (_Stream(), "map-style.*_Stream.*list"),
        (torch.utils.data.DataLoader(PAIRS), "DataLoader.*loader.dataset"),  # type: ignore[arg-type]
        ((pair for pair in PAIRS), "generator"),
        (torch.zeros(4, 2, 3), "from_arrays"),
        (np.zeros((4, 2, 3)), "from_arrays"),
        ({0: PAIRS[0]}, "a sequence of"),
        ([np.zeros((2, 3))], "got ndarray at position 0"),
        ([(torch.zeros(3),)], "got tuple at position 0"),
        ([(torch.zeros(3), 0), (torch.zeros(3, dtype=torch.uint8), 1)], "one type, found float32, uint8"),
    ],
)
def test_what_is_no_data_set_of_pairs_is_refused(dataset: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"(?s){message}"):
        ExampleSet(dataset)


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint16", "uint32", "uint64"])
def test_whole_numbers_that_are_neither_pixels_nor_token_ids_are_refused(dtype: str) -> None:
    with pytest.raises(InputError, match=rf"are {dtype}\..*65535"):
        ExampleSet.from_arrays(np.ones((4, 3), dtype), [0, 1, 0, 1])
    with pytest.raises(InputError, match=rf"are {dtype}\."):
        ExampleSet([(np.ones(3, dtype), 0)])


@pytest.mark.parametrize(
    "inputs",
    [
        np.ones((4, 3), complex),
        np.full((4, 3), "a"),
        np.full((4, 3), None),
        np.zeros((4, 3), "datetime64[s]"),
        np.ma.masked_array(np.ones((4, 3)), True),
        torch.ones(4, 3).to_sparse(),
        torch.ones(4, 3, device="meta"),
        torch.ones(4, 3, dtype=torch.complex64),
        [[1.0, 2.0], [1.0]],
        [object()],
    ],
)
def test_inputs_that_are_no_numbers_are_refused(inputs: Any) -> None:
    with pytest.raises((InputError, InputTypeError)):
        ExampleSet.from_arrays(inputs, [0, 1, 0, 1])


@pytest.mark.parametrize(
    ("inputs", "seen"),
    [
        (np.array([[0, 255]] * 2, np.uint8), [0.0, 1.0]),
        (np.array([[0.5, -2]] * 2, np.float16), [0.5, -2.0]),
        (np.array([[0.5, -2]] * 2, np.float64), [0.5, -2.0]),
        (np.array([[0.5, -2]] * 2, ">f4"), [0.5, -2.0]),
        (np.array([[0.5, -2]] * 2, np.longdouble), [0.5, -2.0]),
        (torch.tensor([[0.5, -2]] * 2, dtype=torch.bfloat16), [0.5, -2.0]),
        (torch._neg_view(torch.tensor([[-0.5, 2]] * 2)), [0.5, -2.0]),
        (torch.tensor([[0.5, -2]] * 2, requires_grad=True), [0.5, -2.0]),
        (np.array([[False, True]] * 2), [0.0, 1.0]),
        (np.array([[0, 255]] * 2, np.int64), [0, 255]),
        (np.array([[0, 255]] * 2, np.int32), [0, 255]),
    ],
)
def test_what_a_model_sees_of_each_type(inputs: Any, seen: list[float]) -> None:
    examples = ExampleSet.from_arrays(inputs, [0, 1])
    batch = examples.batch(np.arange(2))[0]
    assert batch[0].tolist() == seen
    assert batch.dtype in (torch.float32, torch.int64, torch.int32)
    assert not batch.requires_grad
    assert examples.fingerprint


def test_images_of_a_palette_show_its_colours_and_those_of_16_bits_are_refused() -> None:
    from PIL import Image

    red = Image.new("RGB", (2, 2), (255, 0, 0)).convert("P")
    assert ExampleSet([(red, 0)]).raw(np.array([0]))[0, :, 0, 0].tolist() == [255, 0, 0]
    for mode in ("I;16", "I", "F"):
        with pytest.raises(InputError, match="8 bits a channel"):
            ExampleSet([(Image.new(mode, (2, 2)), 0)])


def test_images_with_the_channels_last_and_normalizations_of_other_channels_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(8, 8, 3\).*transpose"):
        ExampleSet.from_arrays(np.zeros((2, 8, 8, 3), np.uint8), [0, 1])
    with pytest.raises(InputError, match="has 2 channels"):
        ExampleSet.from_arrays(
            np.zeros((2, 3, 8, 8), np.uint8), [0, 1], normalization=Normalization((0.5, 0.5), (0.2, 0.2))
        )
    for mean, std in [((0.5,), (0.0,)), ((0.5,), (0.1, 0.1)), ((), ()), ((float("nan"),), (1.0,))]:
        with pytest.raises(InputError, match="one finite mean"):
            Normalization(mean, std)
