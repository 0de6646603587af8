"""The texts of ``benchmarks/quality.py``: film reviews by word vectors and by a transformer, Shakespeare by a GPT.

The transformers are trained by a loop of their own (``benchmarks/small_transformer.py``), as a user's would be: losses
are recorded by :class:`comove.Recorder`, runs adopted, and the same function retrains the models of the bank.
"""

from __future__ import annotations

import re
import shutil
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from quality_cases import Case
from safetensors.torch import save_file
from small_transformer import Loop, Transformer
from torch import Tensor, nn

from comove import OwnTraining, Recorder, Weights, adopt
from comove.data import ExampleSet, Splits
from comove.evaluation import RetrainingBank, subsets
from comove.store import new_folder
from comove.tasks import CausalLM, Classification, Task
from comove.training import Recipe, Recording, Run, Training

__all__ = ["CASES", "Characters", "OwnLoop", "Reviews", "Sentences", "WordVectors"]

WORDS, LENGTH = 1500, 24
"""Words that the sentence models know, and words of a sentence that they read."""
LETTERS = 32
"""Characters of a sequence."""
FIRST_SEED = 2000
"""Of the recorded runs; the models of the banks have seeds from 0 on."""


# --- film reviews ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reviews:
    """Sentences of film reviews (Pang and Lee, 2005), half of them positive.

    Attributes:
        words: of each sentence: 2,000 to train on, 200 queries, and 600 that recipes were chosen by.
        labels: 0 negative, 1 positive.
    """

    words: list[list[str]]
    labels: list[int]

    @classmethod
    def read(cls, folder: Path) -> Reviews:
        """From ``rt-polarity.neg`` and ``.pos``."""
        drawn = np.random.default_rng(0)
        shown: list[tuple[list[str], int]] = []
        apart: list[tuple[list[str], int]] = []
        for label, part in enumerate(("neg", "pos")):
            lines = (folder / f"rt-polarity.{part}").read_text(encoding="latin-1").splitlines()
            order = drawn.permutation(len(lines))
            for pairs, chosen in ((shown, np.sort(order[:1100])), (apart, order[1100:1400])):
                pairs += [(re.findall(r"[a-z0-9']+", lines[i].lower()), label) for i in chosen]
        order = drawn.permutation(len(shown))
        pairs = [*(shown[i] for i in order), *apart]
        return cls([words for words, _ in pairs], [label for _, label in pairs])

    def examples(self) -> ExampleSet:
        """All sentences as numbers of words: 1 for a rare one, 0 for padding."""
        common = Counter(word for words in self.words[:2000] for word in words).most_common(WORDS)
        number = {word: place + 2 for place, (word, _) in enumerate(common)}
        tokens = np.zeros((len(self.words), LENGTH), np.int64)
        for row, words in zip(tokens, self.words, strict=True):
            numbers = [number.get(word, 1) for word in words[:LENGTH]]
            row[: len(numbers)] = numbers
        return ExampleSet.from_arrays(tokens, np.array(self.labels), classes=["negative", "positive"])


@dataclass(frozen=True)
class ReviewCase(Case):
    """A case of film reviews."""

    @cached_property
    def texts(self) -> Reviews:
        """The sentences."""
        return Reviews.read(self.data_dir / "text")

    @cached_property
    def splits(self) -> Splits:
        """2,000 to train on, and 200 queries."""
        return self.parted(slice(2000, 2200))

    @cached_property
    def trial(self) -> Splits:
        """The same to train on, and 600 held-out sentences that are no queries: recipes are chosen by these."""
        return self.parted(slice(2200, None))

    def documents(self) -> tuple[list[list[str]], list[list[str]]]:
        """The words of the training sentences, and of the queries."""
        return self.texts.words[:2000], self.texts.words[2000:2200]

    def parted(self, held_out: slice) -> Splits:
        """The first 2,000 sentences and some others."""
        whole = self.texts.examples()
        return Splits(train=whole.subset(whole.ids[:2000]), validation=None, query=whole.subset(whole.ids[held_out]))


class Words(nn.Module):
    """The sum of a sentence's word vectors over the root of their number, a hidden layer, logits; 0 is padding."""

    def __init__(self, num_classes: int, width: int = 16) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS + 2, width, padding_idx=0)
        with torch.no_grad():
            self.words.weight.mul_(0.1)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, num_classes)

    def forward(self, words: Tensor) -> Tensor:
        """Logits (B, classes) of word numbers (B, LENGTH)."""
        count = (words > 0).sum(1, keepdim=True).clamp(min=1)
        whole: Tensor = self.words(words).sum(1) / count.sqrt()
        logits: Tensor = self.out(torch.tanh(self.hidden(whole)))
        return logits


def words_model(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """The factory of the word vectors' model."""
    return Words(num_classes)


@dataclass(frozen=True)
class WordVectors(ReviewCase):
    """Film reviews by a bag of word vectors, trained by comove's own loop."""


# --- models that a loop of their own trains --------------------------------------------------------------------------


@dataclass(frozen=True)
class OwnLoop(Case, ABC):
    """A case whose models comove does not train.

    Attributes:
        loop: how they are trained.
        width: of the transformer.
    """

    loop: Loop = field(default_factory=lambda: Loop(1, 1, 0.0))
    width: int = 32

    @property
    @abstractmethod
    def task(self) -> Task:
        """What the models are trained to do."""

    @abstractmethod
    def network(self) -> nn.Module:
        """Untrained."""

    def function(self, ids: npt.NDArray[np.int64], seed: int) -> nn.Module:
        """The training function of the bank."""
        return self.loop.train(self.network, self.splits.train.subset(ids), self.task, seed)

    def run(self, number: int) -> Run:
        """Trained and recorded here, adopted with its weights after each epoch; a finished one is opened."""
        folder = self.folder / "trained" / f"{number:03d}"
        if not (folder / "finished").exists():
            shutil.rmtree(folder, ignore_errors=True)
            Noting(self, new_folder(folder)).train(FIRST_SEED + number)
        weights = [
            Weights(
                folder / f"{epoch}.safetensors",
                epoch,
                lr=self.loop.rate_at(epoch / self.loop.epochs),
                optimizer_state=folder / f"{epoch}.pt",
            )
            for epoch in range(1, self.loop.epochs + 1)
        ]
        examples, out = (self.splits.train, self.splits.query), self.folder / "runs" / f"{number:03d}"
        return adopt(self.network, weights, *examples, self.task, trace=folder / "trace", out=out)

    def said(self) -> tuple[Tensor, Any]:
        """What the first run's model says of the queries, and the queries."""
        batch = self.splits.query.collated(np.arange(len(self.splits.query)))
        with torch.no_grad():
            return self.task.outputs(self.run(0).load_model(), batch), batch

    def bank(self, complete: bool = True) -> RetrainingBank:
        """The truth, trained where it is not there yet; ``complete=False``: as far as it is."""
        mine = OwnTraining(self.function, name=f"quality-{self.name}-1", task=self.task)
        plan = subsets.random(0.5, self.subsets, seed=0)
        made = RetrainingBank.create(
            self.folder / "bank", self.splits.train, mine, subsets=plan, seeds=self.seeds, queries=self.splits.query
        )
        return made.run(executor="serial") if complete else made


@dataclass(frozen=True)
class Noting:
    """Records a run while it is trained, and keeps weights and the optimizer's state after each epoch."""

    case: OwnLoop
    folder: Path

    def train(self, seed: int) -> None:
        """Train on all examples."""
        case, task = self.case, self.case.task
        parts = (case.splits.train, case.splits.query)
        labels = [part.labels if part.classes else np.zeros(len(part), np.int64) for part in parts]
        recorder = Recorder(
            self.folder / "trace",
            train_ids=parts[0].ids,
            query_ids=parts[1].ids,
            train_labels=labels[0],
            query_labels=labels[1],
            fields=["loss"],
        )

        def observe(model: nn.Module, optimizer: torch.optim.Optimizer, epoch: float) -> None:
            for part in parts:
                for rows in np.array_split(np.arange(len(part)), -(-len(part) // 250)):
                    batch = part.collated(rows)
                    with torch.no_grad():
                        recorder.observe(part.ids[rows], loss=task.loss(task.outputs(model, batch), batch))
            recorder.end_row(epoch=epoch)
            if epoch and epoch == int(epoch):
                state = {name: value.clone() for name, value in model.state_dict().items()}
                save_file(state, self.folder / f"{epoch:.0f}.safetensors")
                torch.save(optimizer.state_dict(), self.folder / f"{epoch:.0f}.pt")

        case.loop.train(case.network, parts[0], task, seed, observe)
        recorder.finish()
        (self.folder / "finished").touch()


@dataclass(frozen=True)
class Sentences(OwnLoop, ReviewCase):
    """Film reviews by a transformer of two layers, which AdamW trains."""

    @property
    def task(self) -> Task:
        """One of two classes."""
        return Classification()

    def learnt(self) -> str:
        """How good the first run is on the queries."""
        logits, (_, labels) = self.said()
        return f"Right on the queries: {(logits.argmax(1) == labels).float().mean():.0%}."

    def network(self) -> nn.Module:
        """Untrained."""
        return Transformer(WORDS + 2, LENGTH, 2, self.width, causal=False)


@dataclass(frozen=True)
class Characters(OwnLoop):
    """The beginning of Shakespeare's plays, 32 characters a sequence, by a GPT of two layers, which AdamW trains."""

    @property
    def task(self) -> Task:
        """Next-character prediction, a sequence an example."""
        return CausalLM()

    @cached_property
    def text(self) -> str:
        """All of it."""
        return (self.data_dir / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")

    @cached_property
    def tokens(self) -> npt.NDArray[np.int64]:
        """Numbers of characters: 1,100 sequences for training and queries, and 200 that the recipe was chosen by."""
        known = {letter: place for place, letter in enumerate(sorted(set(self.text)))}
        return np.array([known[letter] for letter in self.text[: LETTERS * 1300]]).reshape(-1, LETTERS)

    def documents(self) -> tuple[list[list[str]], list[list[str]]]:
        """All groups of three letters of the training sequences, and of the queries."""
        ids = (self.splits.train.ids, self.splits.query.ids)
        texts = [[self.text[LETTERS * i : LETTERS * (i + 1)] for i in part] for part in ids]
        train, queries = ([[text[at : at + 3] for at in range(LETTERS - 2)] for text in part] for part in texts)
        return train, queries

    @cached_property
    def splits(self) -> Splits:
        """1,000 sequences to train on, and 100 queries drawn from between them."""
        drawn = np.sort(np.random.default_rng(0).permutation(1100)[:100])
        return self.parted(np.setdiff1d(np.arange(1100), drawn), drawn)

    @cached_property
    def trial(self) -> Splits:
        """The same to train on, and the 200 sequences that follow in the text: the recipe is chosen by these."""
        return self.parted(self.splits.train.ids, np.arange(1100, 1300))

    def parted(self, train: npt.NDArray[np.int64], held_out: npt.NDArray[np.int64]) -> Splits:
        """Sequences by their place in the text."""
        whole = ExampleSet([{"input_ids": torch.from_numpy(row)} for row in self.tokens])
        return Splits(train=whole.subset(train), validation=None, query=whole.subset(held_out))

    def learnt(self) -> str:
        """How good the first run is on the queries, beside counts of the training sequences' letters and pairs."""
        logits, batch = self.said()
        single, pairs = count_losses(self.tokens[self.splits.train.ids], self.tokens[self.splits.query.ids])
        loss = self.task.loss(logits, batch).mean()
        return (
            f"Loss of a character of the queries: {loss:.2f} nats; by the training characters' frequencies "
            f"{single:.2f}, by those of pairs {pairs:.2f}."
        )

    def network(self) -> nn.Module:
        """Untrained."""
        return Transformer(65, LETTERS, 65, self.width, causal=True)


def count_losses(train: npt.NDArray[np.int64], queries: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Mean losses of the queries' characters but the first of each, by counts of single ones (+ .5), of pairs (+ .1).

    Args:
        train: (N, T) numbers of characters.
        queries: (Q, T).
    """
    size = int(max(train.max(), queries.max())) + 1
    single = np.bincount(train.ravel(), minlength=size) + 0.5
    pairs = np.full((size, size), 0.1)
    np.add.at(pairs, (train[:, :-1].ravel(), train[:, 1:].ravel()), 1)
    pairs /= pairs.sum(1, keepdims=True)
    now, following = queries[:, :-1], queries[:, 1:]
    return float(-np.log((single / single.sum())[following]).mean()), float(-np.log(pairs[now, following]).mean())


# --- as they are run ------------------------------------------------------------------------------------------------

SENTENCES = Training(
    words_model, Recipe(epochs=20, batch_size=32, lr=0.1, momentum=0.9, schedule="cosine", weight_decay=1e-3)
)


def words_case(folder: Path, data: Path) -> Case:
    """Film reviews by word vectors."""
    about = (
        f"Sum of word vectors, one hidden layer ({WORDS:,} words, 24,338 parameters) on 2,000 sentences, 20 epochs; "
        "200 queries; truth: 60 random halves x 2 seeds."
    )
    return WordVectors(
        "words", "Film reviews, word vectors", about, folder, data, SENTENCES, Recording(every=16), 60, 2, (1, 3, 5)
    )


def sentences_case(folder: Path, data: Path, **options: Any) -> Case:
    """Film reviews by a transformer."""
    about = (
        f"Transformer of two layers, 32 wide ({WORDS:,} words, 74,370 parameters), on 2,000 sentences, AdamW in a loop "
        "of its own, 4 epochs; 200 queries; truth: 100 random halves x 2 seeds."
    )
    loop = options.pop("loop", Loop(4, 25, 3e-3, noted=8))
    return Sentences(
        "sentences",
        "Film reviews, transformer",
        about,
        folder,
        data,
        Training(),
        Recording(),
        100,
        2,
        (1, 3),
        loop,
        **options,
    )


def characters_case(folder: Path, data: Path, **options: Any) -> Case:
    """Shakespeare by a GPT."""
    about = (
        "GPT of two layers, 32 wide (30,721 parameters), on 1,000 sequences of 32 characters, the first 35,200 of the "
        "plays, AdamW in a loop of its own, 10 epochs; 100 queries from between them; truth: 100 random halves x 2 "
        "seeds."
    )
    loop = options.pop("loop", Loop(10, 25, 1e-2, noted=4))
    return Characters(
        "characters",
        "Shakespeare, characters",
        about,
        folder,
        data,
        Training(),
        Recording(),
        100,
        2,
        (1, 3),
        loop,
        **options,
    )


CASES: dict[str, Callable[[Path, Path], Case]] = {
    "words": words_case,
    "sentences": sentences_case,
    "characters": characters_case,
}
