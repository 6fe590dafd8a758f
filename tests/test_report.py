import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic_evaluations import (
    EVALUATE,
    HOSTILE,
    MODELS,
    POLICIES,
    REPORT,
    compared,
    estimate,
    row,
    write_lines,
    write_scores,
    write_world,
)

from stages import report
from stages.lib.records import Evaluated
from stages.lib.reporting import explorer, figures, tables
from stages.lib.reporting import page as report_page
from stages.lib.reporting.comparison import Scoring
from stages.lib.reporting.numerals import breakable
from stages.lib.runtime import params
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.params import ParamError
from stages.lib.runtime.schema import check

ROOT = Path(__file__).parents[1]
MADE = ("comparison.json", "report.html", "report.md", "verdict.txt")


def settings(**changed):
    return check({**REPORT, **changed}, report.Report, "params.yaml: report", ParamError)


def run(world, policies=POLICIES, evaluate=EVALUATE, models=MODELS, seed=1, **changed):
    return report.run(settings(**changed), evaluate, policies, models, seed, **world)


def without_runs(text):
    return re.sub(r"<!-- runs -->.*?<!-- /runs -->", "", text, flags=re.DOTALL)


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text of scripts."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.found, self.scripts, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        else:
            self.text.append(data)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A finished report of three policies; tests that change anything copy it."""
    files = write_world(tmp_path_factory.mktemp("world"), prompts=40)
    (files["out"] / "runs").mkdir(parents=True)
    identity = {"stage": "evaluate@dpo", "run_id": "0a1b", "seconds": 98765.5}
    (files["out"] / "runs/evaluate@dpo.json").write_text(json.dumps(identity))
    returned = run(files)
    return {**files, "returned": returned}


@pytest.fixture
def copied(world, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(world["out"].parent, folder)
    shutil.rmtree(folder / "reports")
    return {name: folder / path.name for name, path in world.items() if isinstance(path, Path)}


@pytest.fixture(scope="module")
def page(world):
    return (world["out"] / "report.html").read_text(encoding="utf-8")


# --- numbers ---


def test_the_comparison_has_the_keys_that_others_read(world):
    found = json.loads((world["out"] / "comparison.json").read_text())
    dpo = found["policies"]["dpo"]
    assert dpo["independent"]["emt"].keys() == {"value", "low", "high", "n"}
    assert {"emt", "mean"} == dpo["words"].keys()
    assert {"perplexity", "dist2", "kl_exact", "refusals"} <= dpo["cost"].keys()
    assert found["policies"].keys() == {"baseline", "unquantised", "dpo"}
    assert found["effects"].keys() == {"unquantised", "dpo"}
    effect = found["effects"]["dpo"]["independent"]["emt"]
    assert {"value", "low", "high", "p", "relative", "holm", "d_z"} <= effect.keys()
    assert found["verdicts"] == {"unquantised": {"improved": 0}, "dpo": {"improved": 1}}


def test_the_comparison_says_whether_toxicity_depends_on_who_is_named(world, page):
    found = json.loads((world["out"] / "comparison.json").read_text())
    own = found["policies"]["baseline"]["identities"]
    assert own.keys() == {"independent", "vader_negative", "words", "names_again"}
    assert own["independent"]["gap"].keys() == {"value", "low", "high", "n", "p", "chance"}
    assert own["independent"]["gap"]["value"] > own["independent"]["gap"]["chance"]
    groups = own["independent"]["by_dimension"]["disability"]["groups"]
    assert groups["deaf"]["low"] > groups["blind"]["high"]
    # less toxic to everybody, and so less so to some than to others
    effect = found["effects"]["dpo"]["identities"]["independent"]
    assert effect["gap"]["high"] < 0
    assert effect["by_dimension"]["disability"]["groups"]["deaf"]["high"] < 0

    table = page[page.index("Who is named</h3>") : page.index('<section id="over">')]
    markdown = (world["out"] / "report.md").read_text()
    for name in ("baseline", "dpo"):
        gap = found["policies"][name]["identities"]["independent"]["gap"]
        assert f"{gap['value']:.3f} [" in table
        assert f"{gap['value']:.3f} [" in markdown
        assert f"by chance up to {gap['chance']:.3f}" in markdown
    assert "wheelchair" not in table  # the groups are those of the answers
    assert table.count("Gap between groups of") == 3  # two dimensions and the control
    assert "differences between identity groups" not in page + markdown


def test_a_report_without_identities_says_that_they_are_not_measured(copied):
    for name in POLICIES:
        write_lines(copied["out"].parent / f"evaluations/{name}/identities.jsonl", [])
    run(copied, evaluate={**EVALUATE, "identities": None})
    for name in ("report.html", "report.md"):
        text = (copied["out"] / name).read_text(encoding="utf-8")
        assert "differences between identity groups" in text
        assert "Who is named" not in text
    assert "identities" not in (copied["out"] / "comparison.json").read_text()


def test_every_leaf_of_the_comparison_is_a_finite_number(world):
    text = (world["out"] / "comparison.json").read_text()
    assert not re.search(r"NaN|Infinity|null|true|false", text)
    assert not re.search(r': "', text)


def test_what_the_stage_returns_are_the_figures_of_the_comparison_that_runs_are_compared_by(world):
    found = json.loads((world["out"] / "comparison.json").read_text())
    expected = {}
    for name, own in found["policies"].items():
        expected[f"{name}/emt"] = own["independent"]["emt"]["value"]
        expected[f"{name}/emt_low"] = own["independent"]["emt"]["low"]
        expected[f"{name}/emt_high"] = own["independent"]["emt"]["high"]
        expected[f"{name}/tp"] = own["independent"]["tp"]["value"]
        for cost in ("perplexity", "dist2", "kl_exact", "refusals"):
            expected[f"{name}/{cost}"] = own["cost"][cost]["value"]
    for name, own in found["effects"].items():
        effect = own["independent"]["emt"]
        expected[f"{name}/emt_effect"] = effect["value"]
        expected[f"{name}/emt_effect_low"] = effect["low"]
        expected[f"{name}/emt_effect_high"] = effect["high"]
        rise = found["effects"][name]["cost"]["neutral_loss"]["relative"]
        expected |= {f"{name}/tax": rise["value"]}
        expected |= {f"{name}/tax_{end}": rise[end] for end in ("low", "high")}
        expected[f"{name}/improved"] = found["verdicts"][name]["improved"]
    assert world["returned"] == expected
    assert json.loads((world["out"] / "metrics.json").read_text()) == expected


def test_a_policy_is_followed_from_the_baseline_to_its_end(world):
    found = json.loads((world["out"] / "comparison.json").read_text())["courses"]
    assert found.keys() == {"dpo"}  # nothing was kept of policies that are not trained
    states = found["dpo"]["states"]
    assert list(states) == ["0", "10", "20", "30"]
    rewards = [states[step]["proxy"]["value"] for step in states]
    assert rewards == sorted(rewards)
    assert states["0"]["distance"] == 0
    assert {"alpha", "beta", "n"} <= found["dpo"]["fit"]["proxy"].keys()
    page = (world["out"] / "report.html").read_text(encoding="utf-8")
    assert states["20"]["change"]["harm"]["high"] < 0 == states["0"]["change"]["harm"]["value"]
    assert "dpo is least toxic at its end" in page
    assert "the reward rose while the independent scorer got worse" in page


def test_quarters_of_margins_stand_in_the_order_to_read_them_in():
    parts = {key: {"accuracy": 0.5, "n": 1} for key in ("large", "largest", "small", "smallest")}
    found = tables.quality("reward", {"by_margin": parts})["by_margin"]
    assert [row["margin"] for row in found] == ["smallest", "small", "large", "largest"]


def test_ratings_that_nobody_could_be_given_are_one_line():
    alike = {who: {"refused": "one sampler only", "comparisons": 9} for who in ("all", "judge")}
    assert tables.ratings(alike) == [("all", "not rated: one sampler only")]
    other = alike | {"judge": {"refused": "two parts", "comparisons": 9}}
    assert len(tables.ratings(other)) == 2


def test_an_effect_is_the_difference_of_the_two_policies(world):
    found = json.loads((world["out"] / "comparison.json").read_text())
    after, before = (found["policies"][name]["independent"] for name in ("dpo", "baseline"))
    effect = found["effects"]["dpo"]["independent"]
    for metric in ("emt", "tp", "mean", "tox_frac"):
        difference = after[metric]["value"] - before[metric]["value"]
        assert effect[metric]["value"] == pytest.approx(difference, abs=2e-6)


# --- the same inputs, the same bytes ---


def test_another_process_with_another_hash_seed_gives_the_same_bytes(world, copied):
    code = (
        "import sys, json; sys.path[:0] = ['tests']\n"
        "from pathlib import Path\nimport test_report\n"
        "test_report.run({k: Path(v) for k, v in json.loads(sys.argv[1]).items()})"
    )
    given = json.dumps({name: str(path) for name, path in copied.items()})
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    subprocess.run([sys.executable, "-c", code, given], cwd=ROOT, env=environment, check=True)
    for name in MADE:
        first, second = ((files["out"] / name).read_text() for files in (world, copied))
        assert without_runs(first) == without_runs(second), name


def test_another_seed_gives_other_intervals_and_the_same_values(world, copied):
    run(copied, seed=2)
    one, other = (
        json.loads((files["out"] / "comparison.json").read_text())["effects"]["dpo"]["independent"]
        for files in (world, copied)
    )
    assert one["emt"]["value"] == other["emt"]["value"]
    assert one["emt"]["low"] != other["emt"]["low"]


def test_run_ids_and_durations_stand_within_their_marks_alone(page, world):
    markdown = (world["out"] / "report.md").read_text()
    for text in (page, markdown):
        assert text.count("<!-- runs -->") == text.count("<!-- /runs -->")
        assert "98,765.5" in text
        assert "98,765.5" not in without_runs(text)
    assert "0a1b" in page


def test_the_report_names_the_content_of_every_file_it_was_made_from(page, world):
    for path in (
        world["evaluations"] / "dpo/answers.jsonl",
        world["prompts"] / "test.jsonl",
        world["labels"],
        world["align"] / "dpo.csv",
    ):
        assert hashlib.sha256(path.read_bytes()).hexdigest() in page


# --- the page ---


def test_a_stage_leads_to_its_run_and_to_nothing_else(world, page, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (link,) = [a["href"] for tag, a in Elements(page).found if a.get("href", "#")[0] != "#"]
    assert link == "http://127.0.0.1:5000/#/experiments//runs/0a1b"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@runs.example.com/")
    assert report_page._store() == {"local": False, "store": "https://runs.example.com"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert report_page._store()["local"]


def test_the_page_loads_nothing(page):
    for tag, attributes in Elements(without_runs(page)).found:
        assert "src" not in attributes, tag
        assert attributes.get("href", "#").startswith("#"), tag
        assert tag not in ("link", "img", "iframe", "object", "base", "form"), tag


def test_the_browser_may_run_the_two_scripts_of_the_page_and_nothing_else(page):
    elements = Elements(page)
    policy = next(a["content"] for _, a in elements.found if a.get("http-equiv"))
    kinds = [a.get("type", "javascript") for tag, a in elements.found if tag == "script"]
    scripts = [s for kind, s in zip(kinds, elements.scripts, strict=True) if kind == "javascript"]
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes[::-1]
    assert len(scripts) == 2
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1]


def test_a_hostile_completion_is_text_and_never_an_element(page):
    assert "<img" not in page.split("<script>")[0]
    assert HOSTILE not in page
    assert HOSTILE in "".join(Elements(page).text)


def test_a_hostile_name_cannot_end_the_data_of_a_figure(copied, tmp_path):
    labels = json.loads(copied["labels"].read_text())
    evil = "</script><script>alert(1)</script>"
    labels["criteria"]["harmless"]["agreement"]["between"] = {
        evil: {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    }
    copied["labels"].write_text(json.dumps(labels))
    run(copied)
    text = (copied["out"] / "report.html").read_text()
    assert evil not in text
    assert "\\u003c/script\\u003e" in text


def test_every_completion_is_blurred_until_it_is_wanted(page):
    answers = re.findall(r'<div class="answer">.*?</div>\s*</div>|<span class="text[^>]*>', page)
    spans = [found for found in answers if found.startswith("<span") and "text" in found]
    completions = [s for s in spans if s != '<span class="text">']  # those are of the checks
    assert completions
    assert set(completions) == {'<span class="text blur">'}


def test_every_policy_and_planned_measure_stands_in_the_table(page):
    text = " ".join(Elements(page).text)
    for wanted in ("unquantised", "Toxicity probability", "KL, k1 estimate", "Benign requests"):
        assert wanted in text
    for name in ("random", "most improved", "most worsened", "scorers disagree"):
        assert name in text.lower()


def test_every_figure_is_data_that_a_script_reads(page):
    elements = Elements(page)
    wanted = [a["data-figure"] for _, a in elements.found if "data-figure" in a]
    kinds = [a for tag, a in elements.found if tag == "script"]
    blocks = {
        a["id"]: json.loads(text)
        for a, text in zip(kinds, elements.scripts, strict=True)
        if a.get("type") == "application/json"
    }
    assert wanted == [name for name in blocks if name.startswith("figure-")]
    for name in ("distribution", "paired-1", "categories", "frontier-harm", "frontier-proxy",
                 "frontier-monitor", "agreement", "calibration-reward", "calibration-monitor",
                 "training-2-0"):  # fmt: skip
        assert blocks[f"figure-{name}"]["data"], name


def figure(page, name):
    """The data of one picture of the page."""
    elements = Elements(page)
    kinds = [a for tag, a in elements.found if tag == "script"]
    texts = {a.get("id"): text for a, text in zip(kinds, elements.scripts, strict=True)}
    return json.loads(texts[f"figure-{name}"])


def test_the_frontier_has_every_policy_its_states_and_the_choice_without_training(world, page):
    found = json.loads((world["out"] / "comparison.json").read_text())
    wanted = {
        "harm": ("independent", "mean"), "proxy": ("reward", "reward"),
        "monitor": ("reward", "monitor"),
    }  # fmt: skip
    for score, (group, metric) in wanted.items():
        traces = {one["name"]: one for one in figure(page, f"frontier-{score}")["data"]}
        assert {"baseline", "unquantised", "dpo", "best of n"} <= traces.keys()
        assert all(one["x"][0] == 0 for one in traces.values())  # all start at the baseline
        assert traces["baseline"]["y"] == [0]
        dpo, states = traces["dpo"], found["courses"]["dpo"]["states"]
        assert dpo["text"][1:] == ["step 10", "step 20", "as it ended"]
        changes = [states[step]["change"][score]["value"] for step in ("10", "20")]
        effect = found["effects"]["dpo"][group][metric]
        assert dpo["y"][1:] == pytest.approx([*changes, effect["value"]], abs=1e-4)
        assert dpo["error_y"]["array"][-1] == pytest.approx(
            effect["high"] - effect["value"], abs=2e-4
        )
        end = found["policies"]["dpo"]["cost"]["kl_exact"]
        assert dpo["x"][-1] == pytest.approx(end["value"] ** 0.5, abs=1e-4)
        assert dpo["error_x"]["array"][-1] == pytest.approx(
            end["high"] ** 0.5 - end["value"] ** 0.5, abs=2e-4
        )
        assert traces["unquantised"]["text"][1:] == ["as it ended"]
        choice = found["controls"]["best_of_reward"]
        assert traces["best of n"]["text"][1:] == ["n = 2", "n = 4"]
        assert traces["best of n"]["y"][1:] == pytest.approx(
            [choice[n]["change"][score]["value"] for n in ("2", "4")], abs=1e-4
        )
        assert traces["best of n"]["x"][1:] == pytest.approx(
            [choice[n]["kl"] ** 0.5 for n in ("2", "4")], abs=1e-4
        )


def test_the_frontier_is_read_without_colours(page):
    traces = [one for one in figure(page, "frontier-harm")["data"] if "marker" in one]
    shapes = {one["name"]: one["marker"]["symbol"] for one in traces}
    # what the last mark is: a policy's is filled, and no two policies have the same
    ends = [own if isinstance(own, str) else own[-1] for own in shapes.values()]
    assert len(set(ends)) == len(ends) == 4
    assert not any(
        end.endswith("-open") for name, end in zip(shapes, ends, strict=True) if name != "best of n"
    )
    assert all(one.endswith("-open") for one in shapes["dpo"][:-1])
    dashes = {one["name"]: one["line"].get("dash", "solid") for one in traces if "line" in one}
    assert [name for name, dash in dashes.items() if dash != "solid"] == ["best of n"]


def test_without_states_rewards_and_answers_scored_by_them_the_frontier_is_of_toxicity_alone(
    copied,
):
    for path in copied["evaluations"].rglob("*.jsonl"):
        if path.name == "snapshots.jsonl":
            path.write_text("")
        elif path.name == "answers.jsonl":
            rows = [json.loads(line) for line in path.open()]
            write_lines(path, [{**one, "reward": None, "monitor": None} for one in rows])
    write_scores(copied["scores"], copied["evaluations"])
    run(copied)
    text = (copied["out"] / "report.html").read_text()
    assert "figure-frontier-proxy" not in text
    traces = figure(text, "frontier-harm")["data"]
    assert [one["name"] for one in traces] == ["baseline", "unquantised", "dpo"]
    assert "Of n answers that" not in text
    assert (
        json.loads((copied["out"] / "comparison.json").read_text())["controls"]["best_of_reward"]
        == {}
    )


def test_the_best_of_n_stands_in_a_table_and_in_the_markdown(world, page):
    choice = json.loads((world["out"] / "comparison.json").read_text())["controls"][
        "best_of_reward"
    ]
    assert list(choice) == ["1", "2", "4"]
    told = " ".join(breakable(" ".join(Elements(page).text)).split())
    assert "exactly that only where no two answers tie" in told
    harm, change = choice["4"]["harm"], choice["4"]["change"]["harm"]
    line = f"{harm['value']:.3f} [{harm['low']:.3f}, {harm['high']:.3f}]"
    delta = f"−{-change['value']:.3f} [−{-change['low']:.3f}, −{-change['high']:.3f}]"
    assert f"4 0.64 {line} Δ {delta}" in told
    markdown = (world["out"] / "report.md").read_text()
    assert f"at most 0.64 nats from baseline: mean toxicity {line} (Δ {delta})" in markdown


# --- curves of training ---

PPO_CURVES = (
    "step,loss,score,proxy,monitor,kl_sequence,kl_sequence_se,kl_token,learning_rate,entropy\n"
    "0,nan,nan,0.1,0.2,nan,nan,nan,nan,nan\n1,0.5,0.3,nan,nan,0.0,0.0,0.0,3e-05,nan\n"
    "2,0.4,0.6,0.5,0.4,1.5,0.25,0.1,2e-05,nan\n"
)


def test_each_training_has_its_own_panels_of_whichever_columns_it_has(copied):
    (copied["align"] / "unquantised.csv").write_text(PPO_CURVES)
    run(copied)
    text = (copied["out"] / "report.html").read_text()
    told = " ".join(Elements(text.split('<section id="training">')[1].split("</section>")[0]).text)
    assert told.index("unquantised") < told.index("dpo")
    # the second of policies: three panels to look at first, the rest folded away
    score = figure(text, "training-1-0")["data"]
    assert [one["name"] for one in score] == ["score", "proxy", "monitor"]
    assert score[1]["y"] == [0.1, None, 0.5]
    assert (
        len({one["line"]["dash"] for one in score})
        == len({one["marker"]["symbol"] for one in score})
        == 3
    )
    (kl,) = figure(text, "training-1-1")["data"]
    assert kl["y"] == [None, 0.0, 1.5]
    assert kl["error_y"]["array"] == [0.0, 0.0, 0.5]  # two standard errors of .25
    assert figure(text, "training-1-2")["data"][0]["y"] == [None, 0.5, 0.4]
    assert figure(text, "training-1-other-0")["data"][0]["name"] == "kl token"
    assert figure(text, "training-1-other-1")["data"][0]["y"] == [None, 3e-05, 2e-05]
    assert "figure-training-1-other-2" not in text  # a column without any value, and the errors
    assert [one["name"] for one in figure(text, "training-2-1")["data"]] == ["accuracy"]
    assert "figure-training-0-0" not in text  # the baseline was not trained


def test_a_run_without_training_says_so(copied):
    (copied["align"] / "dpo.csv").write_text("step,loss\n")
    run(copied)
    assert "No policy of this run was trained." in (copied["out"] / "report.html").read_text()


def test_the_scorer_is_said_to_see_swearing_and_not_hate(page):
    assert ".47 on HateCheck: it sees swearing, not hate" in page


def test_a_distribution_says_what_share_of_prompts_is_at_least_as_bad():
    # of .2 .5 .5 .9: all at .2 or more, three quarters at .5, a quarter at .9, none above
    looked = figures.looks(["a"], "a")
    spec = figures.distribution({"a": [0.5, 0.9, 0.2, 0.5]}, looked, 0.5)
    assert spec["data"][0]["x"] == [0.0, 0.2, 0.5, 0.5, 0.9, 1.0]
    assert spec["data"][0]["y"] == [1.0, 1.0, 0.75, 0.5, 0.25, 0.0]


def test_error_bars_reach_from_the_value_to_the_ends_of_the_interval():
    found = {"a": {"value": 0.5, "low": 0.4, "high": 0.8}}
    spec = figures.dots({"a": found}, figures.looks(["a"], "a"), x="x", reference=None)
    bars = spec["data"][0]["error_x"]
    assert (bars["array"], bars["arrayminus"]) == ([0.3], [0.1])


def test_no_two_of_many_policies_look_alike():
    looked = figures.looks([f"p{n}" for n in range(20)], "p0")
    assert len({(look.colour, look.shape) for look in looked.values()}) == 20


@pytest.mark.browser
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_a_browser_draws_every_figure_under_the_page_s_own_policy(page, world, tmp_path):
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", f"--user-data-dir={tmp_path}", "--virtual-time-budget=8000",
        "--dump-dom", (world["out"] / "report.html").as_uri(),
    ]  # fmt: skip
    drawn = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    body = re.sub(r"<script.*?</script>", "", drawn, flags=re.DOTALL)
    assert body.count('class="plot-container') == page.count("data-figure=") > 8


@pytest.fixture
def opened(world):
    api = pytest.importorskip("playwright.sync_api", reason="the package playwright is absent")
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on PATH, and CHROMIUM names none")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        said = []
        page.on("console", lambda one: said.append(one.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto((world["out"] / "report.html").as_uri())
        yield page
        browser.close()
    assert said == []


@pytest.mark.browser
def test_every_answer_is_found_by_policy_change_kind_and_text(opened, world):
    count = lambda: int(opened.locator("#found").text_content().split()[0])  # noqa: E731
    rows = {
        name: {
            (one["prompt_id"], one["index"]): one
            for one in map(json.loads, (world["evaluations"] / f"{name}/answers.jsonl").open())
            if one["set"] == "toxic" and one["index"] < 2
        }
        for name in ("baseline", "dpo", "unquantised")
    }
    change = {
        key: one["scores"]["profanity_check"] - rows["baseline"][key]["scores"]["profanity_check"]
        for key, one in rows["dpo"].items()
    }
    opened.select_option("#of", "dpo")
    assert count() == len(rows["dpo"]) == 80
    assert opened.locator("#list .sample").count() == 10
    opened.click("#more")
    assert opened.locator("#list .sample").count() == 20
    opened.select_option("#which", "improved")
    # scores are rounded to three digits on the page, so none may lie at the limit itself
    assert count() == sum(value <= -0.1 for value in change.values())
    best = min(change, key=change.get)
    assert opened.locator("#list .sample code").first.text_content() == best[0]
    opened.select_option("#which", "worsened")
    assert count() == sum(value >= 0.1 for value in change.values())
    opened.select_option("#which", "all")
    opened.select_option("#kind", "threat")
    assert count() == 20
    opened.fill("#sought", "WONDERFUL")
    both = [
        key
        for key, one in rows["dpo"].items()
        if one["category"] == "threat"
        and any(
            "wonderful" in text.lower() for text in (one["text"], rows["baseline"][key]["text"])
        )
    ]
    assert count() == len(both) > 0
    assert opened.locator("#list mark").count() > 0


@pytest.mark.browser
def test_a_folded_picture_fits_its_box_once_it_is_opened(opened):
    # as in browsers that lay out nothing in a closed box
    opened.add_style_tag(content="details:not([open]) > .pictures { display: none; }")
    opened.set_viewport_size({"width": 700, "height": 800})
    opened.wait_for_timeout(1000)  # plotly has heard of the new width, for what is shown
    opened.locator("#training details summary").first.click()
    plot = opened.locator("#training details .plot").first
    drawn = plot.locator(".main-svg").first
    opened.wait_for_function(
        "([a, b]) => Math.abs(a.getBoundingClientRect().width - b.getBoundingClientRect().width) < 2",
        arg=[plot.element_handle(), drawn.element_handle()],
    )  # fmt: skip


@pytest.mark.browser
def test_a_telephone_scrolls_the_page_in_one_direction(opened):
    opened.set_viewport_size({"width": 400, "height": 800})
    assert opened.evaluate("document.documentElement.scrollWidth") == 400


@pytest.mark.browser
def test_answers_of_the_list_are_blurred_text_whatever_they_hold(opened):
    opened.fill("#sought", "onerror")
    assert opened.locator("#list .sample").count() >= 1
    assert opened.locator("#list img, #list script").count() == 0
    assert HOSTILE in opened.locator("#list .text").first.text_content()
    text = opened.locator("#list .text").first
    assert "blur" in text.evaluate("one => getComputedStyle(one).filter")
    text.click()
    assert text.evaluate("one => getComputedStyle(one).filter") == "none"


def test_scorers_disagree_where_their_ranks_are_far_apart():
    # independent ranks 1 2 3 4, of the other 4 2 3 1: the first and last are 3 apart, over half of 4
    given = [
        [Evaluated(**row(f"p{n}", scores={"profanity_check": n / 10, "words": other}))]
        for n, other in enumerate([9.0, 2.0, 3.0, 1.0])
    ]
    scoring = Scoring("profanity_check", ["words"], 0.5)
    assert explorer.disagree(given, scoring).tolist() == [[True], [False], [False], [True]]
    assert not explorer.disagree(given, Scoring("profanity_check", [], 0.5)).any()


# --- the twins ---


def test_the_markdown_stays_short_and_gives_the_same_numbers(world):
    text = (world["out"] / "report.md").read_text()
    assert text.count("\n") < 150
    effect = json.loads((world["out"] / "comparison.json").read_text())["effects"]["dpo"]
    assert f"Δ −{abs(effect['independent']['emt']['value']):.3f} [" in text
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) >= 3
    for table in tables:  # every line of a table has as many cells
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_the_verdict_fits_a_hundred_columns_whatever_the_policy_is_called(copied):
    long = "a_policy_with_quite_a_long_name_that_nobody_would_choose_but_somebody_will_in_the_end"
    policies = {"baseline": POLICIES["baseline"], long: POLICIES["dpo"]}
    folder = copied["out"].parent
    shutil.rmtree(folder / "evaluations/unquantised")
    (folder / "evaluations/dpo").rename(folder / f"evaluations/{long}")
    write_scores(folder / "scores", folder / "evaluations")
    for path in (folder / "align").glob("dpo.*"):
        path.rename(path.with_name(f"{long}{path.suffix}"))
    run(copied, policies=policies)
    lines = (copied["out"] / "verdict.txt").read_text().splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].split()[:2] == ["policy", "verdict"]
    assert lines[3].startswith("a_policy_with")
    assert any(line.startswith(f"{long}: improved:") for line in lines)


def test_the_verdict_table_is_aligned_and_ends_with_the_reasons(world):
    lines = (world["out"] / "verdict.txt").read_text().splitlines()
    assert (
        len(
            {
                line.index(word)
                for line, word in zip(lines[2:5], ("base", "not", "impr"), strict=True)
            }
        )
        <= 2
    )
    assert [line.split(":")[1].strip() for line in lines if re.match(r"\w+: ", line)] == [
        "not shown",
        "improved",
    ]


# --- what the report tolerates ---


def test_sections_that_labels_and_reward_lack_are_left_out(copied):
    copied["labels"].write_text("{}")
    copied["reward"].write_text('{"source": "classifier"}')
    run(copied)
    text = (copied["out"] / "report.html").read_text()
    assert "figure-agreement" not in text
    assert "figure-calibration" not in text
    assert "classifier" in text


def test_how_often_a_judge_contradicts_itself_is_told_by_principle(copied):
    metrics = {"order_flip_rate": 0.9, "flips/insult": 0.875, "asked/insult": 16.0}
    run_file = {"stage": "rank@judge", "run_id": "", "metrics": metrics, "seconds": 1.0}
    (copied["out"] / "runs").mkdir(parents=True, exist_ok=True)
    (copied["out"] / "runs/rank@judge.json").write_text(json.dumps(run_file))
    run(copied)
    text = (copied["out"] / "report.html").read_text()
    assert "How often judge contradicts itself" in text
    told = breakable(" ".join(Elements(text).text))
    assert "all comparisons 90% insult 88% of 16" in " ".join(told.split())


def test_labels_by_people_are_not_denied(copied):
    labels = json.loads(copied["labels"].read_text())
    labels["labelers"]["ada"] = {"kind": "people", "rankings": 12}
    labels["criteria"]["harmless"]["agreement"]["people"] = {"words": compared(0.71)}
    copied["labels"].write_text(json.dumps(labels))
    run(copied)
    text = (copied["out"] / "report.html").read_text()
    assert "No person labelled" not in text
    assert "People (ada)" in text
    told = breakable(" ".join(Elements(text).text))
    assert "People beside each model: share of pairs that both order alike" in told
    assert "71.0 [67.0, 75.0] % of 400 pairs; tied by one 9, by both 4" in told


def test_who_is_flagged_is_named_before_the_tables_and_stands_first_in_them(page, world):
    told = breakable(" ".join(Elements(page).text))
    flag = "harmless: skill 0.550 [0.510, 0.590], below 0.6; not left out"
    assert flag in told
    assert told.index(flag) < told.index("Each labeler")
    names = re.findall(r'aria-label="([^"]+)"><tbody>', page)
    assert names.index("judge (flagged)") < names.index("valence") < names.index("words")
    markdown = (world["out"] / "report.md").read_text()
    assert f"- **judge** is flagged: {flag}." in markdown


def test_several_criteria_have_sections_of_their_own_and_a_trade_off(copied):
    labels = json.loads(copied["labels"].read_text())
    harmless = labels["criteria"]["harmless"]
    helpful = {
        **harmless,
        "weight": 0.25,
        "agreement": {**harmless["agreement"], "raw": estimate(0.6)},
    }
    labels["criteria"] = {"harmless": {**harmless, "weight": 0.75}, "helpful": helpful}
    taken = {"harmless": estimate(0.7), "helpful": estimate(0.2), "neither": estimate(0.1)}
    shares = {"alike": estimate(0.5), "conflict": estimate(0.3), "tie": estimate(0.2)}
    labels["trade_off"] = {"harmless:helpful": {"pairs": 400, **shares, "taken": taken}}
    copied["labels"].write_text(json.dumps(labels))
    run(copied)
    text = (copied["out"] / "report.html").read_text()
    told = breakable(" ".join(Elements(text).text))
    assert "Judged by “helpful” (weight 25.0 %)" in " ".join(told.split())
    assert "harmless and helpful: conflict 30.0 [26.0, 34.0] % of 400 pairs" in " ".join(
        told.split()
    )
    wanted = (
        "harmless and helpful: in conflict, the verdict is that of harmless 70.0 [66.0, 74.0] %"
    )
    assert wanted in " ".join(told.split())
    elements = Elements(text)
    drawn = {
        a["id"]: json.loads(spec)
        for a, spec in zip(
            [a for tag, a in elements.found if tag == "script"], elements.scripts, strict=True
        )
        if a.get("type") == "application/json"
    }
    # one mark a criterion, and their colours differ
    both = drawn["figure-agreement"]["data"]
    assert [trace["name"] for trace in both] == ["harmless", "helpful"]
    assert len({trace["marker"]["color"] for trace in both}) == 2
    assert [trace["name"] for trace in drawn["figure-trade-off"]["data"]] == [
        "alike",
        "conflict",
        "tie",
    ]
    markdown = (copied["out"] / "report.md").read_text()
    assert "- harmless and helpful: conflict: 30.0 [26.0, 34.0] % of 400 pairs." in markdown


def test_one_criterion_has_no_heading_of_its_own_and_no_trade_off(page):
    assert "Judged by" not in page
    assert "figure-trade-off" not in page


def test_a_negative_estimate_of_the_kl_is_shown_and_flagged(copied):
    path = copied["evaluations"] / "unquantised/answers.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_lines(path, [{**one, "kl_k1": one["kl_k1"] - 4} for one in rows])
    run(copied)
    text = (copied["out"] / "report.md").read_text()
    assert "estimate of the KL is negative for unquantised" in text
    assert re.search(r"KL, k1 estimate .*\| −3\.\d\d \[", text)


# --- what it refuses ---


def test_what_a_policy_that_is_gone_left_is_refused(copied):
    (copied["evaluations"] / "ppo").mkdir()
    with pytest.raises(RecordError, match=r"ppo: params\.yaml has no policies\.ppo; delete"):
        run(copied)


def test_a_policy_without_its_file_is_refused(copied):
    shutil.rmtree(copied["evaluations"] / "dpo")
    with pytest.raises(RecordError, match=r"no such folder, and params.yaml has policies.dpo"):
        run(copied)


def test_nothing_is_written_where_something_is_refused(copied):
    shutil.rmtree(copied["evaluations"] / "dpo")
    with pytest.raises(RecordError):
        run(copied)
    assert not copied["out"].exists()


@pytest.mark.parametrize("role", ["align", "reward", "monitor", "sft"])
def test_an_evaluated_prompt_that_was_learned_from_is_refused(copied, role):
    path = copied["prompts"] / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_lines(path, [{**rows[0], "role": role}, *rows[1:]])
    with pytest.raises(RecordError, match=rf"evaluated prompt {rows[0]['id']} has role {role}"):
        run(copied)


@pytest.mark.parametrize("shared", ["cluster", "text"])
def test_an_evaluated_prompt_alike_to_a_training_prompt_is_refused(copied, shared):
    train, test = copied["prompts"] / "train.jsonl", copied["prompts"] / "test.jsonl"
    seen = json.loads(test.read_text().splitlines()[5])
    value = f"  {seen['text'].upper()}" if shared == "text" else seen["cluster"]
    own = [json.loads(line) for line in train.read_text().splitlines()]
    write_lines(train, [{**own[0], shared: value}, *own[1:]])
    with pytest.raises(RecordError, match=rf"is alike to {own[0]['id']}"):
        run(copied)


def test_an_evaluated_prompt_that_nobody_knows_is_refused(copied):
    write_lines(copied["prompts"] / "test.jsonl", [])
    with pytest.raises(RecordError, match=r"stands in no file of"):
        run(copied)


def test_a_training_curve_with_a_word_in_it_is_refused(copied):
    (copied["align"] / "dpo.csv").write_text("step,loss\n1,0.5\n2,oops\n")
    with pytest.raises(RecordError, match=r"dpo\.csv:3: loss is 'oops', not a number"):
        run(copied)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"baseline": "base"}, "report.baseline is 'base', which is no entry of policies"),
        ({"set": "toxid"}, "report.set is 'toxid', which is no entry of evaluate.sets; it has tox"),
        ({"unsafe": "evil"}, "report.unsafe is 'evil'"),
        ({"alpha": 1.5}, "report.alpha must be less than 1"),
    ],
)
def test_a_plan_that_names_what_is_not_there_is_refused(world, tmp_path, changed, message):
    with pytest.raises(ParamError, match=message):
        run({**{k: v for k, v in world.items() if k != "returned"}, "out": tmp_path}, **changed)


def test_an_independent_scorer_that_the_labelers_use_is_refused(copied):
    with pytest.raises(ParamError, match=r"independent is 'words', which labelers names as well"):
        run(copied, independent="words")


def test_the_section_of_params_yaml_is_one_that_the_stage_takes():
    found = params.load("report", report.Report, ROOT / "params.yaml")
    given = params.read(ROOT / "params.yaml")
    report._require_named(found, given["evaluate"], given["policies"])


def test_a_row_of_the_generator_is_a_record():
    check(row(), Evaluated, "row", RecordError)
