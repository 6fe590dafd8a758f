"""Labelling without a browser: who is asked what, the file of answers, and what the server refuses."""

import http.client
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import labelling_world as world
import pytest
from hypothesis import given
from hypothesis import strategies as st
from labelling_world import answers, inside, plain, prompt, rows, served

from stages.lib.commands import label as command
from stages.lib.labelers import people
from stages.lib.labelers.people import People
from stages.lib.labelling import book, page, plan
from stages.lib.labelling.book import Book, ElsewhereError
from stages.lib.records import Ranking
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.params import ParamError
from stages.lib.runtime.schema import Refusal

ASKED = People(
    kind="people", reads="data/labels", guide="data/labels/instructions.md", criterion="harmless", task="ranking",
    samplers=[], roles=["align"], categories=[], prompts=1000, team=[], overlap=1, repeats=0.0, gold=None,
    tie_warning=0.2,
)  # fmt: skip
PROMPTS = [prompt(n) for n in range(1, 81)]
COMPLETIONS = [row for one in PROMPTS for row in answers(one)]


def asked(**change):
    return ASKED.model_copy(update=change)


def planned(labeler="ann", prompts=PROMPTS, gold=(), **change):
    given = [row for row in COMPLETIONS if row.prompt_id in {one.id for one in prompts}]
    return plan.tasks(asked(**change), labeler, prompts, given, gold)


# ---- who is asked what ------------------------------------------------------------------------


def test_a_plan_is_the_same_whatever_order_files_have_and_another_for_another_labeler():
    mine = planned()
    again = plan.tasks(ASKED, "ann", PROMPTS[::-1], COMPLETIONS[::-1])
    assert [t.id for t in mine] == [t.id for t in again]
    assert [t.shown for t in mine] == [t.shown for t in again]
    theirs = planned("bob")
    assert [t.id for t in mine] == [t.id for t in theirs]  # the same questions
    assert [t.shown for t in mine] != [t.shown for t in theirs]  # shown otherwise


def test_answers_are_shuffled_evenly_so_that_no_place_gives_the_sampler_away():
    # 80 prompts, four places: the first completion is expected 20 times in each; the standard
    # deviation is sqrt(80 * 1/4 * 3/4) = 3.9, and 8 to 32 is three of them.
    places = Counter([one.index for one in t.shown].index(0) for t in planned())
    assert all(8 <= places[i] <= 32 for i in range(4))


def test_the_order_depends_on_labeler_criterion_and_whether_it_is_a_repeat():
    four = answers(PROMPTS[0], [str(n) for n in range(9)])
    orders = {
        plan.shuffled(four, who, what, repeat=again)
        for who in ("ann", "bob")
        for what in ("helpful", "harmless")
        for again in (False, True)
    }
    assert len(orders) == 8


@given(st.sets(st.integers(1, 80), min_size=1), st.integers(1, 3))
def test_each_prompt_goes_to_overlap_of_the_team_and_added_prompts_move_none(numbers, overlap):
    team = ["ann", "bob", "cem"]
    some = [prompt(n) for n in numbers]
    given = [row for one in some for row in answers(one)]
    chosen = asked(team=team, overlap=overlap)
    mine = {name: {t.prompt.id for t in plan.tasks(chosen, name, some, given)} for name in team}
    shares = Counter(name for own in mine.values() for name in own)
    assert shares == {one.id: overlap for one in some}
    everyone = {
        name: {t.prompt.id for t in plan.tasks(chosen, name, PROMPTS, COMPLETIONS)} for name in team
    }
    for name in team:
        assert mine[name] == everyone[name] & {one.id for one in some}


def test_prompts_fall_evenly_on_the_team():
    # 80 prompts on three: 26.7 expected, sd sqrt(80 * 1/3 * 2/3) = 4.2; three of them either side
    for name in ("ann", "bob", "cem"):
        assert 14 <= len(planned(name, team=["ann", "bob", "cem"])) <= 40


def test_a_new_colleague_takes_prompts_over_and_moves_none_between_the_others():
    def of(name, team):
        return {t.prompt.id for t in planned(name, team=team)}

    for name in ("ann", "bob"):
        assert of(name, ["ann", "bob", "cem"]) < of(name, ["ann", "bob"])


def test_the_first_prompts_by_hash_are_labeled_and_others_never_displace_the_rest():
    first = [t.prompt.id for t in planned(prompts=PROMPTS[:40])]
    every = [t.prompt.id for t in planned()]
    assert [name for name in every if name in first] == first
    ten = plan.tasks(asked(prompts=10), "ann", PROMPTS, COMPLETIONS)
    assert [t.prompt.id for t in ten] == every[:10]


def test_repeats_come_twenty_tasks_later_in_another_order_and_only_once():
    tasks = planned(repeats=0.5)
    again = [t for t in tasks if t.repeat]
    # 60 of 80 may be repeated, each with probability a half: 30 expected, sd sqrt(15) = 3.9
    assert 18 <= len(again) <= 42
    firsts = {t.prompt.id: n for n, t in enumerate(t for t in tasks if not t.repeat)}
    for place, task in enumerate(tasks):
        if task.repeat:
            before = sum(not t.repeat for t in tasks[:place])
            assert before == firsts[task.prompt.id] + plan.GAP + 1
    reordered = [t.shown != plan.shuffled(t.shown, "ann", "harmless") for t in again]
    assert sum(reordered) > len(again) / 2  # 23 of 24 orders of four differ
    assert len({t.id for t in tasks}) == len(tasks)


def test_no_ranking_is_repeated_at_once():
    # 3 rankings: gap 1, so that the first two may come again, each after the next one
    tasks = planned(prompts=PROMPTS[:3], repeats=1.0)
    names = [t.prompt.id for t in tasks]
    assert len(tasks) == 5
    assert all(a != b for a, b in itertools.pairwise(names))
    assert len(planned(prompts=PROMPTS[:1], repeats=1.0)) == 1


def test_gold_rankings_are_given_to_everyone_and_only_those_of_these_completions():
    team = ["ann", "bob"]
    key = [planned("judy")[0], planned("judy")[1]]
    gold = {t.subject for t in key}
    for name in team:
        mine = {t.prompt.id for t in planned(name, gold=gold, team=team)}
        assert {t.prompt.id for t in key} <= mine
    other = {("ranking", "harmless", key[0].prompt.id, ("elsewhere",), False)}
    assert [t.id for t in planned(gold=other, team=["ann"])] == [t.id for t in planned()]


def test_whoever_makes_the_answer_key_is_asked_everything():
    assert len(planned("judy", team=["ann", "bob"], gold=(), overlap=1)) == 0
    chosen = asked(team=["ann", "bob"], gold="judy")
    assert len(plan.tasks(chosen, "judy", PROMPTS, COMPLETIONS)) == 80


def test_of_the_key_the_highest_revision_by_this_criterion_counts_and_no_repeat():
    task = planned()[0]
    base = ranking_of(task)
    later = base.model_copy(update={"revision": 2, "criterion": "helpful"})
    repeat = base.model_copy(update={"repeat": True})
    assert plan.gold_subjects([base, later, repeat], "harmless") == {task.subject}
    skipped = book.parse({**skip_of(task), "revision": 3})
    assert plan.gold_subjects([base, skipped], "harmless") == set()


def test_thumbs_ask_one_answer_of_every_prompt_before_the_second_of_any():
    tasks = planned(task="thumbs", prompts=PROMPTS[:5])
    assert len(tasks) == 20
    for n in range(0, 20, 5):
        assert len({t.prompt.id for t in tasks[n : n + 5]}) == 5
    assert len({t.shown for t in tasks}) == 20


def test_an_answer_is_written_once_a_prompt_completions_or_none():
    tasks = plan.tasks(asked(task="demonstration"), "ann", PROMPTS[:3], [])
    assert [len(t.shown) for t in tasks] == [0, 0, 0]


def test_other_texts_under_the_same_ids_are_another_task():
    one = PROMPTS[0]
    first, second = answers(one), answers(one, [*world.TEXTS[:3], " something new"])
    a, b = (plan.tasks(ASKED, "ann", [one], given)[0] for given in (first, second))
    assert a.subject == b.subject
    assert a.sha != b.sha
    assert a.id != b.id
    # the order of what is shown is not part of the hash: labelers see different ones
    assert a.sha == plan.tasks(ASKED, "bob", [one], first)[0].sha


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"roles": ["sft"]},
            r"no prompt has one of the roles sft, one of the categories \(any\) and 2 completions or more",
        ),
        (
            {"categories": ["threat"]},
            r"roles align, one of the categories \(threat\) and 2 completions",
        ),
    ],
)
def test_a_plan_without_prompts_is_refused(change, message):
    with pytest.raises(ParamError, match=message):
        planned(**change)


def test_more_answers_than_keys_are_refused():
    ten = answers(PROMPTS[0], [str(n) for n in range(10)])
    with pytest.raises(ParamError, match="insult-001 has 10 completions, and the page ranks 9"):
        plan.tasks(ASKED, "ann", PROMPTS[:1], ten)


# ---- the file ---------------------------------------------------------------------------------


def fields_of(task, labeler="ann", **change):
    names = [one.id for one in task.shown]
    return {
        "schema_version": 1, "kind": "ranking", "criterion": task.criterion, "prompt_id": task.prompt.id,
        "labeler": labeler, "shown": names, "ranks": {name: n for n, name in enumerate(names, 1)}, "junk": {},
        "confidence": None, "note": None, "ms_active": 10, "instructions_sha": None, "task_sha": task.sha,
        "repeat": task.repeat, **change,
    }  # fmt: skip


def skip_of(task, reason="I cannot decide"):
    kept = fields_of(task).items()
    return {k: v for k, v in kept if k not in ("ranks", "junk")} | {
        "kind": "skip",
        "task": task.kind,
        "reason": reason,
    }


def ranking_of(task, labeler="ann", revision=1):
    return Ranking(**fields_of(task, labeler), revision=revision)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Book(tmp_path / "labels/ann.jsonl")


def test_lines_are_appended_with_the_next_revision_and_read_back_by_rank(kept):
    first, second = planned()[:2]
    assert kept.append(fields_of(first), seen=0).revision == 1
    assert kept.append(fields_of(second), seen=0).revision == 1
    later = kept.append(fields_of(first, note="again"), seen=1)
    assert later.revision == 2
    read = people.read(kept.path)
    assert [label.revision for _, label in read] == [1, 1, 2]
    assert read[2][1].note == "again"
    assert kept.labels() == Book(kept.path).labels() == [label for _, label in read]


def test_a_skip_takes_a_ranking_back_as_its_next_revision(kept):
    task = planned()[0]
    kept.append(fields_of(task), seen=0)
    assert kept.append(skip_of(task), seen=1).revision == 2


def test_an_answer_that_saw_an_older_revision_is_told_what_stands_there(kept):
    task = planned()[0]
    first = kept.append(fields_of(task, note="here"), seen=0)
    with pytest.raises(ElsewhereError) as caught:
        kept.append(fields_of(task, note="there"), seen=0)
    assert caught.value.label == first
    assert len(kept.labels()) == 1


def test_many_threads_and_two_books_lose_no_line_and_give_no_revision_twice(kept):
    other = Book(kept.path)  # as another process would
    tasks = planned()[:40]
    wrong = []

    def work(of, some):
        try:
            for task in some:
                of.append(fields_of(task), seen=9)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(of, tasks)) for of in (kept, other) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    read = [label for _, label in people.read(kept.path)]  # refuses a revision that stands twice
    assert len(read) == 8 * 40
    assert Counter(label.revision for label in read) == dict.fromkeys(range(1, 9), 40)
    assert kept.labels() == other.labels() == read


APPENDING = """
import sys, time
sys.path[:0] = {paths!r}
from test_labelling import fields_of, planned
from stages.lib.labelling.book import Book
kept = Book(__import__("pathlib").Path("labels/ann.jsonl"))
print("ready", flush=True)
for task in planned() * 1000:
    kept.append(fields_of(task, note="x" * 5000), seen=10**9)
"""


def test_whoever_is_killed_while_appending_leaves_whole_lines(tmp_path):
    paths = [str(world.ROOT), str(world.ROOT / "tests")]
    script = APPENDING.format(paths=paths)
    for pause in (0.05, 0.2):
        running = subprocess.Popen(
            [sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE
        )
        assert running.stdout.readline() == b"ready\n"
        time.sleep(pause)
        running.kill()
        running.wait()
        running.stdout.close()
    with inside(tmp_path):
        kept = Book(tmp_path / "labels/ann.jsonl")
        found = kept.labels()
        assert found
        kept.append(fields_of(planned()[0]), seen=10**9)  # the lock died with its holder
        assert len(people.read(kept.path)) == len(found) + 1
    assert [path.name for path in (tmp_path / "labels").iterdir()] == ["ann.jsonl"]


def test_a_torn_last_line_is_moved_aside_and_said(kept):
    first, second = planned()[:2]
    kept.append(fields_of(first), seen=0)
    whole = kept.path.read_bytes()
    torn = book.line(ranking_of(second))[:-40]
    kept.path.write_bytes(whole + torn)
    again = Book(kept.path)
    assert kept.path.read_bytes() == whole
    (aside,) = (kept.path.parent.parent / ".cache/labelling").iterdir()
    assert aside.read_bytes() == torn
    (said,) = again.repaired
    assert f"torn by a crash and never acknowledged; its {len(torn)} bytes were moved to" in said


def test_a_torn_line_is_moved_aside_before_another_is_appended_to_it(kept):
    first, second = planned()[:2]
    kept.append(fields_of(first), seen=0)
    with kept.path.open("ab") as out:
        out.write(b'{"kind": "rank\xc3')  # in the middle of a character
    kept.append(fields_of(second), seen=0)
    assert [label.prompt_id for _, label in people.read(kept.path)] == [
        first.prompt.id,
        second.prompt.id,
    ]


def test_a_whole_line_that_lacks_its_line_feed_is_given_one(kept):
    task = planned()[0]
    kept.path.parent.mkdir()
    kept.path.write_bytes(book.line(ranking_of(task))[:-1])
    again = Book(kept.path)
    assert kept.path.read_bytes() == book.line(ranking_of(task))
    assert again.repaired == [f"{kept.path}: the last line had no line feed and was given one"]


@pytest.mark.parametrize("ending", ["\n", ""])
def test_what_is_json_and_no_label_is_refused_with_its_line_and_left_as_it_is(kept, ending):
    kept.path.parent.mkdir()
    text = book.line(ranking_of(planned()[0])).decode() + '{"kind": "ranking"}' + ending
    kept.path.write_text(text)
    with pytest.raises(RecordError, match=r"ann.jsonl:2: "):
        Book(kept.path)
    assert kept.path.read_text() == text


def test_a_half_written_line_is_taken_back_when_the_disk_is_full(kept, monkeypatch):
    first, second = planned()[:2]
    kept.append(fields_of(first), seen=0)
    whole = kept.path.read_bytes()
    real = os.write

    def a_part(handle, data):
        return real(handle, data[: len(data) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(book.os, "write", a_part)
        with pytest.raises(OSError, match="the disk took a part of the line only"):
            kept.append(fields_of(second), seen=0)
    assert kept.path.read_bytes() == whole
    assert len(kept.labels()) == 1


def test_a_link_is_refused_since_an_append_would_change_what_it_leads_to(kept, tmp_path):
    kept.path.parent.mkdir()
    (tmp_path / "cache").write_text("")
    kept.path.hardlink_to(tmp_path / "cache")
    with pytest.raises(
        RecordError, match=r"is a link to a file elsewhere.*`dvc unprotect .*ann.jsonl`"
    ):
        Book(kept.path)


def test_a_folder_in_the_place_of_the_file_is_refused(kept):
    kept.path.mkdir(parents=True)
    with pytest.raises(RecordError, match=r"ann.jsonl: is a folder, .* move it away$"):
        Book(kept.path)


def test_nothing_but_the_labelers_file_is_left_in_the_folder_of_labels(kept):
    kept.append(fields_of(planned()[0]), seen=0)
    assert [path.name for path in kept.path.parent.iterdir()] == ["ann.jsonl"]


# ---- the command ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labeler", "people_", "message"),
    [
        ("../ann", {}, r"LABELER=../ann: a name begins with a letter or digit"),
        ("a/b", {}, r"LABELER=a/b: a name begins with"),
        ("", {}, r"LABELER=: a name begins with"),
        ("words", {}, r"LABELER=words: params.yaml has labelers.words; take a name of your own"),
        ("people", {}, r"LABELER=people: params.yaml has labelers.people"),
        ("eve", {"team": ["ann"]}, r"labelers.people.team has ann; add the name there"),
        ("ann", {"team": ["ann"], "overlap": 2}, r"overlap is 2, and the team has 1"),
        ("ann", {"gold": "judy"}, r"gold is judy, and there is no data/labels/judy.jsonl"),
        ("ann", {"samplers": ["big"]}, r"there is no samplers.big; there are base"),
        ("ann", {"guide": "none.md"}, r"none.md: no such file; labelers.people.guide"),
    ],
)
def test_who_or_what_cannot_be_labeled_is_refused_in_one_line(tmp_path, labeler, people_, message):
    with inside(plain(tmp_path / "w", **people_)), pytest.raises(Refusal, match=message):
        command.open_session(labeler)


def test_before_sample_ran_the_refusal_says_what_makes_completions(tmp_path):
    with inside(plain(tmp_path / "w")) as folder:
        (folder / "data/completions/base.jsonl").unlink()
        with pytest.raises(Refusal, match=r"`dvc repro sample@base` makes it"):
            command.open_session("ann")
        command.open_session("ann", task="demonstration")  # needs none
        (folder / "data/prompts/test.jsonl").unlink()
        with pytest.raises(Refusal, match=r"test.jsonl: no such file; `dvc repro sample` makes"):
            command.open_session("ann")


def test_a_misspelt_criterion_or_task_is_refused(tmp_path):
    with inside(plain(tmp_path / "w")):
        with pytest.raises(
            Refusal, match=r"CRITERION=helpfull: .* is one of harmless, helpful, honest, overall"
        ):
            command.open_session("ann", criterion="helpfull")
        with pytest.raises(
            Refusal, match="TASK=rank: must be one of ranking, thumbs, demonstration"
        ):
            command.open_session("ann", task="rank")


def test_one_person_under_two_spellings_is_refused(tmp_path):
    with inside(plain(tmp_path / "w")) as folder:
        (folder / "data/labels/Ann.jsonl").write_text("")
        with pytest.raises(Refusal, match="one person under two names would vote twice"):
            command.open_session("ann")


def test_instructions_need_a_short_and_a_long_form(tmp_path):
    file = tmp_path / "i.md"
    file.write_text("# Only one\n")
    with pytest.raises(RecordError, match="must be a short form, a line '---' and a long form"):
        page.instructions(file)
    file.write_text("# Title <b>\n\n---\n\n## Long [x](https://example.org)\n")
    found = page.instructions(file)
    assert found.short == "<h2>Title &lt;b&gt;</h2>\n"
    assert '<h3>Long <a href="https://example.org" target="_blank" rel="noreferrer">' in found.long


def test_the_shipped_instructions_are_short_and_long(tmp_path):
    found = page.instructions(world.ROOT / "data/labels/instructions.md")
    assert len(found.short.split()) < 160
    assert 600 < len(found.long.split()) < 1100


def test_the_page_starts_without_the_heavy_packages():
    script = (
        "import sys, stages.lib.commands.label\n"
        "print([m for m in ('torch', 'mlflow', 'dvc', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=world.ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_ctrl_c_ends_the_command_cleanly_and_says_where_the_answers_are(tmp_path):
    with inside(plain(tmp_path / "w")) as folder:
        running = subprocess.Popen(
            [sys.executable, "-m", "stages.lib.commands.label", "ann", "--port", "0"], cwd=folder,
            env={**os.environ, "PYTHONPATH": str(world.ROOT)}, stdout=subprocess.PIPE, text=True,
            # a shell's background job ignores the signal, and what it starts would inherit that
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        said = [running.stdout.readline() for _ in range(3)]
        running.send_signal(signal.SIGINT)
        rest, _ = running.communicate(timeout=10)
    assert said[0] == "3 tasks for ann (ranking, harmless), 3 to do\n"
    assert said[1].startswith("open http://127.0.0.1:")
    assert rest == "\n0 lines more in data/labels/ann.jsonl; `dvc repro` takes them in\n"
    assert running.returncode == 0


def test_a_port_that_is_taken_is_refused_with_another(tmp_path, capsys):
    with inside(plain(tmp_path / "w")), served() as first:
        assert command.main(["bob", "--port", str(first.server_port)]) == 1
    assert f"PORT={first.server_port + 1} would be another port" in capsys.readouterr().err


def test_the_shown_order_is_all_that_labelers_learn_of_completions(tmp_path):
    # Who wrote an answer, and what category its prompt is of, would bias whoever reads it.
    with inside(plain(tmp_path / "w")):
        sheet, kept = command.open_session("ann")
        text = page.live(sheet, kept.labels(), token="t")
    assert '"sampler"' not in text
    assert '"category"' not in text


def test_equal_work_gives_an_export_of_equal_bytes_without_a_way_out(tmp_path):
    with inside(plain(tmp_path / "w")):
        sheet, kept = command.open_session("ann")
        first = page.export(sheet, kept.labels())
        assert first == page.export(*command.open_session("ann")[:1], [])
    assert "default-src 'none'" in first
    for way_out in ("http://", "https://", "//cdn", 'src="', "@import", "url("):
        assert way_out not in first.replace("https://example", ""), way_out


def test_no_text_can_end_the_element_that_holds_it(tmp_path):
    one = prompt(1, text="</script><script>alert(1)</script>")
    given = answers(one, [world.HOSTILE, "<!--<script>", "\u2028\u2029", "]]>"])
    with inside(world.write(tmp_path / "w", [one], given)):
        sheet, _ = command.open_session("ann")
        for text in (page.export(sheet, []), page.live(sheet, [], token="t")):
            data = text.split('id="data">')[1].split("</script>")[0]
            assert json.loads(data)["tasks"][0]["text"] == one.text
            assert "<" not in data
            assert "\u2028" not in data
        assert "</script" not in page.SCRIPT


def test_the_readme_shows_labels_that_can_be_read_one_of_each_kind():
    text = (world.ROOT / "data/labels/README.md").read_text()
    block = text.split("```json\n")[1].split("```")[0]
    examples = [json.loads(one) for one in block.replace("\n ", " ").splitlines()]
    assert [book.parse(one).kind for one in examples] == [
        "ranking",
        "thumbs",
        "demonstration",
        "skip",
    ]
    assert book.parse(examples[0]).subject == book.parse(examples[3]).subject


# ---- HTTP ---------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path):
    with inside(plain(tmp_path / "w")), served() as serving:
        yield serving


def request(site, method, path, body=None, *, drop=(), **headers):
    """One request as the page makes it, but for what is changed."""
    host = f"127.0.0.1:{site.server_port}"
    given = {"Host": host, "Origin": f"http://{host}", "X-Plumbline-Token": site.token}
    if method == "POST":
        given["Content-Type"] = "application/json"
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    content = json.dumps(body).encode() if isinstance(body, dict | list) else body
    if content is not None:
        given.setdefault("Content-Length", str(len(content)))
    connection = http.client.HTTPConnection("127.0.0.1", site.server_port, timeout=5)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in given.items():
        if name not in drop:
            connection.putheader(name, value)
    connection.endheaders(content)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text, answer


def message(site, number=0, seen=0, **change):
    task = site.sheet.tasks[number]
    digest = site.sheet.instructions.sha256
    fields = fields_of(task, **{"instructions_sha": digest, **change})
    return {"task": task.id, "seen": seen, "label": fields}


def test_an_answer_is_written_and_given_back_as_it_was_written(site):
    status, text, _ = request(site, "POST", "/labels", message(site, confidence=0.5))
    assert status == 200
    assert rows() == [json.loads(text)["label"]]
    assert rows()[0]["revision"] == 1
    assert rows()[0]["submitted"].endswith("Z")
    status, text, _ = request(site, "GET", "/labels")
    assert json.loads(text) == {"lines": rows()}


def test_the_page_and_its_two_parts_are_all_there_is(site):
    for path, kind in (
        ("/", "text/html"),
        ("/page.css", "text/css"),
        ("/page.js", "text/javascript"),
    ):
        status, text, answer = request(site, "GET", path)
        assert status == 200
        assert answer.headers["Content-Type"] == f"{kind}; charset=utf-8"
        assert text
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        "/../params.yaml",
        "/%2e%2e/params.yaml",
        "/page.py",
        "//etc/passwd",
        "/page.js?x",
        "/data/labels/ann.jsonl",
    ],
)
def test_no_other_path_leads_anywhere(site, path):
    status, text, _ = request(site, "GET", path)
    assert status == 404
    assert "there is nothing here but" in text


@pytest.mark.parametrize(
    ("status", "why", "change"),
    [
        (403, "Host is evil.example", {"Host": "evil.example"}),
        (403, "Host is None", {"drop": ("Host",)}),
        (403, "Origin is http://evil.example", {"Origin": "http://evil.example"}),
        (403, "Origin is null", {"Origin": "null"}),
        (403, "Origin is None", {"drop": ("Origin",)}),
        (403, "Sec-Fetch-Site cross-site", {"Sec_Fetch_Site": "cross-site"}),
        (403, "Sec-Fetch-Site same-site", {"Sec_Fetch_Site": "same-site"}),
        (403, "an earlier start", {"X_Plumbline_Token": "guess"}),
        (403, "an earlier start", {"drop": ("X-Plumbline-Token",)}),
        (415, "Content-Type is text/plain", {"Content_Type": "text/plain"}),
        (415, "Content-Type is None", {"drop": ("Content-Type",)}),
        (411, "Content-Length is missing", {"drop": ("Content-Length",)}),
        (411, "no number", {"Content_Length": "-5"}),
        (413, "has 99999999 bytes, and 1048576 are allowed", {"Content_Length": "99999999"}),
        (413, "has 99999999999999999999 bytes", {"Content_Length": "9" * 30}),
    ],
)
def test_a_write_that_the_page_did_not_make_is_refused(site, status, why, change):
    found, text, _ = request(site, "POST", "/labels", message(site), **change)
    assert found == status
    assert why in json.loads(text)["error"]
    assert rows() == []


@pytest.mark.parametrize(
    ("path", "headers"), [("/", {"Host": "evil.example"}), ("/labels", {"X_Plumbline_Token": "x"})]
)
def test_nor_does_another_site_read_anything(site, path, headers):
    status, text, _ = request(site, "GET", path, **headers)
    assert status == 403
    assert site.token not in text


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "HEAD", "PATCH"])
def test_other_methods_do_nothing(site, method):
    # OPTIONS is what a browser asks before a cross-origin write: no permission is its refusal.
    status, _, answer = request(site, method, "/labels")
    assert status == 501
    assert answer.headers["Access-Control-Allow-Origin"] is None


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"{", "the answer is not JSON"),
        (b"\xff\xfe", "the answer is not JSON"),
        (b"[" * 100_000, "the answer is not JSON"),
        (b"NaN", "NaN is no JSON number"),
        (b"[]", "an answer is {task: text, seen: whole number, label: object}"),
        (b'{"task": "x", "seen": true, "label": {}}', "an answer is {task"),
        (b'{"task": "x", "seen": 0, "label": {}}', "task 'x' is none of this page; reload it"),
    ],
)
def test_what_is_no_answer_is_refused(site, body, why):
    status, text, _ = request(site, "POST", "/labels", body)
    assert status == 400
    assert why in json.loads(text)["error"]
    assert rows() == []


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"ranks": {}}, "neither ranks nor junks insult-"),
        ({"confidence": 2.0}, "label.confidence must be less than or equal to 1, not 2.0"),
        ({"labeler": "bob"}, "label.labeler is 'bob', and the task has 'ann'"),
        ({"instructions_sha": "old"}, "label.instructions_sha is 'old'"),
        ({"task_sha": None}, "label.task_sha is None"),
        ({"criterion": "helpful"}, "label.subject is "),
        ({"repeat": True}, "label.subject is "),
        ({"colour": "red"}, "label.colour is not a parameter of Ranking"),
        ({"note": "  "}, "label.note is blank; write something, or leave it out"),
        ({"note": "\ud800"}, "label.note holds half of a character"),
        ({"revision": 7, "submitted": "2001"}, None),
    ],
)
def test_a_label_that_is_wrong_is_refused_with_the_field_and_nothing_is_written(site, change, why):
    status, text, _ = request(site, "POST", "/labels", message(site, **change))
    if why is None:  # these two are the server's to give, whatever it is told
        assert status == 200
        assert rows()[0]["revision"] == 1
        assert rows()[0]["submitted"] > "2026"
        return
    assert status == 400
    assert why in json.loads(text)["error"]
    assert "\n" not in json.loads(text)["error"]
    assert rows() == []


def test_the_order_that_was_shown_is_the_plans_and_no_other(site):
    sent = message(site)
    sent["label"]["shown"] = sent["label"]["shown"][::-1]
    status, text, _ = request(site, "POST", "/labels", sent)
    assert status == 400
    assert "label.shown is " in json.loads(text)["error"]


def test_a_reason_for_junk_is_not_blank(site):
    sent = message(site)
    names = sent["label"]["shown"]
    sent["label"] |= {"ranks": {}, "junk": dict.fromkeys(names, " ")}
    _, text, _ = request(site, "POST", "/labels", sent)
    assert f"label.junk.{names[0]} is blank" in json.loads(text)["error"]


def test_of_two_windows_the_second_is_told_and_may_then_correct(site):
    assert request(site, "POST", "/labels", message(site, note="one"))[0] == 200
    status, text, _ = request(site, "POST", "/labels", message(site, note="two"))
    assert status == 409
    assert json.loads(text)["label"]["note"] == "one"
    assert request(site, "POST", "/labels", message(site, note="two", seen=1))[0] == 200
    assert [(row["note"], row["revision"]) for row in rows()] == [("one", 1), ("two", 2)]


def test_many_windows_at_once_lose_no_line(site):
    found = []

    def post(number):
        for n in range(3):
            sent = message(site, n, note=f"{number}", seen=99)
            found.append(request(site, "POST", "/labels", sent)[0])

    threads = [threading.Thread(target=post, args=(n,)) for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [200] * 30
    revisions = Counter((row["prompt_id"], row["revision"]) for row in rows())
    assert len(revisions) == 30
    people.read(site.book.path)


def test_a_full_disk_is_said_and_the_next_answer_is_written(site, monkeypatch, capfd):
    def full(handle, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(book.os, "write", full)
        status, text, _ = request(site, "POST", "/labels", message(site))
    assert status == 500
    assert "not written: [Errno 28] No space left on device" in json.loads(text)["error"]
    assert request(site, "POST", "/labels", message(site))[0] == 200
    assert "No space left" in capfd.readouterr().err


def test_a_slow_client_is_let_go_and_others_are_served_meanwhile(tmp_path, monkeypatch):
    from stages.lib.labelling import server

    monkeypatch.setattr(server.Handler, "timeout", 0.3)
    with inside(plain(tmp_path / "w")), served() as serving:
        slow = http.client.HTTPConnection("127.0.0.1", serving.server_port, timeout=5)
        slow.putrequest("POST", "/labels", skip_host=True)
        slow.putheader("Host", f"127.0.0.1:{serving.server_port}")
        slow.putheader("Content-Length", "1000")
        slow.endheaders(b"{")  # and nothing more
        assert request(serving, "GET", "/")[0] == 200
        assert slow.sock.recv(1) == b""  # closed by the server


def test_it_listens_on_this_machine_only(site):
    assert site.server_address[0] == "127.0.0.1"
