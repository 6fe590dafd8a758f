"""The table of every method: its kind, what it bought, what it cost, and what chance there is in it."""

import json
import re

import pytest
from synthetic_evaluations import EVALUATE, MODELS, POLICIES, REPORT, write_world

from stages import report
from stages.lib.reporting import methods
from stages.lib.runtime.schema import check

SEEDED = {
    **POLICIES,
    "dpo": {"algorithm": "dpo", "beta": 0.1, "seed": None, "snapshots": 3},
    "dpo_2": {"algorithm": "dpo", "beta": 0.1, "seed": 2, "snapshots": 0},
    "other": {"algorithm": "dpo", "beta": 0.3, "seed": 2},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Three trainings, two of which differ in their seed alone."""
    files = write_world(tmp_path_factory.mktemp("methods"), SEEDED, prompts=24)
    for name in ("dpo", "dpo_2", "other"):
        trained = {"objective": "contrastive", "answers": "offline", "steps": 30}
        path = files["align"] / f"{name}.json"
        path.write_text(json.dumps(trained | {"completion_tokens": 12345.0}))
    (files["out"] / "runs").mkdir(parents=True)
    identity = {"stage": "align@dpo", "run_id": "0a1b", "seconds": 98765.4}
    (files["out"] / "runs/align@dpo.json").write_text(json.dumps(identity))
    settings = check(REPORT, report.Report, "params.yaml: report")
    report.run(settings, EVALUATE, SEEDED, MODELS, 1, **files)
    return files


@pytest.fixture(scope="module")
def table(world):
    """The rows of the table: their cells as text."""
    page = (world["out"] / "report.html").read_text(encoding="utf-8")
    own = page.split('id="methods"')[1].split("</table>")[0]
    rows = [
        [re.sub(r"<[^>]+>", " ", cell).split() for cell in re.split(r"</t[hd]>", row)]
        for row in own.split("<tr>")[1:]
    ]
    return {" ".join(row[0]): [" ".join(cell) for cell in row[1:-1]] for row in rows}


def test_every_policy_has_a_line_that_says_what_it_is(table):
    assert set(table) == {
        "Method", "baseline ◆ none", "unquantised none", "best of 4 a choice among answers of "
        "baseline by the reward model: no training", "dpo ◆ dpo: contrastive, offline",
        "dpo_2 ◆ dpo: contrastive, offline", "other ◆ dpo: contrastive, offline",
    }  # fmt: skip


def test_tokens_and_seconds_close_a_line_and_seconds_are_left_out_of_the_bytes(table, world):
    assert table["dpo ◆ dpo: contrastive, offline"][-2:] == ["12,345", "98,765"]
    assert table["dpo_2 ◆ dpo: contrastive, offline"][-2:] == ["12,345", "–"]
    page = (world["out"] / "report.html").read_text(encoding="utf-8")
    without = re.sub(r"<!-- runs -->.*?<!-- /runs -->", "", page, flags=re.DOTALL)
    assert "98,765" in page
    assert "98,765" not in without


def test_figures_are_those_of_the_comparison(table, world):
    found = json.loads((world["out"] / "comparison.json").read_text())
    kl = found["policies"]["dpo"]["cost"]["kl_exact"]["value"]
    harm = found["effects"]["dpo"]["independent"]["mean"]["value"]
    line = " ".join(table["dpo ◆ dpo: contrastive, offline"])
    assert f"{kl:.2f} [" in line
    assert f"−{-harm:.3f} [" in line
    most = found["controls"]["best_of_reward"]["4"]
    choice = " ".join(next(cells for name, cells in table.items() if name.startswith("best of 4")))
    assert f"at most {most['kl']:.2f}" in choice
    assert f"{most['change']['harm']['value']:+.3f}".replace("-", "−") in choice


class Found:
    """What `in_front` and `spreads` read, of made-up policies."""

    def __init__(self, **at):
        self.policies = {
            name: {"algorithm": "x", "beta": beta, "seed": seed} for name, (_, _, beta, seed) in at.items()
        }  # fmt: skip
        self.estimates = {
            name: {
                "cost": {"kl_exact": {"value": kl}},
                "independent": {"mean": {"value": harm}},
            }
            for name, (kl, harm, _, _) in at.items()
        }


def test_the_front_is_those_that_nobody_beats_at_their_distance():
    found = Found(
        base=(0.0, 0.5, 0, None), near=(1.0, 0.4, 1, None), worse=(1.5, 0.45, 2, None),
        far=(3.0, 0.1, 3, None), same=(3.0, 0.1, 4, None), vain=(3.5, 0.1, 5, None),
    )  # fmt: skip
    assert methods.in_front(found) == {"base", "near", "far", "same"}


def test_a_spread_is_of_entries_alike_but_for_their_seed():
    found = Found(
        one=(1.0, 0.4, 1, None), two=(1.5, 0.3, 1, 2), three=(1.2, 0.35, 1, 3), other=(9.0, 0.9, 2, 2)
    )  # fmt: skip
    (spread,) = methods.spreads(found)
    assert spread.names == ["one", "two", "three"]
    at = dict(zip([row.path[1] for row in methods.SPREAD], spread.ranges, strict=True))
    assert at["kl_exact"] == (1.0, 1.5)
    assert at["mean"] == (0.3, 0.4)


def test_entries_without_a_seed_have_no_spread():
    found = Found(one=(0.0, 0.4, 1, None), two=(0.0, 0.3, 1, None))
    for entry in found.policies.values():
        del entry["seed"]
    assert methods.spreads(found) == []


def test_the_page_and_its_twin_name_the_spread(world):
    for name in ("report.html", "report.md"):
        assert "dpo, dpo_2" in (world["out"] / name).read_text(encoding="utf-8")


def test_in_markdown_it_is_one_table(world):
    lines = (world["out"] / "report.md").read_text(encoding="utf-8").splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("| method | pursues"))
    assert lines[start + 1].startswith("|---|---|---|")
    assert all(line.startswith("| ") for line in lines[start + 2 : start + 2 + len(SEEDED)])
