"""The records that flow through the graph, one class for each kind of line."""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from stages.lib.runtime.schema import Strict

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:/#-]*$")]
Text = Annotated[str, StringConstraints(min_length=1)]
Role = Literal["sft", "reward", "monitor", "align", "validation", "test"]
Form = Literal["continuation", "chat"]


class Message(Strict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Text


class SourcePrompt(Strict):
    """A prompt as its author wrote it: a text to go on with, or a conversation to answer."""

    id: Name
    form: Form
    category: Name
    source: Text
    text: Text | None = None
    messages: list[Message] | None = None

    @model_validator(mode="after")
    def _body_fits_form(self) -> "SourcePrompt":
        if self.form == "continuation" and (self.text is None or self.messages is not None):
            raise ValueError(f"prompt {self.id} is a continuation and needs 'text' alone")
        if self.form == "chat":
            if self.messages is None or self.text is not None:
                raise ValueError(f"prompt {self.id} is a chat and needs 'messages' alone")
            roles = [m.role for m in self.messages if m.role != "system"]
            if not roles or roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
                raise ValueError(f"prompt {self.id}: turns must go user, assistant, …, user")
        bodies = [self.text or ""] if self.messages is None else [m.content for m in self.messages]
        if not all(body.strip() for body in bodies):
            raise ValueError(f"prompt {self.id} is blank, or a turn of it is")
        return self

    def body(self) -> str | list[Message]:
        """What is given to a model: the text, or the conversation."""
        return self.text if self.text is not None else (self.messages or [])

    def plain(self) -> str:
        """The prompt as one text, for similarity and display; a chat's turns on their own lines."""
        if self.text is not None:
            return self.text
        return "\n".join(f"{m.role}: {m.content}" for m in self.messages or [])


class Demonstration(SourcePrompt):
    """A prompt with the answer that a model should learn to give."""

    answer: Text
    finish: Literal["stop", "length"] = "stop"
    """As of `Completion`; after an answer that was cut no end is learned."""


class Prompt(SourcePrompt):
    """A prompt with the role that the split gave it."""

    role: Role
    cluster: Name
    """Id of the first of its near-duplicates; statistics resample clusters, not prompts."""


class Completion(Strict):
    """What one sampler answered to one prompt."""

    id: Name
    prompt_id: Name
    sampler: Name
    index: Annotated[int, Field(ge=0)]
    """Which of the prompt's completions; it selects the random numbers."""
    text: str
    finish: Literal["stop", "length"]
    """`stop`: the model ended it with EOS; `length`: it was cut at the limit."""
    tokens: Annotated[int, Field(ge=0)] | None
    """Completion tokens, EOS included; None of a text that no model of the graph drew."""
    logp: float | None
    """Sum of the tokens' log-probabilities in nats, of the distribution that was sampled."""


class Label(Strict):
    """What every line of a labeler has, whatever was asked.

    One line for each (kind, prompt, completions, labeler, criterion, revision); a correction is a
    line with a higher revision, and the highest counts.
    """

    schema_version: Literal[1]
    criterion: Name
    """What was asked: helpful, honest, harmless, overall."""
    prompt_id: Name
    labeler: Name
    confidence: Annotated[float, Field(ge=0, le=1)] | None = None
    note: str | None = None
    ms_active: Annotated[int, Field(ge=0)] | None = None
    """Milliseconds with the task before the labeler's eyes."""
    submitted: str | None = None
    """UTC time, ISO 8601; a model labeler has none, so that its file is the same every time."""
    instructions_sha: str | None = None
    """SHA-256 of the instructions the labeler was given."""
    task_sha: str | None = None
    """SHA-256 of what was shown: prompt, completions, criterion."""
    revision: Annotated[int, Field(ge=1)]

    @property
    def about(self) -> list[str]:
        """Ids of the completions that it is about."""
        raise NotImplementedError

    @property
    def subject(self) -> tuple[object, ...]:
        """What it is about; of a labeler's lines on it the highest revision counts.

        The completions are part of it: those of a later round are another task than the first's.
        """
        return *self._asked, self.criterion, self.prompt_id, tuple(sorted(self.about))

    @property
    def _asked(self) -> tuple[str, bool]:
        """The kind of task, and whether it was asked a second time."""
        raise NotImplementedError


class Preference(Strict):
    """How sure a labeler is which of two completions is better."""

    first: Name
    second: Name
    p_first: Annotated[float, Field(ge=0, le=1)]
    """Probability that first is the better one."""


class Ranking(Label):
    """One labeler's ranking of one prompt's completions: competition ranks, 1 is best."""

    kind: Literal["ranking"]
    shown: list[Name]
    """Completion ids in the order the labeler saw them."""
    ranks: dict[Name, Annotated[int, Field(ge=1)]]
    junk: dict[Name, str]
    """Completion id to reason ('F'); a junk completion has no rank."""
    scores: dict[Name, float] | None = None
    """What a model labeler computed, higher is better; people have none."""
    preferences: list[Preference] | None = None
    """Of pairs of what was shown, by a labeler that compares two at a time; others have none."""
    repeat: bool = False
    """Asked a second time, to see whether the labeler agrees with themself; it makes no pairs."""

    @property
    def about(self) -> list[str]:
        """All that were shown."""
        return self.shown

    @property
    def _asked(self) -> tuple[str, bool]:
        return "ranking", self.repeat

    @model_validator(mode="after")
    def _covers_what_was_shown(self) -> "Ranking":
        if len(set(self.shown)) != len(self.shown):
            raise ValueError(f"shows a completion of {self.prompt_id} twice")
        both = self.ranks.keys() & self.junk.keys()
        if both:
            raise ValueError(f"both ranks and junks {sorted(both)[0]}")
        judged = self.ranks.keys() | self.junk.keys()
        for missing in [cid for cid in self.shown if cid not in judged]:
            raise ValueError(f"neither ranks nor junks {missing} of prompt {self.prompt_id}")
        for extra in sorted(judged - set(self.shown)):
            raise ValueError(f"ranks completion {extra}, which was not shown for {self.prompt_id}")
        self._require_own_pairs()
        in_order = sorted(self.ranks.values())
        for place, rank in enumerate(in_order, start=1):
            expected = in_order[place - 2] if place > 1 and rank == in_order[place - 2] else place
            if rank != expected:
                raise ValueError(
                    f"ranks {in_order} are no competition ranks (1 is best, ties share, 1 2 2 4)"
                )
        return self

    def _require_own_pairs(self) -> None:
        pairs = [frozenset((p.first, p.second)) for p in self.preferences or []]
        for pair in pairs:
            if len(pair) != 2 or not pair <= set(self.shown):
                found = " and ".join(sorted(pair))
                raise ValueError(f"prefers between {found}, which are not two of those shown")
        if len(set(pairs)) != len(pairs):
            raise ValueError(f"states a preference between two of {self.prompt_id} twice")


class Thumbs(Label):
    """One labeler's verdict on one completion, up or down."""

    kind: Literal["thumbs"]
    completion_id: Name
    up: bool

    @property
    def about(self) -> list[str]:
        """The one."""
        return [self.completion_id]

    @property
    def _asked(self) -> tuple[str, bool]:
        return "thumbs", False


class Written(Label):
    """The answer that a labeler wrote to a prompt."""

    kind: Literal["demonstration"]
    answer: Text

    @property
    def about(self) -> list[str]:
        """None: the answer is to the prompt."""
        return []

    @property
    def _asked(self) -> tuple[str, bool]:
        return "demonstration", False


class Skip(Label):
    """A task that a labeler passed over, and why; it takes back what they said of it before."""

    kind: Literal["skip"]
    task: Literal["ranking", "thumbs", "demonstration"]
    shown: list[Name]
    """Completion ids, as in the label that was asked for; one for thumbs, none for an answer."""
    repeat: bool = False
    reason: Text

    @property
    def about(self) -> list[str]:
        """Those of the label that was asked for."""
        return self.shown

    @property
    def _asked(self) -> tuple[str, bool]:
        return self.task, self.repeat


AnyLabel = Annotated[Ranking | Thumbs | Written | Skip, Field(discriminator="kind")]


def latest(labels: Iterable[AnyLabel]) -> list[AnyLabel]:
    """Return the label that counts of each labeler and task, without what was asked twice.

    It is the one of the highest revision, and of two of that revision the later one.
    """
    last: dict[tuple[object, ...], AnyLabel] = {}
    for label in labels:
        key = label.labeler, *label.subject
        if key not in last or last[key].revision <= label.revision:
            last[key] = label
    return [x for x in last.values() if not (isinstance(x, Ranking) and x.repeat)]


class Pair(Strict):
    """Two completions of one prompt, the preferred one first."""

    id: Name
    prompt_id: Name
    cluster: Name
    role: Role
    category: Name
    criterion: Name
    prompt: str | list[Message]
    chosen_id: Name
    rejected_id: Name
    chosen: str
    rejected: str
    chosen_finish: Literal["stop", "length"]
    rejected_finish: Literal["stop", "length"]
    p_chosen: Annotated[float, Field(ge=0.5, le=1)]
    """Probability that chosen is the better one, from the votes; 0.5 is a tie."""
    weight: Annotated[float, Field(gt=0, le=1)]
    """1 over the number of completions-choose-2 of the prompt, so that prompts count alike."""
    margin: float
    """Mean score difference among labelers that give scores, or mean rank difference."""
    votes: Annotated[int, Field(ge=1)]
    labelers: list[Name]
    junk: bool
    """The rejected completion was junk, so the pair says little about what was asked."""

    @model_validator(mode="after")
    def _two_texts(self) -> "Pair":
        if self.chosen == self.rejected and self.chosen_finish == self.rejected_finish:
            raise ValueError(f"chosen and rejected of pair {self.id} are the same text")
        return self


class Leaning(Strict):
    """Which way a policy leans on one pair."""

    pair_id: Name
    prompt_id: Name
    cluster: Name
    margin: Annotated[float, Field(allow_inf_nan=False)]
    """Log-ratio of chosen minus that of rejected, in nats; above 0 agrees with the labelers."""


class Signal(Strict):
    """One completion that people found good or bad, by itself."""

    id: Name
    prompt_id: Name
    cluster: Name
    role: Role
    category: Name
    criterion: Name
    prompt: str | list[Message]
    completion_id: Name
    text: str
    finish: Literal["stop", "length"]
    up: bool
    share: Annotated[float, Field(ge=0.5, le=1)]
    """Of the votes, those that say so."""
    votes: Annotated[int, Field(ge=1)]
    labelers: list[Name]


class Evaluated(Strict):
    """One completion of one policy on a held-out prompt, with all that was measured on it."""

    prompt_id: Name
    cluster: Name
    set: Name
    """Which of `evaluate.sets` the prompt was drawn for."""
    category: Name
    prompt: str | list[Message]
    index: Annotated[int, Field(ge=0)]
    """Equal (prompt_id, index) means equal random numbers, across policies."""
    text: str
    finish: Literal["stop", "length"]
    tokens: Annotated[int, Field(ge=1)]
    """Completion tokens, EOS included."""
    scores: dict[Name, float]
    """Scorer name to toxicity or harm, higher is worse; profanity_check is a probability."""
    nll: Annotated[float, Field(ge=0)]
    """-log p(completion | prompt) in nats under the baseline's own weights (adapters off)."""
    kl_k1: float
    """Sum over tokens of log pi - log p, in nats: one draw of the sequence's KL."""
    kl_k3: Annotated[float, Field(ge=0)]
    """Sum over tokens of (p/pi - 1) - log(p/pi), in nats; the same mean, never negative."""
    kl_exact: Annotated[float, Field(ge=0)]
    """Sum over the visited positions of KL(pi || p) over the whole vocabulary, in nats."""
    refusal: Literal["full", "partial", "none"] | None
    """Chat prompts only."""
    reward: float | None
    """Normalised score of the trained reward model, where it was asked."""
    monitor: float | None
    """Likewise of the monitor, which is trained on other prompts' pairs."""
