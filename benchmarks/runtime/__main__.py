"""Predict a cluster, check the model, and see how fast learners agree.

    python -m benchmarks.runtime predict --measurements runs/comm --model-bytes 98MB --compute 0.25 --per-node 8
    python -m benchmarks.runtime predict --measurements results/comm/raw --link 25gbit --jitter 0.2 --learners 2..512
    python -m benchmarks.runtime validate --measurements results/comm/raw
    python -m benchmarks.runtime mixing --learners 2..4096
    python -m benchmarks.runtime delays

Measurements are what `python benchmarks/comm/run.py` leaves (runs/comm; between two hosts of one's own, with --hosts,
runs/comm-hosts: give both folders). Tables, CSV and plots go to --output.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.comm import arguments
from benchmarks.runtime import documents, fit, plots, validate
from benchmarks.runtime import predict as predicting
from benchmarks.runtime.costs import Cost
from benchmarks.runtime.fit import Fitted, Lines
from benchmarks.runtime.predict import Question
from benchmarks.runtime.steps import with_link
from horovod_dpsgd.command_line import RaisingParser, amount, count, give_up
from horovod_dpsgd.errors import UserError
from horovod_dpsgd.topology import TOPOLOGIES

PROGRAM = "python -m benchmarks.runtime"
UNITS = {"k": 1e3, "m": 1e6, "g": 1e9}
MOST_LEARNERS = 2**20
DELAYED, STEPS_AFTER = (64, 4.0), (1, 2, 3, 4, 6, 8, 12, 20)
JITTERS, JITTERED = (0.1, 0.5, 1.0), (2, 4, 16, 64, 256, 1024, 4096)


def main() -> None:
    try:
        given = _parser().parse_args()
        given.run(given)
    except (UserError, ValueError) as error:
        give_up(error, PROGRAM)


def _predict(given: argparse.Namespace) -> None:
    fitted, link = _cluster(_read(given.measurements), given)
    question = Question(given.compute, given.model_bytes, given.learners)
    found = predicting.predict(fitted.cluster, question)
    parts = [f"# Predicted: {predicting.heading(question, link)}", predicting.markdown(found)]
    if given.jitter:
        jittered = replace(question, jitter=given.jitter)
        late = predicting.predict(fitted.cluster, jittered)
        parts += [f"## With random delays of {100 * given.jitter:g}% on average", predicting.markdown(late)]
        found += late
    parts += ["## What the model was told", predicting.numbers(fitted), LIMITS]
    _write(given.output, "prediction.md", "\n\n".join(parts))
    _write(given.output, "prediction.csv", predicting.as_csv(found), say=False)
    plots.save(plots.scaling(found, predicting.heading(question, link)), given.output / "prediction")
    _where(given.output)


def _cluster(measured: list[Lines], given: argparse.Namespace) -> tuple[Fitted, str]:
    """The cluster, and its link in words."""
    known = any(each.name == f"{fit.BETWEEN}-{given.link}" for each in measured)
    rate = None if known else _rate(given.link)
    fitted = fit.cluster(measured, given.per_node, None if rate else given.link, need_link=rate is None)
    found = replace(fitted.cluster, cores=given.cores or fitted.cluster.cores)
    if given.spare_core:
        found = replace(found, driving=0.0, background=1.0, overlap=1.0)
        spared = ("Horovod's thread", "driving messages")
        sources = {what: where for what, where in fitted.sources.items() if what not in spared}
        assumed = [*fitted.assumed, "a core to spare: driving messages and Horovod's thread cost no computation"]
        fitted = Fitted(found, sources, assumed)
    if rate is None:
        return replace(fitted, cluster=found), f"the link of {fitted.sources['a link']}"
    cost = Cost(given.latency, 8 / rate)
    fitted.assumed.append(f"a link of {given.link}, fully used, and {given.latency:g} s for a message to start")
    sources = {what: where for what, where in fitted.sources.items() if what != "a link"}
    return Fitted(with_link(found, cost), sources, fitted.assumed), f"a link of {given.link}"


def _rate(link: str | None) -> float | None:
    """Bits a second of "25gbit", as tc writes them; None for the name of a measurement."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg])bit", link or "")
    return float(match[1]) * UNITS[match[2]] if match else None


def _validate(given: argparse.Namespace) -> None:
    measured = _read(given.measurements)
    compared = validate.compare(measured)
    left_out = validate.left_out(measured)
    text = "\n\n".join(
        [
            "# The model beside what was measured",
            HOW_COMPARED,
            documents.errors(compared),
            "## Steps",
            documents.steps(compared),
            "Nothing is predicted for:\n\n" + "\n".join(f"* {each}" for each in left_out) if left_out else "",
        ]
    )
    _write(given.output, "validation.md", text)
    _write(given.output, "validation.csv", _as_csv(compared), say=False)
    plots.save(plots.agreement(compared), given.output / "validation")
    _where(given.output)


def _as_csv(compared: list[validate.Compared]) -> str:
    lines = ["file,what,learners,bytes,measured,fitted,held_out,error_fitted,error_held_out"]
    for each in compared:
        held_out = "" if each.held_out is None else f"{each.held_out:.5g}"
        first, second = each.errors
        errors = f"{first:.4f},{'' if second is None else f'{second:.4f}'}"
        where = f'{each.file},"{each.what}",{each.learners},{each.nbytes}'
        lines.append(f"{where},{each.measured:.5g},{each.fitted:.5g},{held_out},{errors}")
    return "\n".join(lines) + "\n"


def _mixing(given: argparse.Namespace) -> None:
    names = list(TOPOLOGIES)
    parts = [
        "# Mixing at scale",
        MIXING,
        documents.agreement(names, given.learners, given.per_node),
    ]
    if given.measurements:
        parts += ["## Beside real training", CONSENSUS, documents.measured_agreement(_read(given.measurements))]
    _write(given.output, "mixing.md", "\n\n".join(parts))
    plots.save(plots.mixing_at_scale(names, given.learners, given.per_node), given.output / "mixing")
    _where(given.output)


def _delays(given: argparse.Namespace) -> None:
    n, late = DELAYED
    topologies = ["matching", "ring", "complete"]
    parts = [
        "# Delays and waiting",
        JITTER,
        documents.jitter(JITTERS, JITTERED, topologies),
        f"## One of {n} learners is {late:g} computations late, once",
        DELAY,
        documents.delay(n, late, STEPS_AFTER),
    ]
    _write(given.output, "delays.md", "\n\n".join(parts))
    _where(given.output)


def _read(folders: list[Path]) -> list[Lines]:
    return [lines for folder in folders for lines in fit.read(folder)]


def _write(folder: Path, name: str, text: str, say: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text.rstrip() + "\n")
    if say:
        print(text.rstrip())


def _where(folder: Path) -> None:
    print(f"\nWritten to {folder}")


def numbers_of_learners(text: str) -> tuple[int, ...]:
    """ "2..64": the powers of two from one to the other; "6,12,24": these."""
    if match := re.fullmatch(r"(\d{1,7})\.\.(\d{1,7})", text):
        first, last = int(match[1]), int(match[2])
        found = tuple(2**k for k in range(21) if first <= 2**k <= last)
    elif re.fullmatch(r"\d{1,7}(,\d{1,7})*", text):
        found = tuple(sorted({int(each) for each in text.split(",")}))
    else:
        found = ()
    if not found or found[0] < 2 or found[-1] > MOST_LEARNERS:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers of learners such as 2..4096 or 6,12,24")
    return found


def _positive(text: str) -> float:
    found = amount(text)
    if found == 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be above 0")
    return found


def _parser() -> RaisingParser:
    parser = RaisingParser(PROGRAM, description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="predict | validate | mixing | delays")
    p = _command(commands, "predict", _predict, "step time and scaling efficiency of each algorithm")
    _measurements(p)
    p.add_argument("--model-bytes", type=arguments.weights_size, default="98MB", help="(%(default)s, ResNet-50)")
    p.add_argument("--compute", type=_positive, required=True, metavar="SECONDS", help="of a step of one learner alone")
    p.add_argument("--learners", type=numbers_of_learners, default="2..4096", help="default: %(default)s")
    p.add_argument("--per-node", type=count, default=1, help="learners of a node (default: %(default)s)")
    p.add_argument("--cores", type=count, help="or GPUs of a node (default: those of the measurements)")
    p.add_argument("--link", metavar="NAME_OR_RATE", help="1gbit: as measured, if it was; or a rate")
    p.add_argument("--latency", type=amount, default=2e-5, metavar="SECONDS", help="of a rate (%(default)s)")
    p.add_argument("--jitter", type=amount, default=0.0, metavar="SIGMA", help="as of training")
    p.add_argument("--spare-core", action="store_true", help="as with GPUs: communication slows no computation")
    p = _command(commands, "validate", _validate, "the model beside every measurement")
    _measurements(p)
    p = _command(commands, "mixing", _mixing, "spectral gap and consensus of each topology")
    _measurements(p, required=False)
    p.add_argument("--learners", type=numbers_of_learners, default="2..4096", help="default: %(default)s")
    p.add_argument("--per-node", type=count, default=8, help="of hierarchical (default: %(default)s)")
    _command(commands, "delays", _delays, "waiting under jitter, and how one delay spreads")
    return parser


def _command(
    commands: argparse._SubParsersAction[RaisingParser],
    name: str,
    run: Callable[[argparse.Namespace], None],
    words: str,
) -> RaisingParser:
    p = commands.add_parser(name, help=words, description=words)
    p.set_defaults(run=run)
    p.add_argument("--output", type=Path, default=Path("runs/runtime/results"), metavar="DIR", help="%(default)s")
    return p


def _measurements(p: argparse.ArgumentParser, required: bool = True) -> None:
    p.add_argument("--measurements", type=Path, nargs="+", required=required, metavar="DIR", help="of JSON lines")


LIMITS = (
    "The model knows no congestion between nodes: every node's link is its own, and the network behind it is as fast "
    "as all links together. Between two nodes it was checked with two learners, and inside one with up to 16 "
    "(validation.md); beyond that it is arithmetic. Efficiency is of samples a second; how many samples a target "
    "needs is another matter, the more so for AD-PSGD where its network has no time for all averages."
)
HOW_COMPARED = (
    "An error of +10% means that 10% too much was predicted. `fitted`: numbers come from the files compared with, so "
    "that what is left is the model's form and the measurements' scatter. `held out`: they come from other files "
    "(an exchange of n learners from those of other n; of a limited link from the unlimited one and the rate; steps "
    "from exchanges)."
)
MIXING = (
    "Spectral gap, 1 - sqrt(second eigenvalue of E[T'T]); and the variance between learners over that of one update's "
    "noise, once it has settled. `exponential` has a small gap for a single step, as one direction is left alone, but "
    "log2(n) steps average exactly; its noise stays as near as that of matchings. Of n without a closed form, matrices."
)
CONSENSUS = (
    "DPSGD on MNIST at a small rate (`python benchmarks/runtime/consensus.py`). Gradients also pull learners together, "
    "which the prediction leaves out."
)
JITTER = (
    "A step computes for 1 + s E, E exponential of mean 1 (`--jitter s`); the mean step, in times of a computation "
    "without delay, communication left out. DPSGD needs of its partners what they had a step ago, which is slack."
)
DELAY = "Simulated, and in brackets by the mean-field formula of spread_of_delay.py; random matchings, equal steps."


if __name__ == "__main__":
    main()
