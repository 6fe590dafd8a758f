"""Groups in sentences: the project's own file, what is filled in, and what a file is refused for."""

import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.lib import identities, provocations, scorers
from stages.lib.identities import CONTROL, FORMS, IdentitiesError
from stages.lib.neighbours import normalise, similarity
from stages.lib.provocations import Provocation
from stages.lib.records import Demonstration, SourcePrompt
from stages.lib.runtime import files
from stages.lib.runtime.schema import check

SOURCES = Path("data/sources")
OWN = SOURCES / "identities.yaml"

MINE = """groups:
  deaf: {dimension: disability, a_person: a deaf person, person: deaf person, people: deaf people}
  early: {dimension: control, a_person: an early riser, person: early riser, people: early risers}
templates:
  tea: "{people} like tea."
  self: "I am {a_person}."
beginnings:
  door: "The {person} next door"
"""


def written(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def own():
    """The project's own file, its sentences and its beginnings."""
    found = identities.read(OWN)
    return found, identities.sentences(found), identities.beginnings(found)


# ------------------------------------------------------------------------------- the project's own


def test_there_are_groups_of_six_dimensions_and_a_control():
    found, sentences, beginnings = own()
    count = Counter(group.dimension for group in found.groups.values())
    assert len(count) == 7
    assert min(count.values()) >= 3
    assert count[CONTROL] >= 6
    assert (len(found.templates), len(found.beginnings)) == (40, 20)
    assert len(sentences) == 40 * count.total()
    assert len(beginnings) == 20 * count.total()


def test_a_group_is_named_by_the_same_words_in_its_forms_of_one():
    for key, group in identities.read(OWN).groups.items():
        article = "an" if group.person[0].lower() in "aeiou" else "a"
        assert group.a_person == f"{article} {group.person}", key
        assert group.people != group.person, key


def test_no_two_groups_share_a_form():
    for form in FORMS:
        words = [getattr(group, form) for group in identities.read(OWN).groups.values()]
        assert len(set(words)) == len(words), form


def test_what_is_swapped_differs_only_in_the_words_of_the_group():
    # Without looking at slots: of some form of its group, each text must leave the same rest.
    found, sentences, beginnings = own()
    rests = {}
    for filled in sentences + beginnings:
        group = found.groups[filled.group]
        rest = {
            re.sub(rf"(?i)\b{re.escape(words)}\b", "_", filled.text, count=1)
            for words in (group.a_person, group.person, group.people)
        } - {filled.text}
        rests.setdefault(filled.template, []).append(rest)
    assert len(rests) == len(found.templates) + len(found.beginnings)  # ids of both, none shared
    for template, sets in rests.items():
        assert len(sets) == len(found.groups)
        assert set.intersection(*sets), template


def test_sentences_are_whole_and_beginnings_break_off():
    _, sentences, beginnings = own()
    for filled in sentences + beginnings:
        assert filled.text[0].isupper(), filled.text
        assert "  " not in filled.text
        assert not set(filled.text) & set("{}_"), filled.text
    for filled in sentences:
        assert re.fullmatch(r"[^.!?]*\.", filled.text), filled.text
    for filled in beginnings:
        assert filled.text[-1].isalpha(), filled.text
        assert 5 <= len(filled.text.split()) <= 30, filled.text  # as the graph's own beginnings


def test_no_filled_text_has_an_abusive_word():
    _, sentences, beginnings = own()
    texts = [filled.text for filled in sentences + beginnings]
    weights = scorers.scorer("words", SOURCES / "words.txt")(texts)
    assert [text for text, weight in zip(texts, weights, strict=True) if weight] == []


def test_no_template_is_negative_by_itself():
    # VADER knows `blind` as a negative word, so it is asked of the control groups only.
    _, sentences, beginnings = own()
    texts = [f.text for f in sentences + beginnings if f.dimension == CONTROL]
    shares = scorers.scorer("vader_negative", SOURCES / "words.txt")(texts)
    assert [text for text, share in zip(texts, shares, strict=True) if share] == []


def test_no_two_templates_are_alike():
    found, _, _ = own()
    texts = {**found.templates, **found.beginnings}
    for one, other in combinations(texts, 2):
        near = similarity(_rest(texts[one]), _rest(texts[other]))
        assert near < 0.3, (one, other, near)


def _rest(template):
    return normalise(re.sub(r"\{\w+\}", "", template))


def test_nothing_filled_is_like_a_prompt_of_the_graph_as_the_datasheet_says():
    prompts = [
        row
        for path in sorted((SOURCES / "prompts").glob("*.jsonl"))
        for row in files.read_lines(path, SourcePrompt)
    ]
    prompts += files.read_lines(SOURCES / "demonstrations.jsonl", Demonstration)
    plain = YAML(typ="safe").load(SOURCES / "provocations.yaml")
    provoking = [check(entry, Provocation, "") for entry in plain.values()]
    _, index = provocations.known(prompts, provoking)
    _, sentences, beginnings = own()
    nearest = max(index.nearest(normalise(f.text))[1] for f in sentences + beginnings)
    assert nearest < 0.3
    sheet = (SOURCES / "README.md").read_text(encoding="utf-8")
    assert f"shares {nearest:.2f} of its character 5-grams" in sheet


def test_the_files_header_names_every_section_and_form():
    header = "\n".join(x for x in OWN.read_text().splitlines() if x.startswith("#"))
    for word in [*identities.SECTIONS, *FORMS]:
        assert re.search(rf"(?m)^# +{word}  +\w", header), word  # a line of its own
    assert f"Dimension {CONTROL}" in header
    assert "Apache-2.0" in header


def test_the_datasheet_counts_groups_and_templates():
    sheet = " ".join((SOURCES / "README.md").read_text(encoding="utf-8").split())
    found, sentences, beginnings = own()
    count = Counter(group.dimension for group in found.groups.values())
    listed = [f"{n} of `{d}`" for d, n in count.items() if d != CONTROL]
    said = (
        f"{count.total() - count[CONTROL]} groups of people, {', '.join(listed[:-1])} and "
        f"{listed[-1]}, and {count[CONTROL]} of `{CONTROL}`"
    )
    assert said in sheet
    assert f"{len(found.templates)} sentences" in sheet
    assert f"{len(found.beginnings)} beginnings" in sheet
    assert f"{len(sentences):,} benign sentences and {len(beginnings)} beginnings" in sheet


# ------------------------------------------------------------------------------------ filling in


def test_a_form_takes_the_place_of_its_slot_and_the_first_letter_is_a_capital(tmp_path):
    found = identities.read(written(tmp_path, MINE))
    assert [(f.text, f.template, f.group, f.dimension) for f in identities.sentences(found)] == [
        ("Deaf people like tea.", "tea", "deaf", "disability"),
        ("Early risers like tea.", "tea", "early", "control"),
        ("I am a deaf person.", "self", "deaf", "disability"),
        ("I am an early riser.", "self", "early", "control"),
    ]
    assert [f.text for f in identities.beginnings(found)] == [
        "The deaf person next door",
        "The early riser next door",
    ]


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (MINE, "- [", r"mine.yaml: not YAML: while parsing"),
        (
            MINE,
            "- a",
            r"mine.yaml: must have the sections groups, templates, beginnings, not be list$",
        ),
        ("templates:", "tempaltes:", r"mine.yaml: tempaltes is no section; it takes groups, templ"),
        (
            'beginnings:\n  door: "The {person} next door"\n',
            "",
            r"mine.yaml: beginnings is missing, as in data/sources/identities.yaml$",
        ),
        (
            '  door: "The {person} next door"\n',
            "",
            r"mine.yaml: beginnings must be entries by id, as in data/sources/identities.yaml$",
        ),
        (
            '  tea: "{people} like tea."\n  self: "I am {a_person}."\n',
            "  - tea\n",
            r"mine.yaml: templates must be entries by id, as in",
        ),
        ("  self:", "  tea:", r"mine.yaml:6: 'tea' stands here a second time; rename it$"),
        ("  early:", "  deaf:", r"mine.yaml:3: 'deaf' stands here a second time; rename it$"),
        (
            "  tea:",
            "  Tea:",
            r"mine.yaml: templates: id must be a name of lower-case letters.*, not 'Tea'$",
        ),
        ("  tea:", "  7:", r"mine.yaml: templates: id must be a valid string, not 7$"),
        (
            ", people: deaf people",
            "",
            r"mine.yaml: groups.deaf.people is missing \(Several of them: deaf people\)$",
        ),
        (
            "people: deaf people",
            "poeple: deaf people",
            r"mine.yaml: groups.deaf.poeple is not a parameter of Group; did you mean 'people'\?$",
        ),
        (
            "people: deaf people",
            "people: '{people}'",
            r"mine.yaml: groups.deaf.people: '{people}' must be words, without braces or white",
        ),
        ("people: deaf people", "people: ''", r"groups.deaf.people: '' must be words, without"),
        ("people: deaf people", "people: ' '", r"groups.deaf.people: ' ' must be words, without"),
        ("people: deaf people", "people: 'deaf '", r"groups.deaf.people: 'deaf ' must be words"),
        ("people: deaf people", "people: 2", r"groups.deaf.people must be a valid string, not 2$"),
        (
            "dimension: control",
            "dimension: habits",
            r"mine.yaml: groups: none has the dimension control, which the others are compared with",
        ),
        (
            "I am {a_person}.",
            "I am here.",
            r"mine.yaml: templates.self: has no slot; name the group once, by one of {a_person}, "
            r"{person}, {people}$",
        ),
        (
            "I am {a_person}.",
            "I, {a_person}, am {a_person}.",
            r"templates.self: names the group 2 times, by {a_person}, {a_person}; leave one$",
        ),
        (
            "{person} next",
            "{persons} next",
            r"beginnings.door: {persons} is no form of a group; did you mean {person}\?$",
        ),
        (
            "{person} next",
            "{group} next",
            r"{group} is no form of a group; a group has {a_person}, {person}, {people}$",
        ),
        (
            "{person} next",
            "{dimension} next",
            r"{dimension} is no form of a group; a group has",
        ),
        ("{person} next", "{person}} next", r"door: has a brace that belongs to no slot; remove"),
        ('"I am {a_person}."', "5", r"mine.yaml: templates.self must be a valid string, not 5$"),
    ],
)
def test_a_file_that_cannot_be_filled_in_is_refused_by_file_and_key(tmp_path, old, new, message):
    assert MINE.count(old) == 1
    with pytest.raises(IdentitiesError, match=message) as refusal:
        identities.read(written(tmp_path, MINE.replace(old, new)))
    assert "\n" not in str(refusal.value)


def test_a_missing_file_is_refused(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(IdentitiesError, match=rf"^{path}: no such file; groups and templates"):
            identities.read(path)
