"""Text for the language tasks: layouts, error lines, tokenizers, the cache, blocks, and the losses.

All text is made here, from a small vocabulary of words.
"""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import benchmarks.nlp
from benchmarks.nlp import corpora, language_task, prepare, token_files, unigram
from benchmarks.nlp.language_task import DataOptions, LanguageTask
from benchmarks.nlp.texts import ParquetText, PlainText
from benchmarks.nlp.tokenizing import Encoder, Given, TrainedHere
from benchmarks.options import parse
from horovod_dpsgd.errors import DataError, RecipeError
from horovod_dpsgd.training.recipe import Recipe, load
from horovod_dpsgd.training.task import Part, Sampler

tokenizers = pytest.importorskip("tokenizers")
RECIPES = Path(benchmarks.nlp.__file__).parent / "recipes"
WORDS = ["the", "whale", "and", "a", "ship", "sailing", "north", "again", "é", "<unk>"]
TRY_LOCK = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
PARTS = {"train": 300, "valid": 60, "test": 40}


def lines(part: str) -> list[str]:
    """So many lines of up to twelve words, some empty."""
    numbers = np.random.default_rng(len(part))
    p = 1 / np.arange(1, len(WORDS) + 1)
    lengths = numbers.integers(0, 13, PARTS[part])
    return [" ".join(numbers.choice(WORDS, length, p=p / p.sum())) for length in lengths]


def write(folder: Path, pattern: str = "{}.txt", **names: str) -> Path:
    """The parts as files of that name, with the spaces that WikiText has around each line."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        content = "".join(f" {line} \n" for line in lines(part))
        (folder / pattern.format(names.get(part, part))).write_text(content, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def text(tmp_path) -> Path:
    return write(tmp_path / "voyages")


def recipe(task: str, data_dir: Path | None, **keys) -> Recipe:
    options = {"block_size": 16, "vocabulary": 300} | keys.pop("data_options", {})
    small = {"width": 8, "hidden": 8, "heads": 2, "layers": 1, "dropout": 0.0}
    training = {"model": "transformer", "model_options": small, "lr": 1, "max_steps": 1, "batch_size": 8}
    return Recipe(**{"task": task, "data_dir": data_dir, "data_options": options, **training, **keys})


def task(name: str, data_dir: Path | None, **data_options) -> LanguageTask:
    return LanguageTask(recipe(name, data_dir, data_options=data_options))


def complaint(kind, call, *arguments, **keywords) -> str:
    with pytest.raises(kind) as raised:
        call(*arguments, **keywords)
    line = str(raised.value)
    assert len(line.splitlines()) == 1, line
    return line


# ---- layouts ----


@pytest.mark.parametrize(
    ("name", "inside", "pattern", "names"),
    [
        ("text", "", "{}.txt", {}),
        ("text", "", "wiki.{}.tokens", {}),
        ("text", "", "wiki.{}.raw", {}),
        ("text", "", "{}.txt", {"valid": "validation"}),
        ("novels", "novels", "{}.txt", {}),
        ("novels", "", "{}.txt", {}),
        ("wikitext103", "wikitext-103", "wiki.{}.tokens", {}),
        ("wikitext103", "wikitext-103-raw", "wiki.{}.raw", {}),
    ],
)
@pytest.mark.parametrize("part", ["valid", "test"])
def test_every_layout_is_found(tmp_path, name, inside, pattern, names, part):
    write(tmp_path / "data" / inside, pattern, **names)
    found = corpora.find(name, tmp_path / "data", part, may_fetch=False)
    assert list(found.train.lines()) == lines("train")
    assert list(found.heldout.lines()) == lines(part)
    assert found.title == {"text": "data", "novels": "novels", "wikitext103": "WikiText-103"}[name]


def test_parquet_files_give_the_same_lines(tmp_path):
    """Line ends inside a row or at its end; and empty lines as empty rows, as the hub's WikiText has them,
    or as missing ones."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [f" {line} \n" if line else "" for line in lines("train")]
    rows[rows.index("")] = None
    for number, some in enumerate((rows[:100], rows[100:])):
        parquet.write_table(pyarrow.table({"text": some}), tmp_path / f"train-0000{number}-of-2.parquet")
    parquet.write_table(pyarrow.table({"text": ["\n".join(lines("valid")) + "\n"]}), tmp_path / "validation.parquet")
    found = corpora.find("text", tmp_path, "valid", may_fetch=False)
    assert isinstance(found.train, ParquetText) and len(found.train.paths) == 2
    assert list(found.train.lines()) == lines("train")
    assert list(found.heldout.lines()) == lines("valid")


def test_parquet_files_that_hold_no_text_are_an_error_line(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    damaged, other = tmp_path / "damaged.parquet", tmp_path / "other.parquet"
    damaged.write_bytes(b"PAR1 and no more")
    parquet.write_table(pyarrow.table({"label": [1, 2]}), other)
    for path in (damaged, other):
        assert f"{path} cannot be read: " in complaint(DataError, lambda path=path: list(ParquetText((path,)).lines()))


def test_parquet_files_without_pyarrow_are_an_error_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "train.parquet").write_bytes(b"")
    words = complaint(DataError, lambda: list(ParquetText((tmp_path / "train.parquet",)).lines()))
    assert "pip install pyarrow" in words


def test_wikitext_is_fetched_once_by_the_datasets_library(tmp_path, cache, monkeypatch):
    asked = []

    def load_dataset(name, version, split):
        asked.append((name, version, split))
        return {"text": [f" {line} \n" for line in lines({"validation": "valid"}.get(split, split))]}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    for may_fetch in (True, False, True):
        found = corpora.find("wikitext103", None, "valid", may_fetch)
        assert list(found.heldout.lines()) == lines("valid")
    assert [split for *_, split in asked] == ["train", "validation", "test"]
    assert set(asked[0][:2]) == {"Salesforce/wikitext", "wikitext-103-v1"}


def test_nodes_that_share_a_cache_fetch_one_after_the_other(cache, monkeypatch):
    """What one of them has tokenized already must not be written anew by another."""

    def load_dataset(*_, **__):
        (lock,) = cache.rglob(".lock")
        other_node = subprocess.run([sys.executable, "-c", TRY_LOCK, lock], capture_output=True, text=True)
        assert "BlockingIOError" in other_node.stderr or "PermissionError" in other_node.stderr
        return {"text": lines("valid")}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert corpora.find("wikitext103", None, "valid", may_fetch=True)


def test_what_cannot_be_fetched_is_said_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install datasets" in complaint(DataError, corpora.find, "wikitext103", None, "valid", True)

    def unreachable(*_, **__):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=unreachable))
    words = complaint(DataError, corpora.find, "wikitext103", None, "valid", True)
    assert "cannot be fetched (no network)" in words
    assert "needs --data-dir" in complaint(DataError, corpora.find, "wikitext103", None, "valid", False)


def test_other_text_is_not_taken_for_wikitext(tmp_path):
    write(tmp_path, "wiki.{}.tokens")
    assert "is not WikiText-103: " in complaint(DataError, task, "wikitext103", tmp_path)


@pytest.mark.parametrize("name", ["text", "novels"])
def test_what_is_missing_is_said_in_one_line(text, tmp_path, name):
    assert f"task {name} needs --data-dir" in complaint(DataError, task, name, None)
    assert "is not a folder" in complaint(DataError, task, name, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no text to train on" in complaint(DataError, task, name, tmp_path / "empty")
    (text / "valid.txt").unlink()
    assert "holds no valid part" in complaint(DataError, task, name, text)
    assert task(name, text, heldout="test")


def test_text_that_is_not_utf8_is_named(text):
    (text / "train.txt").write_bytes(b"fine\n\xff\xfe\n")
    assert f"{text / 'train.txt'} is not UTF-8" in complaint(DataError, task, "text", text)


def test_a_text_that_is_too_short_is_named(text):
    (text / "valid.txt").write_text("the whale")
    assert "are not enough for a block of 16" in complaint(DataError, task, "text", text)
    (text / "valid.txt").write_text("")
    assert "0 tokens are not enough" in complaint(DataError, task, "text", text)


# ---- options ----


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"blocksize": 3}, "data_options.blocksize: unknown; known are block_size"),
        ({"block_size": 1}, "data_options.block_size: Input should be greater than or equal to 4"),
        ({"vocabulary": 100}, "data_options.vocabulary: Input should be greater than or equal to 300"),
        ({"order": "shuffled"}, "data_options.order: Input should be 'random' or 'sequential'"),
        ({"heldout": "train"}, "data_options.heldout: Input should be 'valid' or 'test'"),
        ({"heldout_blocks": 0}, "data_options.heldout_blocks"),
        ({"vocabulary": None}, "one of vocabulary (a tokenizer trained here) and tokenizer must be given"),
        ({"tokenizer": "bert"}, "one of vocabulary"),
    ],
)
def test_a_wrong_option_is_named(text, options, words):
    assert words in complaint(RecipeError, task, "text", text, **options)


def test_a_wrong_model_is_named_before_training(text):
    with pytest.raises(RecipeError, match="unknown model 'lstm'"):
        LanguageTask(recipe("text", text, model="lstm"))


# ---- tokenizers ----


def encoder_of(text: Path) -> Encoder:
    return TrainedHere(PlainText((text / "train.txt",)), 300).encoder()


def test_bpe_trained_here_gives_the_text_back(text):
    encoder = encoder_of(text)
    assert encoder.vocabulary <= 300
    some = [line for line in lines("valid") if "<unk>" not in line]
    numbers = encoder.encode(some)
    assert [line.strip(" ") for line in encoder.tokenizer.decode(numbers.tolist()).split("\n")] == [*some, ""]


def test_unknown_words_of_wikitext_are_one_token(text):
    encoder = encoder_of(text)
    unknown = encoder.tokenizer.token_to_id("<unk>")
    numbers = encoder.encode(["the <unk> sailing"]).tolist()
    assert numbers.count(unknown) == 1
    assert numbers[: numbers.index(unknown)] == encoder.encode(["the"]).tolist()[:-1], (
        "and the space before it is of it"
    )


def test_bpe_is_trained_once(text, cache, monkeypatch):
    digest = encoder_of(text).digest
    (kept,) = cache.rglob("tokenizer.json")
    monkeypatch.setattr(TrainedHere, "_train", None)
    assert encoder_of(text).digest == digest
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    kept.write_text(kept.read_text()[:-9])
    assert encoder_of(text).digest == digest, "a damaged one is trained again, to the same tokens"


def word_pieces(folder: Path) -> Path:
    """A tokenizer that drops line ends and has words of its own for them and for the unknown, as BERT's."""
    vocabulary = {word: number for number, word in enumerate(["[UNK]", "[SEP]", "the", "whale", "and", "a", "ship"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(["[UNK]", "[SEP]"])
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=20)
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("file", ["", "tokenizer.json"])
def test_a_given_tokenizer_is_used_as_it_is(tmp_path, file):
    encoder = Given(str(word_pieces(tmp_path / "own") / file), may_fetch=False).encoder()
    assert encoder.encode(["the whale <unk>", "", "a ship"]).tolist() == [2, 3, 0, 1, 1, 5, 6, 1]


def test_numbers_that_no_token_has_are_counted_too(tmp_path):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "[SEP]": 1, "whale": 9}, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    encoder = Encoder(tokenizer)
    assert encoder.vocabulary == 10 and max(encoder.encode(["a whale"])) == 9


def test_a_given_tokenizer_in_a_task(text, tmp_path):
    word_pieces(tmp_path / "own")
    made = task("text", text, vocabulary=None, tokenizer=str(tmp_path / "own"))
    assert made.classes == 7
    assert "voyages (the tokenizer own)" in made.data


def test_a_tokenizer_in_other_files_is_read_by_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "The", "whale"]))
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "model_max_length": 4}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert transformers
    encoder = Given(str(tmp_path), may_fetch=False).encoder()
    assert encoder.encode(["The whale <unk> The whale"]).tolist() == [5, 6, 1, 5, 6, 3]


def test_a_tokenizer_that_is_none_is_named(text, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    words = complaint(DataError, task, "text", text, vocabulary=None, tokenizer=str(tmp_path))
    assert "tokenizer.json is no tokenizer" in words
    words = complaint(DataError, Given(str(text), may_fetch=False).encoder)
    assert f"data_options.tokenizer: {text} cannot be read" in words


# ---- tokens ----


def test_tokens_are_those_of_all_lines(text):
    source = PlainText((text / "train.txt",))
    tokenizing = TrainedHere(source, 300)
    tokens = token_files.load(source, tokenizing, "train")
    expected = tokenizing.encoder().encode(lines("train"))
    assert isinstance(tokens.numbers, np.memmap) and not tokens.numbers.flags.writeable
    assert tokens.numbers.dtype == np.uint16
    np.testing.assert_array_equal(tokens.numbers, expected)
    np.testing.assert_array_equal(tokens.counts, np.bincount(expected, minlength=tokens.vocabulary))
    assert (tokens.words, tokens.lines) == (sum(len(line.split()) for line in lines("train")), PARTS["train"])


def test_large_vocabularies_take_four_bytes(text, monkeypatch):
    monkeypatch.setattr(Encoder, "encode", lambda self, lines: np.full(len(lines), 70_000))
    source = PlainText((text / "valid.txt",))
    tokenizing = TrainedHere(source, 300)
    encoder = tokenizing.encoder()
    encoder.vocabulary = 70_001
    monkeypatch.setattr(TrainedHere, "encoder", lambda self: encoder)
    tokens = token_files.load(source, tokenizing, "valid")
    assert set(tokens.numbers) == {70_000} and tokens.counts[70_000] == PARTS["valid"]


def test_the_manifest_says_what_the_tokens_are_of(text, cache):
    task("text", text)
    manifests = [json.loads(path.read_text()) for path in cache.rglob("manifest.json")]
    inputs = {Path(file["path"]).name: file for manifest in manifests for file in manifest["inputs"]}
    assert inputs.keys() == {"train.txt", "valid.txt"}
    assert inputs["train.txt"]["sha256"] == hashlib.sha256((text / "train.txt").read_bytes()).hexdigest()
    assert len({manifest["tokenizer"] for manifest in manifests}) == 1


def test_text_is_tokenized_once(text, monkeypatch):
    first = task("text", text)
    monkeypatch.setattr(TrainedHere, "encoder", None)
    again = LanguageTask(recipe("text", text), may_fetch=False)
    assert again.data == first.data
    np.testing.assert_array_equal(again.train, first.train)


def test_changed_text_is_tokenized_again(text):
    before = task("text", text)
    (text / "train.txt").write_text("a ship and a whale \n" * 100)
    after = task("text", text)
    assert after.data != before.data and len(after.train) != len(before.train)
    assert task("text", text, vocabulary=320).classes >= after.classes


@pytest.mark.parametrize("damage", ["shorter", "other", "no manifest", "half a manifest"])
def test_damaged_tokens_are_made_again(text, cache, damage):
    expected = np.array(task("text", text).train)
    for path in [*cache.rglob("tokens.bin")]:
        manifest = path.with_name("manifest.json")
        content = path.read_bytes()
        if damage == "shorter":
            path.write_bytes(content[:-2])
        elif damage == "other":
            path.write_bytes(content[:-1] + b"\x01")
        elif damage == "no manifest":
            manifest.unlink()
        else:
            manifest.write_text(manifest.read_text()[:40])
    np.testing.assert_array_equal(task("text", text).train, expected)


def test_tokenizing_goes_on_where_it_was_interrupted(text, monkeypatch):
    monkeypatch.setattr(token_files, "LINES", 7)
    monkeypatch.setattr(token_files, "SAVE_SECONDS", -1.0)
    source = PlainText((text / "train.txt",))
    tokenizing = TrainedHere(source, 300)
    encoder = tokenizing.encoder()
    whole = encoder.encode(lines("train"))
    encode, calls = encoder.encode, []

    def until_the_power_fails(some):
        calls.append(len(some))
        if len(calls) == 20:
            raise KeyboardInterrupt
        return encode(some)

    encoder.encode = until_the_power_fails
    monkeypatch.setattr(TrainedHere, "encoder", lambda self: encoder)
    with pytest.raises(KeyboardInterrupt):
        token_files.load(source, tokenizing, "train")
    tokens = token_files.load(source, tokenizing, "train")
    np.testing.assert_array_equal(tokens.numbers, whole)
    assert (tokens.words, tokens.lines) == (sum(len(line.split()) for line in lines("train")), PARTS["train"])
    assert sum(calls) == PARTS["train"] + 7, "nothing but the last piece was done twice"


def test_a_cache_that_cannot_be_written_is_named(text, cache):
    cache.write_text("a file")
    assert "set XDG_CACHE_HOME" in complaint(DataError, task, "text", text)


# ---- samples ----


def test_blocks_are_the_text_cut_up(text):
    made = task("text", text)
    numbers = encoder_of(text).encode(lines("train"))
    assert made.samples == len(numbers) // 16
    ((tokens,),) = made.train_batches([torch.tensor([3, 0])])
    assert tokens.dtype == torch.int64
    np.testing.assert_array_equal(tokens, numbers[: made.samples * 16].reshape(-1, 16)[[3, 0]])


@pytest.mark.parametrize("order", ["random", "sequential"])
def test_learners_together_train_on_every_block_once(text, order):
    made = task("text", text, order=order)
    batch, parts = 8, 4
    sampler = Sampler(made.samples, batch, parts, 1, made.order)
    steps = made.samples // batch
    seen = [sampler.indices(Part(step, part)) for step in range(steps) for part in range(parts)]
    assert len(torch.cat(seen).unique()) == steps * batch


def test_in_sequential_order_a_learner_reads_the_text_on(text):
    made = task("text", text, order="sequential")
    numbers = encoder_of(text).encode(lines("train"))
    steps = made.samples // 8
    for learner in range(4):  # two places of a batch of eight each
        sampler = Sampler(made.samples, 8, 4, 1, made.order)
        batches = made.train_batches(sampler.indices(Part(step, learner)) for step in range(steps))
        read = torch.stack([tokens for (tokens,) in batches], 1).flatten()  # [places, steps, block size]
        first = 2 * learner * steps * 16
        np.testing.assert_array_equal(read, numbers[first : first + 2 * steps * 16])


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_shards_cover_every_block_once(text, part, monkeypatch):
    monkeypatch.setitem(language_task.EVALUATION_LOGITS, "cpu", 3 * 16 * 300)
    made = task("text", text)
    blocks = made.train if part == "train" else made.heldout
    seen = np.concatenate([b[0].numpy() for shard in range(3) for b in made.shard_batches(part, shard, 3)])
    assert sorted(map(tuple, seen.tolist())) == sorted(map(tuple, blocks.tolist()))


def test_training_blocks_come_in_no_larger_batches_than_are_trained_on_at_once(text):
    made = LanguageTask(recipe("text", text, batch_size=24, accumulate=2))
    assert max(len(tokens) for (tokens,) in made.shard_batches("train", 0, 3)) == 24 // 3 // 2


def test_held_out_blocks_may_be_fewer(text):
    made = task("text", text, heldout_blocks=5)
    seen = np.concatenate([tokens.numpy() for (tokens,) in made.shard_batches("heldout", 0, 1)])
    there = len(made.heldout)
    np.testing.assert_array_equal(seen, made.heldout[np.arange(5) * there // 5])
    assert f"held out: 5 of {there:,} blocks of 16 of the valid part" in made.data
    assert len(task("text", text, heldout_blocks=10**9).evaluated) == there


# ---- losses ----


class Frequencies(nn.Module):
    """Guesses by the frequencies of tokens, whatever came before."""

    def __init__(self, counts: np.ndarray) -> None:
        super().__init__()
        self.logits = torch.tensor((counts + 1) / (counts.sum() + len(counts))).log()

    def forward(self, tokens):
        return self.logits.expand(*tokens.shape, -1)


@pytest.fixture
def guessing(text, monkeypatch):
    monkeypatch.setattr(language_task.models, "logits", lambda model, tokens: model(tokens))
    made = task("text", text)
    source = PlainText((text / "train.txt",))
    return made, token_files.load(source, TrainedHere(source, 300), "text-train").counts


@pytest.mark.parametrize("blocks", [None, 5])
def test_guessing_by_frequencies_has_the_unigram_loss(text, guessing, blocks):
    _, counts = guessing
    made = task("text", text, heldout_blocks=blocks)
    model = Frequencies(counts)
    scores = [made.score(model, batch) for batch in made.shard_batches("heldout", 0, 1)]
    loss, errors, tokens = (sum(getattr(score, name) for score in scores) for name in ("loss", "errors", "samples"))
    assert tokens == 15 * (blocks or len(made.heldout))
    assert loss / tokens == pytest.approx(made.unigram_loss, rel=1e-5)
    assert 0 < errors < tokens
    ((batch),) = made.train_batches([torch.arange(made.samples)])
    assert made.loss(model, batch).item() == pytest.approx(unigram.cross_entropy(counts, counts), rel=0.02)
    assert made.chance_loss == unigram.entropy(counts) < unigram.cross_entropy(counts, counts)


@torch.no_grad()
def test_loss_is_the_cross_entropy_of_the_next_token(guessing):
    made, _ = guessing
    model = made.make_model()
    (tokens,) = batch = next(made.train_batches([torch.arange(4)]))
    logits = model(tokens).log_softmax(-1)
    expected = -torch.stack([logits[b, t, tokens[b, t + 1]] for b in range(4) for t in range(15)])
    assert made.loss(model, batch).item() == pytest.approx(expected.mean().item(), rel=1e-5)
    assert made.score(model, batch).loss == pytest.approx(expected.sum().item(), rel=1e-5)
    wrong = sum(int(logits[b, t].argmax() != tokens[b, t + 1]) for b in range(4) for t in range(15))
    assert made.score(model, batch)[1:3] == (wrong, 60)


def test_perplexity_of_words_counts_line_ends(text):
    made = task("text", text)
    figures = made.heldout_figures(2.0)
    tokens = len(encoder_of(text).encode(lines("valid")))
    words = sum(len(line.split()) + 1 for line in lines("valid"))
    assert figures["perplexity"] == pytest.approx(math.exp(2))
    assert figures["word_perplexity"] == pytest.approx(math.exp(2 * tokens / words))
    assert made.heldout_figures(1e6)["perplexity"] == math.inf
    assert math.isnan(made.heldout_figures(math.nan)["perplexity"])


def test_entropy_and_cross_entropy():
    assert unigram.entropy(np.array([5, 5, 0, 5, 5])) == pytest.approx(math.log(4))
    assert unigram.cross_entropy(np.array([1, 0, 3]), np.array([7, 0, 0])) == pytest.approx(
        -(math.log(0.8) + 3 * math.log(0.1)) / 4
    )


# ---- synthetic text, recipes, commands ----


def test_synthetic_text_needs_no_files_and_can_be_learned():
    made = LanguageTask(recipe("wikitext103", None, synthetic=True, data_options={"vocabulary": 500}))
    assert (made.classes, made.samples) == (500, language_task.SYNTHETIC_BLOCKS) and "synthetic" in made.data
    first, later = ([tokens for (tokens,) in made.train_batches([torch.tensor([n])])] for n in (3, 503))
    assert torch.equal(first[0], later[0])
    assert torch.equal(first[0][:, 1::2], (first[0][:, 0::2] * 7 + 1) % 500)
    assert made.chance_loss < math.log(500)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_recipes_of_known_tasks(path):
    made = Recipe(**yaml.safe_load(path.read_text()))
    assert made.task in corpora.CORPORA
    made.check_learners(16)
    parse(DataOptions, "data_options", made.data_options)


def test_the_papers_recipe_makes_the_papers_model():
    made = load("wikitext103", RECIPES, {"synthetic": True})
    with torch.device("meta"):
        model = LanguageTask(made).make_model()
    assert sum(p.numel() for p in model.parameters()) == 50_396_360
    schedule = made.schedule(samples=256 * 1800)
    assert [schedule(step) for step in (0, 124, 249)] == pytest.approx([1e-6, 1.25e-4, 2.5e-4])
    assert schedule(200 * 1800 - 1) < 1e-12


def test_prepare_tokenizes_beforehand(text, monkeypatch, capsys):
    words = ["prepare.py", "--recipe", "novels-cpu", "--data-dir", str(text), "--set", "data_options.block_size=16"]
    monkeypatch.setattr(sys, "argv", words)
    prepare.main()
    assert "unigram entropy" in capsys.readouterr().out
    monkeypatch.setattr(TrainedHere, "encoder", None)
    prepare.main()
    monkeypatch.setattr(sys, "argv", [*words, "--set", "data_options.heldout=none"])
    with pytest.raises(SystemExit) as ended:
        prepare.main()
    assert ended.value.code == 2
    assert "prepare.py: error: data_options.heldout" in capsys.readouterr().err
