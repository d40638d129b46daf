"""AD-PSGD, asynchronous decentralized parallel SGD (Lian et al. 2018, arXiv 1710.06952, Algorithm 1).

    x_j, x_k <- (x_j + x_k) / 2          atomically, whenever learner j or k gets there
    x_j      <- x_j - alpha grad L_j(w_j)        w_j: x_j as it was when the gradient's computation began

No learner waits for another's step, so a slow one slows nobody down.
"""

from __future__ import annotations

from collections import Counter

from horovod_dpsgd.algorithms.decentralized import Decentralized
from horovod_dpsgd.gossip import PairAveraging


class ADPSGD(Decentralized):
    """DPSGD without its waiting: a learner averages with whatever its partner's weights are at that moment.

    The partner of a learner's t-th step is drawn from its row of T_t; of the two, one begins the average, by turns. So
    pairs average as often as under DPSGD's `matching`, which this is when all learners keep the same pace. As under
    DPSGD the optimizer's update is applied to the averaged weights, and its state stays local.

    Learners take as many steps as they can: `step` counts this one's, and they differ.
    """

    name = "adpsgd"
    asynchronous = True
    exchange: PairAveraging

    def make_exchange(self) -> PairAveraging:
        return PairAveraging(self.learners, self.parameters)

    @property
    def staleness(self) -> Counter[int]:
        return self.exchange.staleness

    @property
    def skipped_averages(self) -> int:
        return self.exchange.skipped

    def begin_step(self) -> None:
        rank = self.learners.rank
        partner = self.topology.partner(self.step, rank)
        round_ = self.step // self.topology.period  # in which every pair meets at most once
        self.exchange.begin(partner if partner is not None and initiates(rank, partner, round_) else None)

    def end_step(self) -> None:
        self.clip_gradients()
        with self.update as blocks:  # x_j <- x_j - alpha grad L_j(w_j), done to each block of weights when
            self.exchange.mix(blocks)  # x_j <- (x_j + x_k) / 2 has been computed for it
        self.exposed_seconds = self.exchange.exposed_seconds
        self.step += 1

    def settle(self) -> None:
        self.exchange.settle()

    def bytes_sent(self, step: int, between_nodes: bool = False) -> int:
        """One model: the weights of the one who begins the average, or the difference from the other.

        So much on average where a learner has several partners, from whom each draws its own.
        """
        partners = self.topology.partners(step, self.learners.rank)
        counted = self.learners.elsewhere(partners) if between_nodes else partners
        return self.parameters.nbytes * len(counted) // max(1, len(partners))


def initiates(rank: int, partner: int, round_: int) -> bool:
    """Whether `rank` and not `partner` begins their average of this round; the two agree, and take turns by rounds."""
    return (rank < partner) == ((rank + partner + round_) % 2 == 0)
