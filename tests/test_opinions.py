"""What models say joins what was measured: nothing is missing, everybody has one part, all is shown."""

import json
import re
import shutil

import pytest
from synthetic_evaluations import (
    CARD,
    EVALUATE,
    JUDGE,
    MODELS,
    read_lines,
    write_lines,
    write_scores,
)
from test_report import Elements, run, settings
from test_report import copied as copied
from test_report import world as world

from stages.lib.commands import compare
from stages.lib.reporting import opinions
from stages.lib.reporting.numerals import breakable
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.params import ParamError
from stages.lib.scores import Card

EVERY = {**CARD, "sets": list(EVALUATE["sets"])}


def cards(**given):
    return opinions.Opinions({name: Card(**card) for name, card in given.items()}, {})


def parts(given, evaluate=EVALUATE, **changed):
    return opinions.roles(settings(**changed), evaluate, given)


def told(files):
    text = Elements((files["out"] / "report.html").read_text(encoding="utf-8")).text
    return " ".join(breakable(" ".join(text)).split())


# --- who plays which part ---


def test_every_scorer_that_is_neither_independent_nor_a_labelers_is_a_second_opinion():
    found = parts(cards(roberta=CARD, judge=JUDGE), labelers=["vader_negative"])
    assert found.names == ["profanity_check", "vader_negative", "words", "roberta"]
    assert found.others == ["words", "roberta"]
    assert found.of("toxic") == found.names
    assert found.of("benign") == ["profanity_check", "vader_negative", "words"]
    assert found.declared["probabilities"] == {"profanity_check", "roberta"}


@pytest.mark.parametrize(
    ("given", "changed", "message"),
    [
        ({}, {"independent": "roberta"},
         r"report\.independent names 'roberta', which is neither in evaluate\.scorers nor an entry"),
        ({"judge": JUDGE}, {"independent": "judge"}, r"of scorers that scores harm; there are prof"),
        ({}, {"labelers": ["wordz"]}, r"report\.labelers names 'wordz'"),
        ({"roberta": CARD}, {"independent": "roberta"},
         r"names 'roberta', which did not score set neutral; scorers\.roberta\.sets needs toxic, n"),
        ({"roberta": {**CARD, "sets": ["benign"]}}, {"labelers": ["roberta"]},
         r"report\.labelers names 'roberta', which did not score set toxic"),
        ({"cost": CARD}, {}, r"params\.yaml: scorers\.cost: this name is taken; choose another"),
        ({"words": CARD}, {}, r"params\.yaml: scorers\.words: this name is taken"),
    ],
)  # fmt: skip
def test_a_part_that_nobody_can_play_is_refused(given, changed, message):
    with pytest.raises(ParamError, match=message):
        parts(cards(**given), **changed)


# --- every score, and no other ---


@pytest.mark.parametrize("name", MODELS)
def test_a_missing_a_second_and_a_strange_score_are_refused(copied, name):
    path = copied["scores"] / name / "scores.jsonl"
    rows = read_lines(path)
    who = (
        rf"completion {rows[0]['index']} of prompt {rows[0]['prompt_id']} \(set {rows[0]['set']}\)"
    )
    again = rf"`dvc repro score@{name}` scores what evaluate wrote"
    write_lines(path, rows[1:])
    with pytest.raises(
        RecordError, match=rf"{name}/scores\.jsonl: {who} by .* has no score; {again}"
    ):
        run(copied)
    write_lines(path, [*rows, rows[0]])
    with pytest.raises(RecordError, match=rf"{who} by \w+ has two scores; {again}"):
        run(copied)
    write_lines(path, [*rows, {**rows[0], "prompt_id": "nobody"}])
    with pytest.raises(
        RecordError, match=rf"prompt nobody .* evaluate wrote no such answer; {again}"
    ):
        run(copied)


def test_a_score_of_a_state_on_the_way_may_not_be_missing_either(copied):
    path = copied["scores"] / "roberta/scores.jsonl"
    rows = read_lines(path)
    last = next(one for one in rows if one["step"] == 20)
    write_lines(path, [one for one in rows if one != last])
    with pytest.raises(RecordError, match=r"by dpo after 20 steps has no score"):
        run(copied)


def test_what_a_removed_entry_left_is_refused_and_so_is_an_entry_without_scores(copied):
    with pytest.raises(RecordError, match=r"scores/roberta: params\.yaml has no scorers\.roberta"):
        run(copied, models={"judge": JUDGE})
    with pytest.raises(RecordError, match=r"`dvc repro score@other` makes it"):
        run(copied, models={**MODELS, "other": CARD})


def test_without_models_there_is_a_report(copied):
    shutil.rmtree(copied["scores"])
    copied["scores"].mkdir()
    run(copied, models={})
    assert "helpfulness as people or a judge would see it" in told(copied)


# --- the report ---


def test_a_second_opinion_is_shown_and_is_not_what_training_was_paid_for(copied):
    run(copied)
    text = told(copied)
    assert "Toxicity, second opinion roberta" in text
    assert "Toxicity, labelers’ scorer words" in text
    found = json.loads((copied["out"] / "comparison.json").read_text())
    dpo = found["policies"]["dpo"]
    # the world's classifier gives .9 of what the independent scorer does
    for metric in ("emt", "mean"):
        assert dpo["roberta"][metric]["value"] == pytest.approx(
            0.9 * dpo["independent"][metric]["value"], abs=1e-5
        )
    assert {"tp", "tox_frac"} <= dpo["roberta"].keys()  # a probability has a threshold
    assert "p" in found["effects"]["dpo"]["roberta"]["emt"]
    assert found["controls"]["best_of"].keys() == {"vader_negative", "words"}
    signs = text[text.index("Signs of over-optimisation") :]
    signs = signs[: signs.index("A control that needs no training")]
    assert "vader_negative" in signs
    assert "roberta" not in signs


def test_a_judges_win_rate_stands_beside_the_reward_models(copied):
    run(copied)
    found = json.loads((copied["out"] / "comparison.json").read_text())["policies"]
    for metric in ("win_rate", "win_rate_controlled"):
        assert found["dpo"]["judge"][metric]["value"] == pytest.approx(0.75, abs=0.002)
    assert found["dpo"]["judge"]["win_rate"]["n"] == 30
    assert "judge" not in found["baseline"]
    text = told(copied)
    side, judged = text.index("Preference, by the reward side"), text.index("Preference, by judge ")
    assert side < judged
    assert "mean probability over 30 answers of set benign, both orders; 50 % is no better" in text
    assert "helpfulness as people would see it" in text
    assert "it says little" not in text  # its orders disagree in a quarter of the comparisons
    markdown = (copied["out"] / "report.md").read_text()
    assert "| Answers preferred to the baseline's, judge | – | 75.0 [75.0, 75.0] % |" in markdown


def test_a_judge_that_goes_by_the_place_is_said_to_say_little(copied):
    path = copied["scores"] / "judge/identity.json"
    path.write_text(json.dumps({**JUDGE, "measures": {"order_flip_rate": 0.96}}))
    run(copied)
    said = "it prefers the same place in 96% of comparisons: it says little"
    assert told(copied).count(said) >= 2  # at its figures, and among the limits
    assert said in (copied["out"] / "report.md").read_text()


def test_a_models_card_says_what_it_is_and_what_it_cut(copied):
    run(copied)
    text = told(copied)
    assert (
        "roberta : a classifier, owner/roberta, revision 0a1b2c, licence MIT. It gives the "
        "probability of class 'toxic'. It reads the answer alone, cut at its end after 64 tokens; "
        "3 of 900 texts were cut." in text
    )
    assert "model owner/roberta revision 0a1b2c licence MIT" in text
    assert re.search(r"scores/roberta/scores\.jsonl [0-9a-f]{64}", text)


def test_a_classifier_can_be_the_scorer_of_the_verdict(copied):
    shutil.rmtree(copied["scores"])
    models = {"roberta": EVERY}
    write_scores(copied["scores"], copied["evaluations"], models)
    before = run(copied, models=models)
    chosen = {"independent": "roberta", "labelers": ["words"]}
    after = run(copied, models=models, **chosen)
    assert after["dpo/emt"] == pytest.approx(0.9 * before["dpo/emt"], abs=1e-5)
    text = told(copied)
    assert "Toxicity, independent scorer (roberta)" in text
    assert "Toxicity, second opinion profanity_check" in text
    found = json.loads((copied["out"] / "comparison.json").read_text())
    assert "identities" not in found["policies"]["dpo"]  # models do not score those
    states = found["courses"]["dpo"]["states"]
    assert states["10"]["harm"]["value"] > states["30"]["harm"]["value"]  # of states on the way too


# --- the table of experiments ---


class Written:
    """A revision whose files are those of the made-up world."""

    name = "workspace"

    def __init__(self, files):
        self.files = files

    def has(self, path):
        return True

    def read(self, path):
        if path == "params.yaml":
            return "seed: 1\n"
        return (self.files["out"].parent / path.removeprefix("data/")).read_text()


def test_policies_are_compared_by_a_model_where_it_gives_the_verdict(copied):
    shutil.rmtree(copied["scores"])
    write_scores(copied["scores"], copied["evaluations"], {"roberta": EVERY})
    chosen = {"independent": "roberta", "labelers": []}
    run(copied, models={"roberta": EVERY}, **chosen)
    entries = compare.gather([Written(copied)], "roberta")
    scoring = parts(cards(roberta=EVERY), **chosen)
    lines = compare.compare(entries, "workspace/baseline", settings(**chosen), scoring, 1)
    change = next(one["change"] for one in lines if one["policy"] == "workspace/dpo")
    found = json.loads((copied["out"] / "comparison.json").read_text())["effects"]["dpo"]
    assert change["value"] == pytest.approx(found["independent"]["emt"]["value"], abs=1e-6)
