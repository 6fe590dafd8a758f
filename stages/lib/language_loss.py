"""A policy's loss on neutral text: what alignment cost the language model it is made from."""

from collections.abc import Sequence

from stages.lib import likelihood, models
from stages.lib.models import LanguageModel
from stages.lib.neutral_text import Passage, PassageLoss
from stages.lib.runtime import processes
from stages.lib.tokens import TokenSequence


def losses(
    lm: LanguageModel, adapter: str | None, passages: Sequence[Passage], *, batch_tokens: int
) -> list[PassageLoss]:
    """Return the loss of a model, with one of its adapters or none, on each passage."""
    given = sequences(lm, passages)

    def work(some: list[TokenSequence]) -> list[float]:
        with models.adapter(lm, adapter):
            return likelihood.all_logps(
                lm, some, batch_tokens=batch_tokens, label="neutral text"
            ).tolist()

    logps = processes.shared(given, work, cost=len)
    return [
        PassageLoss(
            id=passage.id, genre=passage.genre, tokens=len(one.completion), nll=round(-logp, 4)
        )
        for passage, one, logp in zip(passages, given, logps, strict=True)
    ]


def sequences(lm: LanguageModel, passages: Sequence[Passage]) -> list[TokenSequence]:
    """Encode passages: all tokens but the first are predicted."""
    ids = [tuple(lm.tokenizer(passage.text).input_ids) for passage in passages]
    return [TokenSequence(one[:1], one[1:]) for one in ids]
