"""`DecentralizedOptimizer` in a script of one's own: scheduler, parameter groups, state_dict, averaged evaluation."""

import copy
import gc
import sys
import weakref

import problems
import pytest
import torch

import horovod_dpsgd as dpsgd
from horovod_dpsgd import learners

parser = problems.parser()
parser.add_argument("--topology", default="matching")
given = parser.parse_args()
us = problems.start(*given.nodes)
if us.nodes > 1:  # as the library would find it on as many nodes
    learners.start = lambda: us
net = problems.model()
first, second = list(net.parameters())[:2], list(net.parameters())[2:]
inner = torch.optim.SGD([{"params": first}, {"params": second, "lr": 0.05}], lr=0.1, momentum=0.9)
optimizer = dpsgd.DecentralizedOptimizer(inner, net, topology=given.topology, seed=4)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5)


def train(start: int, stop: int) -> torch.Tensor:
    for step in range(start, stop):
        optimizer.zero_grad()
        problems.loss(net, problems.batch(step, dpsgd.rank())).backward()
        optimizer.step()
        scheduler.step()
    return problems.flat(net)


train(0, 4)
assert [group["lr"] for group in inner.param_groups] == [0.05, 0.025], "the scheduler reaches the wrapped optimizer"
assert optimizer.algorithm.exchange.step == 4, "one step of the topology per step, however many parameter groups"
saved, saved_scheduler = copy.deepcopy(optimizer.state_dict()), scheduler.state_dict()
after = train(4, 9)
optimizer.load_state_dict(saved)
scheduler.load_state_dict(saved_scheduler)
assert torch.equal(train(4, 9), after), "going on from a state_dict repeats the steps bit for bit"
if us.size > 1:
    with pytest.raises(ValueError, match="the state of learner 0 of"):
        optimizer.load_state_dict(us.broadcast(saved))
    with pytest.raises(ValueError, match=r"learner 1 of .* was given the state of step 5, learner 0 that of 4"):
        optimizer.load_state_dict(saved | {"step": 4 + us.rank})

everyone = us.gather(problems.flat(net))
with optimizer.averaged():
    torch.testing.assert_close(problems.flat(net), torch.stack(everyone).mean(0))
assert torch.equal(problems.flat(net), everyone[us.rank])
with pytest.raises(RuntimeError, match="cannot be added"):
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
optimizer.close()
assert torch.equal(problems.flat(net), everyone[us.rank]), "the model keeps its weights when the exchange is closed"
assert "horovod" not in sys.modules, "DPSGD needs no Horovod"
optimizer.close()
with optimizer.averaged():
    torch.testing.assert_close(problems.flat(net), torch.stack(everyone).mean(0))
with pytest.raises(RuntimeError, match="is closed"):
    optimizer.step()
with pytest.raises(RuntimeError, match="is closed"):
    optimizer.load_state_dict(saved)
scaler = torch.amp.GradScaler("cpu")
again = dpsgd.DecentralizedOptimizer(inner, net, topology=given.topology)
scaler.scale(problems.loss(net, problems.batch(0, dpsgd.rank()))).backward()
with pytest.raises(RuntimeError, match="GradScaler leaves out"):
    scaler.step(again)
again.step()  # without the scaler it goes on
net.load_state_dict(net.state_dict())
with pytest.raises(RuntimeError, match="weights were changed"):
    again.step()
again.close()
rounding = dpsgd.DecentralizedOptimizer(inner, net, topology="ring", compression="bfloat16")
assert us.size == 1 or rounding.algorithm.exchange.window.dtype == torch.bfloat16
with pytest.raises(ValueError, match='compression is "none" or "bfloat16"'):
    dpsgd.DecentralizedOptimizer(inner, net, compression="fp16")
problems.loss(net, problems.batch(0, dpsgd.rank())).backward()
rounding.step()
net.double().float()
with pytest.raises(RuntimeError, match="weights were changed, or moved"):
    rounding.step()
rounding.close()
forgotten = weakref.ref(again)
del again, rounding, scaler
gc.collect()
assert forgotten() is None, "nothing keeps an optimizer that was closed"

for wrong in (torch.optim.SGD(first, lr=0.1), torch.optim.SGD([*net.parameters(), torch.nn.Parameter(torch.ones(1))])):
    with pytest.raises(ValueError, match="all trainable parameters of the model"):
        dpsgd.DecentralizedOptimizer(wrong, net)
if us.size > 1:
    with pytest.raises(ValueError, match="topologies differ"):
        dpsgd.DecentralizedOptimizer(torch.optim.SGD(net.parameters()), net, seed=us.rank)
if us.size > 1:
    other = torch.nn.Linear(2, 2 + us.rank)
    with pytest.raises(ValueError, match="the model of learner 1 differs"):
        dpsgd.DecentralizedOptimizer(torch.optim.SGD(other.parameters()), other)
if us.rank == 0:
    print("drop-in works")
