"""A Hugging Face text classifier: texts in, logit or probability of one named class out."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from stages.lib import pretrained
from stages.lib.pretrained import ModelError


class Classifier:
    """A frozen sequence classifier and the class that is asked about."""

    def __init__(self, folder: Path, label: str, *, max_tokens: int) -> None:
        """Load the model.

        Args:
            folder: config.json with `id2label`, safetensors and tokenizer.
            label: name of a class in the model's own label map.
            max_tokens: longer texts are cut at their end, as the classifier was trained; how many
                were is in `cut`.

        Raises:
            ModelError: no such model, or no class of that name; the message lists those it has.
        """
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder}: holds no model (no config.json)")
        self.tokenizer = pretrained.tokenizer(AutoTokenizer, folder)
        self.model = pretrained.model(AutoModelForSequenceClassification, folder)
        self.model.eval().requires_grad_(False)
        names = {name: number for number, name in self.model.config.id2label.items()}
        if label not in names:
            raise ModelError(f"{folder}: no class '{label}'; its classes are {', '.join(names)}")
        self.label, self.max_tokens, self.cut = int(names[label]), max_tokens, 0

    @torch.inference_mode()
    def logits(self, texts: Sequence[str], *, batch: int = 16) -> list[float]:
        """Return the class's logit against the rest for each text.

        With one output it is that output, and so is a class's own where classes do not exclude each
        other; with several that do, log p(class) - log(1 - p(class)), so that two classes give the
        difference of their logits, whatever the third ones do.
        """
        scores: list[float] = []
        for start in tqdm(
            range(0, len(texts), batch), desc="classify", unit="batch", mininterval=1
        ):
            some = list(texts[start : start + batch])
            self.cut += sum(len(ids) > self.max_tokens for ids in self.tokenizer(some).input_ids)
            encoded = self.tokenizer(
                some, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
            )
            out = self.model(**encoded.to(self.model.device)).logits.double()
            if out.shape[1] == 1 or self.model.config.problem_type == "multi_label_classification":
                scores += out[:, self.label].tolist()
            else:
                rest = out.clone()
                rest[:, self.label] = -torch.inf
                scores += (out[:, self.label] - rest.logsumexp(1)).tolist()
        return scores

    def probabilities(self, texts: Sequence[str], *, batch: int) -> list[float]:
        """Return p(class) of each text, 0 to 1: the logistic function of its logit."""
        return torch.tensor(self.logits(texts, batch=batch)).double().sigmoid().tolist()
