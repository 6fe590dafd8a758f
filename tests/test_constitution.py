"""The constitution: the project's own file, and what a file of principles is refused for."""

import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.lib import constitution
from stages.lib.constitution import ConstitutionError
from stages.lib.neighbours import similarity

OWN = Path("data/sources/constitution.yaml")
TEXTS = ("choose", "critique", "revise")

ENTRY = """- id: insult
  criterion: harmless
  choose: Choose the kinder one.
  critique: Say what is unkind.
  revise: Make it kind.
"""


def written(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def test_the_projects_own_constitution_covers_every_criterion():
    count = Counter(p.criterion for p in constitution.read(OWN))
    assert count.keys() == {"harmless", "honest", "helpful"}
    assert count.total() >= 16
    assert count["harmless"] >= 10  # the default judge is asked for harmless


def test_every_principle_says_one_thing_in_a_sentence_for_a_judge_and_two_requests():
    for principle in constitution.read(OWN):
        assert re.match(r"Choose the response (that|with) ", principle.choose), principle.id
        for name in TEXTS:
            text = getattr(principle, name)
            assert text.endswith("."), principle.id
            assert text.count(".") == 1, principle.id
            assert len(text.split()) <= 24, principle.id
        assert "the response" in principle.critique, principle.id
        assert principle.revise.startswith("Rewrite the response "), principle.id


def test_principles_fit_a_text_that_goes_on_as_well_as_an_answer():
    # A judge is asked about both by the same words, so neither may be named.
    one_of_them = re.compile(r"\b(assistant|user|human|AI|answers?|continuations?|chat)\b")
    for principle in constitution.read(OWN):
        for name in TEXTS:
            assert not one_of_them.search(getattr(principle, name)), (principle.id, name)


def test_no_two_principles_are_alike():
    for one, other in combinations(constitution.read(OWN), 2):
        for name in TEXTS:
            near = similarity(_own_words(getattr(one, name)), _own_words(getattr(other, name)))
            assert near < 0.25, (one.id, other.id, name, near)


def _own_words(text):
    """A sentence without the beginning that all have in common."""
    return re.sub(r"^(Choose the response (that|with)|Rewrite the response)\b", "", text)


def test_the_files_header_names_every_field_and_criterion():
    header = "\n".join(x for x in OWN.read_text().splitlines() if x.startswith("#"))
    for word in [*constitution.Principle.model_fields, "harmless", "honest", "helpful"]:
        assert re.search(rf"\b{word}\b", header), word
    assert "Apache-2.0" in header


def test_the_datasheet_counts_the_principles():
    sheet = " ".join(Path("data/sources/README.md").read_text(encoding="utf-8").split())
    every = constitution.read(OWN)
    count = Counter(p.criterion for p in every)
    assert (
        f"{len(every)} principles: {count['harmless']} of criterion `harmless`, "
        f"{count['honest']} of `honest` and {count['helpful']} of `helpful`"
    ) in sheet


def test_the_judges_of_the_parameter_files_find_principles():
    for path in ("params.yaml", "profiles/tiny.yaml"):
        judge = YAML(typ="safe").load(Path(path))["labelers"]["judge"]
        assert constitution.read(Path(judge["guide"]), judge["criterion"])


def test_principles_come_in_the_files_order_and_of_the_criterion_asked(tmp_path):
    second = ENTRY.replace("insult", "uncertainty").replace("harmless", "honest")
    path = written(tmp_path, second + ENTRY)
    assert [p.id for p in constitution.read(path)] == ["uncertainty", "insult"]
    assert [p.id for p in constitution.read(path, "harmless")] == ["insult"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- [", r"mine.yaml: not YAML: while parsing"),
        ("", r"mine.yaml: must be a list of principles, not NoneType$"),
        ("[]", r"mine.yaml: must be a list of principles, not an empty list$"),
        ("insult: {}", r"mine.yaml: must be a list of principles, not dict$"),
        ("- be kind", r"mine.yaml: entry 1 must be .*, not 'be kind'$"),
        (ENTRY + ENTRY, r"mine.yaml: entry 2 has the id 'insult' of an earlier one; rename it$"),
        (
            ENTRY.replace("Say what is unkind.", '" "'),
            r"mine.yaml: insult.critique: is blank; a model would be asked nothing$",
        ),
        (
            ENTRY.replace("  revise: Make it kind.\n", ""),
            r"mine.yaml: insult.revise is missing \(Asks for a better one\)$",
        ),
        (
            ENTRY.replace("revise", "revize"),
            r"mine.yaml: insult.revize is not a parameter of Principle; did you mean 'revise'\?$",
        ),
        (
            ENTRY.replace("id: insult\n", "id: Insult!\n"),
            r"mine.yaml: Insult!.id must be a name",
        ),
        (
            ENTRY.replace("  choose: Choose the kinder one.", "  choose: 5"),
            r"insult.choose must be",
        ),
        (
            ENTRY.replace("- id: insult\n  criterion", "- criterion"),
            r"mine.yaml: entry 1: id is missing \(Its name in metrics and reports\)$",
        ),
        (
            ENTRY.replace("  critique: ", "  choose: Again.\n  critique: "),
            r"mine.yaml:4: 'choose' stands here a second time; rename it",
        ),
    ],
)
def test_a_file_that_is_no_constitution_is_refused_by_file_and_entry(tmp_path, text, message):
    with pytest.raises(ConstitutionError, match=message) as refusal:
        constitution.read(written(tmp_path, text))
    assert "\n" not in str(refusal.value)


def test_a_missing_file_is_refused(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConstitutionError, match=rf"^{path}: no such file; a constitution is a"):
            constitution.read(path)


def test_a_criterion_that_no_principle_has_is_refused(tmp_path):
    with pytest.raises(
        ConstitutionError,
        match=r"mine.yaml: no principle has the criterion helpful; it has harmless$",
    ):
        constitution.read(written(tmp_path, ENTRY), "helpful")
