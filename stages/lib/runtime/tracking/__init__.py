"""Logs stages to MLflow; it observes and never feeds: without its store no output byte changes.

    MLflow experiment "plumbline"
      pipeline run          parent, one per configuration; holds every param and <stage>/<metric>
        stage run           child; kind=stage
        stage run (reused)  child; kind=reused, with the metrics of the run it stands for

A stage that DVC skips or restores logs nothing, so each stage also writes what it logged to
reports/runs/<stage>.json, an output that DVC carries along; `report`, the last stage, completes the
parent from these files. A tracking server that does not answer costs a warning, never a stage.
"""

from stages.lib.runtime.tracking.pipeline import complete, identities
from stages.lib.runtime.tracking.run import (
    about,
    artifact,
    curve,
    go_on_from,
    made,
    stage_run,
    table,
    watch,
)

__all__ = [
    "about",
    "artifact",
    "complete",
    "curve",
    "go_on_from",
    "identities",
    "made",
    "stage_run",
    "table",
    "watch",
]
