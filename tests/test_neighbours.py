import itertools
import os
import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.lib import neighbours
from stages.lib.neighbours import clusters, grams, normalise, similarity

DATA = Path(os.environ.get("PLUMBLINE_DATA", "../shared/data"))


def by_all_pairs(ids, texts, threshold):
    """The definition, with nothing left out: compare all pairs, then connect."""
    member = {name: {name} for name in ids}
    for (one, text), (other, its) in itertools.combinations(zip(ids, texts, strict=True), 2):
        if similarity(text, its) >= threshold and member[one] is not member[other]:
            member[one] |= member[other]
            for name in member[one]:
                member[name] = member[one]
    return [min(member[name]) for name in ids]


def edited(texts, how_many, seed):
    """Texts, and copies of them with up to a third of their words replaced."""
    rng = random.Random(seed)
    words = sorted({word for text in texts for word in text.split()})
    out = list(texts)
    for _ in range(how_many):
        copy = rng.choice(texts).split()
        for at in rng.sample(range(len(copy)), rng.randint(0, len(copy) // 3)):
            copy[at] = rng.choice(words)
        out.append(" ".join(copy))
    return out


def invented(how_many, seed):
    """Sentences of 12 words out of 3,000, the early ones frequent as in a language."""
    rng = random.Random(seed)
    letters = "etaoinshrdlucmfwypvbgk"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(3000)]
    weights = [1 / rank for rank in range(1, 3001)]
    return [" ".join(rng.choices(words, weights, k=12)) for _ in range(how_many)]


@pytest.mark.parametrize(
    "text, normal",
    [
        ("  Who\tis\n\nJohn? ", "who is john"),  # case, white space, punctuation at the end
        ("“Ｗｈｏ ｉｓ Ｊｏｈｎ”", "who is john"),  # full width, curly quotation marks
        ("(who is john)…", "who is john"),  # nested ends
        ("who, is john", "who, is john"),  # punctuation within stays
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),  # folded, not only lower-cased
        ("ﬁne", "fine"),  # a ligature is two letters to NFKC
        ("What is C#?", "what is c#"),  # not the same question as the next
        ("What is C?", "what is c"),
        ("90%", "90%"),
        ("you f***", "you f***"),
        ("?!", "?!"),  # nothing else is there
        ("???", "???"),
    ],
)
def test_texts_are_normalised_as_worked_by_hand(text, normal):
    assert normalise(text) == normal


@given(st.text())
def test_normalising_twice_changes_nothing_more(text):
    assert normalise(normalise(text)) == normalise(text)


@given(st.text().filter(str.strip))
def test_a_text_that_is_not_blank_is_never_normalised_to_nothing(text):
    assert normalise(text)


def test_similarity_equals_the_value_worked_by_hand():
    # abcde bcdef cdefg | abcde bcdef cdefx: 2 shared of 4
    assert similarity("abcdefg", "abcdefx") == 2 / 4
    # six times one letter is one distinct gram, aaaaa
    assert grams("aaaaaa") == {"aaaaa"}
    assert similarity("aaaaaa", "aaaaaaaaa") == 1.0


def test_a_text_shorter_than_a_gram_is_near_only_to_itself():
    assert grams("abc") == {"abc"}
    assert similarity("abc", "abc") == 1.0
    assert similarity("abc", "abcd") == 0.0


def test_the_threshold_itself_is_near():
    assert clusters(["p", "q"], ["abcdefg", "abcdefx"], threshold=0.5) == ["p", "p"]
    assert clusters(["p", "q"], ["abcdefg", "abcdefx"], threshold=0.51) == ["p", "q"]


def test_neighbours_of_neighbours_are_one_cluster_named_by_its_smallest_id():
    # abcdefghi / cdefghijk: 5 grams each, cdefg defgh efghi shared of 7: 0.43;
    # one letter further on, bcdefghij, shares 4 of 6 with either: 0.67
    texts = ["cdefghijk", "bcdefghij", "abcdefghi", "something else"]
    assert similarity(texts[0], texts[2]) < 0.6 < similarity(texts[0], texts[1])
    assert clusters(["z", "m", "c", "a"], texts, threshold=0.6) == ["c", "c", "c", "a"]


SHORT = st.lists(st.text("ab ", min_size=1, max_size=14), max_size=12, unique=True)


@given(SHORT, st.floats(0.01, 1.0))
@settings(max_examples=300, deadline=None)
def test_clusters_equal_those_of_all_pairs(texts, threshold):
    ids = [f"p{at}" for at in range(len(texts))]
    assert clusters(ids, texts, threshold=threshold) == by_all_pairs(ids, texts, threshold)


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.8])
def test_clusters_of_edited_sentences_equal_those_of_all_pairs(threshold):
    texts = edited(invented(150, seed=1), 150, seed=2)
    ids = [f"p{at:03}" for at in range(len(texts))]
    found = clusters(ids, texts, threshold=threshold)
    assert found == by_all_pairs(ids, texts, threshold)
    assert 100 < len(set(found)) < 300  # some are near, some are not


def test_clusters_of_real_prompts_equal_those_of_all_pairs():
    folder = DATA / "rtp-prompts"
    if not folder.is_dir():
        pytest.skip(f"no {folder}; set PLUMBLINE_DATA")
    lines = [line for file in sorted(folder.glob("*.txt")) for line in file.open(encoding="utf-8")]
    texts = sorted({normalise(line) for line in lines if line.strip()})
    ids = [f"p{at:03}" for at in range(len(texts))]
    found = clusters(ids, texts, threshold=0.6)
    assert found == by_all_pairs(ids, texts, 0.6)
    assert len(texts) > 350


@pytest.mark.parametrize("evidence", [1, 2, 30, 1000])
def test_how_much_evidence_is_asked_for_changes_no_cluster(monkeypatch, evidence):
    texts = edited(invented(200, seed=3), 200, seed=4)
    ids = [f"p{at:03}" for at in range(len(texts))]
    expected = clusters(ids, texts, threshold=0.5)
    monkeypatch.setattr(neighbours, "EVIDENCE", evidence)
    assert clusters(ids, texts, threshold=0.5) == expected


@given(st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_the_order_of_texts_changes_no_cluster(rng):
    texts = edited(invented(40, seed=5), 60, seed=6)
    ids = [f"p{at:03}" for at in range(len(texts))]
    expected = dict(zip(ids, clusters(ids, texts, threshold=0.5), strict=True))
    order = list(range(len(ids)))
    rng.shuffle(order)
    mixed = [ids[at] for at in order]
    found = clusters(mixed, [texts[at] for at in order], threshold=0.5)
    assert dict(zip(mixed, found, strict=True)) == expected


def test_no_texts_have_no_clusters():
    assert clusters([], [], threshold=0.5) == []


@pytest.mark.slow
def test_a_hundred_thousand_prompts_take_less_than_three_minutes():
    texts = edited(invented(90_000, seed=7), 10_000, seed=8)
    started = time.perf_counter()
    found = clusters([f"p{at:06}" for at in range(len(texts))], texts, threshold=0.6)
    assert time.perf_counter() - started < 180
    assert 85_000 < len(set(found)) < 99_000


@given(
    st.lists(st.text("abc ", min_size=1, max_size=12), max_size=8),
    st.text("abc ", min_size=1, max_size=12),
)
def test_the_nearest_text_of_an_index_is_that_of_comparing_with_each(texts, text):
    index = neighbours.Index()
    for at, one in enumerate(texts):
        index.add(str(at), one)
    name, found = index.nearest(text)
    each = [similarity(one, text) for one in texts]
    assert found == max(each, default=0.0)
    assert name == (str(each.index(found)) if found else None)


def test_containment_is_the_share_of_a_texts_own_grams():
    # "abcdef" has abcde and bcdef, both among the six of "xxabcdefxx": 2 of 2, and alike 2 of 6.
    index = neighbours.Index()
    index.add("long", "xxabcdefxx")
    index.add("other", "abcdez")
    assert index.container("abcdef") == ("long", 1.0)
    assert index.container("abcdey") == ("long", 0.5)  # of equals the first
    assert index.nearest("abcdef") == ("long", 2 / 6)
    assert index.container("nothing") == (None, 0.0)
