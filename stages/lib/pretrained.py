"""transformers' models and tokenizers from a folder.

No code that a model brings is run, no network is asked, and no weight that is missing is made up.
"""

from pathlib import Path
from typing import Any

from stages.lib.runtime import surroundings
from stages.lib.runtime.schema import Refusal

SAFE = {"local_files_only": True, "trust_remote_code": False}
"""Asked for nothing, transformers offers on the terminal to run the code that a model brings."""


class ModelError(Refusal):
    """A model, tokenizer or adapter cannot be used."""


def model(auto: Any, folder: Path, **how: Any) -> Any:
    """Return the model of a folder.

    Args:
        auto: class of transformers that loads it, `AutoModelForCausalLM`.
        folder: config.json and *.safetensors.
        how: further arguments of `from_pretrained`.

    Raises:
        ModelError: it cannot be loaded, needs code of its own, or lacks weights, which transformers
            would draw at random.
    """
    strict = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    found, loading = _loaded(auto, folder, **SAFE, **strict, **how)
    absent, misfits = loading["missing_keys"], [key for key, *_ in loading["mismatched_keys"]]
    shape = "have another shape than config.json says"
    for odd, what in ((absent, "are missing"), (misfits, shape)):
        if odd:
            raise ModelError(
                f"{folder}: of the weights of {type(found).__name__} {len(odd)} {what}: "
                f"{min(odd)}; take a model that is whole"
            )
    return found


def tokenizer(auto: Any, folder: Path) -> Any:
    """Return the tokenizer of a folder.

    Raises:
        ModelError: it cannot be loaded, or needs code of its own.
    """
    return _loaded(auto, folder, **SAFE)


def _loaded(auto: Any, folder: Path, **how: Any) -> Any:
    try:
        return auto.from_pretrained(folder, **how)
    except Exception as error:  # of several libraries, about files that none of them can read
        if surroundings.denied(error):
            raise
        said = " ".join(str(error).split())[:300]
        if "trust_remote_code" in str(error):
            said = "it needs code that it brings, and none is run here; take one of a known kind"
            raise ModelError(f"{folder}: {said}") from None
        raise ModelError(f"{folder}: cannot be loaded: {type(error).__name__}: {said}") from None
