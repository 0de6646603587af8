r"""P = diag(lr / (sqrt(v / (1 - b2^t)) + eps)): what Adam multiplies a gradient with, of an optimizer's saved state.

A step of Adam (Kingma and Ba, ICLR 2015, Algorithm 1) moves the weights by ``-P m``, where m averages gradients and v
their squares. To first order, an example whose gradient enters that average therefore changes another one's
loss in proportion to ``g' P g``, where plain gradient descent has ``lr g' g``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from comove.errors import CorruptFileError, InputError
from comove.store import digest
from comove.training.weights import load_plain

__all__ = ["read_optimizer_state", "state_digest", "step_factors"]

State = str | Path | Mapping[str, Any]


def read_optimizer_state(source: State) -> Mapping[str, Any]:
    """Return an optimizer's state dict, of itself or of a file (also one that keeps it under ``"optimizer"``).

    Raises:
        CorruptFileError: a file that cannot be read without unpickling, or holds no such state.
    """
    found = source if isinstance(source, Mapping) else load_plain(Path(source))
    for content in (found, *(found.get(name) for name in ("optimizer", "optimizer_state_dict"))) if found else ():
        if isinstance(content, Mapping) and {"state", "param_groups"} <= set(content):
            return content
    where = "optimizer_state" if isinstance(source, Mapping) else source
    raise CorruptFileError(f"{where} holds no optimizer's state_dict(), which has 'state' and 'param_groups'.")


def state_digest(source: State) -> str:
    """Return a digest of what :func:`step_factors` reads."""
    state = read_optimizer_state(source)
    groups = [{name: group.get(name) for name in ("lr", "betas", "eps", "params")} for group in state["param_groups"]]
    numbers = [
        torch.as_tensor(state["state"][key][name]).detach().cpu().float().numpy()
        for key in sorted(state["state"], key=str)
        for name in ("step", "exp_avg_sq", "max_exp_avg_sq")
        if name in state["state"][key]
    ]
    return digest(repr(groups), *numbers)


def step_factors(model: nn.Module, source: State, lr: float | None = None) -> dict[str, Tensor]:
    """Return lr / (sqrt(v_hat) + eps) of every parameter of a model, name -> (parameter shape), float32.

    Parameters that the optimizer does not hold, or has not moved yet, have 0: they take no step.

    Args:
        model: that was trained.
        source: the state of Adam or AdamW (with AMSGrad: of the largest second moments), or a file of it.
        lr: the learning rate; by default each group's own in the state.

    Raises:
        CorruptFileError: a file that cannot be read.
        InputError: no second moments (the optimizer is none of Adam's kin), or moments that do not fit the parameters.
    """
    state = read_optimizer_state(source)
    parameters = dict(model.named_parameters())
    factors = {name: torch.zeros(parameter.shape) for name, parameter in parameters.items()}
    for name, key, group in _assigned(state, parameters):
        moments = state["state"].get(key)
        if not moments:
            continue
        v = moments.get("max_exp_avg_sq", moments.get("exp_avg_sq"))
        if v is None or "betas" not in group:
            raise InputError(
                f"The optimizer's state has no second moments ('exp_avg_sq') of {name}: the preconditioned step is "
                "Adam's and AdamW's. Leave out optimizer_state=True for another optimizer."
            )
        corrected = v.float() / (1 - group["betas"][1] ** float(moments["step"]))
        factors[name] = float(group["lr"] if lr is None else lr) / (corrected.sqrt() + group["eps"])
    return factors


def _assigned(
    state: Mapping[str, Any], parameters: Mapping[str, nn.Parameter]
) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Each parameter's name with its key and its group in the state.

    An optimizer numbers parameters in the order in which it was given them, and keeps their names only where it was
    built with ``named_parameters()``. Otherwise two orders are known: the model's, and that of transformers' Trainer,
    whose first group lacks biases and norms. Every shape must agree.
    """
    groups: Sequence[Mapping[str, Any]] = state["param_groups"]
    if all("param_names" in group for group in groups):
        orders = [list(chain.from_iterable(group["param_names"] for group in groups))]
    else:
        kept = [name for name, parameter in parameters.items() if parameter.requires_grad]
        decayed = [name for name in kept if not _spared(name, parameters[name])]
        orders = [kept, list(parameters), [*decayed, *(name for name in kept if name not in decayed)]]
        orders = orders if len(groups) > 1 else orders[:2]
    keys = [(key, group) for group in groups for key in group["params"]]
    fitting = {tuple(order): None for order in orders if _fits(order, keys, state["state"], parameters)}
    if len(fitting) != 1:
        how = "in several orders" if fitting else "in no known order"
        raise InputError(
            f"The optimizer's state of {len(keys)} parameters fits the model's {len(parameters)} {how}: build the "
            "optimizer with model.named_parameters(), which keeps names in its state_dict()."
        )
    for name, (key, group) in zip(next(iter(fitting)), keys, strict=True):
        yield name, key, group


def _spared(name: str, parameter: nn.Parameter) -> bool:
    """Whether transformers' Trainer spares a parameter from weight decay: biases, and scales of norms."""
    return name.endswith("bias") or parameter.ndim < 2


def _fits(
    order: Sequence[str], keys: Sequence[tuple[Any, Any]], moments: Mapping[Any, Any], known: Mapping[str, nn.Parameter]
) -> bool:
    if len(order) != len(keys) or not set(order) <= set(known):
        return False
    pairs = [(known[name], moments.get(key, {}).get("exp_avg_sq")) for name, (key, _) in zip(order, keys, strict=True)]
    return all(v is None or v.shape == parameter.shape for parameter, v in pairs)
