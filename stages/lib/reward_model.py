"""A reward model: an adapter on the shared base, a linear head in float32, and a normaliser.

Shape suffixes: B = sequences, D = hidden size, P = pairs.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from stages.lib import models
from stages.lib.models import LanguageModel, ModelError
from stages.lib.prefix import with_completions
from stages.lib.records import Message
from stages.lib.runtime import files, processes
from stages.lib.tokens import TokenSequence, batches_by_prompt, encode

HEAD = "head.safetensors"
NORMALISER = "normaliser.json"
CARD = "reward.json"
CLASSIFIER = "classifier.json"


class Head(nn.Module):
    """Hidden state of the last real token to one number; float32 whatever the base is.

    Under quantisation a head left to the loader becomes bfloat16, whose 8 bits cannot tell close
    scores apart.
    """

    def __init__(self, width: int, *, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        # Standard deviation 1 / sqrt(d + 1) (Stiennon et al. 2020, appendix B.1) on features
        # divided by sqrt(d): scores start close together and a step of AdamW moves them by
        # hundredths. On the bare hidden state, of norm 44, they start 2 apart at random.
        self.scale = math.sqrt(width)
        weight = torch.randn(1, width, generator=generator) / math.sqrt(width + 1)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, hidden_BD: Tensor) -> Tensor:
        """Return scores_B."""
        with torch.autocast(hidden_BD.device.type, enabled=False):
            return (hidden_BD.float() / self.scale @ self.weight.T + self.bias).squeeze(-1)


def last_states(lm: LanguageModel, sequences: Sequence[TokenSequence]) -> Tensor:
    """Return hidden_BD at each sequence's last real token, wherever the padding is."""
    prefix, ids_BT, lengths_B = with_completions(lm, sequences)
    begun_BD = prefix.hidden_BD
    rows_B = torch.arange(len(sequences), device=lm.device)
    hidden_BD = prefix.read(ids_BT)[rows_B, lengths_B - 1]
    # FSDP2 gathers a layer for its backward pass when that reaches its output; without this it
    # would reach no more than the keys and values of the prompt's.
    return hidden_BD + 0 * begun_BD if processes.divides_base() else hidden_BD


@torch.no_grad()
def last_states_of(
    lm: LanguageModel, sequences: Sequence[TokenSequence], *, label: str | None
) -> Tensor:
    """Return `last_states` of any number of sequences, in batches, under a progress bar.

    On the CPU and in float32. No bar where `label` is None.
    """
    states_BD = torch.zeros(len(sequences), lm.unembedding_VD.shape[1])
    with (
        models.training_precision(lm),
        tqdm(
            total=len(sequences), desc=label, unit="text", mininterval=1, disable=label is None
        ) as bar,
    ):
        for batch in batches_by_prompt(sequences, batch_tokens=4096):
            some = [sequences[i] for i in batch]
            states_BD[batch] = last_states(lm, some).float().cpu()
            bar.update(len(batch))
    return states_BD


class TrainableScorer(nn.Module):
    """Adapter and head as one module, so that a checkpoint holds what is trained and no base."""

    def __init__(self, lm: LanguageModel, head: Head) -> None:
        super().__init__()
        self.head = head
        self.lora = nn.ParameterDict(
            {
                name.replace(".", "/"): parameter
                for name, parameter in lm.model.named_parameters()
                if parameter.requires_grad
            }
        )
        self._held = [lm]  # a list, so that torch does not take the base for a part

    def forward(self, sequences: Sequence[TokenSequence]) -> Tensor:
        """Return scores_B, not normalised."""
        (lm,) = self._held
        with models.training_precision(lm):
            return self.head(last_states(lm, sequences))


@dataclass(frozen=True, slots=True)
class Normaliser:
    """Moves scores to mean 0 and standard deviation 1 on the base's own completions."""

    mean: float
    std: float

    @classmethod
    def fit(cls, scores: Sequence[float]) -> "Normaliser":
        """Fit to scores of completions that the unaligned base drew."""
        values = torch.tensor(scores, dtype=torch.float64)
        std = float(values.std(correction=0)) if len(scores) > 1 else 0.0
        if std == 0:
            raise ModelError(
                f"the reward model gives all {len(scores)} completions one score; it has "
                "learnt nothing"
            )
        return cls(float(values.mean()), std)

    def __call__(self, score: float) -> float:
        """Return the normalised score."""
        return (score - self.mean) / self.std


@dataclass(frozen=True, slots=True)
class Answer:
    """A prompt and a completion as text, the form in which every reward model takes them."""

    prompt: str | list[Message]
    text: str
    finish: str


class Scorer(Protocol):
    """What a reward model can do, be it trained or a classifier."""

    normalise: Normaliser

    def raw(self, answers: Sequence[Answer], *, label: str | None) -> list[float]:
        """Return each answer's score as the model gives it; differences are log-odds."""
        ...


def scores(scorer: Scorer, answers: Sequence[Answer], *, label: str | None) -> list[float]:
    """Return each answer's normalised score: mean 0, standard deviation 1 on the base's own."""
    return [scorer.normalise(score) for score in scorer.raw(answers, label=label)]


def shared_raw(scorer: Scorer, answers: Sequence[Answer], *, label: str | None) -> list[float]:
    """Return each answer's score as the model gives it; each process scores its share."""
    return processes.shared(
        answers, lambda some: scorer.raw(some, label=label), cost=lambda answer: len(answer.text)
    )


@dataclass(slots=True)
class TrainedReward:
    """A trained reward model attached to a language model's base."""

    lm: LanguageModel
    name: str
    """Of its adapter on `lm`."""
    head: Head
    max_tokens: int
    """Of prompt and completion; longer ones are refused."""
    normalise: Normaliser

    @torch.no_grad()
    def raw(self, answers: Sequence[Answer], *, label: str | None) -> list[float]:
        """Return each answer's score; the same whatever batch it is in."""
        sequences = [
            encode(
                self.lm, a.prompt, a.text, a.finish, max_tokens=self.max_tokens, where="an answer"
            )
            for a in answers
        ]
        with models.adapter(self.lm, self.name):
            states_BD = last_states_of(self.lm, sequences, label=label)
        return self.head(states_BD.to(self.head.weight.device)).tolist()


@dataclass(slots=True)
class ClassifierReward:
    """The logit of a text classifier's class, of the completion alone."""

    folder: Path
    label: str
    sign: int
    max_tokens: int
    normalise: Normaliser

    @classmethod
    def fit(
        cls, folder: Path, label: str, *, better: str, max_tokens: int, normal: Sequence[Answer]
    ) -> "ClassifierReward":
        """Adopt a classifier; its normaliser is fitted to `normal`."""
        made = cls(folder, label, 1 if better == "high" else -1, max_tokens, Normaliser(0.0, 1.0))
        made.normalise = Normaliser.fit(made.raw(normal, label="normaliser"))
        return made

    def raw(self, answers: Sequence[Answer], *, label: str | None) -> list[float]:
        """Return each answer's logit, larger better."""
        from stages.lib.classifier import Classifier

        model = Classifier(self.folder, self.label, max_tokens=self.max_tokens)
        return [self.sign * value for value in model.logits([a.text for a in answers])]

    def save(self, folder: Path) -> None:
        """Write which classifier this is; its weights stay where `fetch` put them."""
        card = {"folder": str(self.folder), "label": self.label, "sign": self.sign}
        files.write_json(folder / CLASSIFIER, card | {"max_tokens": self.max_tokens})
        files.write_json(folder / NORMALISER, asdict(self.normalise))


def fitted(
    lm: LanguageModel, head: Head, normal: Sequence[Answer], *, max_tokens: int
) -> TrainedReward:
    """Return a model fresh from training (adapter `default`), its normaliser fitted to `normal`."""
    made = TrainedReward(lm, "default", head, max_tokens, Normaliser(0.0, 1.0))
    made.normalise = Normaliser.fit(shared_raw(made, normal, label="normaliser"))
    return made


def save(scorer: TrainedReward, folder: Path) -> None:
    """Write adapter, head and normaliser into `folder`."""
    models.save_adapter(scorer.lm, folder)
    weights = {key: value.detach().contiguous() for key, value in scorer.head.state_dict().items()}
    save_file(weights, folder / HEAD)
    files.write_json(folder / NORMALISER, asdict(scorer.normalise))
    files.write_json(folder / CARD, {"max_tokens": scorer.max_tokens})


def load(lm: LanguageModel, folder: Path, *, name: str) -> Scorer:
    """Return a saved reward model; a trained one becomes adapter `name` of `lm`, frozen.

    Raises:
        ModelError: the folder holds no reward model, or one for another base.
    """
    if (folder / CLASSIFIER).is_file():
        normaliser = Normaliser(**files.read_json(folder / NORMALISER))
        card = files.read_json(folder / CLASSIFIER)
        return ClassifierReward(**{**card, "folder": Path(card["folder"])}, normalise=normaliser)
    head = read_head(folder)
    models.load_adapter(lm, folder, name=name)
    return TrainedReward(
        lm,
        name,
        head.to(lm.device).requires_grad_(False).eval(),
        files.read_json(folder / CARD)["max_tokens"],
        Normaliser(**files.read_json(folder / NORMALISER)),
    )


def read_head(folder: Path) -> Head:
    """Return the head of a trained reward model.

    Raises:
        ModelError: the folder has none, or a damaged one.
    """
    if not (folder / HEAD).is_file():
        raise ModelError(f"{folder}: holds no reward model (no {HEAD})")
    try:
        weights = load_file(folder / HEAD)
        head = Head(weights["weight"].shape[1], seed=0)
        head.load_state_dict(weights)
    except (SafetensorError, KeyError, IndexError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        raise ModelError(f"{folder / HEAD}: is no head of a reward model: {said}") from None
    return head


def load_both(lm: LanguageModel, folder: Path) -> tuple[Scorer, Scorer | None]:
    """Return the reward model in `folder` and its monitor; None where it has none."""
    reward = load(lm, folder, name="reward")
    watched = (folder / "monitor").is_dir()
    return reward, load(lm, folder / "monitor", name="monitor") if watched else None
