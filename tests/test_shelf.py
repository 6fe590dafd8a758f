import random

import pytest
from label_world import completion, prompt

from stages.lib.records import Completion, Prompt
from stages.lib.runtime.files import RecordError
from stages.lib.shelf import Shelf


def shelved(prompts, completions):
    shelf = Shelf(Prompt, Completion)
    shelf.add(0, [(f"p:{n}", Prompt(**prompt(n, "align"))) for n in prompts], what="prompt")
    shelf.add(
        1,
        [(f"c:{n}.{k}", Completion(**completion(n, k))) for n, k in completions],
        what="completion",
    )
    return shelf


def test_records_come_back_by_prompt_and_within_one_in_the_order_they_came():
    numbers = [n for n in range(12) for _ in range(3)]
    given = [(n, k) for k in (2, 0, 1) for n in random.Random(1).sample(range(12), 12)]
    found = list(shelved(range(12), given).by_prompt())
    assert [name for name, _ in found] == sorted({f"p{n}" for n in numbers})
    for name, (own, answers) in found:
        assert [one.id for _, one in own] == [name]
        assert [(where, one.index) for where, one in answers] == [
            (f"c:{name[1:]}.{k}", k) for k in (2, 0, 1)
        ]


def test_what_comes_back_is_what_was_given():
    given = Completion(**completion(1, 0) | {"text": "é \u2028 \\n", "logp": -0.1 - 0.2})
    shelf = Shelf(Completion)
    shelf.add(0, [("x:1", given)])
    assert list(shelf.each(0)) == [given]


def test_the_second_of_two_equal_ids_is_named():
    with pytest.raises(
        RecordError, match=r"^c:1\.0: completion p1#0 occurs twice; ids must differ$"
    ):
        shelved([1], [(1, 0), (1, 0)])


def test_the_first_record_of_a_prompt_that_there_is_not_is_found():
    assert shelved([1], [(1, 0)]).stray(1, of=0) is None
    where, one = shelved([1], [(1, 0), (9, 0), (3, 0)]).stray(1, of=0)
    assert (where, one.id) == ("c:9.0", "p9#0")
