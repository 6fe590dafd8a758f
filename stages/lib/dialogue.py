"""Conversations that a model takes part in, turn by turn.

A model whose tokenizer has a chat template reads it. One without reads a transcript:

    Human: Who was John?

    Assistant:

and what it says ends where it goes on to write the human's next turn.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from stages.lib import models, sampling
from stages.lib.models import LanguageModel
from stages.lib.records import Message
from stages.lib.sampling import Decoding, Draw, Request
from stages.lib.tokens import TooLong, encode_prompt

SPEAKERS = {"user": "Human: ", "assistant": "Assistant: ", "system": ""}
NEXT = f"\n\n{SPEAKERS['user'].strip()}"


def encode(
    lm: LanguageModel, turns: Sequence[Message], *, begins: str | None = None
) -> tuple[int, ...]:
    """Return a conversation's tokens up to where the assistant is to speak.

    Args:
        lm: whose tokenizer and template.
        turns: what was said, the last one by the user.
        begins: how the assistant's turn begins; the model goes on from there.
    """
    if lm.tokenizer.chat_template:
        ids = encode_prompt(lm, list(turns))
    else:
        # The model writes the space after the colon itself, unless its first words are given.
        end = SPEAKERS["assistant"] if begins else SPEAKERS["assistant"].rstrip()
        ids = encode_prompt(lm, transcript(turns) + "\n\n" + end)
    return (*ids, *lm.tokenizer(begins, add_special_tokens=False).input_ids) if begins else ids


def transcript(turns: Sequence[Message]) -> str:
    """Return a conversation as plain text, a blank line between turns."""
    return "\n\n".join(SPEAKERS[turn.role] + turn.content for turn in turns)


@dataclass(frozen=True, slots=True)
class Said:
    """What a model said in one turn."""

    text: str
    finish: str
    """`stop` or `length`, as `Completion.finish` has it."""
    tokens: int
    """That were drawn, EOS included."""
    logp: float
    """Of those tokens, in nats, given all that stood before."""

    @property
    def blank(self) -> bool:
        """Whether there is nothing to read in it."""
        return not self.text.strip()


def said(lm: LanguageModel, draw: Draw) -> Said:
    """Return what one turn says; of a transcript, up to where the human's next turn begins."""
    text, finish = sampling.text(lm, draw), draw.finish
    if not lm.tokenizer.chat_template:
        own, mark, _ = text.partition(NEXT)
        text, finish = own.removeprefix(" "), "stop" if mark else finish
    return Said(text, finish, len(draw.ids), draw.logp)


@dataclass(frozen=True, slots=True)
class Voice:
    """A model that speaks, and how."""

    lm: LanguageModel
    decoding: Decoding
    seed: int
    batch_tokens: int
    """In memory at once."""
    bare: bool = False
    """Whether the model speaks without the adapter that is on it."""

    def say(
        self, asked: Mapping[str, tuple[int, ...]], *, samples: int, max_tokens: int, label: str
    ) -> dict[str, list[Draw]]:
        """Go on from each of several texts.

        Args:
            asked: tokens by name; the name selects the random numbers, so that what is drawn does
                not depend on what else is asked.
            samples: how often from each.
            max_tokens: of each, EOS included.
            label: of the progress bar.

        Raises:
            TooLong: a text and what is to come have more tokens than the model reads.
        """
        for name, ids in asked.items():
            self._require_room(name, len(ids) + max_tokens)
        if not asked:
            return {}
        with models.adapter(self.lm, None) if self.bare else nullcontext():
            draws = sampling.sample(
                self.lm,
                [Request(name, ids, samples) for name, ids in asked.items()],
                self.decoding,
                max_tokens=max_tokens,
                seed=self.seed,
                batch_tokens=self.batch_tokens,
                label=label,
            )
        found: dict[str, list[Draw]] = {}
        for draw in draws:
            found.setdefault(draw.prompt_id, []).append(draw)
        return found

    def speak(
        self, asked: Mapping[str, tuple[int, ...]], *, max_tokens: int, label: str
    ) -> dict[str, Said]:
        """Speak one turn in each of several conversations; `say` says what the arguments mean."""
        drawn = self.say(asked, samples=1, max_tokens=max_tokens, label=label)
        return {name: said(self.lm, one) for name, (one,) in drawn.items()}

    def _require_room(self, name: str, tokens: int) -> None:
        limit = getattr(self.lm.model.config, "max_position_embeddings", None)
        if limit is not None and tokens > limit:
            raise TooLong(
                f"{name}: takes {tokens} tokens, and {self.lm.folder} reads {limit}; ask for "
                "fewer turns or tokens, or leave the prompt out"
            )
