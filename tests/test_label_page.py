"""The labelling page in a real browser: what a labeler does, and the file that comes of it."""

import itertools
import json
import os
import shutil
import threading
from pathlib import Path

import labelling_world as world
import pytest
from labelling_world import HOSTILE, answers, chat, inside, plain, prompt, rows, served, write

from stages.lib.commands import label as command
from stages.lib.labelers import people
from stages.lib.labelling import page as pages
from stages.lib.records import AnyLabel
from stages.lib.runtime.schema import check

pytestmark = pytest.mark.browser
CHROMIUM = next(
    (
        found
        for name in (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
        if name and (found := shutil.which(name))
    ),
    None,
)
OWN = {"ms_active", "submitted"}  # what no two sessions have in common


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="the package playwright is absent")
    if CHROMIUM is None:
        pytest.skip("no chromium on PATH, and CHROMIUM names none")
    with api.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


class Windows:
    """One labeler's windows; what they ask for and complain of is kept."""

    def __init__(self, browser, url, **options):
        self.context = browser.new_context(viewport={"width": 1200, "height": 900}, **options)
        self.context.set_default_timeout(30_000)
        self.url, self.asked, self.wrong = url, [], []
        self.context.on("request", lambda request: self.asked.append(request.url))

    def open(self, *, shown=True):
        page = self.context.new_page()
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("console", lambda said: self.wrong.append(said.text))
        page.goto(self.url)
        page.locator("#key-rows tr").first.wait_for(state="attached")
        if page.locator("#help").evaluate("dialog => dialog.open"):
            page.keyboard.press("Escape")
        if shown and page.locator("body.veiled").count():
            page.keyboard.press("b")
        return page


@pytest.fixture
def windows(browser):
    made = []

    def _windows(url, **options):
        made.append(Windows(browser, url, **options))
        return made[-1]

    yield _windows
    for one in made:
        own = one.url.split("/")[2] if one.url.startswith("http") else ""
        away = [u for u in one.asked if not u.startswith(("data:", "blob:", f"http://{own}/", "file:"))]  # fmt: skip
        one.context.close()
        assert away == []
        assert one.wrong == []


@pytest.fixture
def three(tmp_path):
    with inside(plain(tmp_path / "w")), served() as serving:
        yield serving


def keys(page, *pressed):
    for key in pressed:
        page.keyboard.press(key)


def submit(page, key="Enter"):
    """Press it, and wait until the page has gone on."""
    done = int(page.locator("#count").text_content().split()[0])
    page.keyboard.press(key)
    until(page, "#count", f"{done + 1} of ")


def until(page, selector, text):
    """Wait for a text; the page's policy lets nobody evaluate code in it, a test included."""
    for _ in range(1500):
        found = page.locator(selector).text_content()
        if found.startswith(text):
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"{selector} is {found!r} and not {text!r}")


def on_the_page(page):
    """The resulting ranks as the labeler reads them below the answers."""
    return page.locator("#order").inner_text().split()


def bare(row):
    return {key: value for key, value in row.items() if key not in OWN}


# ---- ranking ----------------------------------------------------------------------------------


def test_nothing_is_ranked_at_the_start_and_submit_is_off_until_all_are(three, windows):
    page = windows(three.url).open()
    assert page.locator("[role=radio][aria-checked=true]").count() == 0
    submit_ = page.locator("#submit")
    for key, left in (("1", 3), ("2", 2), ("3", 1)):
        assert submit_.is_disabled()
        page.keyboard.press("Enter")  # does nothing but say what is missing
        page.keyboard.press(key)
        assert submit_.inner_text().startswith(f"Submit ({left} left)")
    assert "Without rank" in page.locator("#status").text_content() or rows() == []
    page.keyboard.press("4")
    assert submit_.is_enabled()
    assert rows() == []


def test_keys_alone_rank_tie_junk_and_submit_and_the_file_says_what_was_seen(three, windows):
    page = windows(three.url).open()
    task = three.sheet.tasks[0]
    a, b, c, d = (one.id for one in task.shown)
    # A 2, B 1, C ties with B, D junk: 1 B = C, 3 A once all are judged
    keys(page, "2", "1", "=", "f", "1")
    assert on_the_page(page) == ["1", "B", "=", "C", "3", "A", "F", "D"]
    assert page.locator("#status").text_content().startswith("D: F, nonsense. Ranks were closed up")
    keys(page, "c", "c", "n")
    page.keyboard.type("two alike")
    keys(page, "Enter")
    submit(page)
    assert [bare(row) for row in rows()] == [
        {
            "schema_version": 1,
            "kind": "ranking",
            "criterion": "harmless",
            "prompt_id": task.prompt.id,
            "labeler": "ann",
            "shown": [a, b, c, d],
            "ranks": {b: 1, c: 1, a: 3},
            "junk": {d: "nonsense"},
            "scores": None,
            "preferences": None,
            "confidence": 0.5,
            "note": "two alike",
            "instructions_sha": three.sheet.instructions.sha256,
            "task_sha": task.sha,
            "repeat": False,
            "revision": 1,
        }
    ]
    assert 0 < rows()[0]["ms_active"] < 20_000
    assert page.locator("#count").text_content() == "1 of 3 done"


def test_arrows_choose_an_answer_and_zero_takes_its_rank_away(three, windows):
    page = windows(three.url).open()
    keys(page, "ArrowDown", "ArrowDown", "1")  # C
    assert on_the_page(page) == ["1", "C"]
    keys(page, "ArrowUp", "0")  # from D back to C
    assert on_the_page(page)[0] == "Nothing"
    keys(page, "ArrowUp", "ArrowUp", "ArrowUp", "4")  # C, B, A, and around to D
    assert "D" in on_the_page(page) or "A" in on_the_page(page)


def test_undo_goes_back_step_by_step_also_after_a_reload(three, windows):
    page = windows(three.url).open()
    keys(page, "1", "2", "3", "f", "2")
    assert on_the_page(page) == ["1", "A", "2", "B", "3", "C", "F", "D"]
    keys(page, "u")
    assert on_the_page(page) == ["1", "A", "2", "B", "3", "C"]
    page.reload()
    page.keyboard.press("Control+z")
    assert on_the_page(page) == ["1", "A", "2", "B"]
    keys(page, "4")  # the one whose rank was undone is the one that the keys act on
    assert on_the_page(page) == ["1", "A", "2", "B", "4", "C"]


def test_reload_and_crash_resume_the_draft_and_a_new_window_the_next_task(three, windows):
    window = windows(three.url)
    page = window.open()
    keys(page, "1", "2", "3", "4")
    submit(page)
    keys(page, "3", "1")
    half = on_the_page(page)
    page.reload()
    assert page.locator("#place").inner_text().upper() == "TASK 2 OF 3"
    assert on_the_page(page) == half
    page.close()  # as a crash would: what was done is in the browser and the file
    again = window.open()
    assert on_the_page(again) == half
    assert again.locator("#count").text_content() == "1 of 3 done"


def test_a_browser_that_keeps_nothing_says_so_and_labels_all_the_same(tmp_path, windows):
    with inside(plain(tmp_path / "w")), served() as serving:
        Path("ann.html").write_text(pages.export(serving.sheet, []))
        for url, said in (
            (serving.url, "an unfinished task is lost when the page closes"),
            (Path("ann.html").resolve().as_uri(), "download your labels before you close"),
        ):
            window = windows(url)
            window.context.add_init_script(
                "Storage.prototype.setItem = () => { throw new Error('full'); };"
            )
            page = window.open()
            assert said in page.locator("#banner").inner_text()
            keys(page, "1", "2", "3", "4")
            submit(page)
        assert [bare(row) for row in downloaded(page)] == [bare(row) for row in rows()]


def test_another_browser_resumes_from_the_file(three, windows):
    page = windows(three.url).open()
    keys(page, "1", "2", "3", "4")
    submit(page)
    other = windows(three.url).open()
    assert other.locator("#count").text_content() == "1 of 3 done"
    assert other.locator("#place").inner_text().upper() == "TASK 2 OF 3"


def test_back_reopens_what_was_said_and_a_correction_is_a_further_revision(three, windows):
    page = windows(three.url).open()
    for _ in range(2):
        keys(page, "1", "2", "3", "4")
        submit(page)
    keys(page, "p", "p")
    assert "correcting" in page.locator("#place").inner_text().lower()
    assert on_the_page(page) == ["1", "A", "2", "B", "3", "C", "4", "D"]
    keys(page, "Escape")  # leaves it as it was
    assert page.locator("#place").inner_text().upper() == "TASK 3 OF 3"
    keys(page, "p", "4", "ArrowUp", "1")
    page.locator("#submit").click()
    until(page, "#place", "Task 3 of 3")
    found = rows()
    second = three.sheet.tasks[1]
    assert [row["revision"] for row in found] == [1, 1, 2]
    assert found[2]["prompt_id"] == second.prompt.id
    assert found[1]["ranks"] != found[2]["ranks"]
    people.read(three.book.path)


def test_a_skip_has_a_reason_and_takes_back_what_was_said(three, windows):
    page = windows(three.url).open()
    keys(page, "s", "3")
    until(page, "#count", "1 of 3 done")
    keys(page, "p", "s", "5")  # 5: a reason of one's own
    page.keyboard.type("too long")
    keys(page, "Enter")
    until(page, "#place", "Task 2 of 3")
    first, second = rows()
    assert (first["kind"], first["reason"]) == ("skip", "I would rather not read this")
    assert (second["revision"], second["reason"]) == (2, "too long")
    assert second["shown"] == [one.id for one in three.sheet.tasks[0].shown]


def test_in_two_windows_no_line_is_lost_and_the_second_is_asked(three, windows):
    window = windows(three.url)
    first, second = window.open(), window.open()
    third = window.open()
    keys(second, "4", "3", "2", "1")
    keys(first, "1", "2", "3", "4")
    submit(first)
    # One window has work of its own and asks; the other has none and goes on.
    second.locator("#choice").wait_for(state="visible")
    until(third, "#place", "Task 2 of 3")
    second.locator("#keep-mine").click()
    until(second, "#place", "Task 2 of 3")
    both = rows()
    assert [row["revision"] for row in both] == [1, 2]
    assert list(both[0]["ranks"].values()) != list(both[1]["ranks"].values())
    assert first.locator("#count").text_content() == "1 of 3 done"


def test_windows_of_two_browsers_are_told_when_they_submit(three, windows):
    first, second = windows(three.url), windows(three.url)
    one, other = first.open(), second.open()
    keys(other, "1", "1", "1", "1")
    keys(one, "1", "2", "3", "4")
    submit(one)
    other.keyboard.press("Enter")
    other.locator("#choice").wait_for(state="visible")
    other.locator("#keep-theirs").click()
    until(other, "#place", "Task 2 of 3")
    assert len(rows()) == 1
    second.wrong.clear()  # the browser writes the refused request into its console


def test_an_answer_whose_acknowledgement_was_lost_is_not_written_twice(three, windows):
    window = windows(three.url)
    page = window.open()
    lost = threading.Event()

    def lose(route):
        try:
            route.fetch()
            lost.set()
        finally:
            route.abort()

    page.route("**/labels", lose)
    keys(page, "1", "2", "3", "4", "Enter")
    page.locator("#banner").wait_for(state="visible")
    assert "what you did is kept in this browser" in page.locator("#banner").inner_text()
    page.unroute("**/labels")
    submit(page)
    assert lost.is_set()
    assert len(rows()) == 1
    assert page.locator("#place").inner_text().upper() == "TASK 2 OF 3"
    window.wrong.clear()  # the browser writes the lost request into its console


def test_what_the_server_refuses_is_shown_in_one_line_and_the_draft_stays(three, windows):
    window = windows(three.url)
    page = window.open()
    three.token = "of a later start"
    keys(page, "1", "2", "3", "4", "Enter")
    page.locator("#banner").wait_for(state="visible")
    assert "reload it, the draft stays" in page.locator("#banner").inner_text()
    page.reload()
    assert on_the_page(page) == ["1", "A", "2", "B", "3", "C", "4", "D"]
    submit(page)
    assert len(rows()) == 1
    window.wrong.clear()  # the browser writes the refused request into its console


def test_other_texts_under_the_same_ids_are_asked_again(tmp_path, windows):
    one = prompt(1)
    with inside(write(tmp_path / "w", [one], answers(one))):
        with served() as serving:
            page = windows(serving.url).open()
            keys(page, "1", "2", "3", "4")
            page.keyboard.press("Enter")
            page.locator("#finished").wait_for(state="visible")
        world.files.write_lines(
            Path("data/completions/base.jsonl"), answers(one, [" a", " b", " c", " d"])
        )
        with served() as serving:
            page = windows(serving.url).open()
            assert page.locator("#count").text_content() == "0 of 1 done"
            keys(page, "1", "2", "3", "4", "Enter")
            page.locator("#finished").wait_for(state="visible")
        assert [row["revision"] for row in rows()] == [1, 2]
        assert rows()[0]["task_sha"] != rows()[1]["task_sha"]


def test_ties_are_counted_and_many_are_warned_of(tmp_path, windows):
    with inside(plain(tmp_path / "w")), served() as serving:
        page = windows(serving.url).open()
        keys(page, "1", "1", "3", "4")  # 1 tie of 6
        submit(page)
        assert page.locator("#ties").inner_text() == "ties 17 %"
        keys(page, "1", "1", "1", "4")  # 3 of 6; 4 of 12
        submit(page)
        assert "ties 33 %, above 20 %: tie only" in page.locator("#ties").inner_text()


def test_a_repeat_is_marked_in_the_record_and_not_on_the_page(tmp_path, windows):
    with inside(plain(tmp_path / "w", 3, repeats=1.0)), served() as serving:
        page = windows(serving.url).open()
        for _ in range(5):
            assert "repeat" not in page.inner_text("body").lower()
            keys(page, "1", "2", "3", "4", "Enter")
            page.wait_for_timeout(150)
        page.locator("#finished").wait_for(state="visible")
        assert [row["repeat"] for row in rows()].count(True) == 2
        assert len(people.read(serving.book.path)) == 5


# ---- texts ------------------------------------------------------------------------------------


def test_a_hostile_completion_runs_nothing_and_is_read_letter_by_letter(tmp_path, windows):
    one = prompt(1, text=f"{HOSTILE} he said")
    texts = [HOSTILE, "</script><script>document.title='owned'</script>", "a\u2028b\u202ec\u0000d", ""]  # fmt: skip
    with inside(write(tmp_path / "w", [one], answers(one, texts, finish="length"))):
        with served() as serving:
            page = windows(serving.url).open()
            assert_literal(page)
            keys(page, "1", "2", "3", "4", "Enter")
            page.locator("#finished").wait_for(state="visible")
            assert len(rows()) == 1
        sheet, _ = command.open_session("bob")
        Path("bob.html").write_text(pages.export(sheet, []))
        page = windows(Path("bob.html").resolve().as_uri()).open()
        assert_literal(page)


def assert_literal(page):
    text = page.locator("#body").text_content()
    assert HOSTILE in text
    assert "</script><script>document.title='owned'</script>" in text
    assert "aU+2028bU+202EcU+0000d" in text  # named, not obeyed
    assert page.locator("main script, main img").count() == 0
    assert "owned" not in page.title()
    assert page.locator("#prompt .text").text_content() == f"{HOSTILE} he said"
    assert page.locator(".card .tag", has_text="cut off here").count() == 4


def test_even_script_that_got_in_would_not_run(three, windows):
    window = windows(three.url)
    page = window.open()
    ran = page.evaluate(
        """() => {
          const made = document.createElement("script");
          try { made.textContent = "window.owned = 1"; document.body.append(made); } catch {}
          try { document.body.insertAdjacentHTML("beforeend", "<b>x</b>"); return "markup"; } catch {}
          return window.owned ?? "nothing";
        }"""
    )
    assert ran == "nothing"
    window.wrong.clear()  # the browser says what its policy refused


def test_texts_are_blurred_until_wanted_for_eyes_and_ears_and_the_choice_is_remembered(
    three, windows
):
    window = windows(three.url)
    page = window.open(shown=False)
    assert page.locator("body.veiled").count() == 1
    assert page.locator(".card .text[aria-hidden=true]").count() == 4
    keys(page, "1")  # what is not shown cannot be judged
    assert on_the_page(page)[0] == "Nothing"
    assert "blurred" in page.locator("#status").text_content()
    keys(page, "Space", "1", "2", "3", "4")
    assert page.locator(".card .text[aria-hidden=true]").count() == 0
    submit(page)
    assert page.locator("body.veiled").count() == 1  # the next task's are blurred again
    keys(page, "b")
    page.reload()
    assert page.locator("body.veiled").count() == 0


def test_a_chat_shows_its_turns_and_a_continuation_goes_on_from_its_text(tmp_path, windows):
    one, two = chat(1), prompt(2)
    given = [*answers(one), *answers(two)]
    with inside(write(tmp_path / "w", [one, two], given)), served() as serving:
        page = windows(serving.url).open()
        found = {}
        for _ in range(2):
            kind = page.locator("#question").inner_text()
            texts = page.locator(".card .text").all_text_contents()
            found[kind] = page.locator("#prompt :is(.text, .speaker)").all_text_contents(), texts
            keys(page, "1", "2", "3", "4", "Enter")
            page.wait_for_timeout(200)
    prompt_, cards = found["Which answer does the least harm?"]
    assert prompt_[::2] == ["Person", "Assistant", "Person"]
    assert prompt_[-1] == "Bash. How do I reap them?"
    assert set(cards) == set(world.TEXTS)
    prompt_, cards = found["Which continuation does the least harm?"]
    assert prompt_ == [two.text]
    assert all(card.startswith("…") and "Get off the road, " in card for card in cards)


def test_instructions_are_one_key_away_short_first_and_open_by_themselves_once(three, windows):
    window = windows(three.url)
    page = window.context.new_page()
    page.goto(three.url)
    assert page.locator("#help").is_visible()  # before the first task
    assert page.get_by_text("You may stop at any time").is_visible()
    assert not page.get_by_role("heading", name="Ties").is_visible()
    keys(page, "Escape")
    page.reload()
    assert not page.locator("#help").is_visible()
    keys(page, "i")
    assert page.locator("#help").is_visible()
    page.get_by_text("The long form, with examples").click()
    assert page.get_by_role("heading", name="Ties").is_visible()
    keys(page, "i")
    assert not page.locator("#help").is_visible()
    keys(page, "?")
    assert page.locator("#help").is_visible()


# ---- thumbs and written answers ---------------------------------------------------------------


def test_thumbs_take_one_answer_at_a_time_by_up_and_down(tmp_path, windows):
    with inside(plain(tmp_path / "w", 1)), served(task="thumbs", criterion="helpful") as serving:
        page = windows(serving.url).open()
        assert page.locator("#question").inner_text() == "Is this continuation helpful?"
        assert page.locator("#submit").is_disabled()
        keys(page, "ArrowUp")
        assert page.get_by_role("radio", name="Thumbs up").get_attribute("aria-checked") == "true"
        keys(page, "ArrowDown")
        submit(page)
        keys(page, "ArrowUp")
        submit(page, "ArrowUp")  # the same key again
        keys(page, "ArrowUp", "u", "ArrowDown")
        submit(page)
        assert [(row["kind"], row["criterion"], row["up"]) for row in rows()] == [
            ("thumbs", "helpful", False),
            ("thumbs", "helpful", True),
            ("thumbs", "helpful", False),
        ]
        shown = [task.shown[0].id for task in serving.sheet.tasks]
        assert [row["completion_id"] for row in rows()] == shown[:3]
        people.read(serving.book.path)


def test_an_answer_is_written_with_the_space_that_joins_it_to_its_text(tmp_path, windows):
    ends = ['said, "', "and the tailor", "He stopped."]
    some = [prompt(n, text=f"Story {n}: {end}") for n, end in enumerate(ends, 1)] + [chat(4)]
    with inside(write(tmp_path / "w", some, [])), served(task="demonstration") as serving:
        page = windows(serving.url).open()
        for task in serving.sheet.tasks:
            assert page.locator("#submit").is_disabled()
            keys(page, "t")
            page.keyboard.type("sat down.\nu f s 1  ")
            if task.prompt.text:
                expected = f"{task.prompt.text}{'' if task.prompt.text.endswith(chr(34)) else ' '}sat down.\nu f s 1"
                assert page.locator(".preview").text_content() == expected
            page.keyboard.press("Control+Enter")
            page.wait_for_timeout(200)
        page.locator("#finished").wait_for(state="visible")
        by_prompt = {row["prompt_id"]: row["answer"] for row in rows()}
        assert by_prompt == {
            "insult-001": "sat down.\nu f s 1",
            "insult-002": " sat down.\nu f s 1",
            "insult-003": " sat down.\nu f s 1",
            "insult-004": "sat down.\nu f s 1",
        }
        people.read(serving.book.path)


# ---- the file for labelers without Python -----------------------------------------------------


def session(page):
    """The same session on either page: ranks, a tie, an F, a correction, a skip."""
    keys(page, "2", "1", "=", "f", "1", "c")
    submit(page)
    keys(page, "s", "2")
    until(page, "#count", "2 of 3 done")
    keys(page, "p", "p", "4", "n")
    page.keyboard.type("<b>ä</b>\u2028")
    keys(page, "Enter", "Enter")
    until(page, "#place", "Task 3 of 3")
    keys(page, "1", "2", "3", "4", "Enter")
    page.locator("#finished").wait_for(state="visible")


def downloaded(page):
    with page.expect_download() as waiting:
        page.locator("#to-download").click()
    assert waiting.value.suggested_filename == "ann.jsonl"
    text = Path(waiting.value.path()).read_text()
    return [json.loads(line) for line in text.split("\n")[:-1]]


def test_the_exported_page_gives_the_records_that_the_server_writes(tmp_path, windows):
    with inside(plain(tmp_path / "w")), served() as serving:
        Path("ann.html").write_text(pages.export(serving.sheet, []))
        session(windows(serving.url).open())
        page = windows(Path("ann.html").resolve().as_uri()).open()
        session(page)
        found = downloaded(page)
        assert [bare(row) for row in found] == [bare(row) for row in rows()]
        assert [row.keys() for row in found] == [row.keys() for row in rows()]
        assert [row["kind"] for row in found] == ["ranking", "skip", "ranking", "ranking"]
        for row in found:
            check(row, AnyLabel, "downloaded")
        # it replaces the server's file: rank reads it
        serving.book.path.write_text("".join(json.dumps(row) + "\n" for row in found))
        assert len(people.read(serving.book.path)) == 4


@pytest.mark.parametrize("task", ["thumbs", "demonstration"])
def test_so_it_does_of_thumbs_and_written_answers(tmp_path, windows, task):
    with inside(plain(tmp_path / "w", 1)), served(task=task) as serving:
        Path("ann.html").write_text(pages.export(serving.sheet, []))
        found = []
        for url in (serving.url, Path("ann.html").resolve().as_uri()):
            page = windows(url).open()
            if task == "thumbs":
                keys(page, "ArrowDown")
                submit(page)
            else:
                keys(page, "t")
                page.keyboard.type("please.")
                keys(page, "Control+Enter")
                page.locator("#finished").wait_for(state="visible")
            found.append(page)
        (theirs,) = downloaded(found[1])
        (ours,) = rows()
        assert bare(theirs) == bare(ours)
        assert theirs.keys() == ours.keys()


def test_the_exported_page_resumes_and_two_windows_of_it_lose_no_line(tmp_path, windows):
    with inside(plain(tmp_path / "w")):
        sheet, _ = command.open_session("ann")
        Path("ann.html").write_text(pages.export(sheet, []))
        window = windows(Path("ann.html").resolve().as_uri())
        first, second = window.open(), window.open()
        keys(second, "4", "3", "2", "1")
        keys(first, "1", "2", "3", "4")
        submit(first)
        second.locator("#choice").wait_for(state="visible")
        second.locator("#keep-mine").click()
        until(second, "#place", "Task 2 of 3")
        first.reload()
        assert first.locator("#count").text_content() == "1 of 3 done"
        assert [row["revision"] for row in downloaded(first)] == [1, 2]


def test_an_export_holds_what_was_said_before_and_an_earlier_file_can_be_loaded(tmp_path, windows):
    with inside(plain(tmp_path / "w")):
        with served() as serving:
            page = windows(serving.url).open()
            keys(page, "1", "2", "3", "4")
            submit(page)
            before = rows()
            sheet, kept = command.open_session("ann")
            Path("ann.html").write_text(pages.export(sheet, kept.labels()))
            keys(page, "4", "3", "2", "1")
            submit(page)
        window = windows(Path("ann.html").resolve().as_uri())
        page = window.open()
        assert page.locator("#count").text_content() == "1 of 3 done"
        keys(page, "1", "1", "1", "1")
        submit(page)
        assert len(downloaded(page)) == 2
        # the server's second line and the page's claim one revision of one task
        page.locator("#file").set_input_files("data/labels/ann.jsonl")
        page.locator("#banner").wait_for(state="visible")
        said = page.locator("#banner").inner_text()
        assert said.startswith("1 line loaded. 1 answer to tasks answered in both were put")
        found = downloaded(page)
        assert [row["revision"] for row in found] == [1, 1, 2]
        assert bare(found[0]) == bare(before[0])
        page.reload()
        assert [bare(row) for row in downloaded(page)] == [bare(row) for row in found]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{\n", "Line 1 is no label. Nothing was loaded."),
        ('\n{"schema_version": 1}\n', "Line 2 is no label. Nothing was loaded."),
        ("bob", "Line 1 is bob's, and this page is ann's. Nothing was loaded."),
    ],
)
def test_a_file_that_is_not_theirs_is_refused_by_line(tmp_path, windows, text, message):
    with inside(plain(tmp_path / "w")):
        sheet, _ = command.open_session("ann")
        Path("ann.html").write_text(pages.export(sheet, []))
        if text == "bob":
            row = {"schema_version": 1, "kind": "thumbs", "revision": 1, "labeler": "bob"}
            text = json.dumps(row) + "\n"
        Path("other.jsonl").write_text(text)
        page = windows(Path("ann.html").resolve().as_uri()).open()
        page.locator("#file").set_input_files("other.jsonl")
        page.locator("#banner").wait_for(state="visible")
        assert page.locator("#banner").inner_text() == message
        assert page.locator("#count").text_content() == "0 of 3 done"


def test_closing_an_exported_page_warns_while_labels_are_not_downloaded(tmp_path, windows):
    with inside(plain(tmp_path / "w")):
        sheet, _ = command.open_session("ann")
        Path("ann.html").write_text(pages.export(sheet, []))
        page = windows(Path("ann.html").resolve().as_uri()).open()
        asked = []
        page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
        keys(page, "1", "2", "3", "4")
        page.reload()
        assert asked == []  # a draft is kept, nothing is there to be downloaded
        submit(page)
        page.reload()
        assert asked == ["beforeunload"]
        downloaded(page)
        page.reload()
        assert asked == ["beforeunload"]


# ---- everybody --------------------------------------------------------------------------------

CONTROLS = {"button", "radio", "textbox", "checkbox", "combobox", "link", "slider", "progressbar"}


def tree(page):
    """The accessibility tree: (role, name) of everything that is not ignored."""
    session_ = page.context.new_cdp_session(page)
    nodes = session_.send("Accessibility.getFullAXTree")["nodes"]
    return [
        (node["role"]["value"].lower(), node.get("name", {}).get("value", "").strip())
        for node in nodes
        if not node["ignored"]
    ]


@pytest.mark.parametrize("task", ["ranking", "thumbs", "demonstration"])
def test_every_control_has_a_name_and_every_group_too(tmp_path, windows, task):
    with inside(plain(tmp_path / "w", 2)), served(task=task) as serving:
        page = windows(serving.url).open()
        states = [tree(page)]
        keys(page, "i")
        page.get_by_text("Keys and settings").click()
        states.append(tree(page))
        keys(page, "Escape", "s")
        states.append(tree(page))
        for found in states:
            controls = [(role, name) for role, name in found if role in CONTROLS | {"radiogroup"}]
            assert len(controls) >= 4
            assert [role for role, name in controls if not name] == []
        names = {name for _, name in states[0]}
        assert {"ranking": "Rank of continuation A", "thumbs": "Your verdict"}.get(
            task, "Your continuation"
        ) in names
        assert ("heading", page.locator("#question").inner_text()) in states[0]
        assert "main" in {role for role, _ in states[0]}


def test_headings_go_down_a_level_at_a_time(three, windows):
    page = windows(three.url).open()
    levels = page.locator("main :is(h1, h2, h3)").evaluate_all(
        "all => all.map(one => +one.tagName[1])"
    )
    assert levels[0] == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))


def test_without_single_keys_tab_space_and_control_enter_do_everything(three, windows):
    page = windows(three.url).open()
    keys(page, "i")
    page.get_by_text("Keys and settings").click()
    page.get_by_label("Single keys").uncheck()
    keys(page, "Escape", "1", "f", "u")
    assert on_the_page(page)[0] == "Nothing"
    for place in range(4):
        tab_to(page, "ABCD"[place])
        for _ in range(place):
            page.keyboard.press("ArrowRight")
        page.keyboard.press("Space")
        # whoever walks through the buttons stays where they are
        focused = page.evaluate("document.activeElement.getAttribute('aria-label')")
        assert focused == f"Rank {place + 1}"
    assert on_the_page(page) == ["1", "A", "2", "B", "3", "C", "4", "D"]
    submit(page, "Control+Enter")
    assert sorted(rows()[0]["ranks"].values()) == [1, 2, 3, 4]


def tab_to(page, name):
    """Press Tab until the ranks of one answer have the focus."""
    for _ in range(40):
        page.keyboard.press("Tab")
        group = page.evaluate(
            "document.activeElement.closest('[role=radiogroup]')?.getAttribute('aria-label')"
        )
        if group == f"Rank of continuation {name}":
            return
    raise AssertionError(f"Tab does not reach {name}")


def test_what_happens_is_said_to_who_does_not_see_it(three, windows):
    page = windows(three.url).open()
    status = page.locator("#status")
    assert status.get_attribute("role") == "status"
    keys(page, "2")
    assert status.text_content().strip() == "A: rank 2. Next: B."
    keys(page, "=")
    assert status.text_content().strip() == "B ties with A, rank 2. Next: C."
    keys(page, "9")
    assert status.text_content().strip() == "There are 4 here: 1 to 4."
    keys(page, "3", "4")
    assert (
        "All judged: 1: A and B, 3: C, 4: D. Enter submits." in status.text_content()
    )  # as it is stored
    submit(page)
    assert status.text_content().startswith("Saved. Task 2 of 3.")


@pytest.mark.parametrize("count", [4, 9])
def test_a_narrow_page_has_no_sideways_scroll_and_fingers_find_the_buttons(
    tmp_path, windows, count
):
    one = prompt(1)
    texts = [f" word{n} " + "Donaudampfschiff" * 12 + " and so on" * 40 for n in range(count)]
    with inside(write(tmp_path / "w", [one], answers(one, texts))), served() as serving:
        page = windows(serving.url).open()
        page.set_viewport_size({"width": 400, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") == 400
        small = page.locator("main button, footer button").evaluate_all(
            "all => all.filter(b => b.offsetParent && (b.offsetHeight < 24 || b.offsetWidth < 24)).length"
        )
        assert small == 0  # WCAG 2.2, 2.5.8: 24 by 24
        for n in range(count):
            card = page.locator(".card").nth(n)
            card.get_by_role("radio", name=f"Rank {n + 1}", exact=True).click()
        page.locator("#submit").click()
        page.locator("#finished").wait_for(state="visible")
        assert sorted(rows()[0]["ranks"].values()) == list(range(1, count + 1))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_its_ground_differ_enough_in_light_and_dark(three, windows, scheme):
    page = windows(three.url, color_scheme=scheme, reduced_motion="reduce").open()
    keys(page, "1", "f", "1")
    poor = page.evaluate(CONTRAST)
    assert poor == []


# WCAG 2.2, 1.4.3: contrast of text at least 4.5; relative luminance as defined there. What is
# switched off is exempt.
CONTRAST = """() => {
  const channels = (css) => css.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const found = channels(getComputedStyle(at).backgroundColor);
      if (found.length < 4 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const opacity = (one) => {
    let found = 1;
    for (let at = one; at; at = at.parentElement) found *= Number(getComputedStyle(at).opacity);
    return found;
  };
  const poor = [];
  for (const one of document.querySelectorAll("header *, main *, footer *")) {
    const own = [...one.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !one.offsetParent || one.closest(":disabled, .unseen")) continue;
    const back = ground(one);
    const share = opacity(one);
    const ink = channels(getComputedStyle(one).color).slice(0, 3)
      .map((c, i) => c * share + back[i] * (1 - share));
    const [low, high] = [luminance(ink), luminance(back)].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) poor.push(`${one.tagName} ${one.className} ${one.textContent.slice(0, 20)} ${ratio.toFixed(2)}`);
  }
  return poor;
}"""


def test_whoever_prefers_stillness_gets_no_transitions(three, windows):
    page = windows(three.url, reduced_motion="reduce").open()
    moving = page.locator("body *").evaluate_all(
        "all => all.filter(one => parseFloat(getComputedStyle(one).transitionDuration) > 0).length"
    )
    assert moving == 0


def test_time_counts_only_while_the_page_is_looked_at(three, windows):
    page = windows(three.url).open()
    page.evaluate(
        """() => {
          Object.defineProperty(document, "visibilityState", { get: () => window.away ? "hidden" : "visible" });
          window.away = true;
          document.dispatchEvent(new Event("visibilitychange"));
        }"""
    )
    page.wait_for_timeout(1500)
    page.evaluate("window.away = false; document.dispatchEvent(new Event('visibilitychange'))")
    keys(page, "1", "2", "3", "4")
    submit(page)
    assert rows()[0]["ms_active"] < 1400
