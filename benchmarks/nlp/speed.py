"""Tokens a second of a language model in the training loop against the same steps in a bare PyTorch loop, one learner.

    python benchmarks/nlp/speed.py                                   # the small transformer of novels-cpu
    python benchmarks/nlp/speed.py --amp --accumulate 4              # in bfloat16; a batch in four parts: both loops
    python benchmarks/nlp/speed.py --compile --turns 3               # every turn compiles: a minute or more each
    python benchmarks/nlp/speed.py --recipe wikitext103 --batch-size 4 --steps 3      # the paper's: 50 million weights

Text is made up, if there is no --data-dir. Tokens are those of the blocks that are read. `benchmarks/comm/loops.py`
says what is timed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.comm import loops
from benchmarks.nlp.language_task import LanguageTask

LANGUAGE = loops.Subject(
    recipes=Path(__file__).resolve().parent / "recipes",
    recipe="novels-cpu",
    make_task=LanguageTask,
    settings=["data_options.heldout_blocks=1"],  # is evaluated after every turn, which is not what is timed
    of="blocks",
    unit="tokens",
    each=lambda task: task.options.block_size,
)


def main() -> None:
    loops.compare(__doc__, "nlp/speed", LANGUAGE)


if __name__ == "__main__":
    main()
