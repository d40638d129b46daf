"""SSGD through Horovod against SGD on the global batch in one process; SSGD* against its formula; DPSGD `complete` on
one shared batch against SSGD."""

import problems
import torch

from horovod_dpsgd import topology
from horovod_dpsgd.algorithms import Algorithm, Settings
from horovod_dpsgd.algorithms.dpsgd import DPSGD
from horovod_dpsgd.algorithms.ssgd import SSGD
from horovod_dpsgd.algorithms.ssgd_star import SSGDStar
from horovod_dpsgd.learners import generator
from horovod_dpsgd.parameters import FlatParameters

STEPS = 12
problems.parser().parse_args()
us = problems.start()


def train(algorithm: Algorithm, shared_batch: bool = False) -> torch.Tensor:
    for step in range(STEPS):
        algorithm.begin_step()
        algorithm.optimizer.zero_grad()
        problems.loss(algorithm.model, problems.batch(step, 0 if shared_batch else us.rank)).backward()
        algorithm.end_step()
    weights = problems.flat(algorithm.model)
    algorithm.close()
    return weights


def reference_ssgd(optimizer: str, clip_norm: float | None) -> torch.Tensor:
    """Eq. 1 in one process: the mean of the learners' gradients (BatchNorm sees a learner's batch), then clipping."""
    net = problems.model()
    opt = problems.OPTIMIZERS[optimizer](net.parameters())
    for step in range(STEPS):
        opt.zero_grad()
        for rank in range(us.size):
            (problems.loss(net, problems.batch(step, rank)) / us.size).backward()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(net.parameters(), clip_norm)
        opt.step()
    return problems.flat(net)


def reference_ssgd_star(optimizer: str, std: float, seed: int) -> torch.Tensor:
    """w_a - alpha mean_j grad L_j(w_a + d_j), the noise of every learner drawn here."""
    net, noisy = problems.model(), problems.model()
    for model in (net, noisy):
        model.square.data = model.square.data.contiguous()  # noise is drawn in the order of memory: as Horovod has it
    opt = problems.OPTIMIZERS[optimizer](net.parameters())
    flat, flat_noisy = FlatParameters(net), FlatParameters(noisy)
    for step in range(STEPS):
        gradients = []
        for rank in range(us.size):
            delta = torch.randn(flat.numel, dtype=flat.dtype, generator=generator("noise", seed, rank, step))
            with flat_noisy.holding(flat.gather() + std * delta.to(problems.DEVICE)):
                value = problems.loss(noisy, problems.batch(step, rank))
                gradients.append(flat.gather(list(torch.autograd.grad(value, flat_noisy.parameters))))
        mean = torch.stack(gradients).mean(0)
        for p, gradient in zip(flat.parameters, flat.views(mean), strict=True):
            p.grad = gradient
        opt.step()
    return problems.flat(net)


for name, make in problems.OPTIMIZERS.items():
    clip_norm = 0.2 if name == "momentum" else None
    net = problems.model()
    result = train(SSGD(make(net.parameters()), net, us, Settings(clip_norm=clip_norm)))
    torch.testing.assert_close(result, reference_ssgd(name, clip_norm), rtol=0, atol=1e-6)

    net = problems.model()
    result = train(SSGDStar(make(net.parameters()), net, us, Settings(noise_std=0.1, seed=5)))
    torch.testing.assert_close(result, reference_ssgd_star(name, 0.1, 5), rtol=0, atol=1e-6)

    net = problems.model()
    synchronous = train(SSGD(make(net.parameters()), net, us, Settings()), shared_batch=True)
    net = problems.model()
    complete = Settings(topology.create("complete", us.size))
    decentralized = train(DPSGD(make(net.parameters()), net, us, complete), shared_batch=True)
    torch.testing.assert_close(decentralized, synchronous, rtol=0, atol=1e-6)
if us.rank == 0:
    print("equal")
