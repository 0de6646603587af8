"""The CIFAR-10 / ResNet-9 study: the CLD paper's figures 8a and 8b, run for real, in slices.

    export COMOVE_DATA=DIR                                            # where CIFAR-10 lies
    python benchmarks/cifar10/study.py --size small --folder DIR      # every step; cut off, the same command goes on
    python benchmarks/cifar10/study.py --size paper --step bank --minutes 9 --folder DIR
    python benchmarks/cifar10/study.py --size small --step publish --folder DIR
    python benchmarks/cifar10/study.py --step report                  # docs/study.md from benchmarks/results

Steps: ``speed`` (of the trainer), ``runs`` and ``scores`` (attribution), ``bank`` (the ground truth at alpha 0.5, then
what FZ and datamodels are fitted on), ``alphas`` (the other ratios), ``curves``, ``same-seed`` (for ``Unrolled``),
``brittleness`` (on as many queries as there is time for), ``publish`` (what there is, in compact form), ``restore`` (a
new folder begins with what is published: no model is trained twice), ``report``.
Exit code 0: done; 75: the time was up, the same command goes on. Nothing is begun that took longer before than is left
of the slice.

On a machine that is lent for minutes, carry ``DIR/state`` there and back: a few KB a retrained model, and all that a
slice needs to go on. ``DIR/scratch`` (runs, their checkpoints, TRAK's features) is made again where it is lost, as far
as scores are missing that it is for: CLD and TRAK read all runs, TracIn and Arnoldi those that are not in their sums
yet, FZ and datamodels none; these need no GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from declared import STUDIES
from scoring import do_runs, fit_and_score, score
from slices import Clock, SliceEndedError
from steps import Session, coreset_curves, retrain

from comove.jobs import as_executor

UNFINISHED = 75
"""The exit code that says: again."""
REPOSITORY = Path(__file__).parents[2]
RESULTS = REPOSITORY / "benchmarks" / "results" / "cifar10-resnet9"
PAGE = REPOSITORY / "docs" / "study.md"


def _speed(at: Session) -> None:
    from speed import measure_speed

    measure_speed(at)


def _bank(at: Session) -> None:
    retrain(at, lambda alpha: alpha == 0.5)
    fit_and_score(at)


def _same_seed(at: Session) -> None:
    from same_seed import measure_same_seed

    measure_same_seed(at)


def _removals(at: Session) -> None:
    from removing import remove

    remove(at)


STEPS: dict[str, Callable[[Session], object]] = {
    "speed": _speed,
    "runs": do_runs,
    "scores": score,
    "bank": _bank,
    "alphas": lambda at: retrain(at, lambda alpha: alpha != 0.5),
    "curves": coreset_curves,
    "same-seed": _same_seed,
    "brittleness": _removals,
}


def main(arguments: list[str] | None = None, results: Path = RESULTS, page: Path = PAGE) -> int:
    """Do one step, or all; return the exit code."""
    asked = _parser().parse_args(arguments)
    if asked.step == "report":
        from page import write_page

        write_page(results, page)
        return 0
    if asked.folder is None:
        raise SystemExit("Name the study's folder with --folder DIR.")
    study, executor = STUDIES[asked.size], as_executor(asked.executor, asked.workers)
    scratch = asked.folder / "scratch" if asked.scratch is None else asked.scratch
    at = Session(study, asked.folder / "state", scratch, Clock(asked.minutes), asked.device, executor)
    if asked.step in ("publish", "restore"):
        import published

        getattr(published, asked.step)(at, results / study.size)
        return 0
    try:
        for step in STEPS if asked.step == "all" else [asked.step]:
            STEPS[step](at)
            print(f"{study.size}, {step}: done", flush=True)
    except SliceEndedError:
        print("The time is up; the same command goes on.", flush=True)
        return UNFINISHED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=STUDIES, default="small")
    parser.add_argument("--step", choices=[*STEPS, "all", "publish", "restore", "report"], default="all")
    parser.add_argument(
        "--folder", type=Path, help="of the study: state/ is small and worth keeping, scratch/ is large"
    )
    parser.add_argument("--scratch", type=Path, help="for runs and full scores, instead of FOLDER/scratch")
    parser.add_argument("--minutes", type=float, help="of this slice; without it, until done")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--executor", default="local", help="serial, local or ray")
    parser.add_argument("--workers", type=int, help="worker processes of local")
    return parser


if __name__ == "__main__":
    sys.exit(main())
