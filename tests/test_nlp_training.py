"""`benchmarks/nlp/train.py` as users start it, on a text made here."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from conftest import PROGRAMS, REPOSITORY
from test_nlp_data import write

pytestmark = pytest.mark.mpi
TRAIN = REPOSITORY / "benchmarks/nlp/train.py"
pytest.importorskip("tokenizers")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def small(tmp_path) -> list:
    """The recipe for small machines, still smaller, on a text of our own."""
    write(tmp_path / "voyages")
    settings = [
        "task=text", "model_options.width=16", "model_options.layers=2", "model_options.hidden=16",
        "data_options.block_size=16", "data_options.vocabulary=300",
    ]  # fmt: skip
    words = [word for setting in settings for word in ("--set", setting)]
    return ["--recipe", "novels-cpu", *words, "--data-dir", tmp_path / "voyages", "--batch-size", 12]


def test_every_form_of_model_trains_by_every_algorithm(mpirun, tmp_path):
    pytest.importorskip("transformers")
    done = mpirun(2, PROGRAMS / "all_language_models_train.py", tmp_path, timeout=300)
    assert done.stdout.count("trained") == 3 * 4


def test_blocks_in_sequential_order_are_each_taken_once_an_epoch_and_resumed(mpirun, tmp_path):
    done = mpirun(2, PROGRAMS / "blocks_in_order.py", tmp_path)
    assert done.stdout.split() == ["dpsgd", "resumed", "adpsgd"]


def test_a_run_on_text_is_resumed_bit_for_bit_and_says_what_it_found(mpirun, tmp_path, small):
    options = ["--set", "model_options.dropout=0.1", "--set", "mix_moments=true", "--checkpoint-every", 8]
    mpirun(2, TRAIN, *small, *options, "--max-steps", 12, "--output", tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts/checkpoints/step-00000012")  # as if it had been interrupted before
    mpirun(2, TRAIN, "--output", tmp_path / "parts", "--resume")
    for rank in range(2):
        whole, parts = (
            torch.load(tmp_path / run / f"checkpoints/step-00000012/learner-{rank:03d}.pt", weights_only=False)
            for run in ("whole", "parts")
        )
        for name, weights in whole["algorithm"]["model"].items():
            assert torch.equal(weights, parts["algorithm"]["model"][name]), f"learner {rank}, {name}"
    ended = json.loads((tmp_path / "whole/result.json").read_text())
    assert ended["task"] == "text" and ended["data"].startswith("voyages (byte-level BPE trained on it), ")
    heldout = ended["heldout"]
    assert 1 < heldout["perplexity"] <= heldout["word_perplexity"]
    assert 0 < ended["chance_loss"] < 5.7 and 0 < heldout["unigram_loss"] < 5.7
    assert f"unigram entropy {ended['chance_loss']:.4f}" in ended["data"]


def test_bad_input_is_one_line_and_status_2(mpirun, tmp_path, small):
    done = mpirun(2, TRAIN, *small, "--data-dir", "/nowhere", "--output", tmp_path / "run", status=2)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("train.py: error")]
    assert "--data-dir /nowhere is not a folder" in line
