"""`DecentralizedOptimizer`: DPSGD for a training script of one's own, as `hvd.DistributedOptimizer` is SSGD for it."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from horovod_dpsgd import learners, topology
from horovod_dpsgd.algorithms import Settings
from horovod_dpsgd.algorithms.dpsgd import DPSGD


class DecentralizedOptimizer(torch.optim.Optimizer):
    """Wrap `optimizer`, made over the parameters of `model`, so that every `step()` is a step of DPSGD (eq. 2).

    `step()` averages the weights with this step's partners, who publish theirs while gradients are computed, and then
    applies the wrapped optimizer's update. `zero_grad`, `param_groups`, step hooks and learning-rate schedulers are the
    wrapped optimizer's. All learners start from the weights of rank 0.

    topology: "matching" (one random partner a step, the paper's), "ring", "random-ring", "complete", "exponential",
    "hierarchical" (means of nodes), or a `Topology`; compression: "bfloat16" to exchange rounded weights; seed: of a
    random topology, equal on all learners; stall_timeout: seconds after which a learner that waits for another ends the
    job (0: never). Every learner must call `step()` equally often.

    Weights differ between learners: evaluate inside `with optimizer.averaged():`, where the model holds their mean.
    Others read them from now on: load pretrained weights into the model before, afterwards change them by this
    object's `load_state_dict` alone, and copy what you keep (see `DPSGD`). `step` raises RuntimeError where it can see
    another change; writes through `p.data` it cannot.

    Mixed precision is `torch.autocast` with bfloat16: `torch.amp.GradScaler` would leave out steps of one learner, for
    whom its partners then wait, so `step` raises RuntimeError under it.

    On GPUs call `torch.cuda.set_device(horovod_dpsgd.local_rank() % torch.cuda.device_count())` before the model is
    made.

    Constructing, stepping, `averaged`, `load_state_dict` and `close` are collective. Raises ValueError for a model that
    `FlatParameters` cannot hold or that differs between learners, if the optimizer lacks a trainable parameter of the
    model or holds one of another, if the topologies differ, and for a topology that has no compressed exchange or (as
    "hierarchical") none on GPUs; MachineError where there is too little shared memory.
    """

    _step_supports_amp_scaling = True  # has GradScaler call `step` always, and set `found_inf` before

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        topology: str | topology.Topology = "matching",
        seed: int = 0,
        stall_timeout: float = learners.STALL_TIMEOUT,
        compression: Literal["none", "bfloat16"] = "none",
    ) -> None:
        # Not the base class's __init__: this is a face for `optimizer`, with no parameters or state of its own.
        us = replace(learners.start(), stall_timeout=stall_timeout)
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        trainable = {id(p) for p in model.parameters() if p.requires_grad}
        if held - {id(p) for p in model.parameters()} or trainable - held:
            raise ValueError("the optimizer must hold all trainable parameters of the model, and none of another")
        if compression not in ("none", "bfloat16"):
            raise ValueError(f'compression is "none" or "bfloat16", not {compression!r}')
        graph, compressed = _topology(topology, us, seed), compression == "bfloat16"
        self.optimizer = optimizer
        self.algorithm = DPSGD(optimizer, model, us, Settings(graph, compressed, seed=seed))
        self._frozen = [p for p in model.parameters() if not p.requires_grad]
        self._closed = False
        self._begin_step()
        atexit.register(self._close_at_exit)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of DPSGD; returns what `closure`, if given, returned. Raises RuntimeError after `close`."""
        self._check_open()
        if hasattr(self, "found_inf"):
            for name in ("found_inf", "grad_scale"):  # of the scaler, which would do this after the step
                vars(self).pop(name, None)
            raise RuntimeError(
                "torch.amp.GradScaler leaves out one learner's steps, and its partners would wait: use torch.autocast "
                "with torch.bfloat16, without a scaler"
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._weights_now() != self._weights_published:
            raise RuntimeError(
                "the model's weights were changed, or moved, since the last step, when others had begun to read them: "
                "load weights before the optimizer is wrapped, or by its load_state_dict"
            )
        if any(p.grad is not None for p in self._frozen):
            raise RuntimeError(
                "a parameter that was frozen when the optimizer was wrapped has a gradient: close it, and wrap anew"
            )
        self.algorithm.end_step()
        self._begin_step()
        return loss

    def _begin_step(self) -> None:
        self.algorithm.begin_step()
        self._weights_published = self._weights_now()

    def _weights_now(self) -> list[tuple[int, int]]:
        """What changes where weights are written to, or replaced: where they are, and PyTorch's count of writes."""
        return [(p.data_ptr(), p._version) for p in self.algorithm.parameters.parameters]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside the block the model holds the mean of all learners' weights and BatchNorm statistics. Collective."""
        known = self._weights_now() == self._weights_published
        with self.algorithm.averaged():
            yield
        if known:  # whatever was written to the model inside has not stayed
            self._weights_published = self._weights_now()

    def close(self) -> None:
        """Leave the exchange; the model keeps this learner's weights. Called at exit if not before. Collective."""
        if not self._closed:
            self._closed = True
            atexit.unregister(self._close_at_exit)  # which would keep the model alive until then
            self.algorithm.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the optimizer is closed")

    def _close_at_exit(self) -> None:
        try:
            self.close()
        except Exception as error:  # raised here it would be printed, and the job would hang in MPI_Finalize
            learners.abort(f"{type(error).__name__} at exit: {error}")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        raise RuntimeError("parameters cannot be added: the exchange's memory was laid out when it was made")

    def state_dict(self) -> dict[str, Any]:
        """This learner's weights, the wrapped optimizer's state and the step of the topology, for `load_state_dict`."""
        return self.algorithm.state_dict() | {"saved_by": self._identity()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave on this learner. Raises RuntimeError after `close`; ValueError, on all
        learners, if it is of another learner, another step than the others', or another topology."""
        self._check_open()
        everyone = self.algorithm.learners.gather((state_dict.get("saved_by"), self._identity(), state_dict["step"]))
        for saved_by, learner, step in everyone:
            if saved_by != learner:
                raise ValueError(f"the state of {saved_by} was given to {learner}")
            if step != everyone[0][2]:
                raise ValueError(f"{learner} was given the state of step {step}, learner 0 that of {everyone[0][2]}")
        self.algorithm.load_state_dict(state_dict)
        self._begin_step()

    def _identity(self) -> str:
        us, topology = self.algorithm.learners, self.algorithm.topology
        return f"learner {us.rank} of {us.size}, topology {topology.name}, seed {topology.seed}"

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def __repr__(self) -> str:
        return f"DecentralizedOptimizer({self.optimizer!r}, topology={self.algorithm.topology!r})"

    def register_step_pre_hook(self, hook: Any) -> Any:
        return self.optimizer.register_step_pre_hook(hook)

    def register_step_post_hook(self, hook: Any) -> Any:
        return self.optimizer.register_step_post_hook(hook)

    # Schedulers read and write these; the wrapped optimizer may replace its own, so they are looked up each time.

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        return self.optimizer.defaults


def _topology(chosen: str | topology.Topology, us: learners.Learners, seed: int) -> topology.Topology:
    if isinstance(chosen, topology.Topology):
        return chosen
    return topology.create(chosen, us.size, seed, us.node_of)
