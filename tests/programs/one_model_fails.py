"""A training job whose learner 1 cannot make the model."""

from pathlib import Path

from benchmarks.cv.mnist_task import MnistTask
from horovod_dpsgd import learners
from horovod_dpsgd.errors import ModelError
from horovod_dpsgd.training import main

RECIPES = Path(__file__).resolve().parents[2] / "benchmarks" / "cv" / "recipes"


class Broken(MnistTask):
    def make_model(self):
        if learners.start().rank == 1:
            raise ModelError("the file of weights is damaged here")
        return super().make_model()


main(__doc__, {"mnist": Broken}, RECIPES, "mnist")
