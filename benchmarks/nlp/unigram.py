"""How well tokens can be told by their frequencies alone: the plateau that a language model that has diverged sits at.

(The paper's Table 5 has 7.26 there, far below ln 28996 = 10.27.) All losses are in nats a token.
"""

from __future__ import annotations

import numpy as np


def entropy(counts: np.ndarray) -> float:
    """Of a text, from how often each token occurs in it: the least loss of any guess without regard to the context."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def cross_entropy(counts: np.ndarray, train_counts: np.ndarray) -> float:
    """The loss on one text of guessing by the frequencies in another. Every token counts as seen once more than it was,
    so that one which was never seen costs no infinite loss."""
    p = (train_counts + 1) / (train_counts.sum() + len(train_counts))
    return float(-(counts * np.log(p)).sum() / counts.sum())
