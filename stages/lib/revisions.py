"""A policy criticises its own answers and writes them again.

The supervised half of Constitutional AI (Bai et al. 2022, arXiv:2212.08073, section 3): an answer,
a request to criticise it by a principle, the criticism, a request to revise, the revision; the next
round starts from the revision and goes by another principle. All of it is one conversation:

    user       the prompt                    a beginning is asked to be gone on with (`GO_ON`)
    assistant  the answer
    user       the principle's `critique`
    assistant  the criticism
    user       the principle's `revise`
    assistant  the revision

Nothing that a model says is edited. One that says nothing ends the rounds of its prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from stages.lib.constitution import Principle
from stages.lib.dialogue import Said, Voice, encode
from stages.lib.order import by_hash
from stages.lib.records import Completion, Demonstration, Message, Name, Prompt, Ranking, Role
from stages.lib.runtime.schema import Strict
from stages.lib.tokens import encode_prompt

GO_ON = "Here is the beginning of a text:\n\n{text}\n\nGo on with it."
AGAIN = "Begin with the same words."
"""Added to the request for a revision of a text: the model's turn then begins with them, so that
what it draws goes on with the prompt, as its first answer did."""

JUDGED: frozenset[Role] = frozenset({"validation", "test"})
"""Roles whose prompts no policy may learn from."""


class Round(Strict):
    """One criticism and one revision."""

    principle: Name
    """Id in the constitution."""
    critique: str
    revision: str | None
    """None: the criticism is blank, and no revision was asked for."""
    finish: Literal["stop", "length"] | None
    """Of the revision, as `Completion.finish`."""
    tokens: int | None
    """Likewise."""


class Trace(Strict):
    """All that was said of one prompt."""

    prompt_id: Name
    cluster: Name
    role: Role
    category: Name
    prompt: str | list[Message]
    original: str
    original_finish: Literal["stop", "length"]
    rounds: list[Round]
    final: str | None
    """The last revision; None where the answer, a criticism or a revision was blank."""


@dataclass(slots=True)
class Chain:
    """One prompt's answer and its rounds."""

    prompt: Prompt
    original: Said
    rounds: list[Round] = field(default_factory=list)

    @property
    def text(self) -> str:
        """What the next round starts from."""
        return (self.rounds[-1].revision or "") if self.rounds else self.original.text

    @property
    def goes_on(self) -> bool:
        """Whether there is a text to criticise."""
        return bool(self.text.strip())

    @property
    def final(self) -> Round | None:
        """The last round, where it ends in a text."""
        return self.rounds[-1] if self.rounds and self.goes_on else None

    @property
    def changed(self) -> bool:
        """Whether the last revision says something else than the answer, white space aside."""
        return self.final is not None and self.text.split() != self.original.text.split()

    def opening(self) -> list[Message]:
        """Return the conversation up to the text that is criticised."""
        body = self.prompt.body()
        if isinstance(body, str):
            return [_user(GO_ON.format(text=body)), _assistant(body + self.text)]
        return [*body, _assistant(self.text)]


def revise(
    voice: Voice,
    prompts: Sequence[Prompt],
    principles: Sequence[Principle],
    *,
    rounds: int,
    max_tokens: int,
    critique_tokens: int,
    label: str,
) -> list[Chain]:
    """Let a policy answer prompts and go through all rounds.

    Args:
        voice: the policy.
        prompts: what is answered, once each.
        principles: what criticism goes by, one a round.
        rounds: how many.
        max_tokens: of an answer and of a revision.
        critique_tokens: of a criticism.
        label: of the progress bars.
    """
    answers = voice.speak(
        {p.id: encode_prompt(voice.lm, p.body()) for p in prompts},
        max_tokens=max_tokens,
        label=f"{label}, answers",
    )
    chains = [Chain(p, answers[p.id]) for p in prompts]
    for number in range(rounds):
        _one_round(
            voice,
            {
                c.prompt.id: (c, principle_of(c.prompt.id, number, principles, seed=voice.seed))
                for c in chains
                if c.goes_on
            },
            number,
            max_tokens=max_tokens,
            critique_tokens=critique_tokens,
            label=f"{label}, round {number + 1}",
        )
    return chains


def _one_round(
    voice: Voice,
    going: dict[str, tuple[Chain, Principle]],
    number: int,
    *,
    max_tokens: int,
    critique_tokens: int,
    label: str,
) -> None:
    criticised = {
        name: [*chain.opening(), _user(principle.critique)]
        for name, (chain, principle) in going.items()
    }
    # The names of draws have a space, which no prompt's id has.
    critiques = voice.speak(
        {f"{name} critique {number}": encode(voice.lm, t) for name, t in criticised.items()},
        max_tokens=critique_tokens,
        label=f"{label}, critiques",
    )
    heard = {name: critiques[f"{name} critique {number}"] for name in going}
    revised = {
        f"{name} revision {number}": _to_revise(voice, *going[name], turns, heard[name].text)
        for name, turns in criticised.items()
        if not heard[name].blank
    }
    revisions = voice.speak(revised, max_tokens=max_tokens, label=f"{label}, revisions")
    for name, (chain, principle) in going.items():
        new = revisions.get(f"{name} revision {number}")
        chain.rounds.append(
            Round(
                principle=principle.id,
                critique=heard[name].text,
                revision=new.text if new else None,
                finish=new.finish if new else None,
                tokens=new.tokens if new else None,
            )
        )


def _to_revise(
    voice: Voice, chain: Chain, principle: Principle, before: Sequence[Message], critique: str
) -> tuple[int, ...]:
    begins = chain.prompt.text
    request = f"{principle.revise} {AGAIN}" if begins else principle.revise
    return encode(voice.lm, [*before, _assistant(critique), _user(request)], begins=begins)


def principle_of(
    prompt_id: str, number: int, principles: Sequence[Principle], *, seed: int
) -> Principle:
    """Return the principle of a prompt's round, from 0.

    Each prompt has an order of its own, by hash, so that none comes twice before all have come,
    and a principle that is added to the constitution leaves the others in their order.
    """
    order = sorted(principles, key=lambda one: by_hash(f"{seed} {prompt_id} {one.id}"))
    return order[number % len(order)]


def traces(chains: Sequence[Chain]) -> list[Trace]:
    """Return what was said, one record a prompt."""
    return [
        Trace(
            prompt_id=c.prompt.id,
            cluster=c.prompt.cluster,
            role=c.prompt.role,
            category=c.prompt.category,
            prompt=c.prompt.body(),
            original=c.original.text,
            original_finish=c.original.finish,
            rounds=c.rounds,
            final=c.final.revision if c.final else None,
        )
        for c in chains
    ]


def demonstrations(chains: Sequence[Chain], name: str) -> list[Demonstration]:
    """Return the last revisions as answers to learn, none to a prompt that judges a policy."""
    return [
        Demonstration(
            id=f"{c.prompt.id}/{name}",
            form=c.prompt.form,
            category=c.prompt.category,
            source=f"revised:{name}",
            text=c.prompt.text,
            messages=c.prompt.messages,
            answer=c.final.revision,
            finish=c.final.finish,
        )
        for c in chains
        if c.final and c.prompt.role not in JUDGED
    ]


def completions(chains: Sequence[Chain], name: str) -> list[Completion]:
    """Return the answers, of sampler `NAME-original`, and what became of them, of sampler `NAME`.

    A revision was drawn after a criticism and not after the prompt alone, so it has no
    log-probability that an algorithm could use.
    """
    found: list[Completion] = []
    for c in (c for c in chains if c.changed):
        first, last = c.original, c.final
        found += [
            _completion(c, f"{name}-original", first.text, first.finish, first.tokens, first.logp),
            _completion(c, name, last.revision, last.finish, None, None),
        ]
    return found


def _completion(
    chain: Chain, sampler: str, text: str, finish: str, tokens: int | None, logp: float | None
) -> Completion:
    return Completion(
        id=f"{chain.prompt.id}/{sampler}-0",
        prompt_id=chain.prompt.id,
        sampler=sampler,
        index=0,
        text=text,
        finish=finish,
        tokens=tokens,
        logp=None if logp is None else round(logp, 4),
    )


def rankings(chains: Sequence[Chain], name: str, criterion: str) -> list[Ranking]:
    """Return the verdict that each revision is better than its answer, where the two differ."""
    return [_ranking(c.prompt.id, name, criterion) for c in chains if c.changed]


def _ranking(prompt_id: str, name: str, criterion: str) -> Ranking:
    original, revised = f"{prompt_id}/{name}-original-0", f"{prompt_id}/{name}-0"
    return Ranking(
        schema_version=1,
        kind="ranking",
        criterion=criterion,
        prompt_id=prompt_id,
        labeler=name,
        shown=sorted((original, revised), key=by_hash),
        ranks={revised: 1, original: 2},
        junk={},
        revision=1,
    )


def _user(text: str) -> Message:
    return Message(role="user", content=text)


def _assistant(text: str) -> Message:
    return Message(role="assistant", content=text)
