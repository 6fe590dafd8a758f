"""Write a policy as a folder to share, with a model card that carries its verdict.

    python -m stages.lib.commands.export dpo exports/dpo [--merged]     (make export POLICY=dpo)

The folder holds the adapter, for peft, or with --merged a model of its own, for any program that
reads Hugging Face folders: the weights that were evaluated, with the adapter added. Its README.md
says what the policy was trained on, what was measured, and what the verdict was and why, whichever
it was.
"""

import argparse
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dvc.repo import Repo
from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError

from stages.lib.base import Base
from stages.lib.commands import refusal
from stages.lib.runtime import files, hashes, params
from stages.lib.runtime.schema import Refusal

MEASURES = (
    ("Expected maximum toxicity", "independent", "emt"),
    ("Prompts with a toxic answer", "independent", "tp"),
    ("Perplexity under the base, median", "cost", "perplexity"),
    ("Distinct bigrams", "cost", "dist2"),
    ("Loss on neutral text, nats a token", "cost", "neutral_loss"),
    ("KL from the base, nats a sequence", "cost", "kl_exact"),
    ("Benign requests refused", "cost", "refusals"),
)
"""Of the card: words, group and metric of reports/comparison.json."""


def export(root: Path, policy: str, out: Path, *, merged: bool) -> Path:
    """Write a policy's folder and its card.

    Raises:
        Refusal: there is no such policy with an adapter, no report on it, or `out` is there.
    """
    source = root / "models/policies" / policy
    if not (source / "adapter_config.json").is_file():
        raise Refusal(
            f"{source}: no adapter is there; `dvc repro align@{policy}` makes it, and a policy "
            "with `algorithm: none` has none"
        )
    if out.exists() or out.is_symlink():
        raise Refusal(f"{out}: is there already; name another folder, or remove it")
    text = card(root, policy, merged=merged)
    with files.whole_folder(out) as folder:
        if merged:
            _merge(root, source, folder)
        else:
            for name in ("adapter_config.json", "adapter_model.safetensors"):
                shutil.copy(source / name, folder / name)
        files.write_text(folder / "README.md", text)
    return out


def require_whole(policy: str) -> None:
    """Refuse an adapter that was cut short or changed since the graph made it.

    Raises:
        Refusal: it is not what dvc.lock says.
    """
    source = Path("models/policies") / policy
    with Repo() as repo:
        made = [out for out in repo.index.outs if Path(out.fs_path) == source.absolute()]
        recorded = [out.hash_info.value for out in made if out.hash_info]
    if source.is_dir() and recorded != [hashes.of(source)]:
        raise Refusal(
            f"{source}: is not what dvc.lock says; `make verify` says more, and `dvc repro` makes "
            "it again"
        )


def card(root: Path, policy: str, *, merged: bool) -> str:
    """Return the model card.

    Raises:
        Refusal: the report does not speak of this policy.
    """
    tree = params.read(root / "params.yaml")
    numbers = files.read_json(root / "reports/comparison.json")
    baseline = params.part(tree, "report.baseline")
    with refusal.of_the_graph("reports/comparison.json"):
        if policy not in numbers["verdicts"]:
            raise Refusal(
                f"reports/comparison.json: has no verdict on {policy}; `dvc repro` makes the report"
            )
        lines = list(_lines(numbers, policy, baseline))
    folder = Path(__file__).parent
    templates = Environment(
        loader=FileSystemLoader(folder), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    given = {
        "entry": params.part(tree, f"policies.{policy}"),
        "base": files.read_json(root / "models/base/identity.json"),
        "held": params.part(tree, "base"),
        "evaluate": params.part(tree, "evaluate"),
        "report": params.part(tree, "report"),
        "verdict": _verdict(root, policy),
    }
    try:
        return templates.get_template("model_card.md.j2").render(
            policy=policy, merged=merged, lines=lines, **given
        )
    except UndefinedError as error:
        raise Refusal(
            f"the model card wants more than params.yaml and models/base/identity.json have: "
            f"{error}; `dvc repro` makes both fit"
        ) from None


def _verdict(root: Path, policy: str) -> str:
    """Return the sentence of reports/verdict.txt on a policy."""
    said = files.read_text(root / "reports/verdict.txt").split("\n\n")
    found = [" ".join(part.split()) for part in said if part.startswith(f"{policy}: ")]
    if not found:
        raise Refusal(f"reports/verdict.txt: says nothing of {policy}; `dvc repro` makes it")
    return found[0].removeprefix(f"{policy}: ")


def _lines(numbers: Mapping[str, Any], policy: str, baseline: str) -> Any:
    """Yield each measure with its value and interval for the baseline and for the policy."""
    for words, group, metric in MEASURES:
        found = [numbers["policies"][name][group].get(metric) for name in (baseline, policy)]
        if all(found):
            yield words, *(f"{e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}]" for e in found)


def _merge(root: Path, source: Path, out: Path) -> None:
    from stages.lib import models

    base = params.load("base", Base, root / "params.yaml")
    lm = models.load_adapted(root / "models/base", source, base)
    merged = lm.model.merge_and_unload()
    merged.save_pretrained(out)
    lm.tokenizer.save_pretrained(out)


@refusal.in_one_line
def main() -> None:
    """Export what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policy")
    parser.add_argument("out", type=Path)
    parser.add_argument("--merged", action="store_true", help="a whole model, not the adapter")
    given = parser.parse_args()
    require_whole(given.policy)
    out = export(Path(), given.policy, given.out, merged=given.merged)
    print(f"{out}: README.md is its card")


if __name__ == "__main__":
    sys.exit(main())
