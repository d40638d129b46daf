"""The acoustic model, the task, the recipes: against closed forms and references made here."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from speech import write_prepared
from torch import nn

import benchmarks.asr
from benchmarks.asr import speech_task
from benchmarks.asr.levels import levels
from benchmarks.asr.model import AcousticModel
from benchmarks.asr.speech_task import SpeechTask
from horovod_dpsgd.errors import DataError, RecipeError
from horovod_dpsgd.training import Recipe
from horovod_dpsgd.training import recipe as recipes
from horovod_dpsgd.training.evaluation import evaluate_own

RECIPES = Path(benchmarks.asr.__file__).parent / "recipes"
SMALL = {"layers": 1, "cells": 6, "bottleneck": None}


def recipe(data_dir: Path | None, **keys) -> Recipe:
    training = {"task": "speech", "model": "bilstm", "model_options": SMALL, "lr": 1, "max_steps": 1, "batch_size": 8}
    return Recipe(data_dir=data_dir, **{**training, **keys})


def all_of(task: SpeechTask, part: str, shard: int = 0, shards: int = 1) -> list[torch.Tensor]:
    return [torch.cat(column) for column in zip(*task.shard_batches(part, shard, shards), strict=True)]


# ---- model ----


def test_the_paper_s_model_has_43_154_944_parameters():
    with torch.device("meta"):
        model = AcousticModel()
    assert sum(weights.numel() for weights in model.parameters()) == 43_154_944
    assert (model.lstm.hidden_size, model.lstm.num_layers, model.lstm.bidirectional) == (512, 6, True)


def test_logits_are_those_of_pytorch_s_modules_one_after_the_other():
    torch.manual_seed(0)
    model, frames = AcousticModel(5, 7, 2, 6, 3), torch.randn(4, 9, 5)
    lstm = nn.LSTM(5, 3, 2, batch_first=True, bidirectional=True)
    lstm.load_state_dict(model.lstm.state_dict())
    expected = lstm(frames)[0] @ model.bottleneck.weight.T + model.bottleneck.bias
    torch.testing.assert_close(model(frames), expected @ model.output.weight.T + model.output.bias)


def test_no_sequence_sees_another():
    model, frames = AcousticModel(5, 7, 2, 6, None), torch.randn(4, 9, 5)
    torch.testing.assert_close(model(frames)[2:3], model(frames[2:3]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cells": 7}, "cells: 7 is odd"),
        ({"layers": 0}, "layers: 0 is not a whole number of at least 1"),
        ({"states": 1}, "states: 1 is not"),
        ({"bottleneck": 2.5}, "bottleneck: 2.5 is not"),
        ({"input": True}, "input: True is not"),
    ],
)
def test_a_model_that_cannot_be_is_one_line(options, words):
    with pytest.raises(RecipeError, match=words):
        AcousticModel(**options)


# ---- task ----


def test_a_batch_is_the_frames_and_states_of_its_sub_sequences(tmp_path):
    frames, states = write_prepared(tmp_path, lengths=(50, 20, 64), dimension=4, states=5)["train"]
    task = SpeechTask(recipe(tmp_path))
    assert task.samples == 2 + 0 + 3  # of 21 frames
    assert task.classes == 5
    ((batch, labels),) = task.train_batches([torch.tensor([4, 1, 2])])
    for row, first in enumerate((70 + 42, 21, 70)):
        np.testing.assert_array_equal(batch[row], frames[first : first + 21])
        np.testing.assert_array_equal(labels[row], states[first : first + 21])
    assert (batch.dtype, labels.dtype) == (torch.float32, torch.int64)


def test_unroll_is_the_length_of_a_sub_sequence(tmp_path):
    write_prepared(tmp_path, lengths=(50, 20, 64))
    assert SpeechTask(recipe(tmp_path, data_options={"unroll": 10})).samples == 5 + 2 + 6


def test_shards_divide_the_held_out_part(tmp_path, monkeypatch):
    monkeypatch.setitem(speech_task.EVALUATION_LOGITS, "cpu", 2 * 21 * 5)  # two sub-sequences a batch
    write_prepared(tmp_path, lengths=(50, 20, 64), states=5)
    task = SpeechTask(recipe(tmp_path))
    whole, first, second = all_of(task, "heldout")[0], *(all_of(task, "heldout", s, 2)[0] for s in (0, 1))
    torch.testing.assert_close(whole[0::2], first)
    torch.testing.assert_close(whole[1::2], second)


def test_fewer_held_out_sub_sequences_are_spread_evenly_and_spoken_of(tmp_path):
    write_prepared(tmp_path, lengths=(210,), states=5)
    task = SpeechTask(recipe(tmp_path, data_options={"heldout": 4}))
    assert task.chosen_heldout.tolist() == [0, 2, 5, 7]
    assert "4 of 10 held out" in task.data
    assert len(all_of(task, "heldout")[0]) == 4


def test_loss_and_errors_are_those_of_single_frames_with_and_without_silence(tmp_path):
    write_prepared(tmp_path, lengths=(64, 64), states=5, silence=[0, 3])
    task = SpeechTask(recipe(tmp_path))
    torch.manual_seed(1)
    model = task.make_model().requires_grad_(False)
    frames, states = all_of(task, "heldout")
    score = task.score(model, (frames, states))
    logs = torch.log_softmax(model(frames), -1)
    expected = {"all": [0.0, 0, 0], "speech": [0.0, 0, 0]}
    for sequence, its_states in zip(logs, states, strict=True):
        for frame, state in zip(sequence, its_states.tolist(), strict=True):
            for group in ("all", "speech")[: 1 if state in (0, 3) else 2]:
                sums = expected[group]
                sums[0] -= float(frame[state])
                sums[1] += int(frame.argmax()) != state
                sums[2] += 1
    assert score[:3] == pytest.approx(expected["all"], rel=1e-5)
    assert score.groups[0][:3] == pytest.approx(expected["speech"], rel=1e-5)
    assert float(task.loss(model, (frames, states))) == pytest.approx(score.loss / score.samples, rel=1e-5)


def test_levels_are_those_of_closed_forms():
    """Frequencies such that adding one to each count leaves them as they are."""
    counts = np.array([600, 300, 100]) * 10**6
    of_all = -(0.6 * math.log(0.6) + 0.3 * math.log(0.3) + 0.1 * math.log(0.1))
    of_speech = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    expected = {
        "unigram_loss": of_all,
        "unigram_loss_silence_told": 0.4 * of_speech,
        "unigram_loss_of_speech": of_speech,
    }
    assert levels(counts, np.array([6, 3, 1]), silence=[0]) == pytest.approx(expected, rel=1e-5)
    assert levels(counts, np.array([6, 3, 1]), None) == {"unigram_loss": pytest.approx(of_all, rel=1e-5)}


def test_levels_are_losses_on_the_frames_that_are_evaluated(tmp_path):
    """Against who guesses by frequencies, scored as a model is: neither what the utterances have left over at their
    ends nor the sub-sequences that are left out count."""
    made = write_prepared(tmp_path, lengths=(41, 62, 83), states=5, silence=[0, 3])
    task = SpeechTask(recipe(tmp_path, data_options={"heldout": 4}))
    seen = torch.from_numpy(np.bincount(made["train"][1], minlength=5) + 1.0)
    silent = torch.tensor([True, False, False, True, False])
    told = torch.log(torch.where(silent, seen / seen[silent].sum(), seen / seen[~silent].sum()))

    def score(knows_silence):
        (batch,) = task.shard_batches("heldout", 0, 1)
        guesses = torch.where(silent[batch[1]][..., None] == silent, told, -math.inf) if knows_silence else seen.log()
        return task.score(lambda frames: guesses.expand(*batch[1].shape, 5), batch)

    knowing = score(True)
    found = task.heldout_figures(0.0)
    assert score(False).samples == 4 * 21
    assert found["unigram_loss"] == pytest.approx(score(False).loss / 84, rel=1e-6)
    assert found["unigram_loss_silence_told"] == pytest.approx(knowing.loss / 84, rel=1e-6)
    assert found["unigram_loss_of_speech"] == pytest.approx(knowing.groups[0].loss / knowing.groups[0].samples)
    assert SpeechTask(recipe(tmp_path)).heldout_figures(0.0)["unigram_loss"] != found["unigram_loss"]


def test_evaluation_adds_groups_up_over_batches(tmp_path, monkeypatch):
    write_prepared(tmp_path, lengths=(64, 64), states=5, silence=[0])
    task = SpeechTask(recipe(tmp_path))
    model = task.make_model().requires_grad_(False)
    algorithm = SimpleNamespace(
        model=model,
        parameters=SimpleNamespace(device=torch.device("cpu")),
        learners=SimpleNamespace(gather=lambda thing: [thing]),
    )
    (whole,) = evaluate_own(algorithm, task)
    monkeypatch.setitem(speech_task.EVALUATION_LOGITS, "cpu", 1)  # a sub-sequence a batch
    (by_ones,) = evaluate_own(algorithm, task)
    assert by_ones.loss == pytest.approx(whole.loss, rel=1e-6)
    assert by_ones.groups["speech"].loss == pytest.approx(whole.groups["speech"].loss, rel=1e-6)
    score = task.score(model, all_of(task, "heldout"))
    assert whole.groups["speech"].error_percent == pytest.approx(100 * score.groups[0].errors / score.groups[0].samples)
    assert whole.loss != whole.groups["speech"].loss


def test_without_known_silence_there_is_no_group(tmp_path):
    write_prepared(tmp_path, lengths=(64,), silence=None)
    task = SpeechTask(recipe(tmp_path))
    assert task.groups == ()
    assert task.score(task.make_model(), all_of(task, "heldout")).groups == ()


def test_a_model_may_have_more_states_than_the_data(tmp_path):
    write_prepared(tmp_path, lengths=(64,), states=5)
    task = SpeechTask(recipe(tmp_path, model_options=SMALL | {"states": 9}))
    assert task.chance_loss == math.log(9)
    assert task.make_model()(torch.zeros(1, 21, 4)).shape == (1, 21, 9)


@pytest.mark.parametrize(
    ("kind", "keys", "words"),
    [
        (RecipeError, {"model": "gru"}, "task speech has the model bilstm with model_options layers, cells, bottlene"),
        (RecipeError, {"model_options": {"width": 1}}, "with model_options layers, cells"),
        (RecipeError, {"model_options": {"input": 9}}, r"input: 9, but the data have 4 \(first 3, second 1\)"),
        (RecipeError, {"model_options": {"states": 3}}, "states: 3, but the data have 5"),
        (RecipeError, {"model_options": {"cells": 3}}, "cells: 3 is odd"),
        (RecipeError, {"data_options": {"frames": 1}}, "data_options.frames: unknown; known are unroll, heldout"),
        (RecipeError, {"data_options": {"unroll": 0}}, "data_options.unroll: Input should be greater than 0"),
        (DataError, {"data_options": {"unroll": 99}}, "has no utterance of 99 frames"),
        (DataError, {"data_dir": None}, "task speech needs --data-dir DIR, made by benchmarks/asr/prepare.py"),
        (DataError, {"data_dir": Path("/nowhere")}, "/nowhere does not hold prepared speech"),
    ],
)
def test_what_cannot_be_trained_is_one_line(tmp_path, kind, keys, words):
    write_prepared(tmp_path, lengths=(64,), dimension=4, states=5)
    with pytest.raises(kind, match=words) as raised:
        SpeechTask(recipe(**{"data_dir": tmp_path, **keys}))
    assert "\n" not in str(raised.value)


def test_synthetic_speech_can_be_learned():
    options = {"model_options": {"layers": 1, "cells": 32, "bottleneck": None, "input": 8, "states": 20}}
    task = SpeechTask(recipe(None, synthetic=True, **options))
    torch.manual_seed(0)
    model = task.make_model()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    losses = []
    for batch in task.train_batches([torch.arange(20)] * 60):
        optimizer.zero_grad()
        loss = task.loss(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * math.log(20) < losses[0]


# ---- recipes ----


@pytest.mark.parametrize(("name", "samples"), [("swb300", 4_000_000), ("swb2000", 30_000_000)])
def test_the_paper_s_recipes_have_its_rates(name, samples):
    """Section 4.2 and Table 2."""
    read = recipes.load(name, RECIPES, {})
    rate, epoch = read.schedule(samples), read.steps_per_epoch(samples)
    assert read.total_steps(samples) == 20 * epoch
    assert rate(10 * epoch - 1) == pytest.approx(0.1 * 8192 / 256)
    assert rate(10 * epoch) == pytest.approx(3.2 / math.sqrt(2), rel=1e-6)
    assert rate(20 * epoch - 1) == pytest.approx(3.2 / 32, rel=1e-6)
    assert [rate(5 * epoch + k) for k in (0, 1)] == pytest.approx([1.65, 1.65], rel=1e-3)  # half-way from 0.1
    assert read.model_options == {"layers": 6, "cells": 1024, "bottleneck": 256, "states": 32_000, "input": 260}


@pytest.mark.parametrize("name", [path.stem for path in sorted(RECIPES.glob("*.yaml"))])
def test_every_recipe_makes_a_task(name, monkeypatch):
    read = recipes.load(name, RECIPES, {"synthetic": True})
    monkeypatch.setitem(speech_task.SYNTHETIC_SAMPLES, read.task, 10_000)
    task = SpeechTask(read)
    assert task.samples >= read.batch_size
    assert task.data == "synthetic speech"
