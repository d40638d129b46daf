"""The prepared form: what is written is what is read, in sub-sequences, within bounded memory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from speech import write_prepared

from benchmarks.asr import frequencies
from benchmarks.asr.prepared import MANIFEST, Manifest, Prepared, SubSequences, shard_files
from benchmarks.asr.writing import PreparedWriter, Utterance, summary
from horovod_dpsgd.errors import DataError

LENGTHS = (9, 3, 10, 25, 2, 5, 40, 1)


def reference(frames: np.ndarray, states: np.ndarray, length: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Sub-sequences, cut one by one."""
    found, start = [], 0
    for utterance in LENGTHS:
        for first in range(start, start + utterance - length + 1, length):
            found.append((frames[first : first + length], states[first : first + length]))
        start += utterance
    return found


@pytest.mark.parametrize("length", [1, 5, 21])
@pytest.mark.parametrize("shard_bytes", [None, 400, 1])
def test_sub_sequences_are_the_utterances_cut(tmp_path, length, shard_bytes):
    """Whatever files they lie in: one, several, or one for each utterance."""
    made = write_prepared(tmp_path, LENGTHS, shard_bytes=shard_bytes)
    prepared = Prepared(tmp_path)
    assert len(prepared.manifest.parts["train"].shards) == {None: 1, 400: 5, 1: 8}[shard_bytes]
    for name, part in (("train", prepared.train), ("heldout", prepared.heldout)):
        expected = reference(*made[name], length)
        subs = SubSequences(part, length)
        assert len(subs) == len(expected) == sum(utterance // length for utterance in LENGTHS)
        order = np.random.default_rng(1).permutation(len(subs))
        frames, states = subs.take(order)
        for row, number in enumerate(order):
            np.testing.assert_array_equal(frames[row], expected[number][0])
            np.testing.assert_array_equal(states[row], expected[number][1])


def test_states_are_counted(tmp_path):
    made = write_prepared(tmp_path, LENGTHS, states=7)
    prepared = Prepared(tmp_path)
    for name in ("train", "heldout"):
        np.testing.assert_array_equal(prepared.counts(name), np.bincount(made[name][1], minlength=7))


def test_half_precision_is_read_as_single(tmp_path):
    frames = np.linspace(-3, 3, 12, dtype=np.float32).reshape(6, 2)
    writer = PreparedWriter(tmp_path, {"x": 2}, "float16")
    for part in (writer.train, writer.heldout):
        part.add(Utterance("u", "s", frames, np.arange(6), b""))
    writer.finish("data", {}, None)
    assert shard_files(tmp_path / "train", 0)[0].stat().st_size == 24
    read, _ = SubSequences(Prepared(tmp_path).train, 6).take(np.array([0]))
    assert read.dtype == np.float32
    np.testing.assert_allclose(read[0], frames, atol=2e-3)


def test_who_is_left_out_is_counted_and_named(tmp_path):
    writer = PreparedWriter(tmp_path, {"x": 1})
    for part in (writer.train, writer.heldout):
        part.add(Utterance("good", "s", np.zeros((3, 1)), np.array([0, 1, 1]), b""))
        part.add(Utterance("bad", "s", np.full((3, 1), np.nan), np.array([0, 1, 5]), b""))
        part.skip("worse", "no alignment")
        part.skip("worst", "no alignment", "why")
    manifest = writer.finish("data", {}, None)
    part = manifest.parts["train"]
    assert part.skipped == {"no alignment": 2, "a feature that is no finite number": 1}
    assert (tmp_path / "train" / "skipped.tsv").read_text().splitlines() == [
        "bad\ta feature that is no finite number", "worse\tno alignment", "worst\tno alignment: why"
    ]  # fmt: skip
    assert (tmp_path / "train" / "utterances.tsv").read_text() == "good\ts\n"
    assert (part.utterances, part.frames, manifest.states) == (1, 3, 2)
    assert "left out, 3: 2 no alignment; 1 a feature that is no finite number" in summary(manifest, tmp_path)


def test_the_inputs_have_a_checksum_that_tells_them_apart(tmp_path):
    def written(folder: str, inputs: bytes) -> str:
        writer = PreparedWriter(tmp_path / folder, {"x": 1})
        for part in (writer.train, writer.heldout):
            part.add(Utterance("u", "s", np.zeros((3, 1)), np.zeros(3, int), inputs))
        return writer.finish("data", {}, None, 2).parts["train"].inputs

    assert written("a", b"1") == written("b", b"1") != written("c", b"2")


def test_random_sub_sequences_are_drawn_without_loading_all(tmp_path):
    """96 MB of frames; a megabyte of memory of one's own."""
    lengths = tuple([2100] * 60)
    write_prepared(tmp_path, lengths, dimension=200)
    subs = SubSequences(Prepared(tmp_path).train, 21)
    subs.take(np.arange(16))
    before = own_kilobytes()
    for numbers in np.random.default_rng(0).permutation(len(subs)).reshape(-1, 16):
        subs.take(numbers)
    assert own_kilobytes() - before < 4_000


def own_kilobytes() -> int:
    """Memory of this process that is not a file's pages, which the kernel can take back at any time."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def test_prepared_speech_is_not_written_over(tmp_path):
    write_prepared(tmp_path)
    with pytest.raises(DataError, match="already holds prepared speech"):
        write_prepared(tmp_path)


def test_a_part_without_utterances_is_no_prepared_speech(tmp_path):
    writer = PreparedWriter(tmp_path, {"x": 1})
    writer.train.add(Utterance("u", "s", np.zeros((3, 1)), np.zeros(3, int), b""))
    writer.heldout.skip("u", "no alignment")
    with pytest.raises(DataError, match="no utterance of the heldout part is left: 1 no alignment"):
        writer.finish("data", {}, None)
    assert not (tmp_path / MANIFEST).exists()


def test_a_state_beyond_those_there_are_to_be_is_one_line(tmp_path):
    writer = PreparedWriter(tmp_path, {"x": 1})
    writer.train.add(Utterance("u", "s", np.zeros((2, 1)), np.array([0, 7]), b""))
    with pytest.raises(DataError, match="state 7 occurs, but there are to be 5: 0 to 4"):
        writer.finish("data", {}, None, states=5)


def damage(folder: Path, how: str) -> None:
    manifest = folder / MANIFEST
    keys = json.loads(manifest.read_text())
    if how == "cut frames":
        path, _ = shard_files(folder / "train", 0)
        path.write_bytes(path.read_bytes()[:-1])
    elif how == "no states":
        shard_files(folder / "heldout", 0)[1].unlink()
    elif how == "no manifest":
        manifest.unlink()
    elif how == "cut manifest":
        manifest.write_text(manifest.read_text()[:-20])
    elif how == "old format":
        manifest.write_text(json.dumps(keys | {"format": 0}))
    elif how == "one part":
        del keys["parts"]["heldout"]
        manifest.write_text(json.dumps(keys))
    elif how == "other key":
        manifest.write_text(json.dumps(keys | {"colour": 0}))
    elif how == "lengths":
        np.save(folder / "train" / "lengths.npy", np.array([1], np.int32))
    elif how == "cut lengths":
        (folder / "train" / "lengths.npy").write_bytes(b"\x93NUMPY")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("cut frames", r"frames-0000.bin has 1503 bytes, not 1504: it is damaged"),
        ("no states", "states-0000.bin cannot be read"),
        ("no manifest", "does not hold prepared speech"),
        ("cut manifest", "manifest.json is damaged"),
        ("old format", "is of format 0, not 1: prepare the data again"),
        ("one part", "lacks the part heldout"),
        ("other key", "manifest.json is damaged"),
        ("lengths", "lengths.npy does not fit the 94 frames"),
        ("cut lengths", "lengths.npy is damaged"),
    ],
)
def test_damage_is_one_line_that_names_the_file(tmp_path, how, words):
    write_prepared(tmp_path)
    damage(tmp_path, how)
    with pytest.raises(DataError, match=words) as raised:
        Prepared(tmp_path)
    assert "\n" not in str(raised.value)


def test_the_manifest_comes_back(tmp_path):
    write_prepared(tmp_path, silence=[1, 2])
    manifest = Manifest.read(tmp_path)
    assert manifest.text() == (tmp_path / MANIFEST).read_text()
    assert (manifest.streams, manifest.dimension, manifest.silence) == ({"first": 3, "second": 1}, 4, [1, 2])
    older = json.loads(manifest.text()) | {"levels": {"chance": 1.6, "unigram": 1.5, "silence": None}}
    (tmp_path / MANIFEST).write_text(json.dumps(older))
    assert Manifest.read(tmp_path) == manifest


def test_frequencies_of_states_are_shown(tmp_path, monkeypatch, capsys):
    """The table, the states in the order of their frequency, and those that do not occur left out."""
    made = write_prepared(tmp_path, (64, 30), silence=[0])
    monkeypatch.setattr("sys.argv", ["frequencies.py", str(tmp_path), "--output", str(tmp_path / "figure")])
    frequencies.main()
    assert (tmp_path / "figure.png").stat().st_size and (tmp_path / "figure.svg").stat().st_size
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| train"))
    assert [cell.strip() for cell in row.split("|")][2:5] == ["94", "5", "100.0 %"]
    counts = np.append(np.bincount(made["train"][1]), 0)
    (axes,) = frequencies.draw({"train": counts}, "made up", {0}).axes
    assert list(axes.lines[0].get_ydata()) == sorted(counts[:-1], reverse=True)
    assert list(axes.lines[1].get_ydata()) == [counts[0]]


def test_frequencies_of_no_prepared_speech_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["frequencies.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        frequencies.main()
    assert "does not hold prepared speech" in capsys.readouterr().err
