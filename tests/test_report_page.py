"""The page that compares runs: what it says is what the runs hold, in a parser and in a real browser."""

import json
import subprocess
import sys
from html.parser import HTMLParser

import browser
import numpy as np
import pytest
from conftest import REPOSITORY, environment

from horovod_dpsgd.report import figures, page, runs
from horovod_dpsgd.report.compared import Comparison

RATES = {"64x": "0.4", "32x": "0.2", "16x": "0.1", "8x": "0.05", "4x": "0.025"}  # of Table 3 at CPU scale
RAW = REPOSITORY / "results/cv/raw"
KEPT = [RAW / f"vgg11-narrow-bs1024-{rate}-{algo}-seed0" for rate in RATES for algo in ("ssgd", "dpsgd")]
EVIL = "<script>document.title='run'</script>&amp;"
DYNAMICS = ("effective_lr", "noise", "noise_ssgd", "noise_2", "weight_variance", "consensus_distance")


def write_run(folder, algo="dpsgd", seed=0, error=2.5, dynamics=False, **config):
    """A run of three learners whose error is given, and whose loss is a tenth of it."""
    folder.mkdir(parents=True)
    topology = {"dpsgd": "complete", "adpsgd": "matching"}.get(algo)
    given = {"task": "mnist", "model": "mlp", "algo": algo, "optimizer": "sgd", "lr": 1.0, "batch_size": 2000} | config
    result = {
        "task": given["task"], "model": "mlp", "algo": algo, "topology": topology, "optimizer": "sgd", "learners": 3,
        "global_batch": given["batch_size"], "lr": given["lr"], "seed": seed, "data": EVIL, "steps": 50,
        "diverged": error is None, "diverged_at_step": 40 if error is None else None,
        "heldout": {"loss": error and error / 10, "error_percent": error},
        "heldout_by_learner": {"error_percent": [error and error + off for off in (0.5, 1.0, 3.0)]},
        "consensus_distance": 0.25, "samples_per_second": 2e5, "step_seconds_median": 0.004,
        "exposed_communication_seconds_median": 0.0005, "bytes_sent_per_step": 169e3, "hosts": ["a", "a", "b"],
        "staleness": {"0": 10, "1": 25, "7": 5} if algo == "adpsgd" else None, "git": "abc", "machine": "one",
        "versions": {"torch": f"2.{seed}"}, "config": given | {"topology": "complete", "seed": seed, "noise_std": 0.0},
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    lines = [{"step": 10 * i, "train_loss": 2.0 / i, "heldout_loss": 3.0 / i, "lr": 1.0} for i in range(1, 6)]
    if dynamics:
        lines += [{"step": 10 * i, **dict.fromkeys(DYNAMICS, 0.1 * i * (algo == "dpsgd"))} for i in range(1, 6)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return runs.load(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """SSGD, DPSGD of three seeds, one of which diverged, and AD-PSGD."""
    place = tmp_path_factory.mktemp("made")
    errors = (2.0, 9.0, None)
    loaded = [write_run(place / f"d{seed}", seed=seed, error=error, dynamics=True) for seed, error in enumerate(errors)]
    loaded += [write_run(place / EVIL.replace("/", "_"), "ssgd", dynamics=True), write_run(place / "a", "adpsgd")]
    return loaded


@pytest.fixture(scope="module")
def html(made):
    return page.render(made)


@pytest.fixture(scope="module")
def kept_html():
    return page.render([runs.load(folder) for folder in KEPT])


class Read(HTMLParser):
    """The elements of a page, as (tag, attributes, text directly inside), and its tables as lists of rows of cells."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open, self.tables = [], [], {}
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), ""])
        self.open.append(self.elements[-1])
        if tag == "section":
            self.section = dict(attributes)["id"]
        elif tag == "tr":
            self.tables.setdefault(self.section, []).append([])
        elif tag in ("td", "th"):
            self.tables[self.section][-1].append("")
        if tag in ("meta", "link", "br"):
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag, "elements are closed in the order in which they are opened"

    def handle_data(self, data):
        if self.open:
            self.open[-1][2] += data
        if any(element[0] in ("td", "th") for element in self.open):
            self.tables[self.section][-1][-1] += data.strip() and f" {data.strip()}"

    def all(self, *tags):
        return [element for element in self.elements if element[0] in tags]

    def rows(self, section):
        return [[cell.strip() for cell in row] for row in self.tables[section]]


def test_the_results_are_those_of_the_runs(html):
    header, ssgd, dpsgd, adpsgd = Read(html).rows("results")
    assert header[:8] == [
        "algorithm", "topology", "learners", "global batch", "rate", "diverged runs", "held-out error %",
        "held-out loss",
    ]  # fmt: skip
    assert ssgd[:8] == ["SSGD", "–", "3", "2,000", "1", "0 of 1", "2.50", "0.2500"]
    assert dpsgd[:8] == ["DPSGD", "complete", "3", "2,000", "1", "1 of 3", "9.00 2.00 – 9.00", "0.9000 0.2000 – 0.9000"]
    assert adpsgd == [
        "AD-PSGD", "matching", "3", "2,000", "1", "0 of 1", "2.50", "0.2500", "4.00", "0.50", "169 kB", "200,000",
    ]  # fmt: skip


def test_learners_staleness_settings_environment_and_runs_are_those_of_the_runs(html):
    read = Read(html)
    assert read.rows("learners")[1] == ["SSGD", "97.50", "96.00", "94.50", "97.00", "0.250"]
    assert read.rows("staleness")[1:] == [["AD-PSGD, matching", "25.0", "62.5", "0.0", "0.0", "12.5"]]
    settings = read.rows("settings")
    assert settings[:3] == [
        ["setting", "algo", "topology", "seed"], ["SSGD", "ssgd", "–", "0"],
        ["DPSGD, complete", "dpsgd", "complete", "0, 1, 2"],
    ]  # fmt: skip
    assert ["batch_size", "2000"] in settings[5:] and ["lr", "1"] in settings[5:]
    by_heading = {row[0]: row[1] for row in read.rows("environment")}
    assert by_heading["machine"] == "one"
    assert by_heading["hosts (learners on each)"] == "a (2), b (1)"
    assert by_heading["torch"] == "2.0 (3 of 5 runs) 2.1 (1 of 5 runs) 2.2 (1 of 5 runs)"
    assert ["d2", "DPSGD, complete", "2", "diverged at step 40", "50", "–", "–"] in read.rows("runs")


def test_names_are_text_and_nothing_is_asked_for(html, kept_html):
    for text in (html, kept_html):
        read = Read(text)
        assert not read.all("script", "img", "iframe", "object")
        addresses = [of[key] for _, of, _ in read.elements for key in ("src", "href", "xlink:href") if key in of]
        assert all(address.startswith("#") or address == "data:," for address in addresses)
        assert all(word not in read.all("style")[0][2] for word in ("@import", "url("))
    assert EVIL in [text for _, _, text in Read(html).all("dd")]
    assert EVIL.replace("/", "_") in [row[0] for row in Read(html).rows("runs")]


def test_tables_have_captions_and_scopes_and_figures_have_words(html, kept_html):
    for text in (html, kept_html):
        read = Read(text)
        assert len(read.all("table")) == len(read.all("caption"))
        assert all("scope" in of for _, of, _ in read.all("th"))
        names = [of["id"] for _, of, _ in read.elements if "id" in of]
        assert len(names) == len(set(names)), "an id is of one element"
        words = {of["id"]: text for _, of, text in read.all("title", "desc") if "id" in of}
        pictures = read.all("svg")
        assert pictures and all(of["role"] == "img" for _, of, _ in pictures)
        assert all(words[of["aria-labelledby"]] and words[of["aria-describedby"]] for _, of, _ in pictures)
        inside = [of["href"] for _, of, _ in read.all("a")] + [of["xlink:href"] for _, of, _ in read.all("use")]
        assert {address.removeprefix("#") for address in inside} <= set(names)
    assert "DPSGD, complete: from 3 at step 10 to 0.6 at step 50." in html


def test_what_is_not_logged_is_said_and_what_is_zero_is_not_drawn(html, kept_html):
    captions = {element[2].strip(" .\n"): element for element in Read(html).all("strong")}
    assert {"Held-out loss", "Training loss", "Effective learning rate", "Noise", "Weight variance"} <= captions.keys()
    assert "Gradient diversity" not in captions
    assert "Not logged more than once in any run: held-out error." in html
    assert html.count("Not drawn, as it is 0 throughout: SSGD.") == len(DYNAMICS)
    assert 'id="dynamics"' not in kept_html and 'id="staleness"' not in kept_html


def test_what_one_seed_of_three_has_logged_is_no_curve_of_a_median(tmp_path):
    one = page.render([write_run(tmp_path / f"one{seed}", seed=seed, dynamics=seed == 0) for seed in range(3)])
    three = page.render([write_run(tmp_path / f"three{seed}", seed=seed, dynamics=True) for seed in range(3)])
    assert ["figure-noise" in html for html in (one, three)] == [False, True]


def test_kept_results_have_a_row_for_each_setting_under_its_condition(kept_html):
    rows = Read(kept_html).rows("results")
    conditions = [row[0] for row in rows if len(row) == 1]
    assert len(KEPT) == len(rows) - 1 - len(conditions)
    assert conditions == [f"rate {rate}" for rate in sorted(RATES.values(), key=float)]
    run = json.loads((KEPT[0] / "result.json").read_text())
    at = rows.index(["rate 0.4"])
    assert rows[at + 1][0] == "SSGD" and rows[at + 1][6] == f"{run['heldout']['error_percent']:.2f}"


def test_conditions_are_named_by_the_fewest_keys_that_tell_them_apart(tmp_path):
    loaded = [
        write_run(tmp_path / f"{algo}-{batch}-{model}", algo, batch_size=batch, lr=batch / 1000, model=model)
        for algo in ("dpsgd", "ssgd")
        for batch in (4000, 2000)
        for model in ("mlp", "wide")
    ]
    compared = Comparison(loaded)
    assert compared.condition_keys == ["model", "batch_size"]  # the rate follows
    assert [setting.name for setting in compared.settings][:3] == [
        "mlp, batch 2000: SSGD", "mlp, batch 2000: DPSGD, complete", "mlp, batch 4000: SSGD",
    ]  # fmt: skip
    assert set(compared.differing) == {"algo", "topology", "batch_size", "lr", "model"}


def test_a_key_that_older_code_did_not_know_has_its_default(tmp_path):
    old = write_run(tmp_path / "old", seed=0)
    new = write_run(tmp_path / "new", seed=1, accumulate=1, mix_moments=False, betas=[0.9, 0.999])
    other = write_run(tmp_path / "other", seed=1, mix_moments=True)
    assert [len(group) for group in runs.by_settings([old, new, other])] == [2, 1]
    assert Comparison([old, other]).settings[1].method == "DPSGD, complete, mix_moments"


def test_panels_hold_the_curves_of_their_condition(tmp_path):
    loaded = [write_run(tmp_path / f"{algo}{lr}", algo, lr=lr) for lr in (0.5, 1.0) for algo in ("ssgd", "dpsgd")]
    figure, zero = figures.by_condition(Comparison(loaded), "train_loss", "training $loss")
    assert zero == []
    shown = {axes.get_title(): axes.get_lines() for axes in figure.axes}
    assert list(shown) == ["rate 0.5", "rate 1"]
    for lines in shown.values():
        assert [line.get_label() for line in lines] == ["SSGD", "DPSGD, complete"]
        np.testing.assert_allclose(lines[1].get_ydata(), [2 / i for i in range(1, 6)])
    figures.plt.close(figure)


def test_algorithms_of_one_color_are_told_apart_by_shade_and_line(tmp_path):
    methods = {name: write_run(tmp_path / name, "ssgd-star") for name in ("a", "b", "c")}
    methods["d"] = write_run(tmp_path / "d", "ssgd")
    looks = figures.styles(methods)
    assert looks["d"] == figures.STYLES["ssgd"]
    assert looks["b"]["color"] == figures.STYLES["ssgd-star"]["color"].lower()
    assert len({(look["color"], look["linestyle"]) for look in looks.values()}) == 4


def report(*words):
    command = [sys.executable, "-m", "horovod_dpsgd.report", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)


def test_the_command_writes_the_page_or_says_in_one_line_why_not(tmp_path):
    write_run(tmp_path / "run")
    done = report(tmp_path / "run", "--html", tmp_path / "new" / "page.html")
    assert done.returncode == 0
    assert "<h1>DPSGD on mnist</h1>" in (tmp_path / "new/page.html").read_text()
    refused = report(tmp_path / "run", "--html", tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.splitlines() == [
        f"python -m horovod_dpsgd.report: error: {tmp_path} cannot be written: Is a directory"
    ]


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("result.json", "[]", "a JSON object is expected"),
        ("result.json", '{"algo": "dpsgd"}', "it lacks topology, learners"),
        ("metrics.jsonl", '{"step": 1}\n{"ste', r"metrics\.jsonl is damaged"),
    ],
)
def test_files_that_are_no_run_s_are_named(name, text, complaint, tmp_path):
    write_run(tmp_path / "run")
    (tmp_path / "run" / name).write_text(text)
    with pytest.raises(runs.UserError, match=complaint):
        runs.load(tmp_path / "run")


def test_in_a_browser_all_is_there_nothing_is_asked_for_and_nothing_overflows(html, kept_html, tmp_path):
    with browser.chromium(tmp_path / "profile", 1366, 768) as opened:
        for text, rows, drawn in ((html, 3, 2 + len(DYNAMICS) + 1), (kept_html, len(KEPT), 4)):
            file = tmp_path / "page.html"
            file.write_text(text, encoding="utf-8")
            opened.get("about:blank")
            browser.requests(opened), opened.get_log("browser")
            opened.get(file.as_uri())
            assert browser.requests(opened) == [file.as_uri()]
            assert opened.get_log("browser") == []
            assert opened.title in text and "SSGD" in opened.title
            assert len(opened.find_elements("css selector", "#results tr.setting")) == rows
            wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert opened.execute_script(wide) == 0
            cut = "return [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
            assert opened.execute_script(cut) == 0
            figures_ = opened.find_elements("css selector", "figure svg")
            assert len(figures_) == drawn
            assert all(figure.is_displayed() and figure.size["height"] > 100 for figure in figures_)
            inside = (
                "return [...document.querySelectorAll('figure svg')].every(e => e.getBoundingClientRect().right"
                " <= e.parentElement.getBoundingClientRect().right)"
            )
            assert opened.execute_script(inside)
