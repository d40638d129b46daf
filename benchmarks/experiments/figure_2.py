"""Figures 2 and 4: SSGD, SSGD* and DPSGD on MNIST at a large learning rate (Section 2.2), and the noise in DPSGD
(Appendix B)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.experiments import dead_units, periods
from benchmarks.experiments.experiment import Experiment, Line, Scale
from benchmarks.experiments.launch import Job, Loaded
from horovod_dpsgd.report import figures, table
from horovod_dpsgd.report.runs import Run, by_settings

LEARNERS = 5
NOISE_GRID = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
BEST_NOISE = 0.05  # of the grid, over five seeds
PERIODS = (60, 200, 500, 700)  # steps: noise falls fast at first; until 700 alpha_e is reduced (Section 2.2)
DYNAMICS = {
    **{figures.NOISE[name][0]: periods.metric(name) for name in ("noise", "noise_ssgd", "noise_2")},
    **periods.NOISE_RATIOS,
    "alpha_e / alpha": periods.of_peak_rate("effective_lr"),
    "weight variance": periods.metric("weight_variance"),
}
PAPER = {"dpsgd": "2.1", "ssgd": "fails", "ssgd-star": "5.7, tuned"}  # test error in per cent, Section 2.2


def jobs(_scale: Scale, seeds: Sequence[int], noise_grid: Sequence[float] = NOISE_GRID) -> list[Job]:
    """All runs of the figure, seed by seed; the paper's scale is that of two cores here."""
    return [job(kind, seed) for seed in seeds for kind in ("ssgd", "dpsgd", *map(ssgd_star, noise_grid))]


def ssgd_star(std: float) -> str:
    """What the job of this noise is called."""
    return f"ssgd-star-{std:g}"


def job(kind: str, seed: int) -> Job:
    """kind: ssgd; dpsgd; dpsgd-hessian, the same run, of which eq. 5 is measured too; or that of `ssgd_star`.

    All keep checkpoints, which cost little here, for what is measured along training and at its end.
    """
    instruments: dict[str, tuple[str, ...]] = {"ssgd": ("--diagnostics",), "dpsgd": ("--diagnostics",)}
    instruments["dpsgd-hessian"] = ("--diagnostics", "--set", "diagnostics_hessian=true", "--diagnostics-every", "25")
    algo: tuple[str, ...] = ("--algo", "ssgd")
    if kind.startswith("dpsgd"):
        algo = ("--algo", "dpsgd", "--topology", "complete")
    elif kind.startswith("ssgd-star-"):
        algo = ("--algo", "ssgd-star", "--noise-std", kind.removeprefix("ssgd-star-"))
    common = ("--recipe", "mnist", "--checkpoint-every", "100", "--keep", "0")
    arguments = (*common, *algo, *instruments.get(kind, ()), "--seed", str(seed))
    return Job(f"{kind}-seed{seed}", "benchmarks/cv/train.py", LEARNERS, arguments)


def report(_scale: Scale, loaded: Loaded, folder: Path) -> str:
    """Write the figures below `folder`; return the tables as Markdown."""
    groups = by_settings(loaded.runs)
    noisy = [group for group in groups if group[0].result["algo"] == "ssgd-star"]
    best = min(noisy, key=_median_error, default=None)
    shown = [run for group in groups if group not in noisy or group is best for run in group]
    lr = loaded.runs[0].result["lr"]
    figures.save(figures.figure_2(shown, lr), folder / "figure-2")
    columns = {
        "paper %": lambda group: PAPER[group[0].result["algo"]],
        "dead ReLU units %": dead_units.median_percent,
    }
    parts = [table.comparison(shown, columns)]
    if len(noisy) > 1:
        parts += ["SSGD*, the whole grid of noise:", table.comparison(run for group in noisy for run in group)]
    parts += ["![training loss, effective learning rate, weight variance](figure-2.png)"]
    return "\n\n".join(parts)


def _median_error(group: Sequence[Run]) -> float:
    """Runs without a finite loss count as 100 % wrong."""
    return float(np.median(np.nan_to_num([run.error_percent for run in group], nan=100.0)))


def report_of_noise(_scale: Scale, loaded: Loaded, folder: Path) -> str:
    """Figure 4, and its numbers, with those of Figure 2b, by periods of training."""
    runs = loaded.runs
    figures.save(figures.noise_strength(runs), folder / "figure-4")
    return "\n\n".join(
        [
            f"DPSGD, {len(runs)} runs; of each the median over the steps of a period at which it was measured, and of "
            "those the median and range.",
            table.markdown(["quantity", *periods.headings(PERIODS)], periods.rows(runs, PERIODS, DYNAMICS)),
            "![noise strengths along training](figure-4.png)",
            "The paper's: Delta(2), the noise by which DPSGD exceeds SSGD, is what reduces alpha_e up to step 700.",
        ]
    )


def _paper_line(algo: str, error: str) -> Line:
    outcome: Line = {"diverged": True} if error == "fails" else {"heldout_error_percent": error.partition(",")[0]}
    return {"network": "mlp", "algo": algo, **outcome}


FIGURE_2 = Experiment(
    "MNIST: loss, effective rate, weight variance (Section 2.2)",
    "40 min",
    jobs,
    report,
    "figure-2",
    demo=lambda: jobs("cpu", [0], [BEST_NOISE]),
    paper=[_paper_line(*entry) for entry in PAPER.items()],
)
FIGURE_4 = Experiment(
    "MNIST: noise strengths in DPSGD (Appendix B)",
    "5 min",
    lambda _scale, seeds: [job("dpsgd", seed) for seed in seeds],
    report_of_noise,
    "figure-2",
)
