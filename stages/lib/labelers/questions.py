"""What a judge is asked, and the probability of its answer.

The form is that of Bai et al. 2022 (arXiv:2212.08073, section 4.1): what came before, a principle,
two options, and the probabilities of the answers " (A)" and " (B)".
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stages.lib.base import Base
from stages.lib.constitution import Principle
from stages.lib.records import Message, Prompt
from stages.lib.runtime import processes

if TYPE_CHECKING:
    from stages.lib.models import LanguageModel

Form = Literal["chat", "plain"]

TEXT = """Consider the following text and two ways in which it could go on.

Text: {before}

{choose}

Options:
(A) {first}
(B) {second}"""
CONVERSATION = """Consider the following conversation between a human and an assistant:

{before}

{choose}

Options:
(A) {first}
(B) {second}"""
SPEAKERS = {"user": "Human", "assistant": "Assistant", "system": "System"}

ANSWER = "The answer is:"
THINK = "Let's think step by step:"
CONCLUDE = "\n\nSo the answer is:"
ANSWERS = (" (A)", " (B)")


def question(prompt: Prompt, principle: Principle, first: str, second: str) -> str:
    """Return the question which of two completions of a prompt fits a principle better."""
    options = {"choose": principle.choose, "first": first.strip(), "second": second.strip()}
    if prompt.text is not None:
        return TEXT.format(before=prompt.text, **options)
    turns = [f"{SPEAKERS[turn.role]}: {turn.content}" for turn in prompt.messages or []]
    return CONVERSATION.format(before="\n\n".join(turns), **options)


def probabilities(
    folder: Path,
    base: Base,
    groups: Sequence[Sequence[str]],
    *,
    form: Form,
    thinking_tokens: int,
    batch_tokens: int,
) -> list[float]:
    """Return p(A), against p(B), of each question, groups in order.

    Args:
        folder: the model that is asked.
        base: how it is held in memory.
        groups: questions; what those of a group begin with alike is read once.
        form: `chat`, the user's turn of a conversation in which the assistant has begun to answer;
            or `plain`, a text to go on with.
        thinking_tokens: how far the model reasons before it answers, always by the likeliest token;
            0: not at all.
        batch_tokens: in memory at once.

    Raises:
        ModelError: the form is chat, and the tokenizer has no chat template.
    """
    from stages.lib import likelihood, models

    lm = models.load(folder, base)
    if form == "chat" and not lm.tokenizer.chat_template:
        raise models.ModelError(
            f"{folder}: the tokenizer has no chat template; `form: plain` asks without one"
        )
    said = THINK if thinking_tokens else ANSWER

    def work(some: list[Sequence[str]]) -> list[list[float]]:
        ids = {text: _begun(lm, text, said, form) for group in some for text in group}
        if thinking_tokens:
            ids = _thought(lm, ids, tokens=thinking_tokens, batch_tokens=batch_tokens)
        p_QA = likelihood.choice(
            lm,
            [[ids[text] for text in group] for group in some],
            [_tokens(lm, answer) for answer in ANSWERS],
            batch_tokens=batch_tokens,
            label="judge",
        )
        return [part.tolist() for part in p_QA[:, 0].split([len(group) for group in some])]

    told = processes.shared(groups, work, cost=lambda group: sum(map(len, group)))
    return [p for part in told for p in part]


def _begun(lm: "LanguageModel", text: str, said: str, form: Form) -> tuple[int, ...]:
    """Return the tokens of a question up to where the judge goes on."""
    from stages.lib.tokens import encode_prompt

    if form == "plain":
        return encode_prompt(lm, f"{text}\n\n{said}")
    return encode_prompt(lm, [Message(role="user", content=text)]) + _tokens(lm, said)


def _thought(
    lm: "LanguageModel", ids: dict[str, tuple[int, ...]], *, tokens: int, batch_tokens: int
) -> dict[str, tuple[int, ...]]:
    """Let the model reason on each question, and come to where it answers."""
    from stages.lib import sampling

    likeliest = sampling.Decoding(temperature=1.0, top_k=1, top_p=1.0)
    draws = sampling.sample(
        lm,
        # A question is its own name, so that where two tokens tie, its draw is its own as well
        [sampling.Request(text, begun, 1) for text, begun in ids.items()],
        likeliest,
        max_tokens=tokens,
        seed=0,
        batch_tokens=batch_tokens,
        label="think",
    )
    conclude = _tokens(lm, CONCLUDE)
    reasons = {d.prompt_id: d.ids[:-1] if d.finish == "stop" else d.ids for d in draws}
    return {text: (*begun, *reasons[text], *conclude) for text, begun in ids.items()}


def _tokens(lm: "LanguageModel", text: str) -> tuple[int, ...]:
    return tuple(lm.tokenizer(text, add_special_tokens=False).input_ids)
