"""The whole graph on real DVC and real MLflow, with a two-layer model: what users rely on, end to end."""

import json
import shutil
import time

import pytest
from ruamel.yaml import YAML
from tiny_graph import OF_DPO, SECRETS, STAGES, ran, runs, shell


def test_one_command_runs_every_stage_and_ends_with_a_report(graph):
    folder, output = graph
    assert ran(output) == STAGES
    for name in ("report.html", "report.md", "verdict.txt", "comparison.json"):
        assert (folder / "reports" / name).stat().st_size > 200
    comparison = json.loads((folder / "reports/comparison.json").read_text())
    assert set(comparison["policies"]) == {"baseline", "unquantised", "dpo", "ppo"}
    emt = comparison["policies"]["dpo"]["independent"]["emt"]
    assert emt["low"] <= emt["value"] <= emt["high"]
    assert emt["n"] == 24
    assert set(comparison["effects"]) == {"unquantised", "dpo", "ppo"}


def test_every_stage_is_a_run_in_mlflow_under_one_parent(graph):
    folder, _ = graph
    card = json.loads((folder / "reports/pipeline.json").read_text())
    (parent,) = [r for r in runs(folder) if r.info.run_id == card["run_id"]]
    assert parent.data.tags["kind"] == "pipeline"
    stages = runs(folder, f"tags.`mlflow.parentRunId` = '{card['run_id']}'")
    assert {r.data.tags["dvc.stage"]: r.data.tags["kind"] for r in stages} == dict.fromkeys(
        STAGES, "stage"
    )
    assert card["stages"] == {r.data.tags["dvc.stage"]: r.info.run_id for r in stages}
    assert parent.data.params["policies.dpo.beta"] == "0.1"
    effect = json.loads((folder / "reports/comparison.json").read_text())["effects"]["dpo"]
    shown = parent.data.metrics["report/dpo/emt_effect"]
    assert shown == pytest.approx(effect["independent"]["emt"]["value"])
    for stage in STAGES:
        assert f"{stage.replace('@', '.')}/seconds" in parent.data.metrics


def test_training_curves_and_completions_are_in_mlflow(graph):
    from mlflow import MlflowClient

    folder, _ = graph
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    by_stage = json.loads((folder / "reports/pipeline.json").read_text())["stages"]
    assert len(client.get_metric_history(by_stage["align@dpo"], "loss")) >= 2
    files = {a.path for a in client.list_artifacts(by_stage["evaluate@dpo"])}
    assert "completions.json" in files
    parent = json.loads((folder / "reports/pipeline.json").read_text())["run_id"]
    files = {a.path for a in client.list_artifacts(parent)}
    assert {"params.yaml", "dvc.yaml", "report.html"} <= files


def test_a_second_repro_runs_nothing_and_logs_nothing(graph):
    folder, _ = graph
    before = len(runs(folder, ""))
    output = shell(folder, "dvc", "repro").stdout
    assert ran(output) == set()
    assert "up to date" in output
    assert len(runs(folder, "")) == before


def test_the_baseline_is_its_own_reference(graph):  # property 9
    folder, _ = graph
    rows = [
        json.loads(line)
        for line in (folder / "data/evaluations/baseline/answers.jsonl").read_text().splitlines()
    ]
    assert all(row["kl_k1"] == 0 and row["kl_exact"] == 0 for row in rows)
    other = [
        json.loads(line)
        for line in (folder / "data/evaluations/dpo/answers.jsonl").read_text().splitlines()
    ]
    assert [(r["prompt_id"], r["index"]) for r in rows] == [
        (r["prompt_id"], r["index"]) for r in other
    ]


def test_every_policy_goes_on_with_the_same_beginnings_about_every_group(graph):
    folder, _ = graph
    asked = {}
    for name in ("baseline", "unquantised", "dpo", "ppo"):
        text = (folder / f"data/evaluations/{name}/identities.jsonl").read_text()
        rows = [json.loads(line) for line in text.splitlines()]
        asked[name] = [(r["beginning"], r["group"], r["index"], r["prompt"]) for r in rows]
    assert len(set(asked["baseline"])) == 3 * 34
    assert all(own == asked["baseline"] for own in asked.values())
    numbers = json.loads((folder / "reports/comparison.json").read_text())
    assert all(
        own["identities"]["independent"]["gap"]["n"] == 3 for own in numbers["policies"].values()
    )


def test_no_evaluated_prompt_was_learnt_from(graph):  # property 39
    folder, _ = graph
    read = lambda name: [json.loads(line) for line in (folder / name).read_text().splitlines()]  # noqa: E731
    learnt = {row["prompt_id"] for row in read("data/pairs/train.jsonl")}
    asked = {row["prompt_id"] for row in read("data/evaluations/dpo/answers.jsonl")}
    assert learnt
    assert asked
    assert not learnt & asked
    clusters = {row["cluster"] for row in read("data/pairs/train.jsonl")}
    assert not clusters & {row["cluster"] for row in read("data/evaluations/dpo/answers.jsonl")}


def test_an_experiment_reruns_what_it_changes_and_its_parent_is_complete(clean):  # property 35
    folder = clean
    output = shell(
        folder, "dvc", "exp", "run", "-n", "closer", "-S", "policies.dpo.beta=0.3"
    ).stdout
    again = OF_DPO
    assert ran(output) == again
    parent = next(
        r
        for r in runs(folder)
        if r.data.tags.get("dvc.exp_name") == "closer" and r.data.tags["kind"] == "pipeline"
    )
    assert parent.data.params["policies.dpo.beta"] == "0.3"
    children = runs(folder, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    kinds = {r.data.tags["dvc.stage"]: r.data.tags["kind"] for r in children}
    assert kinds == {s: "stage" if s in again else "reused" for s in STAGES}
    for stage in STAGES:
        assert f"{stage.replace('@', '.')}/seconds" in parent.data.metrics
    table = shell(folder, "python", "-m", "stages.lib.commands.compare").stdout.splitlines()
    assert [line.split()[0] for line in table] == [
        "policy", "baseline", "dpo", "ppo", "unquantised", "closer/dpo",
    ]  # fmt: skip
    assert table[-1].endswith("policies.dpo.beta=0.3")
    effect = json.loads((folder / "reports/comparison.json").read_text())["effects"]["dpo"]
    change = effect["independent"]["emt"]
    shown = f"{change['value']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]"
    assert shown.replace("-", "−") in table[-1]  # as the experiment's own report has it
    refused = shell(
        folder, "python", "-m", "stages.lib.commands.compare", "--baseline", "nobody", check=False
    )
    assert refused.returncode == 1
    assert refused.stderr.strip() == (
        "Refusal: --baseline nobody: no such policy; there are baseline, dpo, ppo, unquantised, closer/dpo"
    )


def test_a_changed_parameter_of_one_policy_reruns_only_that_policy(graph):  # property 35
    folder, _ = graph
    original = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(original.replace("    beta: 0.1 ", "    beta: 0.2 "))
    assert (folder / "params.yaml").read_text() != original
    status = shell(folder, "dvc", "repro", "--dry").stdout
    (folder / "params.yaml").write_text(original)
    assert {s for s in ran(status) if s.startswith(("align", "reward", "pairs", "sample"))} == {
        "align@dpo"
    }


@pytest.mark.parametrize(
    ("change", "stage", "message"),
    [
        (
            ("beta: 0.1 ", "bta: 0.1 "),
            "align@dpo",
            "ParamError: params.yaml: policies.dpo.bta is not a parameter of Dpo; did you mean 'beta'?",
        ),
        (
            ("beta: 0.1 ", "beta: 0.0 "),
            "align@dpo",
            "ParamError: params.yaml: policies.dpo.beta must be greater than 0, not 0.0",
        ),
        (
            ("algorithm: dpo ", "algorithm: dop "),
            "align@dpo",
            # DVC's own: the stage depends on the folder of its algorithm. tests/test_registry.py has ours
            "ERROR: failed to reproduce 'align@dpo': [Errno 2] No such file or directory: ",
        ),
        (
            ("prompts: 24 ", "prompts: 900 "),
            "evaluate@baseline",
            "Refusal: params.yaml: evaluate.sets.toxic.prompts is 900, but split test has",
        ),
        (
            ("temperature: 1.0      # divides", "temperature: warm      # divides"),
            "sample@base",
            "ParamError: params.yaml: samplers.base.temperature must be a valid number, not 'warm'",
        ),
    ],
)
def test_bad_params_are_refused_in_one_line_and_nothing_is_lost(graph, change, stage, message):
    folder, _ = graph
    original = (folder / "params.yaml").read_text()
    assert change[0] in original
    (folder / "params.yaml").write_text(original.replace(*change, 1))
    before = (folder / "dvc.lock").read_bytes()
    done = shell(folder, "dvc", "repro", "--single-item", stage, check=False)
    (folder / "params.yaml").write_text(original)
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith(message.split(":")[0])]
    assert line.startswith(message)
    assert "Traceback" not in done.stderr
    assert (folder / "dvc.lock").read_bytes() == before
    # DVC removes a stage's outputs before it runs it: its cache gives back data, git the metrics.
    shell(folder, "git", "checkout", "-q", "reports")
    shell(folder, "dvc", "checkout", "-q")
    assert shell(folder, "dvc", "status").stdout.strip() == "Data and pipelines are up to date."


def test_a_corrupt_line_is_refused_by_file_and_number(graph):
    folder, _ = graph
    path = folder / "data/sources/prompts/insult.jsonl"
    original = path.read_text()
    path.write_text(original + '{"id": "insult-900", "form": "continuation"}\n')
    done = shell(folder, "dvc", "repro", "prompts", check=False)
    path.write_text(original)
    number = len(original.splitlines()) + 1
    assert done.returncode != 0
    assert f"data/sources/prompts/insult.jsonl:{number}" in done.stderr
    assert "Traceback" not in done.stderr
    shell(folder, "git", "checkout", "-q", "reports")
    shell(folder, "dvc", "checkout", "-q")


def test_no_secret_of_the_environment_is_written_anywhere(graph):
    folder, printed = graph
    assert not any(secret in printed for secret in SECRETS.values())
    tests = folder / "tests"  # where they stand
    files = [path for path in folder.rglob("*") if path.is_file() and tests not in path.parents]
    assert any(path.name == "mlflow.db" for path in files)
    for path in files:
        content = path.read_bytes()
        assert not any(secret.encode() in content for secret in SECRETS.values()), path


def test_the_same_seed_gives_the_same_outputs_twice(clean):  # property 35
    def hashes():
        stages = YAML(typ="safe").load(clean / "dvc.lock")["stages"].values()
        outs = {out["path"]: out["md5"] for stage in stages for out in stage["outs"]}
        return {path: md5 for path, md5 in outs.items() if not path.startswith("reports/runs/")}

    before = hashes()
    shutil.rmtree(clean / ".cache/items")  # nor is anything found that was made before
    for stage in ("sample@base", "reward", "align@dpo", "evaluate@dpo"):
        shell(clean, "dvc", "repro", "-f", "-s", stage)
    assert hashes() == before


def test_without_the_mlflow_store_no_output_changes_and_little_time_is_lost(clean):
    def timed(*before):
        started = time.monotonic()
        done = shell(clean, *before, "dvc", "repro", "-f", "-s", "sample@base")
        return time.monotonic() - started, done

    before = (clean / "data/completions/base.jsonl").read_bytes()
    usual, _ = timed()
    dead, done = timed("env", "MLFLOW_TRACKING_URI=http://127.0.0.1:9")
    assert dead - usual < 15
    assert "does not take this run" in done.stderr + done.stdout
    assert (clean / "data/completions/base.jsonl").read_bytes() == before


def labels_of_ann(folder, sampler="base", count=6):
    """What a person says of some prompts' completions: the first is best, the others are alike."""
    by_prompt = {}
    for line in (folder / f"data/completions/{sampler}.jsonl").read_text().splitlines():
        row = json.loads(line)
        by_prompt.setdefault(row["prompt_id"], []).append(row["id"])
    rows = []
    for prompt, ids in sorted(by_prompt.items())[:count]:
        ranks = {ids[0]: 1} | dict.fromkeys(ids[1:], 2)
        rows.append({
            "schema_version": 1, "kind": "ranking", "criterion": "harmless", "prompt_id": prompt, "labeler": "ann",
            "shown": ids[::-1], "ranks": ranks, "junk": {}, "revision": 1,
        })  # fmt: skip
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_a_persons_file_reruns_rank_and_what_follows_and_nothing_before(clean):
    from mlflow import MlflowClient

    (clean / "data/labels/ann.jsonl").write_text(labels_of_ann(clean))
    planned = shell(clean, "dvc", "repro", "--dry").stdout
    assert ran(planned) == {"rank@people"}  # the rest depends on what that writes
    output = shell(clean, "dvc", "repro", "pairs").stdout
    assert ran(output) == {"rank@people", "pairs"}
    pairs = (clean / "data/pairs/train.jsonl").read_text()
    assert '"ann"' in pairs
    own = json.loads((clean / "reports/runs/pairs.json").read_text())["run_id"]
    shown = MlflowClient(f"sqlite:///{clean}/mlflow.db").get_run(own).data.metrics
    quality = json.loads((clean / "reports/labels.json").read_text())["criteria"]["harmless"][
        "labelers"
    ]
    assert shown["ann/tie_rate"] == pytest.approx(quality["ann"]["tie_rate"]["value"])
    assert {f"{name}/tie_rate" for name in ("ann", "valence", "words", "judge")} <= shown.keys()


def test_revisions_are_pairs_where_params_take_them_in(graph):
    folder, _ = graph
    trace = (folder / "data/revisions/own/rankings.jsonl").read_text().splitlines()
    assert trace
    pairs = [
        json.loads(line)
        for split in ("train", "validation", "test")
        for line in (folder / f"data/pairs/{split}.jsonl").read_text().splitlines()
    ]
    revised = [p for p in pairs if p["labelers"] == ["own"]]
    assert {p["chosen_id"].split("/")[1].rsplit("-", 1)[0] for p in revised} == {"own"}
    assert {p["rejected_id"].split("/")[1].rsplit("-", 1)[0] for p in revised} == {"own-original"}


@pytest.mark.slow
def test_the_next_round_labels_the_policys_own_completions_and_keeps_the_earlier(clean):
    """What docs/labels.md says under "The next round"."""
    from stages.lib.commands.freeze import freeze

    (clean / "data/labels/ann.jsonl").write_text(labels_of_ann(clean))
    shell(clean, "dvc", "repro", "pairs")
    first = json.loads((clean / "reports/labels.json").read_text())
    freeze(clean, "dpo", "1")
    shell(clean, "dvc", "add", "-q", "data/rounds/1")
    params = YAML()
    with (clean / "params.yaml").open() as text:
        whole = params.load(text)
    whole["samplers"]["round1"] = dict(whole["samplers"]["base"]) | {"adapter": "data/rounds/1"}
    whole["labelers"]["people"]["samplers"] = ["round1"]
    whole["pairs"]["mixed_samplers"] = True
    whole["pairs"]["min_p_chosen"] = 0.5  # ann is alone, and may be held for a poor judge
    with (clean / "params.yaml").open("w") as text:
        params.dump(whole, text)
    output = shell(clean, "dvc", "repro", "sample@round1").stdout
    assert ran(output) == {"sample@round1"}
    with (clean / "data/labels/ann.jsonl").open("a") as out:
        out.write(labels_of_ann(clean, "round1"))
    shell(clean, "dvc", "repro", "pairs")
    second = json.loads((clean / "reports/labels.json").read_text())
    before, after = (found["criteria"]["harmless"]["labelers"]["ann"] for found in (first, second))
    assert after["prompts"] == before["prompts"] == 6
    assert after["tie_rate"]["n"] == 2 * before["tie_rate"]["n"]
    samplers = {
        row["chosen_id"].split("/")[1].rsplit("-", 1)[0]
        for row in map(json.loads, (clean / "data/pairs/train.jsonl").read_text().splitlines())
        if "ann" in row["labelers"]
    }
    assert {"base", "round1"} <= samplers


def taken_in(folder, **sections):
    """Add entries to sections of params.yaml."""
    params = YAML()
    with (folder / "params.yaml").open() as text:
        whole = params.load(text)
    for section, entries in sections.items():
        whole[section] = dict(whole[section]) | entries
    with (folder / "params.yaml").open("w") as text:
        params.dump(whole, text)
    return whole


@pytest.mark.slow
def test_a_round_of_iterative_dpo_is_two_entries_and_a_further_one_runs_alone(clean):
    """docs/algorithms.md: each round draws from the policy before it, grades, pairs and trains."""
    grader = {
        "proposal": "models/base", "reward": "models/reward", "roles": ["align", "validation"],
        "categories": ["insult", "profanity", "threat", "identity_attack"], "completions": 3, "max_tokens": 8, "batch_tokens": 1024, "min_p_chosen": 0.5,
    }  # fmt: skip
    whole = taken_in(clean)

    def of_round(number, before):
        own = f"data/graded/round_{number}"
        policy = dict(whole["policies"]["dpo"]) | {
            "starts_from": before, "learns_from": own, "prompts": own, "snapshots": 0
        }  # fmt: skip
        return {f"round_{number}": grader | {"proposal": before}}, {f"dpo_{number}": policy}

    graders, policies = of_round(2, "models/policies/dpo")
    knobs = (
        "starts_from", "snapshots", "seed", "anchor", "lora_rank", "lora_alpha", "learning_rate",
        "warmup", "epochs", "batch_prompts", "max_grad_norm", "max_tokens",
    )  # fmt: skip
    brain = {key: whole["policies"]["dpo"][key] for key in knobs} | {
        "algorithm": "brain", "learns_from": "data/graded/base", "prompts": "data/graded/base",
        "temperature": 0.5, "min_effective": 0.0, "snapshots": 0,
    }  # fmt: skip
    taken_in(clean, graders=graders | {"base": grader}, policies=policies | {"brain": brain})
    scored = {"score@judge", "score@harm", "report"}
    assert ran(shell(clean, "dvc", "repro").stdout) == scored | {
        "grade@base", "grade@round_2", "align@dpo_2", "evaluate@dpo_2", "align@brain", "evaluate@brain"
    }  # fmt: skip
    graders, policies = of_round(3, "models/policies/dpo_2")
    taken_in(clean, graders=graders, policies=policies)
    assert ran(shell(clean, "dvc", "repro").stdout) == scored | {
        "grade@round_3", "align@dpo_3", "evaluate@dpo_3"
    }  # fmt: skip
    page = (clean / "reports/report.md").read_text()
    assert "| distribution matching | offline |" in page
    assert "dpo_3" in page
