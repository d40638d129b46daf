"""Prepare speech for training, once: from audio and transcripts, or from what Kaldi has made of it.

    python benchmarks/asr/prepare.py audio --train DIR --heldout DIR --output PREPARED
    python benchmarks/asr/prepare.py kaldi --train DIR --heldout DIR --output PREPARED
        --stream fmllr:fmllr.scp --stream logmel:feats.scp:cmvn=cmvn.scp:deltas --ivectors ivectors.scp

Then: mpirun -np 16 ... python benchmarks/asr/train.py --recipe NAME --data-dir PREPARED
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from benchmarks.asr.prepared import FRAME_TYPES, Manifest  # noqa: E402
from benchmarks.asr.writing import PreparedWriter, summary  # noqa: E402
from horovod_dpsgd.command_line import RaisingParser, give_up  # noqa: E402
from horovod_dpsgd.errors import RecipeError, UserError  # noqa: E402


def parser() -> RaisingParser:
    p = RaisingParser(description=__doc__)
    sources = p.add_subparsers(dest="source", required=True, metavar="audio|kaldi")
    audio = _source(sources, "audio", from_audio, "audio files and transcripts; layouts: benchmarks/asr/corpora.py")
    audio.add_argument("--heldout-fraction", type=float, metavar="F", help="hold so many of the speakers out")
    audio.add_argument("--rate", type=int, choices=[16_000, 8_000], default=16_000, help="of the sound for features")
    audio.add_argument("--lexicon", type=Path, metavar="FILE", help="further words: WORD PHONE PHONE... (CMUdict's)")
    audio.add_argument(
        "--keep-silence",
        type=int,
        default=15,
        metavar="FRAMES",
        help="at either end of an utterance; -1: all (default: 15)",
    )
    audio.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), metavar="N")
    kaldi = _source(sources, "kaldi", from_kaldi, "features and alignments of Kaldi; files: benchmarks/asr/kaldi.py")
    kaldi.add_argument(
        "--stream",
        action="append",
        metavar="NAME:FILE[:OPTION...]",
        help="features, joined in order; options: cmvn=FILE, variance, deltas, splice=N (default feats:feats.scp)",
    )
    kaldi.add_argument("--ivectors", metavar="FILE[:PERIOD]", help="one a speaker or utterance, or one every 10 frames")
    kaldi.add_argument("--alignments", default="pdf.ark", metavar="FILE", help="pdf-ids; default: pdf.ark; may hold *")
    kaldi.add_argument("--states", type=int, metavar="K", help="tied states (default: as many as the alignments show)")
    kaldi.add_argument("--silence-states", metavar="N,N,...", help="pdf-ids of silence, to score speech without it")
    return p


def _source(
    sources: argparse._SubParsersAction[RaisingParser],
    name: str,
    work: Callable[[argparse.Namespace], Manifest],
    help_line: str,
) -> RaisingParser:
    p = sources.add_parser(name, help=help_line, description=help_line)
    p.set_defaults(work=work)
    p.add_argument("--train", type=Path, required=True, metavar="DIR")
    p.add_argument("--heldout", type=Path, required=name == "kaldi", metavar="DIR")
    p.add_argument("--output", type=Path, required=True, metavar="DIR")
    p.add_argument(
        "--title", help="what to call the data beside results (default: the last two names of the --train folder)"
    )
    p.add_argument("--frame-type", choices=FRAME_TYPES, default="float32", help="float16 halves the files")
    return p


def from_audio(given: argparse.Namespace) -> Manifest:
    from benchmarks.asr import audio, corpora

    if given.heldout_fraction is not None and not 0 < given.heldout_fraction < 1:
        raise RecipeError(f"--heldout-fraction {given.heldout_fraction} is not between 0 and 1")
    keep = None if given.keep_silence < 0 else given.keep_silence
    settings = audio.Settings(given.rate, given.lexicon, keep)
    parts = corpora.find(given.train, given.heldout, given.heldout_fraction)
    return audio.prepare(given.output, parts, settings, given.processes, _title(given), given.frame_type)


def from_kaldi(given: argparse.Namespace) -> Manifest:
    from benchmarks.asr.kaldi import KaldiPart, Stream

    streams = tuple(Stream.of(text) for text in given.stream or ["feats:feats.scp"])
    if len({stream.name for stream in streams} | {"ivector"}) <= len(streams):
        raise RecipeError("--stream: every stream needs a name of its own, other than ivector")
    silence = _numbers(given.silence_states)
    parts = {
        name: KaldiPart(folder, streams, given.ivectors, given.alignments)
        for name, folder in (("train", given.train), ("heldout", given.heldout))
    }
    dimensions = parts["train"].dimensions()
    writer = PreparedWriter(given.output, dimensions, given.frame_type)
    parts["train"].write(writer.train, dimensions)
    parts["heldout"].write(writer.heldout, dimensions)
    made_by = {"streams": given.stream, "ivectors": given.ivectors, "alignments": given.alignments}
    return writer.finish(_title(given), made_by, silence, given.states)


def _title(given: argparse.Namespace) -> str:
    return given.title or "/".join(given.train.resolve().parts[-2:])


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise RecipeError(f"--silence-states {text}: pdf-ids, from 0 on, with commas between them are expected")
    return [int(word) for word in words]


def main() -> None:
    try:
        given = parser().parse_args()
        manifest = given.work(given)
    except UserError as error:
        give_up(error)
    except ModuleNotFoundError as error:
        _say_what_to_install(error)
    print(summary(manifest, given.output))


def _say_what_to_install(error: ModuleNotFoundError) -> NoReturn:
    if error.name not in ("kaldiio", "soundfile", "pocketsphinx"):
        raise error
    give_up(f"{error.name} is not installed: pip install {error.name}")


if __name__ == "__main__":
    main()
