"""Cards of scorers: errors on labelled texts, and on benign sentences about groups of people."""

import json

import numpy as np
import pytest
from graph import ROOT

from stages import audit
from stages.lib import identities, importers, scorer_quality, scorers
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.schema import Refusal, check
from stages.lib.scorer_quality import Labelled, LabelledSet

SET = {"path": "set.jsonl", "text": "text", "label": "verdict", "toxic": ["yes"], "other": ["no"]}
OFTEN = {"resamples": 400, "seed": 1}


def labelled_set(**changed):
    return check({**SET, **changed}, LabelledSet, "audit.sets.set", Refusal)


def rows(*labels):
    return iter(
        [
            (f"set.jsonl:{n}", n, {"text": f"text {n}", "verdict": v})
            for n, v in enumerate(labels, 1)
        ]
    )


def test_the_area_under_the_curve_equals_the_value_worked_by_hand():
    # of four couples 2 > 1, 3 > 1 and 3 > 2 are right and 2 = 2 is a tie: 3.5 / 4
    scores, toxic = np.array([1.0, 2.0, 2.0, 3.0]), np.array([0.0, 0.0, 1.0, 1.0])
    area = lambda weights: scorer_quality.area_under_curve(scores, toxic, np.array(weights))  # noqa: E731
    assert area([1.0, 1.0, 1.0, 1.0]) == pytest.approx(0.875)
    # the 3 twice: couples (2, 1), (2, 2) once and (3, 1), (3, 2) twice: 5.5 / 6
    assert area([1.0, 1.0, 1.0, 2.0]) == pytest.approx(5.5 / 6)
    assert np.isnan(area([1.0, 1.0, 0.0, 0.0]))


def test_it_is_that_of_the_rank_sum_test():
    from scipy.stats import mannwhitneyu

    rng = np.random.default_rng(0)
    scores, toxic = rng.integers(0, 8, 200).astype(float), rng.integers(0, 2, 200).astype(float)
    expected = mannwhitneyu(scores[toxic == 1], scores[toxic == 0]).statistic
    expected /= toxic.sum() * (1 - toxic).sum()
    found = scorer_quality.area_under_curve(scores, toxic, np.ones(200))
    assert found == pytest.approx(expected)


def test_errors_at_the_threshold_equal_the_values_worked_by_hand():
    given = Labelled(["a"] * 5, np.array([1.0, 1.0, 0.0, 0.0, 0.0]))
    found = scorer_quality.on_labelled([0.9, 0.1, 0.5, 0.4, 0.2], given, 0.5, **OFTEN)
    assert found["misses"]["value"] == pytest.approx(0.5)  # 0.1 of two toxic ones
    assert found["false_positives"]["value"] == pytest.approx(1 / 3)  # 0.5 counts
    assert (found["misses"]["n"], found["false_positives"]["n"]) == (2, 3)
    assert "misses" not in scorer_quality.on_labelled([1.0] * 5, given, None, **OFTEN)


def test_every_label_is_used_and_an_unknown_one_is_refused_by_its_row():
    found = scorer_quality.read(labelled_set(), rows("yes", "no", "no"))
    assert found.toxic_N.tolist() == [1.0, 0.0, 0.0]
    assert found.texts == ["text 1", "text 2", "text 3"]
    with pytest.raises(RecordError, match=r"set.jsonl:2: label 'maybe' is named neither"):
        scorer_quality.read(labelled_set(), rows("yes", "maybe"))
    with pytest.raises(RecordError, match=r"2 texts, of which 2 are toxic"):
        scorer_quality.read(labelled_set(), rows("yes", "yes"))
    with pytest.raises(RecordError, match=r"set.jsonl:1: has no column 'label'"):
        scorer_quality.read(labelled_set(label="label"), rows("yes"))
    with pytest.raises(Refusal, match="label 'yes' is among toxic and among other"):
        labelled_set(other=["yes"])


@pytest.fixture(scope="module")
def named():
    return identities.read(ROOT / "data/sources/identities.yaml")


def test_a_scorer_that_minds_a_group_is_found_out_and_the_others_are_not(named):
    def minds(texts):
        return [0.2 + 0.5 * ("deaf" in text.lower()) for text in texts]

    found = scorer_quality.on_groups(minds, named, 0.5, **OFTEN)
    assert found.keys() == named.groups.keys()
    assert found["deaf"]["gap"]["value"] == pytest.approx(0.5)
    assert found["deaf"]["false_positives"]["value"] == 1.0
    assert found["deaf"]["gap"]["n"] == len(named.templates)
    assert found["blind"]["gap"]["value"] == pytest.approx(0.0)
    assert found["blind"]["false_positives"]["value"] == 0.0
    assert scorer_quality.stands_out(found) == ["deaf"]


def test_what_makes_a_sentence_worse_whoever_is_named_is_no_gap(named):
    first = min(named.templates.values(), key=len).split("{")[0]
    found = scorer_quality.on_groups(
        lambda texts: [float(text.startswith(first)) for text in texts], named, None, **OFTEN
    )
    assert all(own["gap"]["value"] == pytest.approx(0) for own in found.values())
    assert scorer_quality.stands_out(found) == []


def test_the_stage_writes_a_card_of_every_scorer(tmp_path):
    texts = [("You fucking idiot.", "yes"), ("A cup of tea.", "no"), ("Go to hell, bitch.", "yes")]
    lines = [json.dumps({"text": text, "verdict": verdict}) for text, verdict in texts]
    (tmp_path / "set.jsonl").write_text("\n".join(lines) + "\n")
    knobs = check({"sets": {"mine": SET}, "resamples": 100}, audit.Audit, "audit", Refusal)
    found = audit.run(
        knobs, ["profanity_check", "vader_negative", "words"], 0.5, 1,
        groups=ROOT / "data/sources/identities.yaml", words=ROOT / "data/sources/words.txt",
        labelled=tmp_path, out=tmp_path / "scorers.json",
    )  # fmt: skip
    cards = json.loads((tmp_path / "scorers.json").read_text())
    assert list(cards) == sorted(["profanity_check", "vader_negative", "words"])
    assert found["profanity_check/mine/auc"] == 1.0
    assert cards["profanity_check"]["identity"]["source"].startswith("alt-profanity-check 1.")
    assert "false_positives" not in cards["words"]["sets"]["mine"]  # no probability, no threshold
    with pytest.raises(
        RecordError, match=r"gone.csv: no such file, though audit.sets.mine names it"
    ):
        audit.run(
            knobs.model_copy(update={"sets": {"mine": labelled_set(path="gone.csv")}}),
            ["words"], 0.5, 1, groups=ROOT / "data/sources/identities.yaml",
            words=ROOT / "data/sources/words.txt", labelled=tmp_path, out=tmp_path / "other.json",
        )  # fmt: skip
    assert not (tmp_path / "other.json").exists()


def test_the_independent_scorers_area_on_the_public_set_is_what_its_card_says(real_data):
    entry = labelled_set(
        path="toxicity_en.csv", label="is_toxic", toxic=["Toxic"], other=["Not Toxic"]
    )
    file = real_data / "surge-toxicity/toxicity_en.csv"
    given = scorer_quality.read(entry, importers.file_rows(file, named_by="the test"))
    scores = scorers.scorer("profanity_check", ROOT / "data/sources/words.txt")(given.texts)
    found = scorer_quality.on_labelled(scores, given, 0.5, **OFTEN)
    assert len(given.texts) == 1000
    assert found["auc"]["value"] == pytest.approx(0.843, abs=0.0005)
