"""Effective learning rate, noise strengths and weight variance over MPI against the formulas in one process."""

import problems
import torch

from horovod_dpsgd import topology
from horovod_dpsgd.algorithms import Settings
from horovod_dpsgd.algorithms.dpsgd import DPSGD
from horovod_dpsgd.diagnostics import dynamics

LR, STEPS = 0.1, 5
STEP = 1e-4
us = problems.start()
graph = topology.create("ring", us.size)
net = problems.model()
algorithm = DPSGD(problems.OPTIMIZERS["sgd"](net.parameters()), net, us, Settings(graph))
for step in range(STEPS):
    algorithm.begin_step()
    algorithm.optimizer.zero_grad()
    problems.loss(net, problems.batch(step, us.rank)).backward()
    algorithm.end_step()
algorithm.begin_step()
whole_set = [problems.batch(500 + part, 0) for part in range(2 * us.size)]
measured = dynamics.measure(
    algorithm,
    lambda examples: problems.loss(net, examples),
    [problems.batch(STEPS, us.rank)],
    whole_set[us.rank :: us.size],
    LR,
    hessian=True,
)

# The same, by the definitions, in one process.
weights = [problems.flat(other) for other in problems.reference_dpsgd("sgd", graph, STEPS)]
mean = torch.stack(weights).mean(0)


def gradient(at: torch.Tensor, examples: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    other = problems.model()
    trainable = [p for p in other.parameters() if p.requires_grad]
    for p, part in zip(trainable, at.split([p.numel() for p in trainable]), strict=True):
        p.data = part.reshape(p.shape)
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(problems.loss(other, examples), trainable)])


def product(at: torch.Tensor, examples: tuple[torch.Tensor, torch.Tensor], vector: torch.Tensor) -> torch.Tensor:
    """H v by central differences of gradients."""
    return (gradient(at + STEP * vector, examples) - gradient(at - STEP * vector, examples)) / (2 * STEP)


n = us.size
batches = [problems.batch(STEPS, rank) for rank in range(n)]
g = torch.stack([gradient(mean, part) for part in whole_set]).mean(0)
g_a = torch.stack([gradient(weights[j], batches[j]) for j in range(n)]).mean(0)
g_s = torch.stack([gradient(mean, batches[j]) for j in range(n)]).mean(0)
g_j = torch.stack([gradient(weights[j], batches[j]) for j in range(n)])
deviations = [w - mean for w in weights]
h_dw = [torch.stack([product(mean, part, dw) for part in whole_set]).mean(0) for dw in deviations]
own_h_dw = torch.stack([product(mean, batches[j], deviations[j]) for j in range(n)]).mean(0)
alpha_e = LR * g_a @ g / (g @ g)
alpha_s = LR * g_s @ g / (g @ g)
expected = {
    "effective_lr": alpha_e,
    "noise": LR**2 * g_a @ g_a - alpha_e**2 * g @ g,
    "noise_ssgd": LR**2 * g_s @ g_s - alpha_s**2 * g @ g,
    "noise_2": LR**2 * (g_a - g_s) @ (g_a - g_s),
    "weight_variance": sum((w - mean) @ (w - mean) for w in weights) / n**2,
    "full_gradient_norm": g.norm(),
    "gradient_diversity": (g_j**2).sum() / g_j.sum(0).square().sum(),
    "noise_2_hessian": LR**2 * sum(each @ each for each in h_dw) / n**2,
    "noise_2_first_order": LR**2 * own_h_dw @ own_h_dw,
}
for name, value in expected.items():
    torch.testing.assert_close(torch.tensor(measured[name]), value.to(torch.float32), rtol=1e-5, atol=1e-9)
if us.rank == 0:
    print("equal")
