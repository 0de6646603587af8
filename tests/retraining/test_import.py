"""Ground truth of others as banks, and banks in their layouts: every number and id that went in comes out."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from comove.attribution import Scores, SubsampledInfluence
from comove.data import Splits
from comove.errors import CorruptFileError, InputError, InputTypeError, NonFiniteError, StorageError
from comove.evaluation import (
    LAYOUTS,
    RetrainingBank,
    export_bank,
    import_bank,
    lds_of_scores,
    linear_datamodeling_score,
    read_scores,
    subsets,
)
from comove.retraining import layouts
from comove.retraining.own import OwnTraining
from comove.training import Engine, Recipe, Training

C, N, Q = 8, 12, 5
TRAIN, QUERY = np.arange(100, 100 + N), np.array([7, 3, 9, 1, 2])
RNG = np.random.default_rng(0)
MASKS = np.zeros((C, N), bool)
for _row in MASKS:
    _row[RNG.choice(N, 6, replace=False)] = True
MARGINS = RNG.normal(size=(C, Q)).astype(np.float16).astype(np.float32)
SCORES = RNG.normal(size=(N, Q)).astype(np.float32)


def bank_of(outputs: Any = None, **options: Any) -> RetrainingBank:
    return RetrainingBank.from_arrays(MASKS, {"margin": MARGINS} if outputs is None else outputs, **options)


# --- banks from arrays ----------------------------------------------------------------------------------------------


def test_of_several_outputs_the_measure_or_the_margin_is_meant() -> None:
    loss = RNG.normal(size=(C, Q))
    assert bank_of({"loss": loss, "margin": MARGINS}).lds(Scores.from_arrays(SCORES)).output == "margin"
    assert bank_of({"margin": loss, "measure": MARGINS}).default_output == "measure"
    with pytest.raises(InputError, match="there are: error, loss"):
        bank_of({"loss": loss, "error": MARGINS}).outputs()


def test_a_bank_from_arrays_says_what_was_given() -> None:
    both: dict[str, Any] = {"loss": RNG.normal(size=(C, 2, Q)), "acc": RNG.normal(size=(C, 2, Q)).astype(np.float32)}
    labels: dict[str, Any] = {"train_labels": np.arange(N) % 3, "query_labels": np.arange(Q) % 3}
    bank = RetrainingBank.from_arrays(MASKS, both, train_ids=TRAIN, query_ids=QUERY, higher={"acc": True}, **labels)
    assert np.array_equal(bank.masks, MASKS)
    assert bank.train_ids.tolist() == TRAIN.tolist()
    assert bank.query_ids.tolist() == QUERY.tolist()
    assert bank.train_labels is not None
    assert bank.train_labels.tolist() == labels["train_labels"].tolist()
    assert np.array_equal(bank.outputs("loss"), both["loss"])
    assert np.array_equal(bank.outputs("acc"), both["acc"].astype(float))
    assert (bank.higher_is_better("acc"), bank.higher_is_better("loss")) == (True, False)
    assert bank.pending == []
    assert bank.seeds == 2
    assert np.array_equal(bank.part([3, 1]).outputs("loss"), both["loss"][[3, 1]])


def test_equal_rows_of_masks_are_models_of_one_subset() -> None:
    rows = np.array([0, 1, 0, 2, 1, 0])
    bank = RetrainingBank.from_arrays(MASKS[rows], {"margin": MARGINS[: rows.size]})
    assert np.array_equal(bank.masks, MASKS[:3])
    found = bank.outputs("margin")
    assert found.shape == (3, 3, Q)
    assert np.array_equal(found[0], MARGINS[[0, 2, 5]])
    assert np.array_equal(found[1, :2], MARGINS[[1, 4]])
    assert np.isnan(found[1, 2]).all()
    assert np.isnan(found[2, 1:]).all()
    assert len(bank.jobs) == rows.size


def test_a_compact_file_of_it_reads_the_same_and_cannot_be_trained(tmp_path: Path) -> None:
    bank = bank_of(train_ids=TRAIN, query_ids=QUERY)
    again = RetrainingBank.load(bank.compact(tmp_path / "b.safetensors"))
    half = RetrainingBank.load(bank.compact(tmp_path / "h.safetensors", "float16"))
    for other in (again, half):  # the margins are float16 numbers
        assert np.array_equal(other.outputs(), bank.outputs())
        assert np.array_equal(other.masks, bank.masks)
        assert other.manifest == bank.manifest
    for call in (bank.run, bank.pending_jobs, again.run):
        with pytest.raises(InputError, match="imported or compact bank, to be read only"):
            call()
    assert "8 subsets x 1 seed, 5 queries, 8 of 8 models trained" in repr(bank)
    assert bank.status().done == C


def test_its_lds_is_the_mean_rank_correlation(tmp_path: Path) -> None:
    scores = Scores.from_arrays(SCORES, train_ids=TRAIN, query_ids=QUERY, method="x")
    bank = bank_of({"loss": MARGINS}, train_ids=TRAIN[::-1], query_ids=QUERY)
    predictions = MASKS.astype(float) @ SCORES[::-1]
    expected = [spearmanr(predictions[:, q], -MARGINS[:, q]).statistic for q in range(Q)]
    found = lds_of_scores(bank, scores, out=tmp_path / "lds")
    np.testing.assert_allclose(found.results[0].per_query, expected, atol=1e-12)
    assert found.results[0].alpha == 0.5
    np.testing.assert_array_equal(bank.lds(scores).per_query, found.results[0].per_query)
    assert pd.read_csv(tmp_path / "lds/lds.csv")["method"].tolist() == ["x"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"masks": MASKS[0]}, "masks must be .models, training examples., got shape .12"),
        ({"masks": MASKS * 2}, "masks must be 0 or 1 .*found 2"),
        ({"masks": np.full((C, N), np.nan)}, "masks must be 0 or 1 .*found nan"),
        ({"masks": MASKS.astype(str)}, "masks must be booleans"),
        ({"outputs": {"margin": MARGINS[1:]}}, "for 8 rows of masks, got shape .7, 5"),
        ({"outputs": {"margin": MARGINS[:, 0]}}, "got shape .8,"),
        ({"outputs": {"a": MARGINS, "b": MARGINS[:, 1:]}}, "All outputs must be of the same models and queries"),
        ({"outputs": {"margin": np.where(MASKS[:, :Q], np.nan, MARGINS)}}, "are NaN or infinite in .* of 40 places"),
        ({"outputs": {}}, "Outputs must be named"),
        ({"outputs": {"margin": MARGINS.astype(complex)}}, "must be real numbers"),
        ({"train_ids": TRAIN[1:]}, "train_ids must be one for each of 12 examples, got 11"),
        ({"query_ids": [1, 1, 2, 3, 4]}, "query_ids must be unique"),
        ({"train_labels": [0]}, "train_labels"),
        ({"higher": {"lost": False}}, "higher names outputs that are not there: lost"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(change: dict[str, Any], told: str) -> None:
    arguments: dict[str, Any] = {"masks": MASKS, "outputs": {"margin": MARGINS}, **change}
    with pytest.raises((InputError, InputTypeError), match=told) as found:
        RetrainingBank.from_arrays(**arguments)
    assert "\n" not in str(found.value)


# --- layouts --------------------------------------------------------------------------------------------------------


def _trak(folder: Path) -> None:
    np.save(folder / "mask.npy", MASKS)
    np.save(folder / "val_margins.npy", MARGINS)


def _datamodels(folder: Path) -> None:
    done = np.ones(C + 2, bool)
    done[[0, 5]] = False
    masks, margins = np.zeros((C + 2, N), bool), np.full((C + 2, Q), np.nan, np.float16)
    masks[done], margins[done] = MASKS, MARGINS
    for name, array in (("masks", masks), ("margins", margins), ("_completed", done)):
        mapped = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", array.dtype, array.shape)
        mapped[:] = array
        mapped.flush()


def _published(folder: Path) -> None:
    np.save(folder / "train_masks_50pct.npy", MASKS)
    np.save(folder / "test_margins_50pct.npy", MARGINS.astype(np.float16))


def _dattri(folder: Path) -> None:
    torch.save(torch.tensor(np.nonzero(MASKS)[1].reshape(C, 6)[:, ::-1].copy()), folder / "indices_lds.pt")
    torch.save(torch.tensor(MARGINS), folder / "target_values_lds.pt")


def _kronfluence(folder: Path) -> None:  # arrays, as their scripts save them
    torch.save(MASKS, folder / "masks.pt")
    torch.save(MARGINS, folder / "margins.pt")


def _npz(folder: Path) -> None:
    np.savez(folder / "truth.npz", masks=MASKS.astype(np.uint8), margin=MARGINS)


def _parquet(folder: Path) -> None:
    rows, columns = np.nonzero(MASKS)
    cells = {"model": np.repeat(np.arange(C), Q) * 10, "query_id": np.tile(np.arange(Q), C), "margin": MARGINS.ravel()}
    pd.DataFrame({"id": np.arange(N)}).to_parquet(folder / "train.parquet")
    pd.DataFrame({"id": np.arange(Q)}).to_parquet(folder / "queries.parquet")
    pd.DataFrame({"model": rows * 10, "train_id": columns})[::-1].to_parquet(folder / "subsets.parquet")
    pd.DataFrame(cells)[::-1].to_parquet(folder / "outputs.parquet")


FIXTURES: dict[str, Callable[[Path], None]] = {
    "trak": _trak,
    "datamodels": _datamodels,
    "published": _published,
    "dattri": _dattri,
    "kronfluence": _kronfluence,
    "npz": _npz,
    "parquet": _parquet,
}


def made(kind: str, folder: Path) -> Path:
    """A folder (or file) of ground truth in a layout."""
    FIXTURES[kind](folder)
    return folder / "truth.npz" if kind == "npz" else folder


@pytest.mark.parametrize("kind", FIXTURES)
def test_every_layout_is_told_by_its_files_and_read(kind: str, tmp_path: Path) -> None:
    bank = import_bank(made(kind, tmp_path))
    layout = "datamodels" if kind == "published" else kind
    assert bank.manifest["training"]["name"] == f"imported-{layout}"
    assert np.array_equal(bank.masks, MASKS)
    assert np.array_equal(bank.outputs()[:, 0], MARGINS)
    assert bank.output_names == (("target",) if kind == "dattri" else ("margin",))
    assert bank.train_ids.tolist() == list(range(N))
    first = import_bank(tmp_path / "truth.npz" if kind == "npz" else tmp_path, layout, first=4)
    models = 3 if kind == "datamodels" else 4  # one of the first four was not finished
    assert np.array_equal(first.masks[:, : first.train_ids.size], MASKS[:models, : first.train_ids.size])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_written_and_read_back_with_ids_and_labels(layout: str, tmp_path: Path) -> None:
    labels: dict[str, Any] = {"train_labels": np.arange(N) % 3, "query_labels": np.arange(Q) % 3}
    bank = bank_of(train_ids=TRAIN, query_ids=QUERY, **labels)
    path = export_bank(bank, tmp_path / ("out.npz" if layout == "npz" else "out"), layout)
    again = import_bank(path)
    assert np.array_equal(again.masks, bank.masks)
    assert np.array_equal(again.outputs(), bank.outputs())
    for name in ("train_ids", "query_ids", "train_labels", "query_labels"):
        assert getattr(again, name).tolist() == getattr(bank, name).tolist()


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "dattri"])
def test_models_of_one_subset_stay_together(layout: str, tmp_path: Path) -> None:
    values = np.stack([MARGINS, MARGINS[::-1]], axis=1)
    path = export_bank(bank_of({"margin": values}), tmp_path / ("o.npz" if layout == "npz" else "o"), layout)
    assert np.array_equal(import_bank(path).outputs(), values)


def test_dattri_has_the_mean_of_a_subsets_models_where_more_is_better(tmp_path: Path) -> None:
    bank = bank_of({"loss": np.stack([MARGINS, MARGINS + 2], axis=1)})
    export_bank(bank, tmp_path / "d", "dattri")
    values = torch.load(tmp_path / "d/target_values_lds.pt", weights_only=True).numpy()
    np.testing.assert_allclose(values, -(MARGINS + 1), atol=1e-6)


def test_dattris_own_score_of_what_is_written_is_ours(tmp_path: Path) -> None:
    metric = pytest.importorskip("dattri.metric")
    export_bank(bank_of(), tmp_path / "d", "dattri")
    names = ("target_values_lds.pt", "indices_lds.pt")
    truth = tuple(torch.load(tmp_path / "d" / name, weights_only=True) for name in names)
    theirs = metric.lds(torch.tensor(SCORES), truth)[0].numpy()
    ours = linear_datamodeling_score(SCORES, MASKS, MARGINS).per_query
    np.testing.assert_allclose(theirs, ours, atol=1e-6)


def test_dattris_leave_one_out_names_what_is_absent(tmp_path: Path) -> None:
    torch.save(torch.tensor([2.0, 0.0, 3.0]), tmp_path / "indices_loo.pt")  # as their code fills torch.empty
    torch.save(torch.tensor(MARGINS[:3]), tmp_path / "target_values_loo.pt")
    bank = import_bank(tmp_path)
    assert np.array_equal(~bank.masks, np.eye(4, dtype=bool)[[2, 0, 3]])
    export_bank(bank, tmp_path / "again", "dattri")
    assert torch.load(tmp_path / "again/indices_loo.pt", weights_only=True).tolist() == [2, 0, 3]
    assert np.array_equal(import_bank(tmp_path / "again").masks, bank.masks)


def test_losses_keep_their_name_and_sense(tmp_path: Path) -> None:
    bank = bank_of({"loss": MARGINS})
    export_bank(bank, tmp_path / "k", "kronfluence")
    assert (tmp_path / "k/losses.pt").is_file()
    assert not import_bank(tmp_path / "k").higher_is_better("loss")
    export_bank(bank, tmp_path / "t", "trak")
    assert np.array_equal(np.load(tmp_path / "t/val_margins.npy"), -MARGINS)
    export_bank(bank_of({"loss": MARGINS, "measure": MARGINS}), tmp_path / "n.npz", "npz")
    several = import_bank(tmp_path / "n.npz", higher={"measure": False})
    assert (several.output_names, several.higher_is_better("measure")) == (("loss", "measure"), False)


def test_a_bank_of_classifiers_is_written_by_its_outputs(small_digits: Splits, tmp_path: Path) -> None:
    how = Training("mlp", Recipe(epochs=1))
    bank = RetrainingBank.create(tmp_path / "bank", small_digits, how, subsets=subsets.random(0.5, 3))
    with pytest.raises(InputError, match=r"3 of 3 models of .* are pending"):
        export_bank(bank, tmp_path / "x", "trak")
    bank.run(executor="serial", engine=Engine("one-by-one", 1, "for a test"))
    again = import_bank(export_bank(bank, tmp_path / "all.npz", "npz"))
    assert set(again.output_names) == {"margin", "correct", "loss", "probability"}
    assert np.array_equal(again.outputs("margin"), bank.outputs("margin"))
    assert np.array_equal(again.train_ids, bank.train_ids)
    assert again.digests == bank.digests


# --- what is refused ------------------------------------------------------------------------------------------------


def _pickled(folder: Path) -> str:
    _trak(folder)
    np.save(folder / "mask.npy", np.array([{}] * C, object), allow_pickle=True)
    return "holds pickled objects, and reading it could run code"


def _a_pickle(folder: Path) -> str:
    _trak(folder)
    (folder / "mask.npy").write_bytes(pickle.dumps(MASKS))
    return "mask.npy cannot be read"


def _code(folder: Path) -> str:
    _kronfluence(folder)
    torch.save({"masks": Path("x")}, folder / "masks.pt")
    return "reading it would run code"


def _objects(folder: Path) -> str:
    _kronfluence(folder)
    torch.save(np.array([{}], object), folder / "masks.pt")
    return "reading it would run code"


def _a_list(folder: Path) -> str:
    _kronfluence(folder)
    torch.save([1, 2], folder / "masks.pt")
    return "must hold a tensor, or tensors by name; it holds list"


def _cut_off(folder: Path) -> str:
    _trak(folder)
    whole = (folder / "mask.npy").read_bytes()
    (folder / "mask.npy").write_bytes(whole[: len(whole) // 2])
    return "mask.npy cannot be read"


def _no_archive(folder: Path) -> str:
    (folder / "truth.npz").write_bytes(b"PK\x03\x04 nonsense")
    return "truth.npz cannot be read"


def _text(folder: Path) -> str:
    _trak(folder)
    np.save(folder / "mask.npy", MASKS.astype("U1"))
    return "holds <U1"


def _other_shape(folder: Path) -> str:
    _trak(folder)
    np.save(folder / "mask.npy", MASKS[1:])
    return "for 7 rows of masks, got shape"


def _twos(folder: Path) -> str:
    _trak(folder)
    np.save(folder / "mask.npy", MASKS * np.uint8(2))
    return "masks must be 0 or 1"


def _nan(folder: Path) -> str:
    _published(folder)
    np.save(folder / "test_margins_50pct.npy", np.full((C, Q), np.nan, np.float16))
    return "are NaN or infinite in 40 of 40 places"


def _none_finished(folder: Path) -> str:
    _datamodels(folder)
    np.save(folder / "_completed.npy", np.zeros(C + 2, bool))
    return "got 0 in shape (10,)"


def _finished_by_ids(folder: Path) -> str:
    _datamodels(folder)
    np.save(folder / "_completed.npy", np.arange(C + 2))
    return "must hold a 1 for each model that is finished"


def _finished_twice(folder: Path) -> str:
    _datamodels(folder)
    np.save(folder / "_completed.npy", np.stack([np.ones(C + 2, bool), np.arange(C + 2) < C]))
    return "in shape (2, 10), beside masks of 10"


def _finished_shorter(folder: Path) -> str:
    _datamodels(folder)
    np.save(folder / "_completed.npy", np.array([True, False, True]))
    return "in shape (3,), beside masks of 10"


def _one_output_twice(folder: Path) -> str:
    _kronfluence(folder)
    torch.save(torch.zeros(C, Q), folder / "margin.pt")
    return "holds 'margin' twice, as margin.pt and margins.pt"


def _far_position(folder: Path) -> str:
    _dattri(folder)
    torch.save(torch.arange(C * 6).reshape(C, 6) * 10**12, folder / "indices_lds.pt")
    return "masks of so many examples fit no memory"


def _header(folder: Path, shape: str) -> str:
    _trak(folder)
    header = f"{{'descr': '|b1', 'fortran_order': False, 'shape': {shape}}}".ljust(9989) + "\n"
    (folder / "mask.npy").write_bytes(b"\x93NUMPY\x01\x00" + (9990).to_bytes(2, "little") + header.encode() + b"0" * 99)
    return "mask.npy cannot be read"


def _huge(folder: Path) -> str:
    return _header(folder, f"({2**70}, 1)")


def _boolean_shape(folder: Path) -> str:
    return _header(folder, "(True, 5)")


def _deep(folder: Path) -> str:
    return _header(folder, "(" * 9000)


def _no_outputs(folder: Path) -> str:
    np.save(folder / "masks.npy", MASKS)
    return "holds masks, but no outputs"


def _twice(folder: Path) -> str:
    _dattri(folder)
    torch.save(torch.zeros(C, 6, dtype=torch.int64), folder / "indices_lds.pt")
    return "names an example twice in one subset"


def _negative(folder: Path) -> str:
    _dattri(folder)
    torch.save(torch.full((C, 6), -1), folder / "indices_lds.pt")
    return "must be positions from 0"


def _both(folder: Path) -> str:
    _trak(folder)
    _kronfluence(folder)
    return "holds files of several layouts: say which it is with layout=, one of trak, kronfluence"


def _foreign(folder: Path) -> str:
    (folder / "readme.txt").write_text("x")
    return "holds ground truth in no known layout"


def _cells_missing(folder: Path) -> str:
    _parquet(folder)
    pd.read_parquet(folder / "outputs.parquet")[1:].to_parquet(folder / "outputs.parquet")
    return "one row for every model and query"


def _cells_twice(folder: Path) -> str:
    _parquet(folder)
    table = pd.read_parquet(folder / "outputs.parquet")
    pd.concat([table[1:], table[1:2]]).to_parquet(folder / "outputs.parquet")
    return "names a model and query_id twice"


def _no_column(folder: Path) -> str:
    _parquet(folder)
    pd.DataFrame({"model": [0]}).to_parquet(folder / "subsets.parquet")
    return "subsets.parquet lacks the column train_id"


def _other_models(folder: Path) -> str:
    _parquet(folder)
    pd.read_parquet(folder / "subsets.parquet").query("model > 0").to_parquet(folder / "subsets.parquet")
    return "must be of the same models"


def _foreign_archive(folder: Path) -> str:
    with zipfile.ZipFile(folder / "truth.npz", "w") as archive:
        archive.writestr("readme.txt", "x" * 50)
    return "'readme.txt' in it is no array of NumPy"


def _named_twice(folder: Path) -> str:
    np.savez(folder / "truth.npz", masks=MASKS, margin=MARGINS)
    with zipfile.ZipFile(folder / "truth.npz", "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("margin.npy", archive.read("masks.npy"))
    return "it holds 'margin' twice"


def _beyond_addresses(folder: Path) -> str:
    _dattri(folder)
    torch.save(torch.full((C, 1), 10**17), folder / "indices_lds.pt")
    return "masks of so many examples fit no memory"


def _ids_twice(folder: Path) -> str:
    _parquet(folder)
    table = pd.read_parquet(folder / "train.parquet")
    table.assign(id=table["id"].iloc[0]).to_parquet(folder / "train.parquet")
    return "train.parquet: id must be unique"


BROKEN = (
    *(_foreign_archive, _named_twice, _beyond_addresses, _ids_twice),
    *(_pickled, _a_pickle, _code, _objects, _a_list, _cut_off, _no_archive, _text, _other_shape, _twos, _nan),
    *(_finished_by_ids, _finished_twice, _finished_shorter, _one_output_twice, _far_position),
    *(_huge, _boolean_shape, _deep),
    *(_none_finished, _no_outputs, _twice, _negative, _both, _foreign),
    *(_cells_missing, _cells_twice, _no_column, _other_models),
)


@pytest.mark.parametrize("spoil", BROKEN)
def test_foreign_and_damaged_files_are_refused_in_a_line(spoil: Callable[[Path], str], tmp_path: Path) -> None:
    told = spoil(tmp_path)
    file = tmp_path / "truth.npz"
    with pytest.raises(InputError) as found:
        import_bank(file if file.exists() else tmp_path)
    assert told in str(found.value)
    assert "\n" not in str(found.value)


def test_other_names_and_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match="does not exist"):
        import_bank(tmp_path / "nowhere")
    with pytest.raises(InputError, match="Did you mean 'trak'"):
        import_bank(tmp_path, "trk")
    _trak(tmp_path)
    with pytest.raises(InputError, match="holds something already"):
        export_bank(bank_of(), tmp_path, "trak")
    with pytest.raises(InputError, match=r"a new file that ends in \.npz"):
        export_bank(bank_of(), tmp_path / "x", "npz")
    with pytest.raises(InputError, match="holds one output, got a, b"):
        export_bank(bank_of({"a": MARGINS, "b": MARGINS}), tmp_path / "x", "trak", outputs=["a", "b"])
    with pytest.raises(InputError, match="too large for float16"):
        export_bank(bank_of({"a": MARGINS * 1e6}), tmp_path / "y", "datamodels")
    uneven = RetrainingBank.from_arrays(np.tril(np.ones((4, 4))), {"a": np.ones((4, 1))})
    with pytest.raises(InputError, match="all of one size, these have 1 to 4"):
        export_bank(uneven, tmp_path / "z", "dattri")


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        *(("datamodels", [name]) for name in ("masks", "_completed", "train_ids", "../above", "a/b", "a\0b")),
        ("datamodels", ["margin", "margins"]),
        *(("kronfluence", [name]) for name in ("masks", "query_labels", "../../above")),
        *(("npz", [name]) for name in ("masks", "train_ids", "a\0b")),
        *(("parquet", [name]) for name in ("model", "query_id")),
    ],
)
def test_an_output_is_not_written_over_anything_else_nor_outside_the_folder(
    layout: str, names: list[str], tmp_path: Path
) -> None:
    bank, out = bank_of(dict.fromkeys(names, MARGINS)), tmp_path / "in" / ("x.npz" if layout == "npz" else "x")
    with pytest.raises(InputError, match="cannot hold outputs named"):
        export_bank(bank, out, layout)
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("layout", ["trak", "dattri", "kronfluence"])
def test_outputs_beyond_float32_are_refused_where_a_layout_holds_that(layout: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too large for float32"):
        export_bank(bank_of({"a": MARGINS.astype(float) * 1e50}), tmp_path / "x", layout)


# --- scores of others -----------------------------------------------------------------------------------------------


def test_scores_are_read_from_every_kind_of_file(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    bank = bank_of(train_ids=TRAIN, query_ids=QUERY)
    np.save(tmp_path / "a.npy", SCORES)
    np.savez(tmp_path / "b.npz", scores=SCORES, other=np.ones((2, 2)))
    torch.save(torch.tensor(SCORES), tmp_path / "c.pt")
    save_file({"all_modules": SCORES.T.copy()}, tmp_path / "d.safetensors")
    Scores.from_arrays(SCORES, train_ids=TRAIN, query_ids=QUERY).save(tmp_path / "e.safetensors")
    for name, axes in (
        ("a.npy", "dattri"), ("b.npz", "train,query"), ("c.pt", "trak"), ("d.safetensors", "kronfluence"),
        ("e.safetensors", "query train"),
    ):  # fmt: skip
        found = read_scores(tmp_path / name, bank, axes=axes, method="x")
        assert np.array_equal(np.asarray(found.values), SCORES), name
        assert (found.train_ids.tolist(), found.query_ids.tolist()) == (TRAIN.tolist(), QUERY.tolist())
        assert found.method == "x"
    hurts = read_scores(tmp_path / "a.npy", bank, positive="hurts", train_ids=TRAIN[::-1])
    assert np.array_equal(hurts.values, -SCORES)
    assert hurts.train_ids.tolist() == TRAIN[::-1].tolist()
    assert hurts.method == "a"


def test_ids_in_a_file_of_scores_count(tmp_path: Path) -> None:
    bank, order = bank_of(train_ids=TRAIN, query_ids=QUERY), RNG.permutation(N)
    np.savez(tmp_path / "s.npz", scores=SCORES[order], train_ids=TRAIN[order])
    shuffled = read_scores(tmp_path / "s.npz", bank)
    straight = Scores.from_arrays(SCORES, train_ids=TRAIN, query_ids=QUERY)
    np.testing.assert_array_equal(bank.lds(shuffled).per_query, bank.lds(straight).per_query)


def test_scores_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    bank = bank_of()
    np.save(tmp_path / "t.npy", SCORES.T)
    with pytest.raises(InputError, match=r"as read \(train query\), .* 12 and 5: is the orientation the other one\?"):
        read_scores(tmp_path / "t.npy", bank)
    np.save(tmp_path / "n.npy", np.full((N, Q), np.nan))
    with pytest.raises(NonFiniteError):
        read_scores(tmp_path / "n.npy", bank)
    np.savez(tmp_path / "m.npz", a=SCORES, b=SCORES)
    with pytest.raises(InputError, match="must hold one matrix of scores, or one called 'scores'"):
        read_scores(tmp_path / "m.npz", bank)
    np.save(tmp_path / "s.npy", SCORES[1:])
    with pytest.raises(InputError, match="give the scores' own ids"):
        read_scores(tmp_path / "s.npy", bank)
    with pytest.raises(InputError, match="must end in one of"):
        read_scores(tmp_path / "s.csv", bank)
    with pytest.raises(InputError, match="axes must be"):
        read_scores(tmp_path / "s.npy", bank, axes="sideways")
    damaged = tmp_path / "d.safetensors"
    Scores.from_arrays(SCORES).save(damaged)
    damaged.write_bytes(damaged.read_bytes()[:-4])
    with pytest.raises(CorruptFileError):
        read_scores(damaged, bank)


def test_methods_that_are_computed_from_a_bank_take_it(tmp_path: Path) -> None:
    masks, losses = np.vstack([MASKS, ~MASKS]), np.vstack([MARGINS, MARGINS[::-1]])
    bank = RetrainingBank.from_arrays(masks, {"loss": losses}, train_ids=TRAIN)
    found = SubsampledInfluence(output="loss").fit(RetrainingBank.load(bank.compact(tmp_path / "b.safetensors")))
    expected = [losses[~saw].mean(0) - losses[saw].mean(0) for saw in masks.T]
    scores = found.attribute()
    np.testing.assert_allclose(scores.values, expected, atol=1e-5)
    assert scores.train_ids.tolist() == TRAIN.tolist()


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "npz"])
def test_nothing_is_left_of_an_export_that_failed(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = bank_of(train_ids=TRAIN, train_labels=np.arange(N) % 3)
    write, written = Path.replace, 0

    def full(file: Path, target: Any) -> Path:
        nonlocal written
        written += 1
        if written == 3:
            raise OSError(28, "No space left on device")
        return write(file, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StorageError, match="No space left"):
        export_bank(bank, tmp_path / "out", layout)
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_an_export_whose_numbers_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too large for float16"):
        export_bank(bank_of({"error": MARGINS, "margin": 1e6 * MARGINS}), tmp_path / "out", "datamodels")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in ("npz", "parquet")])
def test_a_folder_whose_export_was_killed_is_not_read_without_its_ids(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    write, bank = Path.replace, bank_of(train_ids=TRAIN, query_ids=QUERY, train_labels=np.arange(N) % 3)
    monkeypatch.setattr(layouts, "_remove_part", lambda where: None)  # a killed process removes nothing
    for last in range(20):
        left = last

        def killed(file: Path, target: Any) -> Path:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return write(file, target)

        monkeypatch.setattr(Path, "replace", killed)
        try:
            export_bank(bank, tmp_path / f"{last}", layout)
        except Killed:
            with pytest.raises((InputError, CorruptFileError)):
                import_bank(tmp_path / f"{last}")
            continue
        break
    assert last > 3
    assert np.array_equal(import_bank(tmp_path / f"{last}").train_ids, TRAIN)


def test_names_that_no_file_can_hold_are_refused_at_once() -> None:
    with pytest.raises(InputError, match=r"whole characters, found 'a\\ud800'"):
        bank_of({"a\ud800": MARGINS})
    with pytest.raises(InputTypeError, match="subsets must be plans"):
        RetrainingBank.create("never", TRAIN, training=OwnTraining(dict, name="x"), subsets=3, queries=QUERY)  # type: ignore[arg-type]
