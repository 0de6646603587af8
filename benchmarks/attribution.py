"""Gradient attribution: ours and the peers side by side, as multiples of one plain forward+backward epoch.

    python benchmarks/attribution.py --data-dir DIR [--train 2048] [--queries 100] [--rows WORD ...] [--no-peers]

ResNet-9 at a quarter of the width on real CIFAR-10 images, one thread, process CPU seconds, float32, the same
checkpoints and images for all. Each row runs in a process of its own: once to warm up, where its peak memory is taken,
then ``--repetitions`` times with the floor measured before and after each; figures are medians of the ratios. The floor
is one epoch of plain forward and backward passes over the training images, the best of several at batches of 50 and
100. Ours is timed with reading checkpoints and preparing images; peers are handed loaded weights and tensors and run at
the fastest of several batch sizes. Slow ones run on ``--peer-train`` images; what is proportional to the number of
images is then multiplied, and the row says so. Each row is written to ``benchmarks/results/attribution.json`` as it is
done: the same command goes on where it was cut off (``--again`` measures anew).
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import peers
import torch
import torch.nn.functional as F
from measuring import agreement, machine, peak_memory, resident, timed
from torch import Tensor, nn

from comove.attribution import TRAK
from comove.attribution.arnoldi import Arnoldi, hessian_resident
from comove.attribution.tracin import TracIn, similarity, spread
from comove.data import Splits
from comove.data.builtin import load_dataset
from comove.gradients.per_example import PerExampleGradients
from comove.training import Recipe, Resident, Run, train
from comove.training.run import read_weights
from comove.training.sources import Source

RECIPE = Recipe(epochs=9, batch_size=64, lr=0.05, momentum=0.9)
"""A constant rate, so that all three checkpoints weigh something in TracIn."""
CHECKPOINTS, RIDGE, HESSIAN, RANK, FEWER, SEED = 3, 0.3, 128, 50, 20, 0
TRIED = 500
"""Images on which batch sizes are tried."""
CPU = torch.device("cpu")
RESULTS = Path(__file__).parent / "results" / "attribution.json"

Stages = peers.Stages


@dataclass(frozen=True)
class Setting:
    """One trained run and its images, made ready before anything is timed."""

    folder: Path
    data_dir: str | None
    images: int
    queries: int
    iterations: int

    @cached_property
    def splits(self) -> Splits:
        """CIFAR-10 images, the same in every process."""
        options = {"limit": self.images, "queries": self.queries, "validation": 1, "seed": SEED}
        return load_dataset("cifar10", data_dir=self.data_dir, **options)

    @cached_property
    def run(self) -> Run:
        """The run in the folder; a finished one is opened, not trained again."""
        options = {"width": 0.25}
        return train(self.splits, "resnet9", RECIPE, SEED, self.folder / "run", model_options=options, device="cpu")

    @cached_property
    def train_xy(self) -> tuple[Tensor, Tensor]:
        """The training images as the network takes them, in the order of the scores' rows, and their labels."""
        chosen = self.run.data().train.subset(self.run.trace.train_ids)
        return chosen.batch(np.arange(len(chosen)))

    @cached_property
    def query_xy(self) -> tuple[Tensor, Tensor]:
        """The query images and their labels."""
        query = self.run.data().query
        return query.batch(np.arange(len(query)))

    @cached_property
    def hessian_xy(self) -> tuple[Tensor, Tensor]:
        """The very images that ours builds its Hessian from."""
        data = hessian_resident(Source(self.run.trace, self.run), HESSIAN, SEED, CPU)
        return data.inputs(slice(0, len(data))), data.labels

    @cached_property
    def weights(self) -> list[tuple[dict[str, Tensor], float]]:
        """(state dict, learning rate) of the checkpoints that TracIn uses."""
        return [(read_weights(kept.path), kept.lr) for kept in spread(self.run.checkpoints, CHECKPOINTS)]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        group: rows that compute the same thing.
        name: of the row.
        library: the package that must be installed.
        stages: (setting, training images, batch size) -> what is timed.
        limit: the multiple of the floor that ours must not exceed.
        batches: batch sizes tried; ours chooses its own.
        slow: run on ``--peer-train`` images.
        truth: the row or extra whose scores these must equal.
        extras: other scores, computed untimed: name -> (function, the scores that they are compared with).
        note: said in the table.
    """

    group: str
    name: str
    library: str
    stages: Callable[[Setting, int, Any], Stages]
    limit: float | None = None
    batches: tuple[int, ...] = ()
    slow: bool = False
    truth: str = ""
    extras: Mapping[str, tuple[Callable[[Setting], np.ndarray], str]] = field(default_factory=dict)
    note: str = ""

    @property
    def key(self) -> str:
        """Its name among all rows."""
        return f"{self.group}: {self.name}"


# --- ours ----------------------------------------------------------------------------------------------------------


def attributed(method: Callable[[Setting], Any], setting: Setting) -> np.ndarray:
    """All of it: from a run on disk to scores."""
    scores: np.ndarray = method(setting).fit(setting.run).attribute(setting.run.data().query.ids).values
    return scores


def ours(method: Callable[[Setting], Any], setting: Setting, n: int, batch: None) -> Stages:
    """One stage."""
    return [(False, partial(attributed, method, setting))]


def our_tracin(setting: Setting) -> TracIn:
    """Three checkpoints, all parameters, exact."""
    return TracIn(checkpoints=CHECKPOINTS)


def our_trak(dimension: int, setting: Setting) -> TRAK:
    """The last checkpoint, defaults but for the size."""
    return TRAK(proj_dim=dimension, ridge=RIDGE, seed=SEED)


def our_arnoldi(setting: Setting, rank: int = RANK) -> Arnoldi:
    """The last checkpoint, undamped."""
    return Arnoldi(rank=rank, arnoldi_dim=setting.iterations, hessian_examples=HESSIAN, seed=SEED)


def without_batch_norm(setting: Setting) -> np.ndarray:
    """TracIn over convolutions and linear layers only, which is what captum's sample-wise gradients cover."""
    total, data = torch.zeros(()), setting.run.data()
    sides = (Resident(data.train.subset(setting.run.trace.train_ids), CPU), Resident(data.query, CPU))
    for kept in spread(setting.run.checkpoints, CHECKPOINTS):
        model = setting.run.load_model(kept)
        layers = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        names = [name for name, _ in model.named_parameters() if name.rpartition(".")[0] in layers]
        total = total + kept.lr * similarity(PerExampleGradients(model, parameters=names), *sides)
    return total.numpy()


def captum_fewer(setting: Setting) -> np.ndarray:
    """Captum's scores from as many eigenpairs as ours keeps at rank 20, where the start vector hardly matters."""
    scores = our_arnoldi(setting, FEWER).fit(setting.run).attribute(setting.run.data().query.ids)
    for _, stage in peers.captum_arnoldi(scores.info["kept"][0], setting, TRIED, 10):
        found = stage()
    return found.detach().numpy()


# --- the table -----------------------------------------------------------------------------------------------------


def trak_rows(wanted: int, images: int, limit: float) -> list[Row]:
    """TRAK at one projection dimension, which cannot exceed the number of training images."""
    dimension = min(wanted, images)
    group, many = f"TRAK, one checkpoint, projection {dimension}", (50, 100, 250)
    key, noise = f"{group}: comove", "another projection: compare with our two seeds"
    once = f"{noise}; matrix drawn once and held, projector made again by hand where it fails"
    other: Callable[[Setting], np.ndarray] = partial(attributed, lambda s: replace(our_trak(dimension, s), seed=1))
    method, traker = (partial(our_trak, dimension), partial(peers.plain_traker, dimension, RIDGE))
    return [
        Row(group, "comove", "comove", partial(ours, method), limit, extras={f"{group}, second seed": (other, key)}),
        Row(group, "traker, its CPU projector", "traker", partial(traker, False), None, many, False, key, note=noise),
        Row(
            group, "traker, projector in one block", "traker", partial(traker, True), None, many, False, key, note=once
        ),
        Row(
            group, "dattri", "dattri", partial(peers.dattri_trak, dimension, RIDGE), None, many, False, key, note=noise
        ),
    ]


def all_rows(images: int) -> list[Row]:
    """The table, in order; ours first in each group, so that peers can be compared with it."""
    tracin, arnoldi = (f"TracIn, {CHECKPOINTS} checkpoints", f"Arnoldi, {HESSIAN} examples, rank {RANK}")
    many, bare, fewer = ((50, 100, 250), "TracIn without batch norm", f"Arnoldi at rank {FEWER}")
    rank_20: Callable[[Setting], np.ndarray] = partial(attributed, partial(our_arnoldi, rank=FEWER))
    captum, start = (partial(peers.captum_arnoldi, RANK), "another start vector, other eigenpairs dropped")
    return [
        Row(tracin, "comove", "comove", partial(ours, our_tracin), 4.2, extras={bare: (without_batch_norm, "")}),
        Row(tracin, "captum, sample-wise", "captum", partial(peers.captum_tracin, True), None, many, False, bare,
            note="leaves out batch norm's parameters; compared with ours without"),
        Row(tracin, "captum, default", "captum", partial(peers.captum_tracin, False), None, (1, 10, 50), False,
            f"{tracin}: comove"),
        Row(tracin, "dattri", "dattri", peers.dattri_tracin, None, many, True, f"{tracin}: comove"),
        *trak_rows(512, images, 1.8),
        *trak_rows(2048, images, 2.1),
        Row(arnoldi, "comove", "comove", partial(ours, our_arnoldi), 14.0, extras={fewer: (rank_20, "")}),
        Row(arnoldi, "captum", "captum", captum, None, (1, 10), False, f"{arnoldi}: comove", note=start,
            extras={f"captum, as many eigenpairs as ours at rank {FEWER}": (captum_fewer, fewer)}),
        Row(arnoldi, "dattri", "dattri", partial(peers.dattri_arnoldi, RANK), None, many, True, f"{arnoldi}: comove",
            note=start),
    ]  # fmt: skip


# --- measuring, in the row's own process ---------------------------------------------------------------------------


def floor(setting: Setting, passes: int = 2) -> float:
    """CPU seconds of the fastest of several plain forward+backward epochs over all training images."""
    model, (x, y) = setting.run.load_model(), setting.train_xy

    def epoch(batch: int) -> None:
        for start in range(0, len(y), batch):
            model.zero_grad()
            F.cross_entropy(model(x[start : start + batch]), y[start : start + batch]).backward()

    return min(timed(partial(epoch, batch))[0] for batch in (50, 100) for _ in range(passes))


def once(row: Row, setting: Setting, n: int, batch: Any) -> tuple[float, np.ndarray]:
    """CPU seconds as if on all images, and scores of n of them."""
    seconds, found = 0.0, None
    stages = row.stages(setting, n, batch)
    gc.collect()
    for proportional, function in stages:
        taken, found = timed(function)
        seconds += taken * (setting.images / n if proportional else 1)
    values = found.detach().numpy() if isinstance(found, Tensor) else np.asarray(found)
    if values.shape != (n, setting.queries):
        raise ValueError(f"scores of shape {values.shape}, not {(n, setting.queries)}")
    return seconds, values


def measure(row: Row, setting: Setting, peer_train: int, repetitions: int) -> dict[str, Any]:
    """Run one row; its scores and extras are left in the folder."""
    n = min(peer_train, setting.images) if row.slow else setting.images
    _ = setting.train_xy, setting.query_xy, setting.hessian_xy, setting.weights
    floor(setting, 1)  # libraries' kernels are chosen now, for all rows alike
    loaded = resident("VmRSS")
    few = replace(setting, iterations=min(setting.iterations, 5))
    tried = {batch: once(row, few, min(n, TRIED), batch)[0] for batch in row.batches if batch <= min(n, TRIED)}
    batch = min(tried, key=lambda size: tried[size], default=None)
    peak, before, floors, taken = peak_memory(partial(once, row, setting, n, batch)), floor(setting), [], []
    for _ in range(repetitions):
        seconds, values = once(row, setting, n, batch)
        after = floor(setting)
        floors.append((before + after) / 2)
        taken.append(seconds)
        before = after
    ratios = [seconds / epoch for seconds, epoch in zip(taken, floors, strict=True)]
    result = {
        "times the floor": round(statistics.median(ratios), 3),
        "times the floor, each": [round(ratio, 3) for ratio in ratios],
        "CPU seconds": round(statistics.median(taken), 3),
        "floor CPU seconds": round(statistics.median(floors), 3),
        "extra MB": round((peak - loaded) / 1e6),
        "images run": n,
        "scaled": n < setting.images,
        "batch": batch,
        "not finite": float(np.mean(~np.isfinite(values))),
        "load average": round(os.getloadavg()[0], 1),
    }
    compared = {"ours": (values, row.truth)} if row.truth else {}
    compared |= {name: (function(setting), truth) for name, (function, truth) in row.extras.items()}
    for name, (found, _) in {row.key: (values, ""), **compared}.items():
        np.save(scores_file(setting.folder, name), found)
    for name, (found, truth) in compared.items():
        if truth and scores_file(setting.folder, truth).exists():
            result[f"agreement, {name}"] = agreement(found, np.load(scores_file(setting.folder, truth)))
    return result


def scores_file(folder: Path, name: str) -> Path:
    """Where a row's scores lie, for the rows after."""
    return folder / f"{name.replace('/', '-')}.npy"


# --- the whole -----------------------------------------------------------------------------------------------------


def in_process(row: Row, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a row in a process of its own, on one thread of the CPU."""
    if importlib.util.find_spec({"traker": "trak"}.get(row.library, row.library)) is None:
        return {"failed": "not installed"}
    command = [sys.executable, __file__, *sys.argv[1:], "--row", row.key]
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TQDM_DISABLE"), "1")
    environment = {**os.environ, **one, "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        said = ended.stderr.strip().splitlines() or ["no message"]
        return {"failed": f"{said[-1]} (exit status {ended.returncode})".replace(str(arguments.folder), "...")}
    result: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return result


def line(told: Mapping[str, Any]) -> str:
    """One row of the table."""
    if "failed" in told:
        return f"  {told['row']:<32} {told['failed']}"
    ratios = told["times the floor, each"]
    text = f"  {told['row']:<32} {told['times the floor']:7.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
    text += f" {told['CPU seconds']:8.2f} s {told['extra MB']:6d} MB"
    if told["limit"] is not None:
        text += f"  limit {told['limit']}x {'met' if told['times the floor'] <= told['limit'] else 'MISSED'}"
    text += f"  batch {told['batch']}" * (told["batch"] is not None)
    text += f"  scaled from {told['images run']} images" * told["scaled"]
    text += f"  {told['not finite']:.0%} NaN" * (told["not finite"] > 0)
    for name, found in told.items():
        if name.startswith("agreement") and "spearman" in found:
            text += f"\n{'':36}{name}: Spearman {found['spearman']:.4f}, difference {found['largest difference']:.1e}"
    return text + (f"\n{'':36}{told['note']}" if told["note"] else "")


def environment(arguments: argparse.Namespace) -> dict[str, Any]:
    """What figures depend on; those of another environment are not gone on with."""
    sizes = {name: getattr(arguments, name) for name in ("train", "queries", "peer_train", "repetitions", "iterations")}
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in sizes.items())
    found = {name: metadata.version(name) for name in ("captum", "dattri") if importlib.util.find_spec(name)}
    return {
        "command": f"python benchmarks/attribution.py --data-dir DIR {flags}",
        "sizes": {**sizes, "hessian examples": HESSIAN, "rank": RANK},
        "model": "resnet9, width 0.25",
        "recipe": RECIPE.to_json(),
        "seeds": {"data, weights, projections, start vectors": SEED, "second projection": 1},
        "precision": "float32",
        **(here := machine()),
        "threads": 1,
        "versions": {**here["versions"], **found},
    }


def parsed() -> argparse.Namespace:
    """The command line; ``--row`` is this script calling itself."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="where CIFAR-10 lies; by default $COMOVE_DATA")
    parser.add_argument("--train", type=int, default=2048, help="training images (default %(default)s)")
    parser.add_argument("--queries", type=int, default=100, help="query images (default %(default)s)")
    parser.add_argument("--peer-train", type=int, default=500, help="images for slow rows (default %(default)s)")
    parser.add_argument("--repetitions", type=int, default=3, help="of each row (default %(default)s)")
    parser.add_argument("--iterations", type=int, default=100, help="of Arnoldi's (default %(default)s)")
    parser.add_argument("--rows", nargs="+", default=[""], help="only rows whose group or name holds one of these")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="run the peers too")
    parser.add_argument("--again", action="store_true", help="measure rows that are already in the result")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "comove-attribution", help="of work"
    )
    parser.add_argument("--row", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if min(arguments.train, arguments.queries, arguments.peer_train, arguments.repetitions, arguments.iterations) < 1:
        parser.error("numbers must be at least 1")
    return arguments


def main() -> None:
    """Run what is missing of the rows asked for, print and write."""
    arguments = parsed()
    sizes = arguments.train, arguments.queries, arguments.iterations
    folder = arguments.folder / "-".join(map(str, sizes))
    folder.mkdir(parents=True, exist_ok=True)
    setting = Setting(folder, arguments.data_dir, *sizes)
    rows = {row.key: row for row in all_rows(arguments.train)}
    if arguments.row:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        print(json.dumps(measure(rows[arguments.row], setting, arguments.peer_train, arguments.repetitions)))
        return
    assert setting.run.manifest  # trained here, once
    result = environment(arguments)
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known = before.pop("rows", {})
    told = {key: row for key, row in known.items() if key in rows} if before == json.loads(json.dumps(result)) else {}
    RESULTS.parent.mkdir(exist_ok=True)
    group = ""
    for key, row in rows.items():
        wanted = any(word.lower() in key.lower() for word in arguments.rows)
        if not wanted or (row.library != "comove" and not arguments.peers):
            continue
        if row.group != group:
            group = row.group
            print(f"{group}    (times the floor, CPU seconds, extra memory)", flush=True)
        if arguments.again or "failed" in told.get(key, {"failed": ""}):
            full = arguments.train >= 2000 and sizes[1:] == (100, 100)
            head = {"row": row.name, "library": row.library, "limit": row.limit if full else None, "note": row.note}
            told[key] = head | in_process(row, arguments)
            partly = RESULTS.with_suffix(".part")
            partly.write_text(json.dumps({**result, "rows": told}, indent=1) + "\n")
            partly.replace(RESULTS)
        print(line(told[key]), flush=True)
    print(f"written to {RESULTS}")


if __name__ == "__main__":
    main()
