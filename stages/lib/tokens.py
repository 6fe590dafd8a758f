"""Text to tokens: the one way in which prompts and completions are encoded everywhere.

Sampling, reward model, alignment and evaluation all encode through this file, so a text is the
same tokens wherever it goes (property 3), and a prompt's tokens are always a prefix of prompt plus
completion (property 7): the two are encoded apart and joined as token ids.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stages.lib.models import LanguageModel, ModelError
from stages.lib.records import Message
from stages.lib.runtime.schema import Refusal


class TooLong(Refusal):
    """A sequence has more tokens than a stage was told to take."""


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """A prompt and a completion as token ids."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """All tokens in order."""
        return self.prompt + self.completion

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


def encode_prompt(lm: LanguageModel, prompt: str | list[Message]) -> tuple[int, ...]:
    """Return a prompt's tokens.

    A text is encoded as it stands, with the tokenizer's BOS where it has the habit; a conversation
    goes through the chat template, up to where the assistant begins to speak.

    Raises:
        ModelError: a conversation is given and the tokenizer has no chat template.
    """
    tokenizer = lm.tokenizer
    if isinstance(prompt, str):
        return tuple(tokenizer(prompt).input_ids)
    if not tokenizer.chat_template:
        raise ModelError(
            f"{lm.folder}: the tokenizer has no chat template, and a chat prompt is to be encoded"
        )
    turns = [message.model_dump() for message in prompt]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    return tuple(tokenizer(text, add_special_tokens=False).input_ids)


def encode_completion(lm: LanguageModel, text: str, finish: str) -> tuple[int, ...]:
    """Return a completion's tokens, with EOS if and only if the model ended it.

    A truncated completion gets no EOS (property 4): a reward model or policy trained on one would
    learn that texts end in mid-sentence.
    """
    ids = tuple(lm.tokenizer(text, add_special_tokens=False).input_ids)
    return (*ids, lm.eos_ids[0]) if finish == "stop" else ids


def encode(
    lm: LanguageModel,
    prompt: str | list[Message],
    text: str,
    finish: str,
    *,
    max_tokens: int,
    where: str,
) -> TokenSequence:
    """Return prompt and completion as one sequence.

    Raises:
        TooLong: it has more than `max_tokens`; `where` names it in the message.
    """
    sequence = TokenSequence(encode_prompt(lm, prompt), encode_completion(lm, text, finish))
    if len(sequence) > max_tokens:
        raise TooLong(
            f"{where} has {len(sequence)} tokens, over max_tokens {max_tokens}; raise it, or "
            "leave the prompt out"
        )
    if not sequence.completion:
        raise TooLong(f"{where} has an empty completion and no EOS: nothing to learn or score")
    return sequence


def batches(lengths: Sequence[int], *, batch_tokens: int) -> Iterator[list[int]]:
    """Yield indices in batches of like length, each of at most `batch_tokens` padded tokens.

    Longest first, so that a batch that does not fit in memory fails at once and not at the end.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        width = lengths[batch[0]] if batch else lengths[index]
        if batch and width * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def batches_by_prompt(
    sequences: Sequence[TokenSequence], *, batch_tokens: int
) -> Iterator[list[int]]:
    """Yield indices as `batches` does, with the completions of a prompt beside each other."""
    order = sorted(
        range(len(sequences)),
        key=lambda i: (-len(sequences[i].prompt), sequences[i].prompt, -len(sequences[i])),
    )
    batch: list[int] = []
    widest = 0
    for index in order:
        one = sequences[index]
        widest = max(widest, len(one.completion))
        if batch and (len(sequences[batch[0]].prompt) + widest) * (len(batch) + 1) > batch_tokens:
            yield batch
            batch, widest = [], len(one.completion)
        batch.append(index)
    if batch:
        yield batch
