"""The audio path: layouts, features, what is left out, resumption; with a made-up aligner where that is quicker."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torchaudio.functional import lfilter

from benchmarks.asr import alignment, audio, corpora, features, prepare
from benchmarks.asr.alignment import Aligner, Alignment, Unaligned
from benchmarks.asr.corpora import Spoken
from benchmarks.asr.prepared import Prepared, SubSequences
from horovod_dpsgd.errors import DataError

RATE = 16_000
SENTENCES = {
    "a1": "GO FORWARD", "a2": "TEN METERS", "b1": "GO", "b2": "XYZZY GO", "b3": "STOP", "c1": "FORWARD GO GO",
}  # fmt: skip
SPEAKERS = {name: name[0] for name in SENTENCES}


def noise(seconds: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate)).astype(np.float32)


def write_kaldi_style(
    folder: Path, sentences: dict[str, str] = SENTENCES, suffix: str = "ogg", rate: int = RATE
) -> Path:
    (folder / "audio").mkdir(parents=True)
    (folder / "text").write_text("".join(f"{name} {words}\n" for name, words in sentences.items()))
    (folder / "utt2spk").write_text("".join(f"{name} {SPEAKERS[name]}\n" for name in sentences))
    for seed, name in enumerate(sentences):
        soundfile.write(folder / "audio" / f"{name}.{suffix}", noise(0.5 + 0.1 * seed, seed, rate), rate)
    return folder


class MadeUpAligner:
    """Silence for ten frames at either end, and in between states that tell the words; knows no XYZZY."""

    calls = 0

    def __init__(self, lexicon: Path | None = None) -> None:
        pass

    def align(self, sound: np.ndarray, words: tuple[str, ...]) -> Alignment:
        type(self).calls += 1
        if "xyzzy" in words:
            raise Unaligned("a word not in the dictionary", "xyzzy")
        if "stop" in words:
            raise Unaligned("the aligner found no path")
        states = np.full(1 + (len(sound) - 410) // 160, 100 * len(words), np.int32)
        silence = np.zeros(len(states), bool)
        silence[:10] = silence[-10:] = True
        states[silence] = 7
        return Alignment(states, silence)


@pytest.fixture
def made_up(monkeypatch) -> type[MadeUpAligner]:
    monkeypatch.setattr(audio, "Aligner", MadeUpAligner)
    monkeypatch.setattr(audio, "PIECE", 2)
    MadeUpAligner.calls = 0
    return MadeUpAligner


def run(monkeypatch, *words: object) -> None:
    """prepare.py audio, in this process and no other."""
    monkeypatch.setattr(sys, "argv", ["prepare.py", "audio", "--processes", "1", *map(str, words)])
    prepare.main()


def all_frames(prepared: Prepared, part: str) -> tuple[np.ndarray, np.ndarray]:
    subs = SubSequences(getattr(prepared, part), 1)
    frames, states = subs.take(np.arange(len(subs)))
    return frames[:, 0], states[:, 0]


# ---- features ----


def test_the_loudest_band_of_a_tone_is_that_of_its_pitch():
    """The centres of 40 triangles from 20 Hz to 8 kHz are evenly spaced in mel, 1127 ln(1 + f/700)."""
    mel = [1127 * np.log(1 + f / 700) for f in (20, 1000, 8000)]
    band = round((mel[1] - mel[0]) / (mel[2] - mel[0]) * 41) - 1
    tone = 0.3 * np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE).astype(np.float32)
    found = features.log_mel(tone, RATE)
    assert found.shape == (98, 40)  # 1 + (16,000 - 400) // 160
    assert set(found.argmax(1)) == {band}


@pytest.mark.parametrize("rate", features.RATES)
def test_a_second_has_98_frames_at_either_rate(rate):
    assert features.log_mel(noise(1, rate=rate), rate).shape == (98, 40)


def test_sound_too_short_for_a_frame_has_none():
    assert features.log_mel(noise(0.02), RATE).shape == (0, 40)


def test_deltas_of_a_line_are_its_slope():
    line = np.arange(30.0)[:, None] * np.array([2.0, -1.0])
    found = features.with_deltas(line)
    assert found.shape == (30, 6)
    np.testing.assert_allclose(found[4:-4, 2:], np.tile([2, -1, 0, 0], (22, 1)), atol=1e-5)


def test_normalised_frames_have_mean_0_and_variance_1():
    frames = np.random.default_rng(0).normal([3, -50, 7], [2, 0.1, 0], (500, 3))
    gathered = features.MeanAndVariance(3)
    gathered.add(frames[:200])
    gathered.add(frames[200:])
    found = gathered.normalise(frames)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(found.std(0), [1, 1, 0], atol=1e-4)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_audio_of_any_rate_and_format_is_read_at_the_rate_asked_for(tmp_path, suffix):
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(44_100) / 44_100)
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, np.stack([tone, tone], 1), 44_100)
    sound = features.read_audio(path, RATE)
    assert sound.dtype == np.float32
    assert len(sound) == RATE
    expected = 0.3 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    np.testing.assert_allclose(sound[1000:-1000], expected[1000:-1000], atol=0.02)


# ---- layouts ----


def test_kaldi_style_folders(tmp_path):
    write_kaldi_style(tmp_path)
    (tmp_path / "audio" / "b1.ogg").unlink()
    found = {spoken.name: spoken for spoken in corpora.read(tmp_path)}
    assert list(found) == sorted(SENTENCES)
    assert found["a1"] == Spoken("a1", "a", ("go", "forward"), tmp_path / "audio" / "a1.ogg")
    assert found["b1"].audio is None


def test_wav_scp_leads_to_files(tmp_path):
    (tmp_path / "text").write_text("u1 HELLO\n")
    (tmp_path / "wav.scp").write_text("u1 elsewhere/x.wav\n")
    assert corpora.read(tmp_path) == [Spoken("u1", "u1", ("hello",), tmp_path / "elsewhere" / "x.wav")]


def test_librispeech_as_torchaudio_keeps_it(tmp_path):
    chapter = tmp_path / "LibriSpeech" / "dev-clean" / "84" / "121123"
    chapter.mkdir(parents=True)
    (chapter / "84-121123.trans.txt").write_text("84-121123-0000 GO ON\n84-121123-0001 STOP\n")
    (chapter / "84-121123-0000.flac").touch()
    assert corpora.read(tmp_path) == [
        Spoken("84-121123-0000", "84", ("go", "on"), chapter / "84-121123-0000.flac"),
        Spoken("84-121123-0001", "84", ("stop",), None),
    ]


def test_speech_commands_bring_their_own_division(tmp_path):
    for name in ("yes/00f_nohash_0.wav", "yes/00f_nohash_1.wav", "no/aa1_nohash_0.wav", "_background_noise_/x.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "validation_list.txt").write_text("no/aa1_nohash_0.wav\n")
    (tmp_path / "testing_list.txt").write_text("yes/00f_nohash_1.wav\n")
    found = corpora.find(tmp_path, None, None)
    assert [(s.name, s.speaker, s.words) for s in found["train"]] == [("yes/00f_nohash_0.wav", "00f", ("yes",))]
    assert [(s.name, s.speaker, s.words) for s in found["heldout"]] == [("no/aa1_nohash_0.wav", "aa1", ("no",))]


def test_whole_speakers_are_held_out(tmp_path):
    names = {f"s{k}-{j}": "GO" for k in range(200) for j in range(2)}
    (tmp_path / "text").write_text("".join(f"{name} GO\n" for name in names))
    (tmp_path / "utt2spk").write_text("".join(f"{name}\t{name.partition('-')[0]}\n" for name in names))
    parts = corpora.find(tmp_path, None, 0.1)
    speakers = {name: {spoken.speaker for spoken in part} for name, part in parts.items()}
    assert not speakers["train"] & speakers["heldout"]
    assert sum(map(len, parts.values())) == 400
    assert 10 <= len(speakers["heldout"]) <= 30


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "is in none of the layouts that are known"),
        ({"text": "a GO\na GO\n"}, "text has two lines for a"),
        ({"text": "a GO\n", "segments": ""}, "has segments of longer recordings"),
        ({"text": "a GO\n", "wav.scp": "a sox x |\n"}, "a is a command; only files can be read"),
        ({"text": b"\xff\xfe\n"}, "text is missing or unreadable"),
        ({"text": "a GO\nb GO\n", "utt2spk": "a\ts\n"}, "utt2spk has no speaker for b"),
    ],
)
def test_a_folder_that_is_not_understood_is_one_line(tmp_path, files, words):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=words):
        corpora.read(tmp_path)


def test_a_held_out_part_must_be_determined(tmp_path):
    write_kaldi_style(tmp_path)
    with pytest.raises(DataError, match="one of --heldout DIR and --heldout-fraction F is needed"):
        corpora.find(tmp_path, None, None)
    with pytest.raises(DataError, match=r"the heldout part of .* has no utterances"):
        corpora.find(tmp_path, None, 1e-9)


# ---- preparation ----


def prepare_made_up(tmp_path: Path, monkeypatch, *words: object) -> Prepared:
    if not (tmp_path / "train").exists():
        write_kaldi_style(tmp_path / "train")
        write_kaldi_style(tmp_path / "test", {"c1": SENTENCES["c1"]})
    output = tmp_path / "prepared"
    run(monkeypatch, "--train", tmp_path / "train", "--heldout", tmp_path / "test", "--output", output, *words)
    return Prepared(output)


def test_states_that_occur_are_numbered_and_silence_is_known(tmp_path, monkeypatch, made_up):
    prepared = prepare_made_up(tmp_path, monkeypatch)
    assert np.load(tmp_path / "prepared" / "senones.npy").tolist() == [7, 100, 200, 300]
    assert (prepared.manifest.states, prepared.manifest.silence) == (4, [0])
    assert prepared.manifest.streams == {"logmel": 40, "logmel-delta": 40, "logmel-delta-delta": 40}
    assert set(all_frames(prepared, "heldout")[1]) == {0, 3}
    assert (tmp_path / "prepared" / "train" / "utterances.tsv").read_text() == "a1\ta\na2\ta\nb1\tb\nc1\tc\n"
    assert not (tmp_path / "prepared" / "pieces").exists()


def test_frames_are_the_speaker_s_normalised_features(tmp_path, monkeypatch, made_up):
    prepared = prepare_made_up(tmp_path, monkeypatch)
    frames, _ = all_frames(prepared, "train")
    sounds = [features.read_audio(tmp_path / "train" / "audio" / f"{name}.ogg", RATE) for name in ("a1", "a2")]
    measured = [features.with_deltas(features.log_mel(sound, RATE)) for sound in sounds]
    length = sum(1 + (len(sound) - 410) // 160 for sound in sounds)
    both = np.concatenate([each[: 1 + (len(sound) - 410) // 160] for each, sound in zip(measured, sounds, strict=True)])
    np.testing.assert_allclose(frames[:length], (both - both.mean(0)) / both.std(0), atol=1e-3)


def test_who_is_left_out_is_counted_and_named(tmp_path, monkeypatch, made_up, capsys):
    write_kaldi_style(tmp_path / "train", SENTENCES)
    write_kaldi_style(tmp_path / "test", {"c1": SENTENCES["c1"]})
    (tmp_path / "train" / "audio" / "a1.ogg").write_bytes(b"not audio")
    (tmp_path / "train" / "audio" / "a2.ogg").unlink()
    prepared = prepare_made_up(tmp_path, monkeypatch)
    rows = dict(line.split("\t") for line in (tmp_path / "prepared/train/skipped.tsv").read_text().splitlines())
    assert rows["a2"] == "no audio"
    assert rows["b2"] == "a word not in the dictionary: xyzzy"
    assert rows["b3"] == "the aligner found no path"
    assert rows["a1"].startswith("audio that cannot be read: ")
    assert sum(prepared.manifest.parts["train"].skipped.values()) == 4
    assert "left out, 4: 1 " in capsys.readouterr().out


@pytest.mark.parametrize(("keep", "silent"), [("0", 0), ("4", 8), ("-1", 20)])
def test_so_much_silence_is_kept_at_the_ends(tmp_path, monkeypatch, made_up, keep, silent):
    prepared = prepare_made_up(tmp_path, monkeypatch, "--keep-silence", keep)
    assert prepared.counts("heldout").sum() - prepared.counts("heldout")[-1] == silent


def test_an_interrupted_preparation_goes_on_where_it_was(tmp_path, monkeypatch, made_up):
    whole = prepare_made_up(tmp_path, monkeypatch)
    expected = all_frames(whole, "train")
    (tmp_path / "prepared").rename(tmp_path / "before")
    made_up.calls = 0
    make_piece = audio.make_piece

    def fail_at_the_third(path, *arguments):
        if made_up.calls >= 4:
            raise KeyboardInterrupt
        make_piece(path, *arguments)

    monkeypatch.setattr(audio, "make_piece", fail_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        prepare_made_up(tmp_path, monkeypatch)
    monkeypatch.setattr(audio, "make_piece", make_piece)
    assert made_up.calls == 4
    again = prepare_made_up(tmp_path, monkeypatch)
    assert made_up.calls == len(SENTENCES) + 1
    for found, before in zip(all_frames(again, "train"), expected, strict=True):
        np.testing.assert_array_equal(found, before)
    assert again.manifest == whole.manifest


def test_pieces_of_other_files_or_settings_are_not_gone_on_with(tmp_path, monkeypatch, made_up, capsys):
    write_kaldi_style(tmp_path / "train")
    write_kaldi_style(tmp_path / "test", {"c1": SENTENCES["c1"]})
    monkeypatch.setattr(audio, "make_pieces", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare_made_up(tmp_path, monkeypatch)
    with pytest.raises(SystemExit):
        prepare_made_up(tmp_path, monkeypatch, "--rate", 8000)
    assert "pieces was begun with other files or settings" in capsys.readouterr().err


# ---- the real aligner ----

FORMANTS = {"e": (270, 2290, 3010, 3600), "a": (640, 1190, 2390, 3500), "oh": (500, 860, 2400, 3400)}  # of vowels, Hz


def vowel(word: str, seconds: float) -> np.ndarray:
    """A word of one vowel: 120 pulses a second, through a resonance for each formant, faded in and out."""
    time = torch.arange(round(seconds * RATE)) / RATE
    sound = torch.diff(torch.floor(120 * time), prepend=torch.zeros(1))
    sound = lfilter(sound, torch.tensor([1, -0.95]), torch.tensor([1.0, 0]), clamp=False)  # the glottis is no click
    sound -= sound.mean()
    for formant, width in zip(FORMANTS[word], (60, 90, 150, 200), strict=True):
        r = np.exp(-np.pi * width / RATE)
        poles = torch.tensor([1, -2 * r * np.cos(2 * np.pi * formant / RATE), r * r], dtype=torch.float32)
        sound = lfilter(sound, poles, torch.tensor([float(poles.sum()), 0, 0]), clamp=False)
    fade = torch.minimum(time, seconds - time).div(0.03).clamp(max=1)
    return (0.3 * fade * sound / sound.abs().max()).numpy()


def spoken(*words: str) -> np.ndarray:
    """Vowels of 0.4 s, with 0.3 s of faint noise before, between and after."""
    pause = np.zeros(round(0.3 * RATE), np.float32)
    sound = np.concatenate([pause, *(part for word in words for part in (vowel(word, 0.4), pause))])
    return sound + 0.01 * noise(len(sound) / RATE)


def test_words_are_found_where_they_are():
    """In frames of 10 ms, to 50 ms; of each vowel's three states, in order."""
    found = Aligner().align(spoken("e", "oh"), ("e", "oh"))
    assert len(found.states) == len(found.silence) == pytest.approx(168, abs=1)  # 1 + (1.7 s - 25.6 ms) / 10 ms
    edges = np.flatnonzero(np.diff(found.silence.astype(int)))
    assert edges == pytest.approx([30, 70, 100, 140], abs=5)
    for start, end in (edges[:2], edges[2:]):
        states = found.states[start + 1 : end + 1]
        assert len(set(states)) == 1 + np.count_nonzero(np.diff(states)) == 3
    assert not set(found.states[found.silence]) & set(found.states[~found.silence])


def test_earlier_utterances_do_not_change_an_alignment():
    """Which process has aligned what before depends on how fast each is."""
    sound, used = spoken("e", "oh"), Aligner()
    used.align(spoken("oh", "oh") + 0.3 * noise(1.7, seed=1), ("oh", "oh"))
    np.testing.assert_array_equal(used.align(sound, ("e", "oh")).states, Aligner().align(sound, ("e", "oh")).states)


def test_wrong_words_are_not_aligned():
    with pytest.raises(Unaligned, match="the aligner found no path"):
        Aligner().align(spoken("e"), ("go", "forward", "ten", "meters", "and", "then", "turn", "left"))


def test_audio_becomes_prepared_speech_by_several_processes(tmp_path, monkeypatch):
    """The whole path, with nothing made up but the sound."""
    sentences = {"a1": "E OH", "a2": "OH OH", "b1": "OH E FROTZ", "c1": "OH E"}
    for part, names in (("train", ("a1", "a2", "b1")), ("test", ("c1",))):
        write_kaldi_style(tmp_path / part, {name: sentences[name] for name in names}, "flac")
        for name in names:
            words = sentences[name].lower().replace(" frotz", "").split()
            soundfile.write(tmp_path / part / "audio" / f"{name}.flac", spoken(*words), RATE)
    monkeypatch.setattr(audio, "PIECE", 2)
    output = tmp_path / "prepared"
    run(
        monkeypatch, "--train", tmp_path / "train", "--heldout", tmp_path / "test", "--output", output, "--processes", 2
    )
    prepared = Prepared(output)
    assert (output / "train" / "utterances.tsv").read_text() == "a1\ta\na2\ta\n"
    assert (output / "train" / "skipped.tsv").read_text() == "b1\ta word not in the dictionary: frotz\n"
    assert len(prepared.manifest.silence) == 3
    _, states = all_frames(prepared, "heldout")
    silent = np.isin(states, prepared.manifest.silence)
    assert len(states) == pytest.approx(110 + 2 * 15, abs=10)  # the words, the pause between, and 15 frames either side
    assert 0.35 < silent.mean() < 0.55


def test_a_lexicon_is_read_and_its_damage_named(tmp_path):
    path = tmp_path / "lexicon.txt"
    path.write_text("XYZZY  Z IH Z IY\n\n")
    assert alignment.read_lexicon(path) == {"xyzzy": "Z IH Z IY"}
    path.write_text("XYZZY\n")
    with pytest.raises(DataError, match=r"lexicon.txt: XYZZY has no phones"):
        alignment.read_lexicon(path)


def test_words_that_are_in_no_dictionary_are_named(tmp_path):
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("plugh P L AH G\n")
    with pytest.raises(Unaligned) as raised:
        Aligner(lexicon).align(noise(1), ("go", "xyzzy", "plugh", "xyzzy", "frotz"))
    assert (str(raised.value), raised.value.detail) == ("a word not in the dictionary", "xyzzy frotz")


def test_a_lexicon_s_unknown_phone_is_named(tmp_path):
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("plugh P L UX G\n")
    with pytest.raises(DataError, match="plugh has a phone that is not among CMUdict's: P L UX G"):
        Aligner(lexicon).align(noise(1), ("go",))
