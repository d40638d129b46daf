"""The Kaldi path, on archives that kaldiio writes here, against frames joined by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import kaldiio
import numpy as np
import pytest

from benchmarks.asr import prepare
from benchmarks.asr.kaldi import Stream, spliced
from benchmarks.asr.prepared import Prepared, SubSequences
from horovod_dpsgd.errors import RecipeError

SPEAKERS = {"a1": "a", "a2": "a", "b1": "b"}
LENGTHS = {"a1": 31, "a2": 12, "b1": 47}


class Made:
    """A part's folder, and the arrays in its archives, by utterance or speaker."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        numbers = np.random.default_rng(seed)
        self.folder = folder
        folder.mkdir(parents=True)
        self.fmllr = {u: numbers.standard_normal((t, 3), np.float32) for u, t in LENGTHS.items()}
        self.mel = {u: 5 + 2 * numbers.standard_normal((t, 2), np.float32) for u, t in LENGTHS.items()}
        self.pdfs = {u: numbers.integers(0, 9, t).astype(np.int32) for u, t in LENGTHS.items()}
        self.by_speaker = {s: numbers.standard_normal(4).astype(np.float32) for s in "ab"}
        self.online = {u: numbers.standard_normal((-(-t // 10), 4), np.float32) for u, t in LENGTHS.items()}
        self.statistics = {s: self._statistics(s) for s in "ab"}
        (folder / "utt2spk").write_text("".join(f"{u} {s}\n" for u, s in SPEAKERS.items()))
        self.write()

    def _statistics(self, speaker: str) -> np.ndarray:
        """As compute-cmvn-stats: sums and their count, sums of squares."""
        frames = np.concatenate([self.mel[u] for u, s in SPEAKERS.items() if s == speaker]).astype(np.float64)
        return np.stack([[*frames.sum(0), len(frames)], [*np.square(frames).sum(0), 0]])

    def write(self) -> None:
        for name in ("fmllr", "mel", "by_speaker", "online", "statistics", "pdfs"):
            path = self.folder / name
            kaldiio.save_ark(f"{path}.ark", getattr(self, name), scp=f"{path}.scp")

    def pdfs_of(self, names: str) -> np.ndarray:
        return np.concatenate([self.pdfs[name] for name in names.split()])


def run(tmp_path: Path, monkeypatch, *words: str) -> Path:
    """prepare.py kaldi, in this process."""
    output = tmp_path / "prepared"
    fixed = ["--train", tmp_path / "train", "--heldout", tmp_path / "dev", "--output", output]
    defaults = [] if "--alignments" in words else ["--alignments", "pdfs.ark"]
    monkeypatch.setattr(sys, "argv", ["prepare.py", "kaldi", *map(str, fixed), *defaults, *words])
    prepare.main()
    return output


def frames(output: Path, part: str = "train") -> np.ndarray:
    """All frames of a part, in one piece."""
    subs = SubSequences(getattr(Prepared(output), part), 1)
    return subs.take(np.arange(len(subs)))[0][:, 0]


def states(output: Path, part: str = "train") -> np.ndarray:
    subs = SubSequences(getattr(Prepared(output), part), 1)
    return subs.take(np.arange(len(subs)))[1][:, 0]


@pytest.fixture
def made(tmp_path) -> Made:
    Made(tmp_path / "dev", 1)
    return Made(tmp_path / "train")


ORDER = "a1 a2 b1"


def joined(by_utterance: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([by_utterance[name] for name in ORDER.split()])


def test_streams_are_joined_frame_by_frame_with_the_speaker_s_i_vector(tmp_path, made, monkeypatch, capsys):
    output = run(
        tmp_path, monkeypatch, "--stream", "fmllr:fmllr.scp", "--stream", "mel:mel.scp", "--ivectors", "by_speaker.scp"
    )
    ivectors = {u: np.tile(made.by_speaker[s], (LENGTHS[u], 1)) for u, s in SPEAKERS.items()}
    np.testing.assert_array_equal(
        frames(output), np.concatenate([joined(made.fmllr), joined(made.mel), joined(ivectors)], 1)
    )
    np.testing.assert_array_equal(states(output), made.pdfs_of(ORDER))
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["streams"] == {"fmllr": 3, "mel": 2, "ivector": 4}
    assert (manifest["states"], manifest["silence"]) == (9, None)
    assert "train: 3 utterances of 2 speakers" in capsys.readouterr().out


def test_online_i_vectors_last_ten_frames(tmp_path, made, monkeypatch):
    output = run(tmp_path, monkeypatch, "--stream", "mel:mel.scp", "--ivectors", "online.scp")
    expected = {u: [made.online[u][t // 10] for t in range(LENGTHS[u])] for u in SPEAKERS}
    np.testing.assert_array_equal(frames(output)[:, 2:], joined(expected))


def test_mean_and_variance_of_a_speaker_become_0_and_1(tmp_path, made, monkeypatch):
    output = run(tmp_path, monkeypatch, "--stream", "mel:mel.scp:cmvn=statistics.scp:variance")
    of_a = frames(output)[: LENGTHS["a1"] + LENGTHS["a2"]]
    np.testing.assert_allclose(of_a.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(of_a.std(0), 1, rtol=1e-4)


def test_mean_alone_is_subtracted_where_variance_is_not_asked_for(tmp_path, made, monkeypatch):
    output = run(tmp_path, monkeypatch, "--stream", "mel:mel.scp:cmvn=statistics.scp")
    mean = np.concatenate([made.mel["a1"], made.mel["a2"]]).mean(0)
    np.testing.assert_allclose(frames(output)[:31], made.mel["a1"] - mean, atol=1e-5)


def test_frames_are_spliced_with_the_ends_repeated():
    given = np.arange(8.0).reshape(4, 2)
    padded = np.concatenate([given[:1], given, given[-1:]])
    np.testing.assert_array_equal(spliced(given, 1), np.concatenate([padded[:-2], padded[1:-1], padded[2:]], 1))
    np.testing.assert_array_equal(spliced(given, 0), given)


def test_deltas_are_regression_slopes():
    """Kaldi's add-deltas formula, sum of n (x[t+n] - x[t-n]) / 2 sum of n^2, for a line: its slope."""
    line = np.arange(20.0)[:, None] * [0.5, -2]
    found = Stream("x", "f", deltas=True).processed(line, None)
    assert found.shape == (20, 6)
    np.testing.assert_allclose(found[:, :2], line)
    np.testing.assert_allclose(found[4:-4, 2:], np.tile([0.5, -2, 0, 0], (12, 1)), atol=1e-6)


@pytest.mark.parametrize("alignments", ["pdfs.scp", "pdf.*.ark"])
def test_alignments_come_as_scp_or_in_several_archives(tmp_path, made, monkeypatch, alignments):
    for part in (made.folder, tmp_path / "dev"):
        pdfs = dict(kaldiio.load_ark(str(part / "pdfs.ark")))
        for number, names in enumerate((["a1", "a2"], ["b1"])):
            kaldiio.save_ark(str(part / f"pdf.{number}.ark"), {name: pdfs[name] for name in names})
    output = run(tmp_path, monkeypatch, "--stream", "mel:mel.scp", "--alignments", alignments)
    np.testing.assert_array_equal(states(output), made.pdfs_of(ORDER))


def test_who_cannot_be_used_is_counted_and_named(tmp_path, made, monkeypatch, capsys):
    made.fmllr["a1"] = made.fmllr["a1"][:-1]
    del made.pdfs["a2"], made.mel["b1"]
    for name in ("c1", "c2"):
        made.fmllr[name], made.mel[name] = np.zeros((5, 3), np.float32), np.zeros((5, 2), np.float32)
        made.pdfs[name] = np.array([1, 1, 1, 1, 8], np.int32)
    made.write()
    with (made.folder / "utt2spk").open("a") as file:
        file.write("c1 c\n")
    output = run(tmp_path, monkeypatch, "--stream", "fmllr:fmllr.scp", "--stream", "mel:mel.scp")
    rows = [line.split("\t") for line in (output / "train" / "skipped.tsv").read_text().splitlines()]
    assert sorted(rows) == [
        ["a1", "another number of frames in fmllr than in the alignment"],
        ["a2", "no alignment"],
        ["b1", "no features in mel"],
        ["c2", "no speaker in utt2spk"],
    ]
    assert "left out, 4: " in capsys.readouterr().out
    np.testing.assert_array_equal(states(output), [1, 1, 1, 1, 8])


def test_states_and_silence_can_be_told(tmp_path, made, monkeypatch):
    output = run(tmp_path, monkeypatch, "--stream", "m:mel.scp", "--states", "12", "--silence-states", "0,1")
    prepared = Prepared(output)
    assert (prepared.manifest.states, prepared.manifest.silence) == (12, [0, 1])
    assert prepared.counts("train").tolist() == np.bincount(made.pdfs_of(ORDER), minlength=12).tolist()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--stream", "mel:none.scp"], "none.scp is not there"),
        (["--stream", "mel:mel.scp", "--alignments", "none.ark"], "none.ark is not there"),
        (["--stream", "mel:mel.scp", "--alignments", "x*.ark"], "holds no x*.ark"),
        (["--stream", "mel:mel.scp", "--alignments", "mel.ark"], "a1 is no sequence of pdf-ids; ali-to-pdf makes them"),
        (["--stream", "mel:mel.scp:delta"], "unknown 'delta'; known: cmvn=FILE, variance, deltas, splice=N"),
        (["--stream", "mel"], "NAME:FILE[:OPTION...] is expected"),
        (["--stream", "mel:mel.scp:variance"], "variance is taken from the statistics"),
        (["--stream", "m:mel.scp", "--stream", "m:mel.scp"], "every stream needs a name of its own"),
        (["--stream", "mel:mel.scp", "--ivectors", "online.scp:x"], "FILE or FILE:PERIOD is expected"),
        (["--stream", "mel:mel.scp", "--silence-states", "a"], "--silence-states a: pdf-ids, from 0 on,"),
        (["--stream", "mel:mel.scp", "--silence-states", "0,-1"], "--silence-states 0,-1: pdf-ids, from 0 on,"),
        (["--stream", "mel:mel.scp", "--silence-states", "0,99"], "states 0, 99 of silence: there are states 0 to"),
        (["--stream", "mel:mel.scp", "--states", "5"], "occurs, but there are to be 5"),
        (["--strem", "mel"], "unrecognized arguments: --strem mel"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, made, monkeypatch, capsys, words, complaint):
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, monkeypatch, *words)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("prepare.py: error: ")]
    assert ended.value.code == 2
    assert len(lines) == 1
    assert complaint in lines[0]


def test_a_damaged_archive_is_one_line(tmp_path, made, monkeypatch, capsys):
    ark = made.folder / "mel.ark"
    ark.write_bytes(ark.read_bytes()[:40])
    with pytest.raises(SystemExit):
        run(tmp_path, monkeypatch, "--stream", "mel:mel.scp")
    assert "mel.scp is damaged or unreadable at a1" in capsys.readouterr().err


def test_a_stream_is_read_from_its_words():
    expected = Stream("m", "f.scp", cmvn="c.scp", variance=True, deltas=True, splice=2)
    assert Stream.of("m:f.scp:cmvn=c.scp:variance:deltas:splice=2") == expected
    with pytest.raises(RecipeError):
        Stream.of("m:f.scp:splice=x")
