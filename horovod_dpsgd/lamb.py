"""LAMB, layer-wise adaptive moments for large batches (You et al. 2020, https://arxiv.org/abs/1904.00962)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam


class LAMB(torch.optim.Optimizer):
    """Algorithm 2 of the paper, with bias-corrected moments and phi(z) = z. For each parameter x with gradient g:

        m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
        r = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)
        x = x - lr |x| / |r + weight_decay x| (r + weight_decay x)

    The trust ratio |x| / |r + weight_decay x| is 1 where either norm is 0. `adapt=False` in a parameter group makes it
    1 for the whole group, whose update is then AdamW's; `without_adaptation` makes such groups. Under DPSGD the weights
    x, also in the norms, are the mixed weights w_s,j(t), while g is the gradient at w_j(t).

    betas: of the two moments, each in [0, 1). The defaults are the paper's for BERT, but for lr, which depends on the
    batch size. Raises ValueError for a number out of its range; `step` raises RuntimeError for a sparse gradient.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,  # Horovod makes its optimizer from our param_groups alone, which hold the true one
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        adapt: bool = True,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name} is {value}: it must not be negative")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas are {betas}: each must be in [0, 1)")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "adapt": adapt}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient; returns what `closure`, if given, returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if any(p.grad.is_sparse for p in weights):
                raise RuntimeError("LAMB does not take sparse gradients")
            states = [self._state_of(p) for p in weights]
            updates = [p * group["weight_decay"] for p in weights]
            adam(
                updates,
                [p.grad for p in weights],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                **adam_numbers(group),
            )
            move(group, weights, updates)
        return loss

    def _state_of(self, p: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[p]
        if not state:
            state |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        return state


def adam_numbers(group: dict[str, Any]) -> dict[str, Any]:
    """What makes a step of Adam add r to its weights: started at weight_decay x, it ends at LAMB's direction."""
    beta1, beta2 = group["betas"]
    return {
        "lr": -1.0,
        "beta1": beta1,
        "beta2": beta2,
        "eps": group["eps"],
        "weight_decay": 0.0,
        "amsgrad": False,
        "maximize": False,
    }


def move(group: dict[str, Any], weights: list[Tensor], updates: list[Tensor]) -> None:
    """Step from the weights x of a group, in place, along the updates r + weight_decay x, of x's shapes."""
    ratios = trust_ratios(weights, updates) if group["adapt"] else [1.0] * len(weights)
    for x, update, ratio in zip(weights, updates, ratios, strict=True):
        x.sub_(update, alpha=group["lr"] * ratio)


def trust_ratios(weights: list[Tensor], updates: list[Tensor]) -> list[float]:
    """|x| / |update| for each, or 1 where either norm is 0."""
    if not weights:
        return []
    norms = torch.stack([torch.linalg.vector_norm(t) for t in (*weights, *updates)]).tolist()  # one wait for a GPU
    pairs = zip(norms[: len(weights)], norms[len(weights) :], strict=True)
    return [x / update if x > 0 and update > 0 else 1.0 for x, update in pairs]


def without_adaptation(model: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups for LAMB: biases and normalization weights (fewer than two dimensions) with trust ratio 1 and no
    weight decay, the other trainable parameters by the optimizer's defaults. A group without parameters is left out.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    matrices = {"params": [p for p in trainable if p.ndim >= 2]}
    vectors = {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0, "adapt": False}
    return [group for group in (matrices, vectors) if group["params"]]
