"""The data sets of ``benchmarks/quality.py``: recorded runs, and a bank of retrained models as the truth."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from measuring import RESULTS
from safetensors.torch import save_file
from torch import Tensor, nn

from comove import OwnTraining, Weights, adopt
from comove.data import ExampleSet, Splits
from comove.data.builtin import load_dataset
from comove.evaluation import RetrainingBank, subsets
from comove.store import new_folder
from comove.tasks import CausalLM
from comove.training import Recipe, Recording, Run, Training, train

__all__ = ["CASES", "STUDY", "Case", "Characters", "Sentences"]

STUDY = RESULTS / "cifar10-resnet9" / "small"
WORDS, LENGTH = 1500, 24
"""Words that the sentence model knows, and words of a sentence that it reads."""


@dataclass(frozen=True)
class Case:
    """A data set, the network trained on it, the recorded runs and the retrained models.

    Attributes:
        name: as on the command line.
        title: as on the page.
        about: what was trained, and what the truth is, in a sentence.
        folder: where runs, scores and banks are kept.
        data_dir: where data that is not embedded lies.
        training: network and recipe.
        recording: of the runs.
        subsets: C, half of the training examples each; 0: the truth is the published bank of the study.
        seeds: R.
        counts: numbers of runs that scores are averaged over.
    """

    name: str
    title: str
    about: str
    folder: Path
    data_dir: Path
    training: Training
    recording: Recording
    subsets: int
    seeds: int
    counts: tuple[int, ...] = (1, 3, 5, 10)

    @cached_property
    def splits(self) -> Splits:
        """Its examples."""
        if self.name == "cifar10":
            return load_dataset("cifar10", data_dir=self.data_dir, limit=2500, validation=0, queries=200, seed=0)
        return load_dataset("digits", seed=0)

    def run(self, number: int) -> Run:
        """A recorded run; a finished one is opened, not trained again."""
        how = self.training
        return train(
            self.splits,
            how.model,
            how.recipe,
            number,
            self.folder / "runs" / f"{number:03d}",
            recording=self.recording,
            model_options=how.options,
        )

    def bank(self) -> RetrainingBank:
        """The truth, trained where it is not there yet."""
        if not self.subsets:
            return RetrainingBank.load(STUDY / "bank-random-0.5-0.safetensors")
        plan = subsets.random(0.5, self.subsets, seed=0)
        made = RetrainingBank.create(self.folder / "bank", self.splits, self.training, subsets=plan, seeds=self.seeds)
        return made.run(executor="serial")


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
    """The factory of the sentence model."""
    return Words(num_classes)


@dataclass(frozen=True)
class Sentences(Case):
    """Sentences of movie reviews (Pang and Lee, 2005), half of them positive, as numbers of words."""

    @cached_property
    def texts(self) -> tuple[list[list[str]], list[int]]:
        """2,200 sentences as words, and their classes."""
        folder, drawn = self.data_dir / "text", np.random.default_rng(0)
        pairs: list[tuple[list[str], int]] = []
        for label, part in enumerate(("neg", "pos")):
            lines = (folder / f"rt-polarity.{part}").read_text(encoding="latin-1").splitlines()
            chosen = np.sort(drawn.permutation(len(lines))[:1100])
            pairs += [(re.findall(r"[a-z0-9']+", lines[i].lower()), label) for i in chosen]
        order = drawn.permutation(len(pairs))
        return [pairs[i][0] for i in order], [pairs[i][1] for i in order]

    @cached_property
    def splits(self) -> Splits:
        """2,000 to train on, and 200 queries."""
        sentences, labels = self.texts
        common = Counter(word for words in sentences[:2000] for word in words).most_common(WORDS)
        number = {word: place + 2 for place, (word, _) in enumerate(common)}
        tokens = np.zeros((len(sentences), LENGTH), np.int64)
        for row, words in zip(tokens, sentences, strict=True):
            numbers = [number.get(word, 1) for word in words[:LENGTH]]
            row[: len(numbers)] = numbers
        whole = ExampleSet.from_arrays(tokens, np.array(labels), classes=["negative", "positive"])
        return Splits(train=whole.subset(whole.ids[:2000]), validation=None, query=whole.subset(whole.ids[2000:]))


@dataclass(frozen=True)
class Characters(Case):
    """Shakespeare's plays, 64 characters a sequence, by a GPT of two layers that AdamW trains."""

    EPOCHS: ClassVar[int] = 10
    BATCH: ClassVar[int] = 25
    RATE: ClassVar[float] = 5e-3

    @cached_property
    def splits(self) -> Splits:
        """300 sequences to train on, and 40 queries, evenly spread over the text."""
        text = (self.data_dir / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")
        known = {letter: place for place, letter in enumerate(sorted(set(text)))}
        starts = np.linspace(0, len(text) - LETTERS, 340).astype(int)
        items = [{"input_ids": torch.tensor([known[letter] for letter in text[at : at + LETTERS]])} for at in starts]
        whole = ExampleSet(items)
        drawn = np.random.default_rng(0).permutation(whole.ids)
        return Splits(train=whole.subset(drawn[:300]), validation=None, query=whole.subset(drawn[300:]))

    def network(self) -> nn.Module:
        """Untrained, without dropout."""
        from transformers import GPT2Config, GPT2LMHeadModel

        sizes = {"vocab_size": 65, "n_positions": LETTERS, "n_embd": 32, "n_layer": 2, "n_head": 2}
        drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        return GPT2LMHeadModel(GPT2Config(**sizes, **drop, bos_token_id=0, eos_token_id=0))

    def trained(self, ids: npt.NDArray[np.int64], seed: int, kept: list[dict[str, Tensor]] | None = None) -> nn.Module:
        """A model; the weights after each epoch are added to ``kept``."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = self.network()
            own, order = self.splits.train.subset(ids), np.random.default_rng(seed)
            optimizer = torch.optim.AdamW(model.parameters(), lr=self.RATE)
            for _ in range(self.EPOCHS):
                for rows in np.array_split(order.permutation(len(ids)), max(1, len(ids) // self.BATCH)):
                    batch = own.collated(rows)
                    TEXT.loss(TEXT.outputs(model, batch), batch).mean().backward()
                    optimizer.step()
                    optimizer.zero_grad()
                if kept is not None:
                    kept.append({name: value.clone() for name, value in model.state_dict().items()})
        return model.eval()

    def run(self, number: int) -> Run:
        """Trained here, adopted with its weights after each epoch."""
        folder = self.folder / "weights" / f"{number:03d}"
        if not (folder / f"{self.EPOCHS}.safetensors").exists():
            kept: list[dict[str, Tensor]] = []
            self.trained(self.splits.train.ids, 1000 + number, kept)
            for epoch, weights in enumerate(kept, 1):
                save_file(weights, new_folder(folder) / f"{epoch}.safetensors")
        weights = [Weights(folder / f"{epoch}.safetensors", epoch, lr=self.RATE) for epoch in range(1, self.EPOCHS + 1)]
        out = self.folder / "runs" / f"{number:03d}"
        return adopt(self.network, weights, self.splits.train, self.splits.query, TEXT, out=out)

    def bank(self) -> RetrainingBank:
        """The truth, trained where it is not there yet."""
        mine = OwnTraining(self.trained, name="quality-characters-1", task=TEXT)
        plan = subsets.random(0.5, self.subsets, seed=0)
        made = RetrainingBank.create(
            self.folder / "bank", self.splits.train, mine, subsets=plan, seeds=self.seeds, queries=self.splits.query
        )
        return made.run(executor="serial")


TEXT, LETTERS = CausalLM(), 64
DIGITS = Training("mlp", "digits-mlp")
RESNET = Training("resnet9", "resnet9-small", {"width": 0.125})
SENTENCES = Training(
    words_model, Recipe(epochs=20, batch_size=32, lr=0.1, momentum=0.9, schedule="cosine", weight_decay=1e-3)
)

CASES: dict[str, Callable[[Path, Path], Case]] = {
    "digits": lambda folder, data: Case(
        "digits",
        "Digits",
        "MLP 64-64-64-10 (8,970 parameters) on 1,400 digits of 8 x 8 pixels, 30 epochs; 200 queries; truth: 100 random "
        "halves x 4 seeds.",
        folder,
        data,
        DIGITS,
        Recording(every=11),
        100,
        4,
    ),
    "cifar10": lambda folder, data: Case(
        "cifar10",
        "CIFAR-10, small",
        "ResNet-9 at an eighth of the width (36,168 parameters) on 2,500 images, flipped and cropped, 15 epochs; 200 "
        "queries; truth: the bank of the [study](study.md), 100 random halves x 5 seeds.",
        folder,
        data,
        RESNET,
        Recording(every=10, anchors=[-1]),
        0,
        5,
    ),
    "sentences": lambda folder, data: Sentences(
        "sentences",
        "Movie-review sentences",
        f"Sum of word vectors, one hidden layer ({WORDS:,} words, 24,338 parameters) on 2,000 sentences, 20 epochs; "
        "200 queries; truth: 60 random halves x 2 seeds.",
        folder,
        data,
        SENTENCES,
        Recording(every=16),
        60,
        2,
    ),
    "characters": lambda folder, data: Characters(
        "characters",
        "Shakespeare, characters",
        "GPT of two layers, 32 wide (29,600 parameters), on 300 sequences of 64 characters, AdamW, 10 epochs; 40 "
        "queries; truth: 40 random halves x 2 seeds.",
        folder,
        data,
        Training(),
        Recording(),
        40,
        2,
        (1, 3, 5),
    ),
}
