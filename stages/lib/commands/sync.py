"""Rebuild MLflow from the files that DVC carries: fresh clones, new servers, runs made offline.

    python -m stages.lib.commands.sync [--all-commits]

Reads the last commit, every experiment and the workspace. What is in MLflow already stays as it is,
so it may be called at any time.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from stages.lib.commands import refusal, revisions
from stages.lib.commands.revisions import Revision
from stages.lib.runtime import files, params
from stages.lib.runtime.tracking import attempts, pipeline, store
from stages.lib.runtime.tracking.store import Store


def sync(found: list[Revision]) -> dict[str, str]:
    """Return what was done with each revision, by its name."""
    connection = store.connect()
    attempts.close_dead(connection)
    done: dict[str, str] = {}
    for revision in tqdm(found, desc="sync", unit="revision"):
        if not revision.has("reports/pipeline.json"):
            done[revision.name] = "has no finished run"
            continue
        try:
            done[revision.name] = _one(connection, revision)
        except revisions.AbsentError as error:
            done[revision.name] = f"was left out: {error}"
    return done


def _one(connection: Store, revision: Revision) -> str:
    card = _json(revision, "reports/pipeline.json")
    # All of it is read before anything is logged: what is not at hand leaves no half of a run.
    with refusal.of_the_graph("reports/pipeline.json"):
        found = [_json(revision, revisions.record(stage)) for stage in card["stages"]]
        artifacts = {Path(path).name: revision.read(path) for path in card["artifacts"]}
        config = str(card["config"])
    settings = params.parse(revision.read("params.yaml"), f"{revision.name}: params.yaml")
    with store.locked():
        known = connection.runs(store.of_config(config))
        if any(run.data.tags.get("plumbline.complete") == "true" for run in known):
            return "is there already"
        parent = known[0].info.run_id if known else _parent(connection, revision, card)
        pipeline.fill(connection, parent, config, found, settings)
        for name, text in artifacts.items():
            connection.client.log_text(parent, text, name)
        connection.client.set_tag(parent, "plumbline.complete", "true")
        connection.client.set_terminated(parent, "FINISHED")
    return f"was logged with {len(found)} stages"


def _json(revision: Revision, path: str) -> Any:
    return files.plain_json(revision.read(path), f"{revision.name}: {path}")


def _parent(connection: Store, revision: Revision, card: dict[str, Any]) -> str:
    experiment = revision.name not in ("HEAD", "workspace")
    name = revision.name if experiment else f"repro-{card['config'][:6]}"
    tags = {"synced_from": card["run_id"]} | ({"dvc.exp_name": name} if experiment else {})
    return store.create_pipeline_run(connection, card["config"], name, tags)


@refusal.in_one_line
def main() -> None:
    """Log what is missing and say what was."""
    # MLflow would print a line for each of a configuration's runs
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    parser = argparse.ArgumentParser(description="log to MLflow what DVC has and MLflow lacks")
    parser.add_argument("--all-commits", action="store_true", help="experiments of every commit")
    given = parser.parse_args()
    experiments = revisions.experiments(every_commit=given.all_commits)
    found = [revisions.head(), *experiments, revisions.workspace()]
    with store.answering():
        done = sync(found)
    for name, what in done.items():
        print(f"{name} {what}")


if __name__ == "__main__":
    sys.exit(main())
