"""Frames a second of an acoustic model in the training loop against the same steps in a bare PyTorch loop, one learner;
and what part of a step is taken by drawing its sub-sequences.

    python benchmarks/asr/speed.py --data-dir PREPARED               # the narrow LSTM of speech-cpu
    python benchmarks/asr/speed.py --recipe swb300 --set lr=0.1 --steps 3      # the paper's: 43 million weights

Speech is made up, if there is no --data-dir. `benchmarks/comm/loops.py` says what is timed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.asr.speech_task import SpeechTask
from benchmarks.comm import loops

SPEECH = loops.Subject(
    recipes=Path(__file__).resolve().parent / "recipes",
    recipe="speech-cpu",
    make_task=SpeechTask,
    settings=["data_options.heldout=1"],  # is evaluated after every turn, which is not what is timed
    of="sub-sequences",
    unit="frames",
    each=lambda task: task.options.unroll,
)


def main() -> None:
    loops.compare(__doc__, "asr/speed", SPEECH)


if __name__ == "__main__":
    main()
