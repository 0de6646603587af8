"""No artefact lies: a flipped bit, a swapped, foreign or missing file, and junk of any kind are known when read."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import comove
from comove.attribution import CLD, TRAK, Scores
from comove.cli.app import app
from comove.coreset import Coreset, select
from comove.data import Splits
from comove.data.builtin import load_dataset, reload_splits
from comove.data.tables import read_rows, write_rows
from comove.errors import ComoveError, CorruptFileError, FingerprintError, InputError
from comove.evaluation import RetrainingBank, subsets
from comove.evaluation.label_errors.suspicion import Suspicion
from comove.report.saved_results import read_curves, read_lds, read_suspects
from comove.store import (
    claim_cache,
    claim_folder,
    digest,
    new_folder,
    read_arrays,
    read_header,
    read_json,
    write_arrays,
    write_bytes,
    write_json,
    write_manifest,
)
from comove.store.arrays import open_array
from comove.store.checksums import BLANK, BLOCK, seal
from comove.store.documents import entries, parse_json
from comove.store.manifests import HEAD, _counted
from comove.trace import Trace
from comove.training import Recording, Run, Training
from comove.training.run import read_weights

RECIPE = {"epochs": 2, "batch_size": 16}
RECORDING = Recording(anchors=(0, 1, 2))


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load_dataset("digits", limit=40, queries=12)


def train(splits: Splits, out: Path, seed: int = 0) -> Run:
    return comove.train(splits, "mlp", RECIPE, seed, out, recording=RECORDING, model_options={"hidden": (4,)})


@pytest.fixture(scope="module")
def original(splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, scores, coresets and tables, to be copied and damaged."""
    folder = tmp_path_factory.mktemp("integrity")
    run = train(splits, folder / "run")
    train(splits, folder / "other", seed=1)
    CLD().fit(run).attribute().save(folder / "scores")
    for name in ("coreset.csv", "coreset.safetensors"):
        select("cld", run, budget=0.5).save(folder / name)
    values = {"cld": np.linspace(0, 1, 40).astype(np.float32)}
    Suspicion(run.trace.train_ids, splits.train.labels, values, low=("cld",)).save(folder / "suspicion.safetensors")
    write_rows(folder / "suspects.csv", ["method", "id", "score"], [["cld", 3, 0.5], ["cld", 4, 0.25]])
    write_rows(
        folder / "curve.csv", ["target", "method", "budget", "size", "seed", "accuracy"], [["m", "cld", 1, 4, 0, 1]]
    )
    row = {"per_query": [0.5, None], "mean": 0.5, "interval": [0.1, 0.9], "undefined": 1, "constant_predictions": 0}
    row |= {"reliability": None, "noise_ceiling": 0.9, "method": "cld", "query_ids": [1, 2], "subsets": 3, "seeds": 1}
    row |= {"confidence": 0.95, "output": "margin", "alpha": 0.5, "against": None, "runs": 1}
    write_json(
        folder / "lds.json", {"results": [row], "differences": [], "bank": {"seed": 0, "dataset": {"name": "x"}}}
    )
    return folder


@pytest.fixture
def made(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "made")
    return tmp_path / "made"


def read_run(folder: Path) -> None:
    """Everything that is read of a run."""
    run = Run.load(folder)
    repr(run)
    trace = run.trace
    for side in ("train", "query"):
        for field in trace.fields:
            trace.read(side, field)
        np.asarray(trace.lazy(side))
        for row in trace.anchors:
            trace.features(side, row)
            trace.probabilities(side, row)
    for checkpoint in run.checkpoints:
        run.load_model(checkpoint)
    run.result, run.recipe.lr_at(0.5), run.data  # properties that read
    run.resume_header(), read_weights(run.resume_file)


def read_scores(file: Path) -> None:
    scores = Scores.load(file)
    for query in scores.query_ids.tolist():
        scores.top(3, query=query)
    repr(scores), scores.values


READERS: dict[str, Callable[[Path], object]] = {
    "run": read_run,
    "scores": read_scores,
    "coreset.csv": Coreset.load,
    "coreset.safetensors": Coreset.load,
    "suspicion.safetensors": Suspicion.load,
    "suspects.csv": read_suspects,
    "curve.csv": read_curves,
    "lds.json": lambda file: read_lds(file).provenance.to_json(),
}


def files_of(made: Path) -> Iterator[tuple[Path, Path]]:
    """Every file, and the artefact that it is of."""
    for name in READERS:
        artefact = made / name
        for file in sorted(artefact.rglob("*")) if artefact.is_dir() else [artefact]:
            if file.is_file() and not file.name.startswith("driver."):
                yield file, artefact


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def test_a_whole_artefact_reads(made: Path) -> None:
    for name, read in READERS.items():
        read(made / name)
    assert Run.load(made / "run").damaged() == ()


def test_no_flipped_bit_of_any_artefact_goes_unnoticed(made: Path) -> None:
    rng = np.random.default_rng(0)
    seen = 0
    for file, artefact in files_of(made):
        whole = file.read_bytes()
        first = np.arange(0, min(len(whole), 48) * 8, 31)  # lengths, and the words beside the seal
        for bit in [*first, *rng.integers(0, 8 * len(whole), 20), 8 * len(whole) - 1]:
            flip(file, int(bit))
            with pytest.raises((CorruptFileError, FingerprintError)):
                READERS[artefact.name](artefact)
            file.write_bytes(whole)
            seen += 1
    assert seen > 500


def test_no_cut_of_any_artefact_goes_unnoticed(made: Path) -> None:
    for file, artefact in files_of(made):
        whole = file.read_bytes()
        lines = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")] if file.suffix == ".csv" else []
        for size in {0, 1, 8, len(whole) // 2, len(whole) - 1, *lines} - {len(whole)}:
            file.write_bytes(whole[:size])
            with pytest.raises(CorruptFileError):
                READERS[artefact.name](artefact)
        file.write_bytes(whole)


# --- swapped, foreign, missing -----------------------------------------------------------------------------------


def swap(a: Path, b: Path) -> None:
    contents = a.read_bytes(), b.read_bytes()
    b.write_bytes(contents[0])
    a.write_bytes(contents[1])


@pytest.mark.parametrize("part", ["trace/rows", "trace/anchors", "checkpoints"])
@pytest.mark.parametrize("how", ["swapped", "foreign", "missing", "renamed"])
def test_files_that_are_not_in_their_place_are_named_and_made_again(
    splits: Splits, made: Path, original: Path, part: str, how: str
) -> None:
    folder = made / "run" / part
    file = folder / "000001.safetensors"
    if how == "swapped":
        swap(file, folder / "000002.safetensors")
    elif how == "foreign":
        shutil.copy(made / "other" / part / file.name, file)
    elif how == "missing":
        file.unlink()
    else:
        file.rename(folder / "000007.safetensors")
    with pytest.raises(CorruptFileError, match=r"00000[127]|Row 1"):
        read_run(made / "run")
    with pytest.warns(UserWarning, match="damaged or missing .*trained again from the beginning"):
        again = train(splits, made / "run")
    assert again.damaged() == ()
    for path in sorted((original / "run").rglob("*.safetensors")):
        assert (again.path / path.relative_to(original / "run")).read_bytes() == path.read_bytes()


def test_every_damaged_file_of_a_finished_run_is_restored_to_its_bits(
    splits: Splits, made: Path, original: Path
) -> None:
    for name in ("trace/examples.safetensors", "trace/manifest.json", "result.json", "checkpoints/000002.safetensors"):
        flip(made / "run" / name, 8 * (made / "run" / name).stat().st_size - 13)
        with pytest.warns(UserWarning, match="trained again"):
            train(splits, made / "run")
        assert (made / "run" / f"{name}.damaged").exists()
    for path in sorted((original / "run").rglob("*.safetensors")):
        assert (made / "run" / path.relative_to(original / "run")).read_bytes() == path.read_bytes()


def test_a_damaged_run_says_which_call_restores_it(made: Path) -> None:
    flip(made / "run/checkpoints/000001.safetensors", 900)
    with pytest.raises(CorruptFileError, match=r"000001\.safetensors.*The call of comove\.train that made this run"):
        _ = Run.load(made / "run").checkpoints


def test_a_trace_of_the_same_examples_does_not_lend_its_rows(tmp_path: Path) -> None:
    for seed in (0, 1):
        recorder = comove.Recorder(tmp_path / f"{seed}", train_ids=[1, 2], query_ids=[3])
        for epoch in range(3):
            recorder.observe([1, 2, 3], loss=np.full(3, 0.5 + seed + epoch, np.float32))
            recorder.end_epoch()
        recorder.finish()
    for name in ("000000", "000001", "000002"):
        file = tmp_path / "0/rows" / f"{name}.safetensors"
        whole = file.read_bytes()
        shutil.copy(tmp_path / "1/rows" / file.name, file)
        with pytest.raises(CorruptFileError, match="one of the two belongs to another trace"):
            Trace.load(tmp_path / "0")
        file.write_bytes(whole)
    Trace.load(tmp_path / "0")


# --- fingerprints ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sealed", [True, False])
def test_an_edited_manifest_is_refused_with_both_fingerprints(made: Path, sealed: bool) -> None:
    file = made / "run/manifest.json"
    content = read_json(file)
    content["recipe"]["epochs"] = 3
    if sealed:
        write_json(file, content)
    else:
        file.write_text(json.dumps(content))
    found = digest(
        {key: value for key, value in content.items() if key not in HEAD}
        | {"dataset": {key: value for key, value in content["dataset"].items() if key != "source"}}
    )
    with pytest.raises((FingerprintError, CorruptFileError)) as refused:
        Run.load(made / "run")
    if sealed:
        assert content["fingerprint"] in str(refused.value)
        assert found in str(refused.value)


@pytest.mark.parametrize("name", ["fingerprint", "query_ids", "classes", "dataset", "model", "seed"])
def test_a_bank_without_an_entry_is_refused(splits: Splits, tmp_path: Path, name: str) -> None:
    RetrainingBank.create(tmp_path, splits, Training("mlp", RECIPE), subsets=subsets.random(0.5, 2))
    content = {key: value for key, value in read_json(tmp_path / "manifest.json").items() if key != name}
    if name != "fingerprint":
        content["fingerprint"] = digest(_counted(content))
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(CorruptFileError, match="has changed" if name == "fingerprint" else f"lacks {name}"):
        RetrainingBank.load(tmp_path)


def test_data_whose_place_cannot_be_a_file_is_asked_for_again() -> None:
    source = {"name": "/" + "x" * 5000}
    with pytest.raises(InputError, match="cannot be read where they were found"):
        reload_splits({"name": "x", "source": source, "fingerprint": ""}, "this run")


def test_a_manifest_whose_checksum_was_taken_out_is_refused(made: Path) -> None:
    file = made / "run/manifest.json"
    file.write_text(json.dumps(read_json(file)))
    with pytest.raises(CorruptFileError, match="has lost its checksums"):
        Run.load(made / "run")


def test_scores_whose_checksums_were_taken_out_are_refused(made: Path) -> None:
    from safetensors.numpy import save_file

    _, header = read_header(made / "scores")
    arrays = read_arrays(made / "scores")
    save_file(arrays, made / "scores", {"comove": json.dumps(header)})
    with pytest.raises(CorruptFileError, match="has lost its checksums"):
        Scores.load(made / "scores")
    save_file(arrays, made / "scores", {"comove": json.dumps(header | {"format_version": 2})})
    Scores.load(made / "scores")  # as an earlier version wrote them


# --- parts are checked when they are read ------------------------------------------------------------------------


def test_a_part_of_an_array_is_checked_when_it_is_read_and_no_other(tmp_path: Path) -> None:
    file, width = tmp_path / "a", BLOCK // 4
    matrix = np.arange(4 * width, dtype=np.float32).reshape(8, width // 2)
    write_arrays(file, {"m": matrix, "v": matrix.reshape(-1)})
    for name in ("m", "v"):
        places = np.array([5, 0]) if name == "m" else np.array([2 * width + 3, 1])
        size = file.stat().st_size
        start = size - 2 * matrix.nbytes if name == "m" else size - matrix.nbytes
        flip(file, 8 * (start + 2 * BLOCK + 12))  # in the third block of four
        sound, damaged = (slice(0, 4), slice(3, 5)) if name == "m" else (slice(0, 2 * width), slice(9, None, width))
        stored = open_array(file, name)
        whole = matrix if name == "m" else matrix.reshape(-1)
        np.testing.assert_array_equal(stored[sound], whole[sound])
        for key in (damaged, places, slice(None, None, -1), ...):
            with pytest.raises(CorruptFileError):
                stored[key]
        if name == "m":
            np.testing.assert_array_equal(stored[[0, 7], :9], whole[[0, 7], :9])
            np.testing.assert_array_equal(stored[-1], whole[-1])
            with pytest.raises(CorruptFileError):
                stored[np.array([4, 6])[:, None], np.array([2, 5])]
        with pytest.raises(CorruptFileError):
            read_arrays(file, [name], slice(len(whole) // 2, None))
        flip(file, 8 * (start + 2 * BLOCK + 12))
        np.testing.assert_array_equal(stored[damaged], whole[damaged])


# --- caches ------------------------------------------------------------------------------------------------------


def test_damaged_features_are_computed_again(made: Path, splits: Splits) -> None:
    run = Run.load(made / "run", dataset=splits)

    def scores() -> Any:
        return TRAK(proj_dim=8, cache=str(made / "features")).fit(run).attribute().values

    first = scores()
    (features,) = (made / "features").glob("*/*.safetensors")
    flip(features, 8 * features.stat().st_size - 5)
    with pytest.warns(UserWarning, match="set aside as .* computed again"):
        np.testing.assert_array_equal(scores(), first)
    assert features.with_name(features.name + ".damaged").exists()
    (manifest,) = (made / "features").glob("*/manifest.json")
    flip(manifest, 300)
    with pytest.warns(UserWarning, match="folder is set aside"):
        np.testing.assert_array_equal(scores(), first)


# --- junk --------------------------------------------------------------------------------------------------------

JUNK: list[Any] = [
    None,
    True,
    -1,
    0,
    1.5,
    10**15,
    2**63,
    10**19,
    1e308,
    "x",
    "\ud800",
    [],
    [[1]],
    {},
    {"x": {}},
    "9" * 300,
]


def some_junk(number: int) -> list[Any]:
    """A few values for each place, all of them over a few places; ``...`` takes the entry out."""
    return [*(JUNK[(number * 5 + step) % len(JUNK)] for step in range(5)), *([...] if number % 2 else [])]


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every entry of a JSON document (of lists to the first)."""
    parts = content.items() if isinstance(content, dict) else list(enumerate(content))[:1]
    for name, value in parts:
        yield (*path, name)
        if isinstance(value, dict | list):
            yield from places(value, (*path, name))


def changed(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    found = json.loads(json.dumps(content))
    inner = found
    for name in place[:-1]:
        inner = inner[name]
    if value is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return found


def reads_or_refuses(read: Callable[[Path], object], artefact: Path) -> None:
    with suppress(ComoveError):  # anything else is a traceback
        read(artefact)


def test_junk_in_a_document_is_refused_in_one_line(made: Path) -> None:
    """With checksums and fingerprints made to fit, so that what is read is the junk itself."""
    for file, artefact in files_of(made):
        if file.suffix != ".json":
            continue
        whole = read_json(file)
        for number, place in enumerate(places(whole)):
            for value in some_junk(number):
                content = changed(whole, place, value)
                if "fingerprint" in content and file.parent.name == "run":
                    data = content.get("dataset")
                    kept = {k: v for k, v in content.items() if k not in HEAD}
                    own = {k: v for k, v in data.items() if k != "source"} if isinstance(data, dict) else data
                    content["fingerprint"] = digest(kept | ({"dataset": own} if "dataset" in kept else {}))
                text = json.dumps({**content, "checksum": BLANK}, indent=1) + "\n"
                file.write_bytes(seal(text.encode()))
                reads_or_refuses(READERS[artefact.name], artefact)
        write_json(file, whole)


def test_junk_in_a_header_is_refused_in_one_line(made: Path) -> None:
    """Of files without checksums too: those of an earlier version are believed to say what they hold."""
    skipped = {"000000", "000001"}
    for file, artefact in files_of(made):
        if artefact.suffix == ".csv" or file.suffix == ".json" or any(part in str(file) for part in skipped):
            continue
        raw = file.read_bytes()
        (size,) = struct.unpack("<Q", raw[:8])
        header, body = json.loads(raw[8 : 8 + size]), raw[8 + size :]
        own = json.loads(header["__metadata__"]["comove"])
        own.pop("crc32")
        documents = [
            {**header, "__metadata__": {"comove": json.dumps(changed(own, place, value))}}
            for number, place in enumerate(places(own))
            for value in some_junk(number)
        ]
        del header["__metadata__"]["checksum"]
        header["__metadata__"]["comove"] = json.dumps(own)
        documents += [
            changed(header, place, value)
            for number, place in enumerate(places(header))
            for value in some_junk(number)[:3]
        ]
        for document in documents:
            text = json.dumps(document).encode()
            file.write_bytes(struct.pack("<Q", len(text)) + text + body)
            reads_or_refuses(READERS[artefact.name], artefact)
        file.write_bytes(raw)


RAW = {
    "deep": b"[" * 100_000,
    "deep object": b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
    "nested": b'{"a":' * 60 + b"1" + b"}" * 60,
    "huge": b'{"epoch": 1e999}',
    "long": b'{"epoch": 1' + b"0" * 400 + b"}",
    "longer": b'{"epoch": 1' + b"0" * 5_000 + b"}",
    "nan": b'{"epoch": NaN}',
    "twice": b'{"epoch": 1, "epoch": 2}',
    "surrogate": b'{"epoch": "\\ud800"}',
    "surrogate name": b'{"\\udfff": 1}',
    "not UTF-8": b'{"epoch": "\xff"}',
    "UTF-16": '{"epoch": 1}'.encode("utf-16"),
    "list": b"[1]",
    "number": b"7",
    "nothing": b"",
    "zeros": b"\0" * 64,
}


@pytest.mark.parametrize("text", RAW.values(), ids=RAW.keys())
def test_what_is_no_plain_document_is_refused_everywhere(made: Path, text: bytes) -> None:
    with pytest.raises(CorruptFileError):
        parse_json(text, "here")
    for name in ("run/manifest.json", "run/trace/manifest.json", "run/result.json", "lds.json"):
        file, artefact = made / name, made / name.split("/")[0]
        whole = file.read_bytes()
        file.write_bytes(text)
        with pytest.raises(CorruptFileError):
            READERS[artefact.name](artefact)
        file.write_bytes(whole)
    for length in (len(text), 2**63, 2**64 - 1, 0):
        (made / "scores").write_bytes(struct.pack("<Q", length) + text + b"\0" * 99)
        with pytest.raises(CorruptFileError):
            Scores.load(made / "scores")


def test_entries_are_of_the_kinds_that_are_asked_for() -> None:
    content = {"i": 3, "f": 2, "s": "x", "n": None, "l": [1, 2], "b": True}
    kinds = {"i": int, "f": float, "s": str, "n": int | None, "l": list[int], "b": bool}
    assert entries(content, "here", kinds, {"absent": str}) == {**content, "absent": None}
    for name, value in (("i", True), ("i", 3.0), ("i", 2**63), ("f", math.inf), ("f", "2"), ("s", 1), ("l", [1, "x"])):
        with pytest.raises(CorruptFileError, match=f"here: {name} must be of type"):
            entries({**content, name: value}, "here", kinds)
    with pytest.raises(CorruptFileError, match="here lacks i, s"):
        entries({name: content[name] for name in "fnlb"}, "here", kinds)


# --- tables ------------------------------------------------------------------------------------------------------


def test_tables_made_by_hand_need_no_checksum_and_edited_ones_are_refused(tmp_path: Path) -> None:
    rows = [[1, 0.5, "a,b"], [2, 0.25, 'say "x"\nagain']]
    write_rows(tmp_path / "t.csv", ["id", "score", "name"], rows)
    found = read_rows(tmp_path / "t.csv", ["id"])
    assert [[row["id"], row["name"]] for row in found] == [["1", "a,b"], ["2", 'say "x"\nagain']]
    text = (tmp_path / "t.csv").read_text()
    (tmp_path / "t.csv").write_text(text.replace("0.25", "0.75"))
    with pytest.raises(CorruptFileError, match="take out its column 'check'"):
        read_rows(tmp_path / "t.csv", ["id"])
    (tmp_path / "t.csv").write_text("id,score\n1,0.75\n")
    assert read_rows(tmp_path / "t.csv", ["id"]) == [{"id": "1", "score": "0.75"}]


# --- leftovers ---------------------------------------------------------------------------------------------------


def test_temporary_files_of_dead_processes_are_removed_and_those_of_living_ones_kept(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()
    dead = tmp_path / f".row.safetensors.{process.pid}-abcdef01.tmp"
    own, parent = (tmp_path / f".row.safetensors.{pid}-abcdef01.tmp" for pid in (os.getpid(), os.getppid()))
    away = tmp_path / f".row.safetensors@00000000.{process.pid}-abcdef01.tmp"
    old = tmp_path / f".old.safetensors@00000000.{process.pid}-abcdef01.tmp"
    foreign = tmp_path / ".other.tmp"
    for file in (dead, own, parent, away, old, foreign):
        file.write_bytes(b"")
    os.utime(old, (1, 1))
    new_folder(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {own.name, parent.name, away.name, foreign.name}
    os.utime(own, (1, 1))  # from before this process began: its number came again
    new_folder(tmp_path)
    assert not own.exists()


def test_what_a_killed_run_left_is_removed_by_the_next(splits: Splits, made: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()
    run = made / "run"
    (run / "result.json").unlink()
    (run / "resume.safetensors").unlink()  # it would be finished without writing anything
    places = [run, run / "trace", run / "trace/rows", run / "trace/anchors", run / "checkpoints"]
    for folder in places:
        (folder / f".x.{process.pid}-01234567.tmp").write_bytes(b"")
    train(splits, run)
    assert not list(run.rglob("*.tmp"))


def test_a_refused_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ComoveError, match="Cannot make the folder"):
        new_folder(tmp_path / "a" / "b" / ("x" * 300))
    assert list(tmp_path.iterdir()) == []
    write_bytes(tmp_path / ("y" * 240), b"")  # a long name is no reason to fail


def test_what_can_be_computed_again_is_claimed_again(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "c")
    claim_cache(folder, "trak-features", 2, {"n": 1})
    with pytest.raises(FingerprintError, match="n was 1, now 2"):
        claim_cache(folder, "trak-features", 2, {"n": 2})
    write_json(folder / "manifest.json", {**read_json(folder / "manifest.json"), "n": 3})
    with pytest.warns(UserWarning, match="set aside"):
        claim_cache(folder, "trak-features", 2, {"n": 2})
    assert read_json(folder / "manifest.json")["n"] == 2


# --- the command line --------------------------------------------------------------------------------------------

LONG = "x" * 300


@pytest.mark.parametrize(
    "words",
    [
        ["coreset", LONG, "--out", "c.csv"],
        ["coreset", "RUN", "--out", LONG + ".csv"],
        ["coreset", "RUN", "--out", "c.csv", "--method", LONG],
        ["attribute", LONG, "--out", "o"],
        ["attribute", "RUN", "--out", LONG],
        ["attribute", "RUN", "--out", "o", "--method", LONG],
        ["train", "--dataset", LONG, "--out", "o"],
        ["train", "--model", LONG, "--out", "o"],
        ["train", "--recipe", LONG, "--out", "o"],
        ["train", "--limit", "40", "--epochs", "1", "--out", LONG],
        ["train", "--data-dir", LONG, "--dataset", "cifar10", "--out", "o"],
        ["report", "RUN", "--scores", LONG, "--out", "r.html"],
        ["report", "RUN", "--lds", LONG, "--out", "r.html"],
        ["lds", "--methods", "cld", LONG, "--out", "o"],
        ["lds", "--bank", LONG, "--out", "o"],
        ["brittleness", "--methods", LONG, "--out", "o"],
        ["curve", LONG, "--out", "o"],
        ["clean", LONG, "--out", "o"],
        ["diagnose", LONG, "--out", "o"],
        ["cost", LONG],
        ["bank", "status", LONG],
        [LONG],
    ],
)
def test_a_word_of_300_letters_is_one_line_and_exit_code_2(
    words: list[str], made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    result = CliRunner().invoke(app, [str(made / "run") if word == "RUN" else word for word in words])
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert not (made / "o").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["coreset", "", "--out", "c.csv"],
        ["coreset", "RUN", "--out", ""],
        ["report", "RUN", "--scores=", "--out", "r.html"],
        ["methods", ""],
        ["attribute", "RUN", "--out", "o", "--query-id", ""],
        ["attribute", "RUN", "--out", "o", "--blocks", "junk"],
        ["attribute", "RUN", "--out", "o", "--blocks", "serial", "--method", "tracin"],
        ["clean", "RUN", "--out", "o", "--by", ""],
        ["clean", "RUN", "--out", "o", "--device", "junk"],
        ["stability", "RUN", "--methods", "junk"],
        ["train", "--out", "o", "--model", ""],
        ["train", "--out", "o", "--dataset", ""],
        ["train", "--out", "o", "--limit", "40", "--checkpoints", "\N{SUPERSCRIPT TWO}"],
        ["train", "--out", "o", "--limit", "40", "--checkpoints", "9" * 5000],
        ["train", "--out", "o", "--limit", "40", "--epochs", "9" * 30],
        ["train", "--out", "o", "--limit", "40", "--batch-size", "9" * 30],
        ["train", "--out", "o", "--limit", "40", "--record-every", "9" * 30],
        ["coreset", "RUN", "--out", "c.csv", "--budget", "9" * 5000],
    ],
)
def test_empty_and_boundless_words_are_refused_and_leave_nothing(
    words: list[str], made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = new_folder(tmp_path / "here")
    monkeypatch.chdir(here)
    result = CliRunner().invoke(app, [str(made / "run") if word == "RUN" else word for word in words])
    assert result.exit_code == 2, result.output
    assert "must be of type" not in result.output
    assert list(here.iterdir()) == []


def test_a_report_of_more_places_than_examples_shows_all(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    result = CliRunner().invoke(app, ["report", "run", "--scores", "scores", "--top", "9" * 30, "--out", "r.html"])
    assert result.exit_code == 0, result.output


def test_a_damaged_artefact_is_one_line_and_exit_code_2(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    flip(made / "run/trace/rows/000001.safetensors", 8 * 500)
    flip(made / "scores", 8 * 20)
    for words in (["coreset", "run", "--out", "c.csv"], ["report", "other", "--scores", "scores", "--out", "r.html"]):
        result = CliRunner().invoke(app, words)
        assert (result.exit_code, result.output.count("\n")) == (2, 1), result.output
        assert "Error:" in result.output


def test_claimed_content_is_what_counts(tmp_path: Path) -> None:
    claim_folder(tmp_path, "curve", 2, {"dataset": {"name": "x", "source": {"a": 1}}, "seed": 0})
    moved = {"dataset": {"name": "x", "source": {"a": 2}}, "seed": 0}
    assert claim_folder(tmp_path, "curve", 2, moved)["seed"] == 0
    write_manifest(tmp_path, "curve", 2, {**read_json(tmp_path / "manifest.json"), "seed": 1})
    with pytest.raises(FingerprintError, match="states the fingerprint"):
        claim_folder(tmp_path, "curve", 2, moved)
