"""The leaderboard: what is published opens and says what it was made from, and the page follows from the files."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from comove.attribution import Scores
from comove.errors import CorruptFileError, InputError
from comove.evaluation import RetrainingBank, read_scores
from comove.retraining.array_files import read_named_arrays

FOLDER = Path(__file__).parents[1] / "benchmarks"
MODULES = (
    "leaderboard",
    "leaderboard_boards",
    "leaderboard_cases",
    "leaderboard_entries",
    "leaderboard_page",
    "leaderboard_publish",
)
CARD = {
    "title": "A few digits",
    "about": "A network on 200 digits.",
    "source": "scikit-learn",
    "licence": "CC BY 4.0",
    "command": "make it",
    "seeds": "0",
}
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def parts() -> Iterator[Any]:
    """The modules of the leaderboard, which lie beside the package; and of the study, which they use."""
    before, path = set(sys.modules), list(sys.path)
    sys.path.insert(0, str(FOLDER))
    try:
        yield SimpleNamespace(**{name.partition("_")[2] or "script": importlib.import_module(name) for name in MODULES})
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - before:
            if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
                sys.modules.pop(name)


@pytest.fixture(scope="module")
def scores(small_bank: RetrainingBank) -> dict[str, Scores]:
    """Two methods' scores, in an order of their own; the second much like the first."""
    shape = (small_bank.train_ids.size, small_bank.query_ids.size)
    first = RNG.normal(size=shape)
    values = {"alpha": first, "beta": first + 0.01 * RNG.normal(size=shape)}
    ids: dict[str, Any] = {"train_ids": small_bank.train_ids[::-1], "query_ids": small_bank.query_ids[::-1]}
    return {name: Scores.from_arrays(one, method=name, **ids) for name, one in values.items()}


class _Place:
    """A folder with banks, and a page, of its own."""

    def __init__(self, parts: Any, folder: Path) -> None:
        self.parts, self.folder = parts, folder
        self.banks, self.page = folder / "banks", folder / "page.md"

    def __call__(self, *words: object) -> int:
        where = ("--banks", self.banks, "--results", self.folder / "none", "--page", self.page, "--bootstrap", 50)
        return int(self.parts.script.main([str(word) for word in (*where, *words)]))

    def files(self) -> dict[str, bytes]:
        return {str(file): file.read_bytes() for file in sorted(self.folder.rglob("*")) if file.is_file()}

    def add(self, file: Path, name: str = "mine", bank: str = "few", **options: object) -> int:
        more = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", value)]
        return self("add", "--bank", bank, "--scores", file, "--name", name, "--by", "Ada, mylib 1.2", *more)


@pytest.fixture(scope="module")
def published(
    parts: Any, small_bank: RetrainingBank, scores: dict[str, Scores], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder in which the small bank is published with two methods."""
    folder = tmp_path_factory.mktemp("published")
    for name, one in scores.items():
        one.save(folder / "scores" / f"{name}.safetensors")
    alpha = {"runs": 3, "epochs": 93, "seconds": 12.5, "memory": 2**30, "note": "chosen here", "kept": False}
    (folder / "card.json").write_text(json.dumps({**CARD, "methods": {"alpha": alpha}}))
    given = ("--bank-folder", small_bank.path, "--scores", folder / "scores", "--card", folder / "card.json")
    assert _Place(parts, folder)("publish", "--name", "few", *given) == 0
    return folder


@pytest.fixture
def place(parts: Any, published: Path, tmp_path: Path) -> _Place:
    """A copy of it."""
    return _Place(parts, shutil.copytree(published, tmp_path / "copy"))


def cells(page: str, method: str) -> list[str]:
    """The first row of a method."""
    (row, *_) = [line for line in page.splitlines() if line.startswith(f"| `{method}` |")]
    return [cell.strip() for cell in row.strip("| ").split("|")]


# --- what is published ----------------------------------------------------------------------------------------------


def test_a_published_bank_opens_as_any_other_and_holds_what_it_was_made_from(
    place: _Place, small_bank: RetrainingBank, scores: dict[str, Scores]
) -> None:
    found = RetrainingBank.load(place.banks / "few")
    assert np.array_equal(found.masks, small_bank.masks)
    assert found.train_labels is not None
    assert found.train_labels.tolist() == np.asarray(small_bank.train_labels).tolist()
    for name in ("margin", "loss", "correct"):
        assert np.allclose(found.outputs(name), small_bank.outputs(name), rtol=1e-3, atol=1e-6)
        assert found.higher_is_better(name) == small_bank.higher_is_better(name)
    assert found.outputs().max() == found.outputs("margin").max()  # measured where none is named
    assert np.isclose(found.lds(scores["alpha"]).mean, small_bank.lds(scores["alpha"]).mean, atol=2e-3)
    card = json.loads((place.banks / "few/card.json").read_text())
    assert card["counts"] == {"training examples": 200, "queries": 40, "subsets": 16, "models a subset": 2}
    assert card["noise ceiling"]["margin"] == round(found.lds(scores["alpha"]).noise_ceiling or 0, 4)
    assert card["made from"]["recipe"]["epochs"] == 6
    assert set(card["files"]) == {"bank.safetensors", "scores/beta.npz"}
    assert "CC BY 4.0" in (place.banks / "few/README.md").read_text()


def test_the_page_has_the_lds_of_the_published_bank(place: _Place, scores: dict[str, Scores]) -> None:
    page, found = place.page.read_text(), RetrainingBank.load(place.banks / "few")
    for name, one in scores.items():
        lds, row = found.lds(one, bootstrap=50), cells(page, name)
        assert row[2].startswith(f"{lds.mean:.3f} [")
        assert lds.interval is not None
        assert [float(end) for end in re.findall(r"[\[ ](-?[\d.]+)[,\]]", row[2])] == [
            round(e, 2) for e in lds.interval
        ]
        assert row[2].endswith("*")  # the two can not be told apart
        assert row[4] == f"{lds.share_of_ceiling:.0%}".replace("-0%", "0%")
    assert cells(page, "alpha")[1] == "3"
    assert cells(page, "alpha")[5:8] == ["93", "12", "1,024"]
    assert "- `alpha`: chosen here." in page


def test_scores_are_whole_where_small_and_else_the_highest_and_some_queries(parts: Any) -> None:
    values = RNG.normal(size=(300, 60)) * 10.0 ** RNG.integers(-9, 9, size=60)
    given = Scores.from_arrays(values, train_ids=np.arange(300) * 7, query_ids=1000 + np.arange(60))
    whole, some = parts.publish.reduced(given), parts.publish.reduced(given, whole_bytes=1000)
    assert np.allclose(whole["scores"] * whole["scale"], given.values, rtol=1e-3, atol=1e-4 * np.abs(values).max(0))
    assert np.array_equal(some["scores"], whole["scores"][:, :50])
    assert np.array_equal(some["query_ids"], given.query_ids[:50])
    for row, query in enumerate(given.query_ids[50:]):
        top = given.top(200, query=int(query))
        assert np.array_equal(some["top_ids"][row], top.ids)
        assert np.allclose(
            some["top_scores"][row] * some["scale"][50 + row], top.scores, rtol=1e-3, atol=1e-2 * top.scores.max()
        )
    assert some["train_ids"].dtype == np.uint16
    none = parts.publish.reduced(given, 0, 1000)
    assert (none["scores"].shape, none["top_ids"].shape) == ((300, 0), (60, 200))


def test_whole_scores_that_are_published_can_be_held_to_the_bank(place: _Place, scores: dict[str, Scores]) -> None:
    bank = RetrainingBank.load(place.banks / "few")
    found = bank.lds(read_scores(place.banks / "few/scores/beta.npz", bank), bootstrap=0)
    assert np.isclose(found.mean, bank.lds(scores["beta"], bootstrap=0).mean, atol=5e-3)


def test_a_card_must_say_everything(place: _Place, small_bank: RetrainingBank, capsys: Any) -> None:
    file, before = place.folder / "poor.json", place.files()
    file.write_text(json.dumps({**CARD, "licence": ""}))
    assert place("publish", "--name", "poor", "--bank-folder", small_bank.path, "--card", file) == 2
    assert "it lacks licence" in capsys.readouterr().err
    file.write_text(json.dumps({**CARD, "methods": {"gamma": {}}}))
    assert place("publish", "--name", "poor", "--bank-folder", small_bank.path, "--card", file) == 2
    assert "without scores" in capsys.readouterr().err
    file.unlink()
    assert place.files() == before


def test_a_bank_of_other_outputs_is_published_with_all_of_them(place: _Place) -> None:
    masks = RNG.permuted(np.tile(np.arange(12) < 6, (10, 1)), axis=1)
    outputs = {"loss": RNG.random((10, 2, 4)), "measure": RNG.normal(size=(10, 2, 4))}
    bank = RetrainingBank.from_arrays(masks, outputs, train_ids=50 + np.arange(12))
    file, card = place.folder / "own.safetensors", place.folder / "own.json"
    bank.compact(file)
    card.write_text(json.dumps(CARD))
    assert place("publish", "--name", "own", "--bank-folder", file, "--card", card) == 0
    found = RetrainingBank.load(place.banks / "own")
    assert np.allclose(found.outputs(), outputs["measure"], rtol=1e-3)
    assert not found.higher_is_better("loss")
    assert "Nothing has been measured on it yet." in place.page.read_text()


def test_nothing_is_published_where_one_method_cannot_be_measured_on_the_bank(
    place: _Place, small_bank: RetrainingBank, scores: dict[str, Scores], capsys: Any
) -> None:
    folder, before = place.folder / "given", place.files()
    seen = replace(scores["beta"], info={"fitted_on": small_bank.digests[3:4]})
    seen.save(folder / "seen.safetensors")
    scores["alpha"].save(folder / "fine.safetensors")
    given = ("--bank-folder", small_bank.path, "--scores", folder, "--card", place.folder / "card.json")
    (place.folder / "card.json").write_text(json.dumps(CARD))
    assert place("publish", "--name", "few", *given) == 2
    assert "fitted on 1 of the 16 subsets" in capsys.readouterr().err
    replace(scores["beta"], method="alpha").save(folder / "seen.safetensors")
    assert place("publish", "--name", "few", *given) == 2
    assert "these are of two methods: alpha" in capsys.readouterr().err
    banks = {name: content for name, content in place.files().items() if "/banks/" in name}
    assert banks == {name: content for name, content in before.items() if "/banks/" in name}


@pytest.mark.parametrize("kind", ["gradients", "peer", "control"])
def test_a_method_of_the_quality_page_is_given_with_the_cost_of_its_runs(parts: Any, kind: str, tmp_path: Path) -> None:
    trains = kind != "control"
    name = {"gradients": "cld (paper)", "peer": "numpy: x", "control": "x"}[kind]
    method = parts.cases.Method(name, None, lambda sizes: sizes.epochs / 2, "", kind, trains=trains)
    for number in range(4):
        (tmp_path / f"{number}-1").mkdir()
        (tmp_path / f"{number}-1" / "cost.json").touch()
    measured = SimpleNamespace(
        case=SimpleNamespace(counts=(1, 3, 10)),
        path=lambda method: tmp_path,
        sizes=lambda: SimpleNamespace(epochs=30),
        training=lambda: 1.0,
        cost=lambda method: {"seconds": 2.0, "peak_memory": 5},
        summed=lambda method, count: (Scores.from_arrays(np.zeros((4, 2)), method="y"), np.full((4, 2), count)),
    )
    made = parts.cases.given_of(measured, method)
    last = made[-1]
    assert [one.runs for one in made] == ([1, 3] if trains else [None, None])
    assert [one.kept for one in made] == [False, kind == "gradients"]
    assert last.cost == {"epochs": 3 * 45 if trains else 0, "seconds": 9.0 if trains else 2.0, "memory": 5}
    assert (last.scores.values == 3).all()
    assert last.method == ("cld(rows=epochs)" if kind == "gradients" else name)
    assert last.by == (f"numpy {np.__version__}" if kind == "peer" else "")


def test_every_card_of_the_quality_page_says_all_that_it_must(parts: Any) -> None:
    for name in parts.cases.DATA:
        card = parts.cases.card_of(SimpleNamespace(name=name, title="T", about="A"))
        assert all(card[entry] for entry in parts.publish.TOLD)


# --- what others add ------------------------------------------------------------------------------------------------


def test_a_fresh_entry_appears_with_its_lds_and_cost(place: _Place) -> None:
    bank = RetrainingBank.load(place.banks / "few")
    values = np.linalg.pinv(bank.masks.astype(float)) @ bank.outputs().mean(1)  # knows the answers
    file = place.folder / "mine.npy"
    np.save(file, -values.T)
    cost: dict[str, Any] = {
        "cost_epochs": 30,
        "cost_seconds": 4.25,
        "cost_memory": 700,
        "date": "2026-02-03",
        "runs": 2,
    }
    assert place.add(file, orientation="query,train", positive="hurts", **cost) == 0
    page = place.page.read_text()
    row, lds = (
        cells(page, "mine"),
        bank.lds(Scores.from_arrays(values, train_ids=bank.train_ids, query_ids=bank.query_ids)),
    )
    assert lds.mean > 0.99
    assert row[2].startswith(f"{lds.mean:.3f} [")
    assert [row[1], *row[5:]] == ["2", "30", "4.2", "700", "Ada, mylib 1.2, 2026-02-03"]
    assert page.index("`mine`") < page.index("`beta`")  # the first
    assert not cells(page, "beta")[2].endswith("*")
    assert cells(page, "beta")[3].startswith("-")
    assert place() == 0  # again, from the files
    assert place.page.read_text() == page
    assert place.add(file, orientation="query,train", runs=3) == 0
    assert "All 4 rows" in place.page.read_text()


def _spoiled(values: np.ndarray[Any, Any], at: float) -> np.ndarray[Any, Any]:
    values = values.copy()
    values[3, 5] = at
    return values


@pytest.mark.parametrize(
    ("values", "options", "told"),
    [
        (np.zeros((200, 39)), {}, "39 queries"),
        (np.zeros((40, 200)), {}, "is the orientation the other one"),
        (_spoiled(np.zeros((200, 40)), np.nan), {}, "NaN"),
        (_spoiled(np.zeros((200, 40)), np.inf), {}, "infinite"),
        (np.zeros((200, 40), complex), {}, "complex"),
        (np.array([["a"] * 40] * 200), {}, "numbers are needed"),
        (np.array([[None] * 40] * 200), {}, "pickled"),
        (np.zeros(200), {}, "matrix"),
        (np.zeros((200, 40)), {"bank": "many"}, "There is no bank 'many'; there are few"),
        (np.zeros((200, 40)), {"name": "beta"}, "has an entry 'beta'"),
        (np.zeros((200, 40)), {"name": "alpha", "runs": 3}, "has an entry 'alpha'"),
        (np.zeros((200, 40)), {"name": "Beta"}, "There is an entry"),
        (np.zeros((200, 40)), {"name": "a | b"}, "without"),
        (np.zeros((200, 40)), {"name": "..."}, "at least one letter"),
        (np.zeros((200, 40)), {"cost_epochs": -1}, "epochs must be 0 or more"),
        (np.zeros((200, 40)), {"cost_seconds": "nan"}, "seconds must be 0 or more"),
        (np.zeros((200, 40)), {"date": "yesterday"}, "YYYY-MM-DD"),
        (np.zeros((200, 40)), {"orientation": "rows"}, "axes must be"),
    ],
)
def test_what_cannot_be_measured_on_the_bank_is_refused_and_nothing_changes(
    place: _Place, values: np.ndarray[Any, Any], options: dict[str, Any], told: str, capsys: Any
) -> None:
    np.save(place.folder / "mine.npy", values, allow_pickle=True)
    before = place.files()
    assert place.add(place.folder / "mine.npy", **options) == 2
    assert told in capsys.readouterr().err
    assert place.files() == before


def test_ids_of_their_own_are_matched_and_foreign_ones_refused(place: _Place, capsys: Any) -> None:
    bank = RetrainingBank.load(place.banks / "few")
    values = RNG.normal(size=(200, 40))
    order = RNG.permutation(200)
    np.savez(place.folder / "mine.npz", scores=values[order], train_ids=bank.train_ids[order])
    assert place.add(place.folder / "mine.npz") == 0
    np.save(place.folder / "plain.npy", values)
    assert place.add(place.folder / "plain.npy", "plain") == 0
    entries = place.banks / "few" / "entries"
    ranks = [read_named_arrays(entries / f"{name}.npz")["ranks"] for name in ("mine", "plain")]
    assert np.array_equal(ranks[0], ranks[1])
    np.savez(place.folder / "foreign.npz", scores=values, train_ids=bank.train_ids + 10_000)
    assert place.add(place.folder / "foreign.npz", "foreign") == 2
    assert "train ids" in capsys.readouterr().err


def test_a_damaged_entry_is_told_of_and_one_of_an_earlier_bank_left_out(place: _Place, capsys: Any) -> None:
    file = place.banks / "few" / "entries" / "beta.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "bank": "another"}))
    assert place() == 0
    assert "earlier bank of this name: beta." in place.page.read_text()
    assert "| `beta` |" not in place.page.read_text()
    file.write_text(json.dumps(content))
    arrays = file.with_suffix(".npz")
    arrays.write_bytes(arrays.read_bytes() + b"x")
    assert place() == 2
    assert "has changed since" in capsys.readouterr().err
    arrays.unlink()
    assert place() == 2
    assert "does not exist" in capsys.readouterr().err


def test_ranks_of_another_size_are_refused(parts: Any, tmp_path: Path) -> None:
    entry = parts.entries.Entry("a", parts.entries.doubled(np.array([[1.0, 1.5], [2.0, 1.5]])), "b")
    parts.entries.save_entry(tmp_path, entry, "bank")
    (found,), _ = parts.entries.read_entries(tmp_path, "bank", (2, 2))
    assert found.ranks.tolist() == [[2, 3], [4, 3]]
    with pytest.raises(CorruptFileError, match="of 3 subsets for 2 queries"):
        parts.entries.read_entries(tmp_path, "bank", (3, 2))
    with pytest.raises(InputError, match="There is an entry"):
        parts.entries.save_entry(tmp_path, entry, "bank")


# --- what lies in the repository ------------------------------------------------------------------------------------


def test_the_page_in_the_repository_is_what_the_files_give(parts: Any) -> None:
    made = parts.page.page(parts.boards.boards())
    kept = parts.page.PAGE.read_text(encoding="utf-8")
    numbers = re.compile(r"-?\d+\.\d+|\d+(?=%)")
    assert numbers.sub("#", made) == numbers.sub("#", kept), "run: make leaderboard"
    pairs = zip(numbers.findall(made), numbers.findall(kept), strict=True)
    assert all(abs(float(ours) - float(theirs)) <= 0.011 or ours == theirs for ours, theirs in pairs)  # rounding


def test_published_files_are_those_of_their_cards_and_small(parts: Any) -> None:
    banks = parts.boards.BANKS
    for card in banks.glob("*/card.json"):
        for name, sha256 in json.loads(card.read_text())["files"].items():
            assert parts.entries.checksum(card.parent / name) == sha256
        size = sum(file.stat().st_size for file in card.parent.rglob("*") if file.is_file())
        assert size < 6e6  # a few MB each
