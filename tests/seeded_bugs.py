"""Takes checks away, one at a time, and sees whether the tests notice.

    python tests/seeded_bugs.py        # some minutes

Each bug is put into a copy of the working tree, where the tests that should fail are run.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from tiny_graph import ROOT, environment
from tqdm import tqdm

BUGS = [
    ("an unknown key is passed over",
     "stages/lib/runtime/schema.py", 'extra="forbid"', 'extra="ignore"', "test_malformed.py"),
    ("a whole number may be a float",
     "stages/lib/runtime/schema.py", "ConfigDict(strict=True, allow_inf_nan=False) if plain", "None if plain", "test_malformed.py"),
    ("JSON that is nested too deeply crashes",
     "stages/lib/runtime/schema.py", "except RecursionError:", "except ZeroDivisionError:", "test_malformed.py"),
    ("an alias within itself is walked through",
     "stages/lib/runtime/yaml.py", "if not _is_bounded(found):", "if False:", "test_malformed.py"),
    ("a text can move the cursor",
     "stages/lib/runtime/schema.py", "c if c.isprintable() else repr(c)[1:-1] for c in text", "c for c in text", "test_security.py"),
    ("ranks may have gaps",
     "stages/lib/records.py", "if rank != expected:", "if False:", "test_malformed.py"),
    ("a short row of a table is filled up",
     "stages/lib/importers.py", "if len(cells) != len(header):", "if False:", "test_malformed.py"),
    ("missing weights are drawn at random",
     "stages/lib/pretrained.py", "        if odd:", "        if False:", "test_malformed.py"),
    ("an adapter may lack matrices",
     "stages/lib/models.py", "    if odd:", "    if False:", "test_malformed.py"),
    ("any pickle of the scorer is loaded",
     "stages/lib/scorers.py", "files.sha256(folder / name) != known", "False", "test_security.py"),
    ("a wheel may write outside its folder",
     "stages/lib/sources.py", '".." in PurePosixPath(name).parts', "False", "test_sources.py"),
    ("what DVC restores is not read",
     "stages/lib/runtime/guard.py", "hashes.of(Path(path), memory) != md5", "False", "test_verify.py"),
    ("half a folder is left behind",
     "stages/lib/runtime/files.py", "        shutil.rmtree(partial, ignore_errors=True)\n\n\ndef is_partial",
     "        pass\n\n\ndef is_partial", "test_surroundings.py"),
    ("a full disk is a traceback",
     "stages/lib/runtime/entry.py", "else surroundings.denied(error)", "else None", "test_surroundings.py"),
    ("a living process is taken for dead",
     "stages/lib/runtime/tracking/attempts.py", "return _started(int(pid)) != started", "return True", "test_surroundings.py"),
    ("a checkpoint is trusted unread",
     "stages/lib/training.py", "if sealed.is_whole(found[step]):", "if True:", "test_training.py"),
    ("work of edited code is kept",
     "stages/lib/runtime/items.py", "        guard.require_unchanged()\n", "", "test_training.py"),
    ("half a batch is kept",
     "stages/lib/runtime/items.py", "                out.truncate(whole)\n", "", "test_items.py"),
    ("an adapter is exported unread",
     "stages/lib/commands/export.py", "recorded != [hashes.of(source)]", "False", "test_commands.py"),
    ("a page may be read from another site",
     "stages/lib/labelling/server.py", "if host not in self.server.hosts:", "if False:", "test_labelling.py"),
]  # fmt: skip
"""What is wrong, file, what stands there, what is put in its place, tests that notice."""


def noticed(folder: Path, bug: tuple[str, str, str, str, str]) -> bool:
    """Put a bug into a copy, run its tests, and take it out again."""
    _, name, good, bad, tests = bug
    path = folder / name
    text = path.read_text()
    assert text.count(good) == 1, f"{name}: {good!r} stands there {text.count(good)} times"
    path.write_text(text.replace(good, bad))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", f"tests/{tests}"],
        cwd=folder, env=environment(folder), capture_output=True, text=True, check=False,
    )  # fmt: skip
    path.write_text(text)
    return done.returncode == 1


def main() -> int:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        for name in listed.splitlines():
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes((ROOT / name).read_bytes())
        missed = [bug[0] for bug in tqdm(BUGS, unit="bug") if not noticed(folder, bug)]
    print(f"{len(BUGS) - len(missed)} of {len(BUGS)} seeded bugs are noticed")
    for what in missed:
        print(f"not noticed: {what}")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
