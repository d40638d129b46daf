"""Several training runs in one launch, one after the other: starting learners takes longer than a short run.

    mpirun -np 16 python benchmarks/experiments/several.py SCRIPT FILE

FILE holds the arguments of each run of SCRIPT, as a JSON list a line. A run that fails ends them all.
"""

import json
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    script, file = sys.argv[1:]
    for line in Path(file).read_text().splitlines():
        sys.argv = [script, *json.loads(line)]
        runpy.run_path(script, run_name="__main__")
