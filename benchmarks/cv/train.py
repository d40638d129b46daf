"""Computer vision: train one model by one algorithm.

    mpirun -np 5 --oversubscribe python benchmarks/cv/train.py --algo dpsgd
    horovodrun -np 16 -H host1:8,host2:8 python benchmarks/cv/train.py --algo dpsgd

    mpirun -np 16 --oversubscribe python benchmarks/cv/train.py --recipe cifar10-cpu --data-dir DIR

With no recipe, the paper's MNIST task (Section 2.2). What DIR may hold: benchmarks/cv/datasets.py.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from benchmarks import early  # noqa: E402, F401
from benchmarks.cv.tasks import TASKS  # noqa: E402
from horovod_dpsgd.training import main  # noqa: E402

if __name__ == "__main__":
    main(__doc__, TASKS, HERE / "recipes", default_recipe="mnist")
