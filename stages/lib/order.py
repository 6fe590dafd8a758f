"""In what order things are taken that have none: by a hash, so that what is added moves nothing."""

import hashlib


def by_hash(name: str) -> str:
    """Return a key to sort by; sets of prompts are filled in the order of their ids' keys."""
    return hashlib.sha256(name.encode()).hexdigest()


def place(name: str) -> float:
    """Return where a name lies in [0, 1): what is below a share is held out."""
    return int(by_hash(name)[:13], 16) / 16**13
