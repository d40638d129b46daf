"""How well tied states can be told by their frequencies alone: held-out losses of what knows little about speech."""

from __future__ import annotations

import numpy as np


def levels(train: np.ndarray, heldout: np.ndarray, silence: list[int] | None) -> dict[str, float]:
    """In nats a frame, from how many frames are in each state [states], where each was seen in training once more than
    it was, so that none has the frequency 0.

    unigram_loss: of guessing by the states' frequencies in training. Where it is known which states are silence, also
    unigram_loss_silence_told, the same by one who is told of each frame whether it is silence, and
    unigram_loss_of_speech, that one's loss on frames of speech alone (NaN where there is none).
    """
    frequent = train + 1.0

    def loss(group: np.ndarray) -> float:
        """Summed over the held-out frames in the states of this group, given that it is this group."""
        return -float(heldout[group] @ np.log(frequent[group] / frequent[group].sum()))

    frames = int(heldout.sum())
    found = {"unigram_loss": loss(np.ones(len(train), bool)) / frames}
    if silence is None:
        return found
    speech = ~np.isin(np.arange(len(train)), silence)
    spoken = int(heldout[speech].sum())
    return found | {
        "unigram_loss_silence_told": (loss(speech) + loss(~speech)) / frames,
        "unigram_loss_of_speech": loss(speech) / spoken if spoken else float("nan"),
    }
