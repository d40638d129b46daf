"""Language: train one model by one algorithm.

    mpirun -np 16 --oversubscribe python benchmarks/nlp/train.py --recipe novels-cpu --algo dpsgd --data-dir DIR
    horovodrun -np 16 -H host1:8,host2:8 python benchmarks/nlp/train.py --algo dpsgd --data-dir DIR

With no recipe, the paper's transformer on WikiText-103 (Section 4.5). What DIR may hold: benchmarks/nlp/corpora.py.
Large texts are better tokenized before: benchmarks/nlp/prepare.py.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from benchmarks import early  # noqa: E402, F401
from benchmarks.nlp.tasks import TASKS  # noqa: E402
from horovod_dpsgd.training import main  # noqa: E402

if __name__ == "__main__":
    main(__doc__, TASKS, HERE / "recipes", default_recipe="wikitext103")
