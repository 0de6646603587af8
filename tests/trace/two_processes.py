"""Record the same training in one process and in two (gloo), for the tests beside this file to compare.

python two_processes.py FOLDER writes FOLDER/one/NAME and FOLDER/two/NAME for plain torch, Accelerate, Lightning and
transformers. Lightning and transformers take long to import, so two processes are forked off one that has imported
them; nothing has run on several threads by then.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import sys
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import comove
from comove import Recorder
from comove.trace.distributed import DistributedRecorder

HAS = {name: importlib.util.find_spec(name) is not None for name in ("accelerate", "lightning", "transformers")}
if HAS["accelerate"]:
    from accelerate import Accelerator
if HAS["lightning"]:
    from lightning.pytorch import LightningModule, Trainer

    from comove.trace.lightning import CLDCallback as LightningCallback
if HAS["transformers"] and HAS["accelerate"]:
    import transformers

    from comove.trace.transformers import CLDCallback as TransformersCallback

WORLD, TRAIN, QUERY, BATCH, EPOCHS, LR = 2, 61, 20, 8, 3, 0.05  # 61: one example short of equal shares


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def digits(size: int = TRAIN) -> tuple[TensorDataset, TensorDataset]:
    data = comove.load_dataset("digits")
    train, query = (
        TensorDataset(
            torch.as_tensor(part.held)[:n].flatten(1), torch.as_tensor(part.labels[:n]), torch.as_tensor(part.ids[:n])
        )
        for part, n in ((data.train, size), (data.query, QUERY))
    )
    return train, query


def recorder_at(path: Path, train: TensorDataset, query: TensorDataset, **options: Any) -> Recorder:
    return Recorder(path, train_ids=train.tensors[2], query_ids=query.tensors[2], **options)


def batches(data: TensorDataset, places: Tensor, size: int) -> Iterator[tuple[Tensor, ...]]:
    for part in torch.split(places, size):
        yield tuple(tensor[part] for tensor in data.tensors)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor) -> Tensor:
    """Train on a batch; return its logits."""
    optimizer.zero_grad()
    logits: Tensor = model(inputs)
    F.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return logits


def replay(folder: Path, name: str, mode: str, order: list[list[list[int]]], size: int = TRAIN) -> None:
    """Record in one process what two did: ``order`` has the ids of each epoch's steps, as both saw them together."""
    train, query = digits(size)
    place = {int(key): number for number, key in enumerate(train.tensors[2])}
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    recorder = recorder_at(folder / "one" / name, train, query, mode=mode)
    for epoch in range(EPOCHS + 1):
        for ids in order[epoch - 1] if epoch else ():
            places = torch.tensor([place[key] for key in ids])
            inputs, labels, _ = (tensor[places] for tensor in train.tensors)
            logits = step(model, optimizer, inputs, labels)
            if mode == "in_pass":
                recorder.observe(torch.tensor(ids), logits=logits, labels=labels)
        with torch.no_grad():
            if mode == "sweep" or epoch == 0:
                recorder.observe(train.tensors[2], logits=model(train.tensors[0]), labels=train.tensors[1])
            recorder.observe(query.tensors[2], logits=model(query.tensors[0]), labels=query.tensors[1])
        recorder.end_row(epoch=epoch)
    recorder.finish()


def sampled_order(size: int = TRAIN) -> list[list[list[int]]]:
    """The steps that DistributedSampler gives two processes together: its order with the first repeated at the end."""
    train, _ = digits(size)
    steps = []
    for epoch in range(EPOCHS):
        places = torch.randperm(size, generator=torch.Generator().manual_seed(epoch))
        padded = torch.cat([places, places[: -size % WORLD]])
        steps.append([train.tensors[2][part].tolist() for part in torch.split(padded, WORLD * BATCH)])
    return steps


# --- two processes -----------------------------------------------------------------------------------------------


def plain(folder: Path, mode: str, rank: int, resume: bool = False) -> None:
    train, query = digits()
    model = network()
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    sampler: DistributedSampler[Any] = DistributedSampler(train, WORLD, rank)
    loader = DataLoader(train, BATCH, sampler=sampler)
    path = folder / "two" / f"plain-{mode}{'-resumed' * resume}"
    recorder = DistributedRecorder(partial(recorder_at, path, train, query, mode=mode))
    for epoch in range(EPOCHS + 1):
        if epoch:
            sampler.set_epoch(epoch - 1)
        for number, (inputs, labels, ids) in enumerate(loader if epoch else ()):
            logits = step(parallel, optimizer, inputs, labels)
            if mode == "in_pass":
                recorder.observe(ids, logits=logits, labels=labels)
            if resume and (epoch, number) == (2, 1):  # the job ends in mid-pass, and another takes over
                state = recorder.state_dict()
                recorder = DistributedRecorder(partial(recorder_at, path, train, query, mode=mode, resume=True))
                recorder.load_state_dict(state)
        with torch.no_grad():
            for data, wanted in ((train, mode == "sweep" or epoch == 0), (query, True)):
                for inputs, labels, ids in batches(data, torch.arange(rank, len(data), WORLD), 5) if wanted else ():
                    recorder.observe(ids, logits=model(inputs), labels=labels)
        recorder.end_row(epoch=epoch)
    trace = recorder.finish()
    assert (trace is None) == (rank > 0)


def only_losses(folder: Path, rank: int) -> None:
    """Fields that leave out all but the loss send no logits between the processes."""
    train, query = digits()
    path = folder / "two" / "only-losses"
    recorder = DistributedRecorder(partial(recorder_at, path, train, query, fields=["loss"]))
    for data in (train, query):
        for inputs, labels, ids in batches(data, torch.arange(rank, len(data), WORLD), 5):
            recorder.observe(ids, logits=network()(inputs), labels=labels)
    recorder.end_epoch()
    recorder.finish()


def failures(folder: Path, rank: int) -> None:
    """What goes wrong in the first process is said by both."""
    train, query = digits()
    said = []
    for path, seen in ((folder / "two" / "plain-sweep", 0), (folder / "two" / "gap", TRAIN - 2)):
        try:
            recorder = DistributedRecorder(partial(recorder_at, path, train, query))
            recorder.observe(train.tensors[2][rank:seen:WORLD], loss=torch.ones(len(range(rank, seen, WORLD))))
            recorder.end_epoch()
        except comove.errors.InputError as error:
            said.append([type(error).__name__, str(error)])
    (folder / f"said-{rank}.json").write_text(json.dumps(said))


def accelerate(folder: Path, mode: str, rank: int) -> None:
    train, query = digits()
    accelerator = Accelerator(cpu=True)
    loader = DataLoader(train, BATCH, shuffle=True, generator=torch.Generator().manual_seed(5))
    model = network()
    model, optimizer, loader = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=LR), loader)
    path = folder / "two" / f"accelerate-{mode}"
    recorder = DistributedRecorder(partial(recorder_at, path, train, query, mode=mode))
    accelerator.register_for_checkpointing(recorder)
    order: list[list[list[int]]] = []
    for epoch in (0, 1, 2, 3, 3):  # the third epoch is trained again after going back to the end of the second
        if len(order) == 3:
            accelerator.load_state(str(folder / f"accelerate-{mode}"))
            order.pop()
        if epoch:
            order.append([])
        for inputs, labels, ids in loader if epoch else ():
            order[-1].append(accelerator.gather(ids).tolist())
            optimizer.zero_grad()
            logits = model(inputs)
            accelerator.backward(F.cross_entropy(logits, labels))
            optimizer.step()
            if mode == "in_pass":
                recorder.observe(ids, logits=logits, labels=labels)
        with torch.no_grad():
            for data, wanted in ((train, mode == "sweep" or epoch == 0), (query, True)):
                for inputs, labels, ids in accelerator.prepare(DataLoader(data, 16)) if wanted else ():
                    recorder.observe(ids, logits=accelerator.unwrap_model(model)(inputs), labels=labels)
        recorder.end_row(epoch=epoch)
        if epoch == 2:
            accelerator.save_state(str(folder / f"accelerate-{mode}"))
    recorder.finish()
    (folder / f"order-{mode}-{rank}.json").write_text(json.dumps(order))


def lightning(folder: Path, mode: Any, rank: int) -> None:
    train, query = digits()

    class Digits(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            inputs, labels, ids = batch
            logits = self.network(inputs)
            return {"loss": F.cross_entropy(logits, labels), "ids": ids, "logits": logits, "labels": labels}

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=LR)

    def evaluate(module: LightningModule, batch: Any) -> dict[str, Tensor]:
        inputs, labels, ids = batch
        return {"ids": ids, "logits": module.network(inputs), "labels": labels}

    callback = LightningCallback(
        folder / "two" / f"lightning-{mode}",
        train_ids=train.tensors[2],
        query_ids=query.tensors[2],
        train_loader=DataLoader(train, 7),
        query_loader=DataLoader(query, 7),
        evaluate=evaluate,
        mode=mode,
    )
    trainer = Trainer(
        strategy="ddp",
        devices=WORLD,
        accelerator="cpu",
        max_epochs=EPOCHS,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(Digits(), DataLoader(train, BATCH, shuffle=True))
    assert (callback.trace is None) == (rank > 0)


def of_transformers(folder: Path, kind: str, mode: Any) -> None:
    """Sequence classification of the digits' pixels as words; 64 examples, so that both see batches of one size."""
    train, query = digits(64)
    examples = [
        [
            {"input_ids": (pixels[:24] * 16).long(), "labels": int(label), "sample_idx": int(key)}
            for pixels, label, key in zip(*part.tensors, strict=True)
        ]
        for part in (train, query)
    ]
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=18,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=10,
        max_position_embeddings=24,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
    )
    callback = TransformersCallback(folder / kind / f"transformers-{mode}", examples[1], mode=mode)
    arguments = transformers.TrainingArguments(
        str(folder / f"{kind}-transformers"),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH if kind == "two" else WORLD * BATCH,
        learning_rate=1e-2,
        optim="sgd",
        remove_unused_columns=False,
        average_tokens_across_devices=False,  # else 5.23 trains on twice the loss with two processes
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    model = transformers.BertForSequenceClassification(config)
    transformers.Trainer(model, arguments, train_dataset=examples[0], callbacks=[callback]).train()


# --- starting ----------------------------------------------------------------------------------------------------


def child(folder: Path, rank: int, port: int) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(WORLD),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "comove",  # tells Lightning that somebody else starts the processes
    }
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    for mode in ("sweep", "in_pass"):
        plain(folder, mode, rank)
        if HAS["accelerate"]:
            accelerate(folder, mode, rank)
        if HAS["lightning"]:
            lightning(folder, mode, rank)
        if HAS["transformers"] and HAS["accelerate"]:
            of_transformers(folder, "two", mode)
    plain(folder, "in_pass", rank, resume=True)
    only_losses(folder, rank)
    failures(folder, rank)
    dist.barrier()
    dist.destroy_process_group()


def main(folder: Path) -> int:
    """Fork two processes, then record in one; returns how many processes failed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(WORLD):
        if (pid := os.fork()) == 0:
            try:
                child(folder, rank, port)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(pid)
    codes = [os.waitpid(pid, 0)[1] for pid in children]
    if any(codes):
        return sum(code != 0 for code in codes)
    torch.set_num_threads(1)
    for mode in ("sweep", "in_pass"):
        replay(folder, f"plain-{mode}", mode, sampled_order())
        if HAS["accelerate"]:
            replay(folder, f"accelerate-{mode}", mode, json.loads((folder / f"order-{mode}-0.json").read_text()))
        if HAS["transformers"] and HAS["accelerate"]:
            of_transformers(folder, "one", mode)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
