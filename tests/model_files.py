"""Tiny model folders, wheels and hub caches, written without torch."""

import hashlib
import json
import struct
import zipfile
from pathlib import Path

CAUSAL = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "eos_token_id": 2}
CLASSIFIER = {"architectures": ["BertForSequenceClassification"], "model_type": "bert"}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<empty_output>"]
DTYPE_BYTES = {"BF16": 2, "F32": 4, "I64": 8}


def write_safetensors(path: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    """Write tensors of zeros, each named with its dtype and shape."""
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = DTYPE_BYTES[dtype]
        for extent in shape:
            size *= extent
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


def write_folder(
    folder: Path,
    config: dict = CAUSAL,
    special: list[str] = SPECIAL,
    **tokenizer_config: str,
) -> Path:
    """Write a model folder whose special tokens have the ids 0, 1, 2, …"""
    folder.mkdir(parents=True, exist_ok=True)
    added = [{"id": i, "content": text, "special": True} for i, text in enumerate(special)]
    write_safetensors(folder / "model.safetensors", {"a.weight": ("BF16", [2, 3])})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return folder


def write_wheel(
    folder: Path, members: dict[str, bytes], name: str = "tiny_model"
) -> tuple[Path, str]:
    """Write a wheel that pip accepts; return it and its SHA-256."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    usual = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in (members | usual).items():
            archive.writestr(zipfile.ZipInfo(member), content)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def folder_members(folder: Path, inside: str) -> dict[str, bytes]:
    """The files of a folder as members of a wheel."""
    return {f"{inside}/{file.name}": file.read_bytes() for file in sorted(folder.iterdir())}


def write_hub_cache(
    home: Path, repository: str, revision: str, source: Path, *, kind: str = "models"
) -> None:
    """Put the files of `source` into a cache as huggingface_hub lays it out; kind models or datasets."""
    root = home / "hub" / f"{kind}--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / revision
    for folder in (root / "blobs", root / "refs", snapshot):
        folder.mkdir(parents=True)
    (root / "refs" / "main").write_text(revision)
    for file in sorted(source.iterdir()):
        content = file.read_bytes()
        blob = root / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / file.name).symlink_to(blob)
