"""How runs differ: by their algorithms, by the conditions these are compared under, and by their seeds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from horovod_dpsgd.algorithms import ALGORITHMS
from horovod_dpsgd.report.runs import INDIFFERENT, Run, by_settings

# What makes an algorithm; in all else that shapes a result, runs are of different conditions.
METHOD = ("algo", "topology", "noise_std", "compression", "mix_moments", "optimizer", "slow_learner", "jitter")
NAMED = ("algo", "topology", "noise_std")  # of these, what `Run.label` says already
WORDS = {"lr": "rate", "batch_size": "batch"}

Facts = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """Runs that differ in nothing but the seed: an algorithm's, under a condition ("" where there is only one)."""

    runs: Sequence[Run]
    method: str
    condition: str

    @property
    def name(self) -> str:
        return ": ".join(filter(None, (self.condition, self.method)))


class Comparison:
    """Any runs, side by side."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = list(runs)
        self._facts = {id(run): _facts(run) for run in self.runs}

    @cached_property
    def differing(self) -> list[str]:
        """The keys in which the runs differ; with a dot for a key inside a key."""
        return [key for key in self._keys if len({_text(self._facts[id(run)].get(key)) for run in self.runs}) > 1]

    @cached_property
    def common(self) -> Facts:
        """The other keys, with their value."""
        return {key: self._facts[id(self.runs[0])].get(key) for key in self._keys if key not in self.differing}

    @cached_property
    def settings(self) -> list[Setting]:
        """By condition, in the order of its values, and algorithm; what is alike in these, in the order it came in."""

        def place(group: list[Run]) -> tuple[Any, ...]:
            facts = self._facts[id(group[0])]
            return [_rank(facts.get(key)) for key in self.condition_keys], _place_of(group[0])

        groups = sorted(by_settings(self.runs), key=place)
        return [Setting(group, self.method(group[0]), self.condition(group[0])) for group in groups]

    @property
    def conditions(self) -> dict[str, list[Setting]]:
        """The settings by their condition."""
        found: dict[str, list[Setting]] = {}
        for setting in self.settings:
            found.setdefault(setting.condition, []).append(setting)
        return found

    @property
    def methods(self) -> dict[str, Run]:
        """The algorithms, each with one of its runs."""
        names = {self.method(run): run for run in self.runs}
        return dict(sorted(names.items(), key=lambda item: _place_of(item[1])))

    def method(self, run: Run) -> str:
        """The algorithm's name, with what else distinguishes it here: "DPSGD, matching, compression bfloat16"."""
        more = [key for key in METHOD if key in self.differing and key not in NAMED]
        return ", ".join([run.label, *_words(self._facts[id(run)], more)])

    def condition(self, run: Run) -> str:
        """ "batch 512, rate 0.4": the `condition_keys`."""
        return ", ".join(_words(self._facts[id(run)], self.condition_keys))

    def values(self, runs: Iterable[Run], key: str) -> list[Any]:
        """The different values that the key has in some runs, in their order; None where it is not set."""
        found = {_text(value): value for value in (self._facts[id(run)].get(key) for run in runs)}
        return sorted(found.values(), key=_rank)

    @cached_property
    def _keys(self) -> list[str]:
        return list(dict.fromkeys(key for facts in self._facts.values() for key in facts))

    @cached_property
    def condition_keys(self) -> list[str]:
        """As few keys as tell the conditions apart: one by one those that tell apart what others before did not. The
        rate is asked last: it often follows from the batch."""
        ignored = {*METHOD, *INDIFFERENT}
        candidates = [key for key in self.differing if key not in ignored]
        chosen: list[str] = []
        for key in sorted(candidates, key=lambda key: key == "lr"):
            if self._apart([*chosen, key]) > self._apart(chosen):
                chosen.append(key)
        return chosen

    def _apart(self, keys: Sequence[str]) -> int:
        """How many conditions the keys tell apart."""
        return len({tuple(_text(facts.get(key)) for key in keys) for facts in self._facts.values()})


def _facts(run: Run) -> Facts:
    """What it was trained by, and on what; the topology only where there is one."""
    given = {"data": run.result["data"], "learners": run.result["learners"]}
    return dict(_flat(run.config)) | given | {"topology": run.result["topology"]}


def _flat(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", each) for inner, each in _flat(value))
        else:
            yield key, value


def _words(facts: Facts, keys: Iterable[str]) -> list[str]:
    return [_word(key, facts.get(key)) for key in keys]


def _word(key: str, value: Any) -> str:
    """ "rate 0.4"; task and model speak for themselves."""
    if key in ("task", "model", "data"):
        return str(value)
    name = short(key)
    words = {None: f"{name} not set", True: name, False: f"no {name}"}
    return words[value] if value is None or isinstance(value, bool) else f"{name} {written(value)}"


def short(key: str) -> str:
    """ "rate" of "lr", "width" of "model_options.width" """
    return WORDS.get(key, key.rpartition(".")[2])


def _place_of(run: Run) -> tuple[int, float]:
    """Algorithms are in the order of `ALGORITHMS`, then those that are not there; SSGD* by its noise."""
    algo = run.result["algo"]
    return [*ALGORITHMS, algo].index(algo), run.config["noise_std"]


def written(value: Any) -> str:
    """A value of a recipe as text: 0.4, true, "cosine", [5, 7]; a dash where there is none."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _rank(value: Any) -> tuple[int, float, str]:
    """Orders values of any type: none, numbers, words."""
    if value is None:
        return (0, 0.0, "")
    return (1, float(value), "") if isinstance(value, int | float) else (2, 0.0, _text(value))
