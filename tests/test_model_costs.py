"""Sizes of the paper's networks are those of their recipes, and `benchmarks/model_costs.py` measures each once."""

import json

import pytest
import torch

from benchmarks import model_costs, tasks
from horovod_dpsgd.diagnostics.points import Points

NETS = {net.label: net for net in model_costs.NETS}


@pytest.mark.parametrize(
    ("network", "parameters"),
    [  # counted apart from this code, from the networks' definitions
        ("EfficientNet-B0 (2019)", 2_912_089),
        ("VGG-19", 20_040_522),
        ("SENet-18", 11_260_354),
        ("AlexNet", 61_100_840),
        ("DenseNet-161", 28_681_000),
        ("LSTM, SWB-300", 43_154_944),
        ("transformer, WikiText-103", 50_396_360),
        ("784-50-50-10, MNIST", 42_310),
    ],
)
def test_networks_have_the_size_they_are_known_to_have(network, parameters):
    recipe = NETS[network].load("cpu", "cpu")
    assert recipe.synthetic and recipe.batch_size == NETS[network].batch["cpu"]
    assert model_costs.count(tasks.find(recipe.task)(recipe, False)) == (parameters, 4 * parameters)


@pytest.mark.parametrize(("scale", "device"), [("cpu", "cpu"), ("paper", "cuda")])
def test_an_epoch_has_as_many_samples_as_the_task_of_the_recipe(monkeypatch, scale, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for net in model_costs.NETS:
        recipe = net.load(scale, device)
        task = tasks.find(recipe.task)(recipe, False)  # which refuses a network that it does not know
        if net.unit == "images" or net.unit.startswith("sub-sequences"):  # of a text it depends on the tokenizer
            assert task.samples == net.epoch, net.label


def test_a_step_takes_its_median_and_an_epoch_all_its_steps():
    setup = {"machine": "a machine", "device": "cpu", "threads": 2, "torch": "2"}
    point = {"network": "VGG-19", "batch": 50, "parameters": 20_040_522, "bytes": 80_162_088}
    text = model_costs.report(Points("costs", setup, [point | {"seconds": [0.5, 3.6, 0.4, 3.7, 3.8]}]))
    (row,) = (line for line in text.splitlines() if "VGG-19" in line)
    cells = [cell.strip() for cell in row.strip("| ").split("|")]
    assert cells[1:] == ["20,040,522", "76.45", "50", "3.6 s (400 ms - 3.8 s)", "50,000 images", "1 h"]


@pytest.mark.mpi
def test_networks_are_measured_once(mpirun, tmp_path):
    words = ("--output", tmp_path, "--only", "784-50-50-10, MNIST")
    first = mpirun(1, "benchmarks/model_costs.py", *words)
    assert "| 784-50-50-10, MNIST | 42,310" in first.stdout
    _, line = map(json.loads, (tmp_path / "costs.jsonl").read_text().splitlines())
    assert len(line["measured"]["seconds"]) == model_costs.STEPS and min(line["measured"]["seconds"]) > 0
    mpirun(1, "benchmarks/model_costs.py", *words)
    assert json.loads((tmp_path / "costs.jsonl").read_text().splitlines()[1]) == line
