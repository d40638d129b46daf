"""The short runs of a user's training, started as the user starts it, and the limits they show."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from horovod_dpsgd.errors import UserError
from horovod_dpsgd.files import write_json
from horovod_dpsgd.headroom.judgement import end_loss, is_stable
from horovod_dpsgd.headroom.ladder import Recipe, ladder
from horovod_dpsgd.headroom.search import Boundary, find_boundary
from horovod_dpsgd.launching import environment
from horovod_dpsgd.processes import end_with_parent
from horovod_dpsgd.report import runs
from horovod_dpsgd.report.runs import Run
from horovod_dpsgd.training.run_log import CONFIG, RESULT

ALGORITHMS = ("ssgd", "dpsgd")
AFTER_WARMUP = 100  # steps, by default
BARE = ("--noise-std", "0", "--eval-every", "0", "--checkpoint-every", "0", "--set", "diagnostics=false")
PEAK_HELD = ("--log-every", "5", "--set", "decay=constant", "--set", "decay_epochs=[]")
WITHOUT = {"ssgd": ("--set", "compression=none", "--set", "mix_moments=false"), "dpsgd": ()}  # what it does not have
LOG_LINES = 15


@dataclass(frozen=True)
class Request:
    """launcher: the words before `python`. steps: of a run; None: the recipe's warm-up and 100."""

    script: str
    arguments: tuple[str, ...]
    launcher: str
    output: Path
    over: str = "lr"
    steps: int | None = None
    seeds: int = 3
    factor: float = 2.0
    rungs: int = 6

    def command(self, name: str, words: Sequence[str]) -> list[str]:
        start = [*shlex.split(self.launcher), sys.executable, self.script]
        return [*start, *words, *BARE, "--output", str(self.output / name), "--resume", "auto"]

    def pilot(self) -> list[str]:
        """The run that reads the recipe: the config.yaml in its folder is what the others start from."""
        return self.command("pilot", (*self.arguments, "--algo", "dpsgd", "--max-steps", "3", "--log-every", "1"))

    def probe(self, name: str, algo: str, words: Sequence[str], seed: int | str, steps: int | str) -> list[str]:
        """The recipe up to its peak rate, which is then held to the end."""
        recipe = ("--recipe", str(self.output / "pilot" / CONFIG), "--algo", algo, *WITHOUT[algo], *words)
        return self.command(name, (*recipe, "--seed", str(seed), "--max-steps", str(steps), *PEAK_HELD))


class Probe:
    """Makes the runs that the search asks for; those that exist are not made again. found: the limits.

    Raises UserError where a run fails, or `request.output` holds a probe of another training.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        _claim(request)
        self.pilot, _ = self._run("pilot", request.pilot())
        self.recipe = Recipe(self.pilot)
        self.steps = request.steps or self.recipe.warmup + AFTER_WARMUP
        if self.steps <= self.recipe.warmup:
            raise UserError(f"--steps {self.steps}: all of them are warm-up, which takes {self.recipe.warmup}")
        _say(f"{self.steps} steps a run, of which {self.recipe.warmup} are warm-up")
        self.ladder = ladder(request.over, self.recipe, self.steps, request.factor, request.rungs)
        self.seeds = [self.recipe.config["seed"] + number for number in range(request.seeds)]
        self.seen: dict[str, dict[int, list[Run]]] = {algo: {} for algo in ALGORITHMS}
        self.seconds: list[float] = []  # of the runs made now
        self.found: dict[str, Boundary] = {}
        for algo in ALGORITHMS:
            self.found[algo] = self._limits(algo)

    def stable(self, algo: str, rung: int) -> list[bool]:
        """Of the runs of `seen` there, in their order."""
        return [is_stable(run, rung, self.seen[algo]) for run in self.seen[algo][rung]]

    def _limits(self, algo: str) -> Boundary:
        """Searched again while that makes new runs: one that learnt more may change what harder ones are."""
        made = -1
        while made != self._made(algo):
            made = self._made(algo)
            found = find_boundary(partial(self._judge, algo), self.seeds, min(self.ladder), max(self.ladder))
        return found

    def _judge(self, algo: str, rung: int, seed: int) -> bool:
        here = self.seen[algo].setdefault(rung, [])
        run = next((run for run in here if run.result["seed"] == seed), None)
        if run is not None:
            return is_stable(run, rung, self.seen[algo])
        name = f"{algo}-{self.request.over}{self.ladder[rung]}-seed{seed}"
        run, seconds = self._run(name, self.request.probe(name, algo, self.ladder[rung].words, seed, self.steps))
        here.append(run)
        self.seconds += [seconds] if seconds else []
        stable = is_stable(run, rung, self.seen[algo])
        _say(f"{name}: {'stable' if stable else 'not stable'}, training loss {end_loss(run):.3g}{self._to_come()}")
        return stable

    def _made(self, algo: str) -> int:
        return sum(map(len, self.seen[algo].values()))

    def _to_come(self) -> str:
        """By the mean cost of the runs made so far; a search rarely needs fewer or more runs than this says."""
        if not self.seconds:
            return ""
        mean, seeds = sum(self.seconds) / len(self.seconds), len(self.seeds)
        made = [self._made(algo) for algo in ALGORITHMS if algo not in self.found]  # by searches not at their end
        fewest, most = (sum(max(0, each - one) for one in made) for each in (2 * seeds, 4 * seeds + 4))
        minutes = f"{fewest * mean / 60:.0f} to {most * mean / 60:.0f} minutes"
        return f" ({mean:.0f} s a run; {fewest} to {most} runs to come, {minutes})"

    def _run(self, name: str, command: list[str]) -> tuple[Run, float]:
        """The run, and the seconds it took; 0 if it was there."""
        folder, began, took = self.request.output / name, time.monotonic(), 0.0
        if not (folder / RESULT).exists():
            _say(shlex.join(command) if name == "pilot" else f"{name} ...")
            _start(command, folder.with_name(f"{name}.log"))
            took = time.monotonic() - began
        run = runs.load(folder)
        if (folder / "checkpoints").exists():  # those of many runs would take much room
            shutil.rmtree(folder / "checkpoints")
        return run, took


def _start(command: list[str], log: Path) -> None:
    """Run it to its end. Raises UserError, and prints the end of what it said, if it fails."""
    with log.open("w") as said:
        try:
            job = subprocess.Popen(
                command, env=environment(), stdin=subprocess.DEVNULL, stdout=said, stderr=said,
                preexec_fn=end_with_parent,
            )  # fmt: skip
        except OSError as error:
            raise UserError(f"{command[0]} cannot be started: {error.strerror}") from error
        status = job.wait()
    if status:
        print(*log.read_text(errors="replace").splitlines()[-LOG_LINES:], sep="\n", file=sys.stderr, flush=True)
        raise UserError(f"a run ended with status {status}; above is the end of {log}")


def _claim(request: Request) -> None:
    """Raise UserError if the folder holds a probe that was asked for otherwise, in what its runs depend on."""
    file = request.output / "request.json"
    asked = {key: value for key, value in asdict(request).items() if key in ("script", "launcher", "steps")}
    asked["arguments"] = list(request.arguments)
    before = json.loads(file.read_text()) if file.exists() else asked
    for key, value in asked.items():
        if before[key] != value:
            raise UserError(f"{request.output} holds a probe with {key} {before[key]!r}: give another --output")
    try:
        request.output.mkdir(parents=True, exist_ok=True)
        write_json(file, asked)
    except OSError as error:
        raise UserError(f"cannot write to {request.output}: {error.strerror}") from error


def _say(line: str) -> None:
    print(line, flush=True)
