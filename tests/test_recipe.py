"""Recipes: what goes in comes out, what is wrong is one line that names it, steps and rates add up."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from horovod_dpsgd.algorithms import ALGORITHMS, find
from horovod_dpsgd.errors import RecipeError, UserError
from horovod_dpsgd.lamb import LAMB
from horovod_dpsgd.learners import seed_everything
from horovod_dpsgd.topology import TOPOLOGIES
from horovod_dpsgd.training import recipe as recipes
from horovod_dpsgd.training.cli import parser
from horovod_dpsgd.training.recipe import Recipe

BASE = {"task": "mnist", "model": "mlp", "lr": 0.5, "batch_size": 100, "max_steps": 50}
RECIPE_FILES = sorted(Path(__file__).parents[1].glob("benchmarks/*/recipes/*.yaml"))
fuzz = settings(max_examples=50, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("recipes")


def load_text(folder, text, **overrides):
    (folder / "some.yaml").write_text(text)
    return recipes.load("some", folder, overrides)


def load(folder, keys, **overrides):
    return load_text(folder, yaml.safe_dump(keys), **overrides)


def complaint(call, *arguments, error=RecipeError, **keywords):
    """The one line that a call refuses its arguments with."""
    with pytest.raises(error) as raised:
        call(*arguments, **keywords)
    assert len(str(raised.value).splitlines()) == 1, str(raised.value)
    return str(raised.value)


# Wrong recipes


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", 1.0),
        ("two\nlines", 1.0),
        (7, 1.0),
        ("lr", None),
        ("lr", 0),
        ("lr", -1.0),
        ("lr", math.nan),
        ("lr", math.inf),
        ("lr", "fast"),
        ("lr", [0.1]),
        ("task", 3),
        ("model_options", [50, 50]),
        ("batch_size", 0),
        ("batch_size", 2.5),
        ("batch_size", "many"),
        ("epochs", 0),
        ("max_steps", -1),
        ("warmup", -1),
        ("warmup_from", -0.1),
        ("momentum", 1.0),
        ("weight_decay", -1e-4),
        ("betas", [0.9]),
        ("clip_norm", 0),
        ("noise_std", -1),
        ("decay", "linear"),
        ("decay_epochs", [30, "sixty"]),
        ("decay_gamma", 0),
        ("algo", "easgd"),
        ("algo", "two\nlines"),
        ("topology", "torus"),
        ("optimizer", "lion"),
        ("device", "tpu"),
        ("seed", -1),
        ("amp", "perhaps"),
        ("slow_learner", "3"),
        ("slow_learner", "3:fast"),
        ("slow_learner", "3:0.5"),
        ("jitter", -0.1),
        ("stall_timeout", -1),
        ("log_every", 0),
        ("eval_every", -1),
    ],
)
def test_a_wrong_key_or_value_is_named(folder, key, value):
    assert str(key).replace("\n", "\\n") in complaint(load, folder, BASE | {key: value})


@pytest.mark.parametrize("key", ["task", "model", "lr", "batch_size"])
def test_a_missing_key_is_named(folder, key):
    assert key in complaint(load, folder, {k: v for k, v in BASE.items() if k != key})


def test_all_wrong_keys_are_named_at_once(folder):
    line = complaint(load, folder, BASE | {"lr": -1, "sede": 3, "batch_size": "x"})
    assert all(key in line for key in ("lr", "sede", "batch_size"))


@pytest.mark.parametrize(
    ("changes", "culprits"),
    [
        ({"max_steps": None}, ["epochs", "max_steps"]),
        ({"algo": "ssgd-star"}, ["noise_std", "ssgd-star"]),
        ({"algo": "dpsgd", "noise_std": 0.1}, ["noise_std", "ssgd-star"]),
        ({"decay": "steps"}, ["decay_epochs", "steps"]),
        ({"decay": "exponential"}, ["decay_epochs", "exponential"]),
        ({"nesterov": True}, ["nesterov", "momentum"]),
        ({"optimizer": "adam", "momentum": 0.9}, ["adam", "momentum"]),
        ({"optimizer": "adam", "mix_moments": True, "algo": "adpsgd"}, ["mix_moments", "dpsgd"]),
        ({"optimizer": "adam", "mix_moments": True, "compression": "bfloat16"}, ["mix_moments", "compression"]),
        ({"mix_moments": True}, ["mix_moments", "momentum"]),
        ({"device": "cuda"}, ["cuda"]),
    ],
)
def test_an_impossible_combination_names_its_parts(folder, changes, culprits, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = complaint(load, folder, BASE | changes)
    assert all(culprit in line for culprit in culprits)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_table_says_of_an_algorithm_what_its_class_says(name):
    if name.startswith("ssgd"):
        pytest.importorskip("horovod")
    kind = find(name)
    assert kind.name == name
    assert kind.asynchronous == ALGORITHMS[name].asynchronous
    assert ALGORITHMS[name].takes <= Recipe.model_fields.keys()


@pytest.mark.parametrize(("key", "names"), [("algo", ALGORITHMS), ("topology", TOPOLOGIES)])
def test_an_unknown_name_is_answered_with_all_names(folder, key, names):
    line = complaint(load, folder, BASE | {key: "nonesuch"})
    assert "nonesuch" in line and all(name in line for name in names)


def test_a_missing_recipe_is_answered_with_those_that_are_there(tmp_path):
    load(tmp_path, BASE)
    line = complaint(recipes.load, "alexnet", tmp_path, {})
    assert "'alexnet'" in line and "some" in line
    assert "nowhere.yaml" in complaint(recipes.load, str(tmp_path / "nowhere.yaml"), tmp_path, {})
    (tmp_path / "folder.yaml").mkdir()
    assert "folder.yaml" in complaint(recipes.load, str(tmp_path / "folder.yaml"), tmp_path, {})


@pytest.mark.parametrize("text", ["", "# nothing\n", "- lr\n- 1\n", "mnist", "12"])
def test_a_file_without_keys_is_named(folder, text):
    assert "some.yaml" in complaint(load_text, folder, text)


@pytest.mark.parametrize(
    "text",
    [
        "lr: [1,\nmodel: }",
        "a: b: c",
        "\tlr: 1",
        "lr: *nowhere",
        "--- 1\n--- 2",
        "? [1]\n: 2",
        "a: !!python/name:os",
    ],
)
def test_a_file_that_is_not_yaml_is_named(folder, text):
    assert "some.yaml is not YAML" in complaint(load_text, folder, text)


def test_a_file_that_is_not_text_is_named(folder):
    (folder / "some.yaml").write_bytes(b"lr: \xff\xfe\x00")
    assert "some.yaml is not YAML" in complaint(recipes.load, "some", folder, {})


@pytest.mark.parametrize("text", ["lr: 2020-99-99", "lr: !!int fast", "lr: 0x_", "lr: " + "[" * 1000])
def test_what_makes_pyyaml_stumble_is_not_yaml_either(folder, text):
    assert "some.yaml is not YAML" in complaint(load_text, folder, text)


def use(folder, changes):
    recipe = load(folder, BASE | changes)
    seed_everything(recipe.seed)
    recipe.make_optimizer(torch.nn.Linear(2, 2))
    recipe.schedule(60_000)
    recipe.total_steps(60_000)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adam", "betas": [1.5, 0.9]},
        {"optimizer": "adamw", "betas": [0.9, -1.0]},
        {"seed": 2**64},
        {"epochs": 1e308},
        {"decay": "steps", "decay_epochs": [1e308]},
    ],
)
def test_values_that_nothing_can_use_are_refused(folder, changes):
    complaint(use, folder, changes)


@pytest.mark.parametrize("length", [{"max_steps": 50}, {"max_steps": None, "epochs": 3}])
def test_a_batch_larger_than_the_training_set_is_refused(folder, length):
    recipe = load(folder, BASE | length)
    assert "batch_size 100" in complaint(recipe.steps_per_epoch, 99)
    assert "batch_size 100" in complaint(recipe.total_steps, 99)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 16])
def test_a_batch_that_learners_cannot_share_is_refused(folder, size):
    recipe = load(folder, BASE)
    if 100 % size == 0:
        recipe.check_learners(size)
    else:
        line = complaint(recipe.check_learners, size)
        assert "batch_size 100" in line and str(size) in line


def test_parts_that_a_learner_s_batch_cannot_be_cut_into_are_refused(folder):
    recipe = load(folder, BASE | {"accumulate": 5})
    recipe.check_learners(4)
    line = complaint(recipe.check_learners, 2 * 5 * 5)
    assert "accumulate 5: the 2 samples of a learner cannot be cut so" in line
    assert [recipe.samples_at_once(learners) for learners in (1, 4, 1000)] == [20, 5, 1]


def test_horovod_is_needed_by_who_trains_with_it(folder, monkeypatch):
    monkeypatch.setattr(recipes, "find_spec", lambda package: None)
    load(folder, BASE | {"algo": "dpsgd"}).check_installed()
    without = load(folder, BASE | {"algo": "ssgd"})  # to look at what such runs have left, say
    assert "ssgd needs the package horovod" in complaint(without.check_installed)


def test_a_slow_learner_that_is_not_there_is_refused(folder):
    recipe = load(folder, BASE | {"slow_learner": "3:2.5"})
    assert recipe.slow_rank_and_factor == (3, 2.5)
    recipe.check_learners(4)
    assert "slow_learner 3:2.5" in complaint(recipe.check_learners, 2)


def test_a_sample_too_small_for_an_interval_is_refused(folder):
    recipe = load(folder, BASE | {"diagnostics_samples": 20})
    recipe.check_learners(5)
    assert "diagnostics_samples 20 are too few" in complaint(recipe.check_learners, 20)


# Files, overrides, and back


def test_overrides_beat_the_file(folder):
    recipe = load(folder, BASE | {"seed": 3, "momentum": 0.9}, seed=4, topology="ring", momentum=0.0)
    assert recipe == Recipe(**(BASE | {"seed": 4, "topology": "ring", "momentum": 0.0}))


def test_a_recipe_is_found_by_name_and_by_path(folder):
    assert load(folder, BASE) == recipes.load(str(folder / "some.yaml"), Path("/nowhere"), {}) == Recipe(**BASE)


@pytest.mark.parametrize("path", RECIPE_FILES, ids=lambda path: "/".join(path.parts[-3::2]))
def test_recipe_files_load_and_come_back(path, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    recipe = recipes.load(path.stem, path.parent, {})
    assert recipe == recipes.load(str(path), tmp_path, {})
    (tmp_path / "config.yaml").write_text(recipe.text())
    assert recipes.load(str(tmp_path / "config.yaml"), tmp_path, {}) == recipe


def test_the_mnist_recipe_is_the_paper_s_section_2_2():
    recipe = recipes.load("mnist", Path(__file__).parents[1] / "benchmarks/cv/recipes", {})
    assert (recipe.lr, recipe.momentum, recipe.batch_size, recipe.topology) == (1.0, 0.0, 2000, "complete")
    assert recipe.total_steps(60_000) == 1500 and 1500 / recipe.steps_per_epoch(60_000) == 50
    recipe.check_learners(5)


def test_a_saved_recipe_is_complete(folder):
    assert set(yaml.safe_load(load(folder, BASE).text())) == set(Recipe.model_fields)


@pytest.mark.parametrize("value", [math.inf, {1: 2}])
def test_model_options_that_would_not_come_back_are_refused(folder, value):
    assert "model_options" in complaint(load, folder, BASE | {"model_options": {"value": value}})


def test_a_length_given_later_is_the_whole_length(folder):
    assert load(folder, BASE | {"epochs": 3, "max_steps": 50}, epochs=100.0).max_steps is None
    assert load(folder, BASE | {"epochs": 3, "max_steps": 50}, max_steps=7).epochs is None
    both = load(folder, BASE, epochs=2.0, max_steps=7)
    assert (both.epochs, both.max_steps) == (2.0, 7)


SCALED = {key: value for key, value in BASE.items() if key != "lr"} | {"base_lr": 0.1, "base_batch_size": 256}


def test_a_rate_that_is_not_given_is_scaled_linearly_with_the_batch(folder):
    assert load(folder, SCALED | {"batch_size": 8192}).lr == pytest.approx(3.2)
    assert load(folder, SCALED, batch_size=256).lr == 0.1
    assert load(folder, SCALED | {"batch_size": 8192}, lr=0.5).lr == 0.5


@pytest.mark.parametrize("scale", ["16x", "16", 16])
def test_a_rate_is_a_multiple_of_the_base_rate(folder, scale):
    assert load(folder, SCALED | {"batch_size": 8192, "lr_scale": scale}).lr == pytest.approx(1.6)
    assert load(folder, SCALED | {"lr": 9.0}, lr_scale=scale).lr == pytest.approx(1.6)  # the file's rate is dropped
    assert load(folder, SCALED | {"lr_scale": scale}, lr=9.0).lr == 9.0


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"lr": 1.0, "lr_scale": "4x"}, "lr and lr_scale exclude each other"),
        ({"lr_scale": "fast"}, "lr_scale: 'fast'"),
        ({"lr_scale": "-4x"}, "lr"),
        ({"lr_scale": "4x", "base_lr": None}, "base_lr, which lr_scale multiplies"),
        ({"base_lr": None}, "lr must be given, or base_lr"),
        ({"base_batch_size": None}, "base_batch_size"),
        ({"base_lr": "much"}, "base_lr"),
    ],
)
def test_a_rate_that_does_not_follow_is_named(folder, keys, words):
    assert words in complaint(load, folder, SCALED | keys)


def test_biases_are_exempt_from_weight_decay_where_asked_for(folder):
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))

    def decays(**keys):
        groups = load(folder, BASE | {"weight_decay": 0.1} | keys).make_optimizer(model).param_groups
        return [(group["weight_decay"], len(group["params"])) for group in groups]

    whole, parted = [(0.1, 4)], [(0.1, 1), (0.0, 3)]
    for optimizer in ("sgd", "adam", "adamw"):
        assert decays(optimizer=optimizer) == whole
        assert decays(optimizer=optimizer, exempt_vectors=True) == parted
    assert decays(optimizer="lamb") == parted
    assert decays(optimizer="lamb", exempt_vectors=False) == whole


def test_warmup_epochs_follow_the_batch_size(folder):
    recipe = load(folder, BASE | {"batch_size": 100, "warmup_epochs": 5})
    assert recipe.warmup_steps(6000) == 300
    assert recipe.schedule(6000)(299) == pytest.approx(recipe.lr)
    assert recipe.schedule(6000)(0) == pytest.approx(recipe.lr / 300)
    assert "exclude each other" in complaint(load, folder, BASE | {"warmup": 10, "warmup_epochs": 5})


def test_every_command_line_option_is_a_key_of_the_recipe():
    arguments = vars(parser("", "mnist").parse_args([]))
    assert [arguments.pop(name) for name in ("recipe", "resume", "resume_average", "set")] == [None, None, False, []]
    assert set(arguments.values()) == {None}  # nothing is overridden unasked
    assert set(arguments) - {"output", "lr_scale"} <= set(Recipe.model_fields)


def test_settings_on_the_command_line_equal_the_same_lines_in_the_file(folder):
    words = ["momentum=0.9", "decay=steps", "decay_epochs=[30, 60]", "model_options.hidden=[5]", "model_options.x=a=b"]
    file = BASE | {"model_options": {"hidden": [50, 50], "kept": True}}
    options = {"hidden": [5], "kept": True, "x": "a=b"}
    same = {"momentum": 0.9, "decay": "steps", "decay_epochs": [30, 60], "model_options": options}
    assert load(folder, file, **recipes.parse_settings(words)) == Recipe(**(BASE | same))


@pytest.mark.parametrize("word", ["momentum", "momentum:0.9", "", "sede=3", "=3", "lr.peak=3", "lr=fast"])
def test_a_wrong_setting_is_named(folder, word):
    line = complaint(lambda: load(folder, BASE, **recipes.parse_settings([word])))
    assert word.split("=")[0].split(".")[0] in line


@pytest.mark.parametrize("words", [["lr=["], ["lr=2020-99-99"], ["lr=1", "lr.peak=2"]])
def test_a_setting_that_cannot_be_read_is_named(words):
    assert "lr" in complaint(recipes.parse_settings, words)


def test_a_setting_can_take_back_what_the_file_says(folder):
    recipe = load(folder, BASE, **recipes.parse_settings(["max_steps=null", "epochs=100"]))
    assert recipe.max_steps is None


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["--algo", "easgd"], "--algo"),
        (["--lr", "fast"], "--lr"),
        (["--lrate", "1"], "--lrate"),
        (["more"], "more"),
    ],
)
def test_a_wrong_command_line_is_one_line_that_names_it(arguments, culprit):
    assert culprit in complaint(parser("", "mnist").parse_args, arguments, error=UserError)


# Steps and rates


@pytest.mark.parametrize(
    ("keys", "steps"),
    [
        ({"max_steps": 7}, 7),
        ({"max_steps": None, "epochs": 3}, 27),
        ({"max_steps": None, "epochs": 0.5}, 4),  # 4.5 rounds to even
        ({"max_steps": None, "epochs": 0.01}, 1),
        ({"max_steps": 7, "epochs": 3}, 7),
        ({"max_steps": 700, "epochs": 3}, 27),
    ],
)
def test_total_steps_are_whole_batches_and_the_smaller_limit(folder, keys, steps):
    recipe = load(folder, BASE | keys)
    assert recipe.steps_per_epoch(999) == 9  # the last 99 samples do not fill a batch
    assert recipe.total_steps(999) == steps


def test_alexnet_s_recipe_gives_the_paper_s_rates(folder):
    keys = {
        "batch_size": 8192,
        "epochs": 100,
        "max_steps": None,
        "lr": 0.32,
        "warmup": 5 * 156,
        "warmup_from": 0.01,
    }
    recipe = load(folder, BASE | keys | {"decay": "steps", "decay_epochs": [30, 60, 90]})
    schedule, epoch = recipe.schedule(1_281_167), recipe.steps_per_epoch(1_281_167)
    assert epoch == 156 and recipe.total_steps(1_281_167) == 15_600
    assert schedule(0) == pytest.approx(0.01 + 0.31 / (5 * epoch))
    rates = [schedule(number * epoch) for number in (5, 29, 30, 59, 60, 89, 90, 99)]
    assert rates == pytest.approx([0.32, 0.32, 0.032, 0.032, 0.0032, 0.0032, 0.00032, 0.00032])


def test_cosine_in_a_recipe_matches_torch(folder):
    recipe = load(folder, BASE | {"decay": "cosine", "warmup": 10, "max_steps": 60})
    optimizer = torch.optim.SGD([torch.zeros(1)], 0.5)
    torch_cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for step in range(10, 60):
        assert recipe.schedule(6000)(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        torch_cosine.step()


def test_a_run_is_resumed_for_longer_unless_its_rates_would_have_been_others(folder):
    begun = load(folder, BASE)
    recipes.check_resumable(begun, begun.model_copy(update={"max_steps": 60, "eval_every": 5}))
    assert "lr 0.5, now 0.6" in complaint(recipes.check_resumable, begun, begun.model_copy(update={"lr": 0.6}))
    cosine = load(folder, BASE | {"decay": "cosine"})
    recipes.check_resumable(cosine, cosine)
    longer = cosine.model_copy(update={"max_steps": 60})
    assert "max_steps 50, now 60" in complaint(recipes.check_resumable, cosine, longer)


def test_exponential_decay_in_a_recipe_is_one_factor_an_epoch(folder):
    keys = {"decay": "exponential", "decay_epochs": [10], "decay_gamma": math.sqrt(0.5)}
    schedule = load(folder, BASE | keys).schedule(3000)
    assert [schedule(299), schedule(300), schedule(330), schedule(599)] == pytest.approx(
        [0.5, 0.5 / 2**0.5, 0.25, 0.5 / 32]
    )


@pytest.mark.parametrize(
    ("keys", "kind", "numbers"),
    [
        ({"momentum": 0.9, "nesterov": True}, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        ({"optimizer": "adam", "betas": [0.8, 0.9]}, torch.optim.Adam, {"betas": (0.8, 0.9)}),
        ({"optimizer": "adamw"}, torch.optim.AdamW, {"betas": (0.9, 0.999)}),
        ({"optimizer": "lamb"}, LAMB, {"betas": (0.9, 0.999)}),
    ],
)
def test_the_optimizer_is_torch_s_with_the_recipe_s_numbers(folder, keys, kind, numbers):
    optimizer = load(folder, BASE | keys | {"weight_decay": 0.01}).make_optimizer(torch.nn.Linear(2, 2))
    assert type(optimizer) is kind
    assert optimizer.defaults | numbers | {"lr": 0.5, "weight_decay": 0.01} == optimizer.defaults


# Fuzz

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["steps", "0:2"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), inner),
    max_leaves=4,
)
some_keys = st.sampled_from(list(Recipe.model_fields)) | st.text(max_size=5) | st.integers()


@fuzz
@given(keys=st.dictionaries(some_keys, anything, max_size=6), complete=st.booleans())
def test_any_keys_give_a_recipe_or_one_line(folder, keys, complete):
    try:
        recipe = load(folder, BASE | keys if complete else keys)
    except RecipeError:
        complaint(recipes.load, "some", folder, {})
    else:
        assert isinstance(recipe, Recipe)


@fuzz
@given(content=st.binary(max_size=30) | st.text("ab:-[]{}&*!|>'\"%@`#?,\n \t.0é", max_size=30).map(str.encode))
def test_any_file_gives_one_line(folder, content):
    (folder / "some.yaml").write_bytes(content)
    complaint(recipes.load, "some", folder, {})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
valid_keys = st.fixed_dictionaries(
    {
        "task": st.text(max_size=8),
        "model": st.text(max_size=8),
        "lr": st.floats(1e-8, 1e3),
        "batch_size": st.integers(1, 1000),
        "epochs": st.floats(1e-3, 500),
    },
    optional={
        "model_options": st.dictionaries(st.text(max_size=4), json_values, max_size=3),
        "data_dir": st.text(max_size=8),
        "topology": st.sampled_from(list(TOPOLOGIES)),
        "momentum": st.floats(0, 0.999),
        "max_steps": st.integers(1, 5000),
        "warmup": st.integers(0, 3000),
        "warmup_from": st.floats(0, 1e-8),
        "decay_gamma": st.floats(0.01, 1),
        "clip_norm": st.none() | st.floats(1e-3, 10),
        "seed": st.integers(0, 2**62),
    },
)
epochs = st.floats(0, 600)
decays = (
    st.sampled_from([{}, {"decay": "cosine"}])
    | st.fixed_dictionaries({"decay": st.just("steps"), "decay_epochs": st.lists(epochs, min_size=1, max_size=3)})
    | st.fixed_dictionaries({"decay": st.just("exponential"), "decay_epochs": st.lists(epochs, min_size=1, max_size=1)})
)


@fuzz
@given(keys=valid_keys, decay=decays)
def test_a_valid_recipe_comes_back_equal_and_its_rates_stay_in_bounds(folder, keys, decay):
    recipe = load(folder, keys | decay)
    (folder / "saved.yaml").write_text(recipe.text())
    assert recipes.load("saved", folder, {}) == recipe
    steps, schedule = recipe.total_steps(1000), recipe.schedule(1000)
    assert 1 <= steps <= max(1, recipe.epochs * (1000 // recipe.batch_size) + 0.5)
    highest = max(recipe.lr, recipe.warmup_from)
    for step in (0, 1, recipe.warmup - 1, recipe.warmup, steps // 2, steps - 1):
        assert -1e-12 * highest <= schedule(max(step, 0)) <= highest * (1 + 1e-12)
