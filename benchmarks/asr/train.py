"""Speech: train one acoustic model by one algorithm.

    mpirun -np 16 --oversubscribe python benchmarks/asr/train.py --recipe speech-cpu --algo dpsgd --data-dir PREPARED
    horovodrun -np 16 -H host1:8,host2:8 python benchmarks/asr/train.py --recipe swb300 --algo dpsgd --data-dir PREPARED

PREPARED is made by benchmarks/asr/prepare.py. With no recipe, speech-cpu.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from benchmarks import early  # noqa: E402, F401
from benchmarks.asr.tasks import TASKS  # noqa: E402
from horovod_dpsgd.training import main  # noqa: E402

if __name__ == "__main__":
    main(__doc__, TASKS, HERE / "recipes", default_recipe="speech-cpu")
