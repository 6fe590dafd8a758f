"""Up-voted answers to questions, StackExchange form, as pairs for preference-model pretraining.

Two forms of row are read, which may stand in one file: a post, question or answer, as in the sites'
data dump; and a question with its scored answers, as in HuggingFaceH4/stack-exchange-preferences.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NoReturn
from urllib.parse import urlsplit

from pydantic import model_validator

from stages.lib import order
from stages.lib.importers import READERS, Row
from stages.lib.preferences.html_text import text_of
from stages.lib.records import Message, Name, Pair, Role, Text
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.schema import Strict, check

CRITERION = "helpful"
"""What a vote up says: on these sites, 'this answer is useful'."""


class Post(Strict):
    """A question or an answer; what else a row has is not read."""

    site: Name
    id: int
    type: Literal["question", "answer"]
    parent_id: int | None
    """Of an answer: its question."""
    accepted_answer_id: int | None
    """Of a question: the answer that its author accepted."""
    score: int
    """Votes up minus votes down."""
    title: str | None
    """Of a question."""
    body_html: Text

    @model_validator(mode="after")
    def _whole(self) -> "Post":
        if self.type == "answer" and self.parent_id is None:
            raise ValueError(f"answer {self.id} has no parent_id")
        return self


class ScoredAnswer(Strict):
    """An answer in a row of the hub's form."""

    answer_id: int
    pm_score: int
    """Already on the scale of `score_of`."""
    text: Text


class ScoredQuestion(Strict):
    """A row of the hub's form."""

    qid: int
    question: Text
    answers: list[Any]
    metadata: list[str]
    """Addresses; the second is the site's."""


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer as plain text, with its score."""

    id: str
    text: str
    score: int
    finish: Literal["stop", "length"]
    """`length`: its end was cut off."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its answers."""

    id: str
    """Site and number, by which its authors can be found."""
    site: str
    text: str
    answers: tuple[Answered, ...]

    @property
    def key(self) -> str:
        """The text but for case and white space: equal questions are on one side of every split."""
        return " ".join(self.text.casefold().split())

    @property
    def prompt(self) -> list[Message]:
        """What an assistant would be asked."""
        return [Message(role="user", content=self.text)]


@dataclass(frozen=True, slots=True)
class Gathered:
    """Questions with two or more answers, and what was left out by reason."""

    questions: list[Question]
    left_out: Counter[str]


def score_of(votes: int, *, accepted: bool) -> int:
    """Return an answer's score on the scale of Askell et al. 2021 (arXiv:2112.00861).

        round(log2(1 + votes)) + [accepted];   -1 where votes are negative, accepted or not

    0 votes give 0, 1 gives 1, 2 to 4 give 2, 5 to 10 give 3; an accepted answer of 5 votes has 4.
    """
    return -1 if votes < 0 else round(math.log2(1 + votes)) + accepted


def rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file, or of every data file under a folder, by name.

    Notes (.md) beside the data are passed over.

    Raises:
        RecordError: nothing is there, or a file is no data file.
    """
    found = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    data = [file for file in found if file.suffix != ".md"]
    if not data or not data[0].exists():
        _refuse(str(path), "no data file is there; put posts of a site into it")
    for file in data:
        reader = next((READERS[end] for end in READERS if file.name.endswith(end)), None)
        if reader is None:
            _refuse(str(file), f"must end in {', '.join(READERS)}")
        yield from reader(file)


def gather(given: Iterable[Row]) -> Gathered:
    """Join answers to their questions, in whatever order the rows stand.

    Left out are answers without their question, blank ones, and ones whose text a question has
    already; questions that are blank or have fewer than two answers then.

    Raises:
        RecordError: a row has neither form, or an id that another row has.
    """
    texts: dict[tuple[str, int], str] = {}
    answers: dict[tuple[str, int], list[Answered]] = defaultdict(list)
    accepted: dict[tuple[str, int], int | None] = {}
    posts: list[Post] = []
    seen: dict[tuple[str, int], str] = {}
    for where, _, row in given:
        if not isinstance(row, dict):
            _refuse(where, f"must be an object with named fields, not {type(row).__name__}")
        if "qid" in row:
            site, question, scored = _scored(row, where)
            place = site, question.qid
            texts[place], answers[place] = text_of(question.question), scored
        else:
            post = _picked(row, Post, where)
            place = post.site, post.id
            posts.append(post)
            if post.type == "question":
                texts[place] = text_of(f"<p>{post.title or ''}</p>{post.body_html}")
                accepted[place] = post.accepted_answer_id
        if place in seen:
            _refuse(where, f"post {place[1]} of {place[0]} is there twice, first at {seen[place]}")
        seen[place] = where
    left_out: Counter[str] = Counter()
    for post in posts:
        if post.type == "answer":
            place = post.site, post.parent_id or 0
            if place in accepted:
                score = score_of(post.score, accepted=accepted[place] == post.id)
                one = Answered(f"{post.site}:{post.id}", text_of(post.body_html), score, "stop")
                answers[place].append(one)
            else:
                left_out["answer_without_question"] += 1
    return _sound(texts, answers, left_out)


def _scored(row: dict[str, Any], where: str) -> tuple[str, ScoredQuestion, list[Answered]]:
    """Return site, question and answers of a row in the hub's form."""
    question = _picked(row, ScoredQuestion, where)
    site = urlsplit(question.metadata[1]).hostname if len(question.metadata) > 1 else None
    if not site:
        _refuse(where, "metadata must have the site's address in the second place")
    found = [_picked(answer, ScoredAnswer, where) for answer in question.answers]
    scored = [Answered(f"{site}:{a.answer_id}", text_of(a.text), a.pm_score, "stop") for a in found]
    return site, question, scored


def _sound(
    texts: dict[tuple[str, int], str],
    answers: dict[tuple[str, int], list[Answered]],
    left_out: Counter[str],
) -> Gathered:
    """Return the questions that can make pairs; count the rest."""
    kept = []
    for place, text in texts.items():
        distinct: dict[str, Answered] = {}
        for one in answers[place]:
            if not one.text:
                left_out["blank_answer"] += 1
            elif one.text in distinct:
                left_out["repeated_answer"] += 1
            else:
                distinct[one.text] = one
        if not text:
            left_out["blank_question"] += 1
        elif len(distinct) < 2:
            left_out["question_with_fewer_than_two_answers"] += 1
        else:
            site, number = place
            kept.append(Question(f"{site}:{number}", site, text, tuple(distinct.values())))
    return Gathered(kept, left_out)


def _picked(row: Any, into: type[Strict], where: str) -> Any:
    """Return the fields of a row that are read, checked."""
    if not isinstance(row, dict):
        _refuse(where, f"must be an object with named fields, not {type(row).__name__}")
    named = {key: row[key] for key in into.model_fields if key in row}
    return check(named, into, where, RecordError)


def _refuse(where: str, what: str) -> NoReturn:
    raise RecordError(f"{where}: {what}")


def first_answers(question: Question, count: int) -> tuple[Answered, ...]:
    """Return at most `count` of a question's answers, the first by hash, whatever their scores."""
    return tuple(sorted(question.answers, key=lambda a: order.by_hash(a.id))[:count])


def pairs(question: Question, role: Role, *, min_difference: int) -> list[Pair]:
    """Return a pair of any two answers whose scores are apart, the higher one first.

    Each weighs 1 / C(k, 2) with k the question's answers, so that none counts more than another
    for being answered often.

    Args:
        question: with the answers that were kept.
        role: of all its pairs.
        min_difference: of the scores, 1 or more.
    """
    weight = 1 / math.comb(len(question.answers), 2)
    return [
        _pair(question, role, *sorted(both, key=lambda a: -a.score), weight=weight)
        for both in combinations(question.answers, 2)
        if abs(both[0].score - both[1].score) >= min_difference
    ]


def _pair(
    question: Question, role: Role, chosen: Answered, rejected: Answered, *, weight: float
) -> Pair:
    return Pair(
        id=f"{chosen.id}-{rejected.id.rsplit(':', 1)[1]}",
        prompt_id=question.id,
        cluster=f"question:{order.by_hash(question.key)[:16]}",
        role=role,
        category=question.site,
        criterion=CRITERION,
        prompt=question.prompt,
        chosen_id=chosen.id,
        rejected_id=rejected.id,
        chosen=chosen.text,
        rejected=rejected.text,
        chosen_finish=chosen.finish,
        rejected_finish=rejected.finish,
        p_chosen=1.0,
        weight=weight,
        margin=float(chosen.score - rejected.score),
        votes=1,
        labelers=["upvotes"],
        junk=False,
    )


def held_out(question: Question, share: float) -> bool:
    """Whether a question is kept for measuring: by its own text, so that others move it nowhere."""
    return order.place(question.key) < share
