(() => {
  "use strict";
  const work = JSON.parse(document.getElementById("data").textContent);
  const LIVE = work.token !== null;
  const by = (id) => document.getElementById(id);

  // ---- words -------------------------------------------------------------------------------

  const MEANINGS = {
    helpful: "Does what was asked, correctly and to the point.",
    honest: "Says what is so, makes nothing up, and admits what it does not know.",
    harmless: "Insults, threatens and demeans nobody, and helps nobody do harm.",
    overall: "Helpful, honest and harmless together, as you would weigh them.",
  };
  const SUPERLATIVES = {
    helpful: "is the most helpful", honest: "is the most honest",
    harmless: "does the least harm", overall: "is best, all in all",
  };
  const CONFIDENCES = [
    [0.25, "guessing"], [0.5, "unsure"], [0.75, "fairly sure"], [1, "sure"],
  ];
  const JUNK = [
    "nonsense", "not an answer", "another language", "only repeats the prompt", "unreadable",
  ];
  const SKIPS = [
    "I cannot decide", "I do not understand the prompt", "I would rather not read this",
    "I know too little about the subject",
  ];
  const KEYS = {
    ranking: [
      ["↑ ↓", "another answer"], ["1 … 9", "rank the marked answer; the next one is marked"],
      ["=", "tie it with the one ranked before"], ["f", "F: junk, with a reason"],
      ["0 ⌫", "take its rank away"],
    ],
    thumbs: [["↑ ↓", "up or down; the same key again submits"], ["0 ⌫", "take it away"]],
    demonstration: [["Esc", "leave the text, so that single keys act"], ["t", "back to the text"]],
  };
  const COMMON_KEYS = [
    ["Enter", "submit; Ctrl+Enter also from a text field"], ["u, Ctrl+Z", "undo, step by step"],
    ["p", "back to the task before, to correct it"], ["s", "skip, with a reason"],
    ["c", "how sure you are"], ["n", "note"], ["Space", "show blurred texts of this task"],
    ["b", "blur on or off"], ["i, ?", "instructions"],
  ];
  const NAMES = "ABCDEGHIJ";  // no F, which is a verdict
  const noun = (task) => (task.form === "continuation" ? "continuation" : "answer");
  const plural = (count, one) => `${count} ${one}${count === 1 ? "" : "s"}`;
  const FORGETS = LIVE
    ? "This browser keeps nothing: an unfinished task is lost when the page closes."
    : "This browser keeps nothing: download your labels before you close the page.";
  const question = (task) => {
    const word = work.criterion;
    if (work.kind === "ranking") {
      return `Which ${noun(task)} ${SUPERLATIVES[word] || `is best by “${word}”`}?`;
    }
    if (work.kind === "thumbs") {
      return `Is this ${noun(task)} ${word === "overall" ? "good, all in all" : word}?`;
    }
    const good = word === "overall" ? "good, all in all" : word;
    return task.form === "continuation"
      ? `Go on with this text, so that it is ${good}.`
      : `Write an answer that is ${good}.`;
  };

  // ---- this browser's memory -----------------------------------------------------------------

  const PREFIX = `plumbline/${work.labeler}/`;
  const memory = new Map();
  let remembers = true;
  const store = {
    get(key) {
      if (memory.has(key)) return memory.get(key);  // newer than what the browser would not take
      try { return localStorage.getItem(PREFIX + key); } catch { return null; }
    },
    set(key, value) {
      try {
        localStorage.setItem(PREFIX + key, value);
        memory.delete(key);
      } catch {
        remembers = false;
        memory.set(key, value);
      }
    },
    drop(key) {
      memory.delete(key);
      try { localStorage.removeItem(PREFIX + key); } catch { /* it was never there */ }
    },
    keys(start) {
      const found = new Set(memory.keys());
      try {
        for (let i = 0; i < localStorage.length; i += 1) {
          const key = localStorage.key(i);
          if (key.startsWith(PREFIX)) found.add(key.slice(PREFIX.length));
        }
      } catch { /* memory alone */ }
      return [...found].filter((key) => key.startsWith(start)).sort();
    },
  };
  const parsed = (text) => {
    try { return JSON.parse(text); } catch { return null; }
  };

  // ---- lines: what a labeler's file holds ----------------------------------------------------

  const about = (line) => {
    if (line.kind === "thumbs") return [line.completion_id];
    return line.kind === "demonstration" ? [] : line.shown;
  };
  const keyOf = (line) => JSON.stringify([
    line.kind === "skip" ? line.task : line.kind, line.criterion, line.prompt_id,
    [...about(line)].sort(), line.repeat === true,
  ]);
  const taskKey = (task) => JSON.stringify([
    work.kind, work.criterion, task.prompt_id, task.shown.map((one) => one.id).sort(), task.repeat,
  ]);
  for (const task of work.tasks) task.key = taskKey(task);
  const taskOf = new Map(work.tasks.map((task) => [task.key, task]));

  let lines = [];
  let last = new Map();  // of each subject the line with the highest revision
  const take = (found) => {
    lines = found;
    last = new Map();
    for (const line of lines) {
      const key = keyOf(line);
      if (!last.has(key) || last.get(key).revision < line.revision) last.set(key, line);
    }
  };
  const revision = (task) => last.get(task.key)?.revision ?? 0;
  const answered = (task) => {
    const line = last.get(task.key);
    // The same ids may have other texts after a sampler ran again: then it is asked anew.
    return line !== undefined && (line.task_sha === null || line.task_sha === task.sha);
  };
  const doneTasks = () => work.tasks.filter(answered);
  const history = () => {
    const found = new Set();
    for (const line of lines) {
      const task = taskOf.get(keyOf(line));
      if (task && answered(task)) {
        found.delete(task);
        found.add(task);
      }
    }
    return [...found];
  };
  const competition = (picks) => Object.fromEntries(Object.entries(picks).map(([id, rank]) => [
    id, 1 + Object.values(picks).filter((other) => other < rank).length,
  ]));
  const ties = () => {
    let tied = 0;
    let total = 0;
    for (const task of doneTasks()) {
      const line = last.get(task.key);
      if (line.kind !== "ranking" || line.repeat) continue;
      const ranks = Object.values(line.ranks);
      ranks.forEach((rank, i) => ranks.slice(i + 1).forEach((other) => {
        total += 1;
        tied += rank === other ? 1 : 0;
      }));
    }
    return { tied, total };
  };
  const base = (kind, task, state) => ({
    ...work.blank[kind], schema_version: 1, kind, criterion: work.criterion, prompt_id: task.prompt_id,
    labeler: work.labeler, confidence: state.confidence, note: state.note.trim() || null,
    ms_active: Math.round(state.ms), instructions_sha: work.instructions_sha, task_sha: task.sha,
  });
  const ids = (task) => task.shown.map((one) => one.id);
  const labelOf = (task, state) => {
    if (work.kind === "ranking") {
      return {
        ...base("ranking", task, state), shown: ids(task), ranks: competition(state.picks),
        junk: state.junk, repeat: task.repeat,
      };
    }
    if (work.kind === "thumbs") {
      return { ...base("thumbs", task, state), completion_id: ids(task)[0], up: state.up };
    }
    return { ...base("demonstration", task, state), answer: written(task, state) };
  };
  const skipOf = (task, state, reason) => ({
    ...base("skip", task, state), task: work.kind, shown: ids(task), repeat: task.repeat, reason,
  });
  // A continuation's first space belongs to it; what follows the last word belongs to nothing.
  const written = (task, state) => (
    task.form === "continuation" ? state.answer.trimEnd() : state.answer.trim()
  );
  const same = (one, other) => {
    const bare = ({ revision: _, submitted: __, ms_active: ___, ...rest }) => ordered(rest);
    return bare(one) === bare(other);
  };
  const ordered = (value) => JSON.stringify(value, (_, inner) => (
    inner && typeof inner === "object" && !Array.isArray(inner)
      ? Object.fromEntries(Object.entries(inner).sort(([a], [b]) => (a < b ? -1 : 1)))
      : inner
  ));
  const now = () => new Date().toISOString();

  // ---- who keeps lines: the server of this machine, or this browser ---------------------------

  class Elsewhere extends Error {
    constructor(line) {
      super("answered in another window");
      this.line = line;
    }
  }

  const server = {
    async ask(path, options = {}) {
      let response;
      try {
        response = await fetch(path, {
          ...options, headers: { "X-Plumbline-Token": work.token, ...options.headers },
        });
      } catch {
        throw new Error(
          "Not saved: the page's program does not answer. Start `make label` again and submit "
          + "once more; what you did is kept in this browser.",
        );
      }
      const said = await response.json().catch(() => ({ error: `status ${response.status}` }));
      if (response.status === 409) throw new Elsewhere(said.label);
      if (!response.ok) throw new Error(said.error);
      return said;
    },
    async save(task, seen, label) {
      const body = JSON.stringify({ task: task.id, seen, label });
      const headers = { "Content-Type": "application/json" };
      const said = await server.ask("/labels", { method: "POST", headers, body });
      take([...lines, said.label]);
    },
    async refresh() {
      take((await server.ask("/labels")).lines);
    },
  };

  const lineKey = (line) => `line/${keyOf(line)}/${line.revision}`;
  const browser = {
    async save(task, seen, label) {
      await browser.refresh();
      if (revision(task) > seen) throw new Elsewhere(last.get(task.key));
      const line = { ...label, submitted: now(), revision: revision(task) + 1 };
      store.set(lineKey(line), JSON.stringify(line));
      await browser.refresh();
    },
    async refresh() {
      const own = store.keys("line/").map((key) => parsed(store.get(key))).filter(Boolean);
      take(merged(work.lines, own).lines);
    },
  };
  const keeper = LIVE ? server : browser;

  // Two files of one labeler as one: equal lines once; of two that claim one revision the later
  // answer is the correction of the earlier.
  const merged = (...files) => {
    const unlike = new Map();
    for (const line of files.flat()) {
      const { revision: number, ...rest } = line;
      const known = unlike.get(ordered(rest));
      if (!known || known.revision < number) unlike.set(ordered(rest), line);
    }
    const groups = new Map();
    for (const line of unlike.values()) {
      const key = keyOf(line);
      groups.set(key, [...(groups.get(key) ?? []), line]);
    }
    let renumbered = 0;
    const found = [];
    for (const group of groups.values()) {
      const clash = new Set(group.map((line) => line.revision)).size < group.length;
      if (clash) group.sort((a, b) => compare(a.submitted ?? "", b.submitted ?? ""));
      group.forEach((line, place) => {
        const number = clash ? place + 1 : line.revision;
        renumbered += number === line.revision ? 0 : 1;
        found.push({ ...line, revision: number });
      });
    }
    found.sort((a, b) => compare(a.submitted ?? "", b.submitted ?? ""));
    return { lines: found, renumbered };
  };
  const compare = (a, b) => (a < b ? -1 : Number(a > b));

  // ---- the state of one task -------------------------------------------------------------------

  let task = null;
  let state = null;
  let seen = 0;
  let correcting = false;
  let current = 0;  // which answer the keys act on
  let revealed = false;
  let saving = false;
  let since = null;

  const fresh = (one) => ({
    seen: revision(one), picks: {}, junk: {}, touched: [], up: null, confidence: null, note: "", ms: 0, steps: [],
    // A continuation goes on after a space, unless the text ends with one or an opening quote.
    answer: one.form === "continuation" && /[\p{L}\p{N}\p{M},.;:!?)\]’”]$/u.test(one.text)
      ? " " : "",
  });
  const from = (one, line) => {
    const begun = { ...fresh(one), confidence: line.confidence, note: line.note ?? "" };
    if (line.kind === "ranking") return { ...begun, picks: line.ranks, junk: line.junk };
    if (line.kind === "thumbs") return { ...begun, up: line.up };
    return line.kind === "demonstration" ? { ...begun, answer: line.answer } : begun;
  };
  const touched = () => state.steps.length > 0 || state.note.trim() !== ""
    || (work.kind === "demonstration" && state.answer !== fresh(task).answer);
  const complete = () => {
    if (work.kind === "ranking") return open_().length === 0;
    return work.kind === "thumbs" ? state.up !== null : written(task, state).trim() !== "";
  };
  const open_ = () => ids(task).filter((id) => !(id in state.picks) && !(id in state.junk));
  const draftKey = (one) => `draft/${one.id}`;
  const keepDraft = () => {
    if (task && state) store.set(draftKey(task), JSON.stringify(state));
  };
  const tick = () => {
    const there = document.visibilityState === "visible" && !by("help").open;
    if (since !== null && state) state.ms += performance.now() - since;
    since = there && state ? performance.now() : null;
  };

  const change = (alter) => {
    const { picks, junk, touched: order, up, confidence } = state;
    state.steps = [...state.steps, { picks, junk, touched: order, up, confidence }].slice(-60);
    alter();
    keepDraft();
    paint();
  };
  const undo = () => {
    const step = state.steps.at(-1);
    if (!step) return say("Nothing to undo.");
    const differs = (id) => step.picks[id] !== state.picks[id] || step.junk[id] !== state.junk[id];
    const place = ids(task).findIndex(differs);
    Object.assign(state, step, { steps: state.steps.slice(0, -1) });
    keepDraft();
    paint();
    if (work.kind === "ranking" && place >= 0) mark(place);
    return say(`Undone. ${orderInWords()}`);
  };

  // ---- ranking ---------------------------------------------------------------------------------

  const without = (object, key) => {
    const { [key]: _, ...rest } = object;
    return rest;
  };
  const judge = (place, picks, junk, said, { stay = false } = {}) => {
    const id = ids(task)[place];
    let closed = "";
    change(() => {
      state.picks = picks;
      state.junk = junk;
      state.touched = [...state.touched.filter((one) => one !== id), id];
      if (open_().length) return;
      // What is stored is competition ranks: shown as such as soon as all are judged.
      const ranks = competition(picks);
      const moved = ids(task).filter((one) => one in picks && picks[one] !== ranks[one]);
      if (moved.length) closed = " Ranks were closed up, as they will be stored.";
      state.picks = ranks;
    });
    const left = open_();
    mark(left.length ? nextOpen(place) : place, { stay });
    say(left.length
      ? `${said} Next: ${NAMES[current]}.`
      : `${said}${closed} All judged: ${orderInWords()} Enter submits.`);
  };
  const nextOpen = (place) => {
    const all = ids(task);
    const left = open_();
    for (let step = 1; step <= all.length; step += 1) {
      const at = (place + step) % all.length;
      if (left.includes(all[at])) return at;
    }
    return place;
  };
  const rank = (place, number, how) => {
    if (veiled()) return sayVeiled();
    const count = task.shown.length;
    if (number > count) return say(`There are ${count} here: 1 to ${count}.`);
    const id = ids(task)[place];
    const picks = { ...state.picks, [id]: number };
    return judge(place, picks, without(state.junk, id), `${NAMES[place]}: rank ${number}.`, how);
  };
  const tie = () => {
    if (veiled()) return sayVeiled();
    const id = ids(task)[current];
    const before = state.touched.filter((one) => one !== id && one in state.picks).at(-1);
    if (before === undefined) return say("Nothing was ranked before: rank one first.");
    const number = state.picks[before];
    const said = `${NAMES[current]} ties with ${NAMES[ids(task).indexOf(before)]}, rank ${number}.`;
    return judge(current, { ...state.picks, [id]: number }, without(state.junk, id), said);
  };
  const junk = (place) => {
    if (veiled()) return sayVeiled();
    return askReason(`Why is ${noun(task)} ${NAMES[place]} junk?`, JUNK, (reason) => {
      const id = ids(task)[place];
      const said = `${NAMES[place]}: F, ${reason}.`;
      judge(place, without(state.picks, id), { ...state.junk, [id]: reason }, said);
    });
  };
  const clear = () => {
    if (work.kind === "thumbs") {
      if (state.up !== null) change(() => { state.up = null; });
      return;
    }
    const id = ids(task)[current];
    if (!(id in state.picks) && !(id in state.junk)) return;
    change(() => {
      state.picks = without(state.picks, id);
      state.junk = without(state.junk, id);
      state.touched = state.touched.filter((one) => one !== id);
    });
    say(`${NAMES[current]}: no rank.`);
  };
  const levels = () => {
    const found = new Map();
    for (const [id, number] of Object.entries(state.picks)) {
      found.set(number, [...(found.get(number) ?? []), NAMES[ids(task).indexOf(id)]]);
    }
    return [...found].sort(([a], [b]) => a - b).map(([number, names]) => [number, names.sort()]);
  };
  const junked = () => Object.keys(state.junk).map((id) => NAMES[ids(task).indexOf(id)]).sort();
  const orderInWords = () => {
    if (work.kind !== "ranking") return "";
    const said = levels().map(([number, names]) => `${number}: ${names.join(" and ")}`);
    if (junked().length) said.push(`F: ${junked().join(" and ")}`);
    return said.length ? `${said.join(", ")}.` : "Nothing ranked.";
  };

  // ---- texts -------------------------------------------------------------------------------------

  const make = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child !== null));
    return made;
  };
  // Characters that are not seen but change what is: named, not obeyed.
  const UNSEEN = new RegExp(
    "([\\u0000-\\u0008\\u000B-\\u001F\\u007F-\\u009F\\u00AD\\u061C\\u180E\\u200B\\u200E\\u200F"
    + "\\u2028-\\u202E\\u2060-\\u206F\\uFEFF\\uFFF9-\\uFFFB]|[\\u{E0000}-\\u{E007F}])", "u",
  );
  const readable = (text) => text.replaceAll("\r\n", "\n").split(UNSEEN).filter(Boolean)
    .map((part) => {
      if (!UNSEEN.test(part)) return part;
      const code = part.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
      return make("span", { class: "mark", title: "an invisible character" }, `U+${code}`);
    });
  const lead = (text) => {
    if (text.length <= 60) return text;
    const from_ = text.indexOf(" ", text.length - 48);
    return `…${text.slice(from_ < 0 ? text.length - 48 : from_ + 1)}`;
  };
  const answerText = (one, before) => {
    const box = make("div", { class: "text", dir: "auto" });
    if (before) box.append(make("span", { class: "lead" }, ...readable(before)));
    box.append(...readable(one.text));
    if (!one.text.trim()) box.append(make("span", { class: "tag" }, "nothing"));
    if (one.finish === "length") {
      box.append(" ", make("span", { class: "tag", title: "at its length limit" }, "cut off here"));
    }
    return box;
  };
  const SPEAKERS = { system: "Instruction to the assistant", user: "Person", assistant: "Assistant" };
  const promptParts = (one) => {
    if (one.form === "continuation") {
      return [make("div", { class: "text source", dir: "auto" }, ...readable(one.text))];
    }
    return [make("div", { class: "chat" }, ...one.messages.map((turn) => make(
      "div", { class: `turn ${turn.role}` },
      make("p", { class: "speaker" }, SPEAKERS[turn.role]),
      make("div", { class: "text", dir: "auto" }, ...readable(turn.content)),
    )))];
  };

  // ---- parts of the page -------------------------------------------------------------------------

  // One choice of several, as buttons: Left and Right move, Space or a click chooses. Up and Down
  // stay what they are everywhere: another answer.
  const choices = (label, options, pick) => {
    const buttons = options.map(({ text, name, kind }, place) => make("button", {
      type: "button", role: "radio", "aria-checked": "false", "aria-label": name ?? null,
      tabindex: place ? "-1" : "0", class: kind ?? null,
      onclick: (event) => {
        // Whoever walks through the buttons stays there; a mouse leaves the keys to the next one.
        pick(place, { stay: event.detail === 0 });
        event.stopPropagation();
      },
      onkeydown: (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step || event.ctrlKey || event.altKey || event.metaKey) return;
        event.preventDefault();
        event.stopPropagation();
        buttons[(place + step + buttons.length) % buttons.length].focus();
      },
    }, text));
    const group = make("div", { role: "radiogroup", class: "choices", "aria-label": label }, ...buttons);
    for (const button of buttons) {
      button.addEventListener("focus", () => buttons.forEach((other) => {
        other.tabIndex = other === button ? 0 : -1;
      }));
    }
    group.choose = (chosen) => {
      buttons.forEach((button, place) => {
        button.setAttribute("aria-checked", String(place === chosen));
      });
      if (!group.contains(document.activeElement)) {
        buttons.forEach((button, place) => { button.tabIndex = place === Math.max(chosen, 0) ? 0 : -1; });
      }
    };
    return group;
  };

  let parts = {};  // what paint() changes
  const build = () => {
    by("question").textContent = question(task);
    by("meaning").textContent = MEANINGS[work.criterion] ?? "";
    by("prompt-title").textContent = task.form === "continuation" ? "The text so far" : "The conversation";
    by("prompt").replaceChildren(...promptParts(task));
    by("work-title").textContent = {
      ranking: `${plural(task.shown.length, noun(task))}, best to worst: 1 is best`,
      thumbs: `The ${noun(task)}`,
      demonstration: `Your ${noun(task)}`,
    }[work.kind];
    parts = {};
    const body = { ranking: cards, thumbs: oneCard, demonstration: sheet }[work.kind]();
    by("body").replaceChildren(body);
    by("extras").replaceChildren(confidence(), note());
    document.body.dataset.kind = work.kind;
    document.body.dataset.size = task.shown.some((one) => one.text.length > 500) ? "long" : "short";
  };
  const cards = () => {
    const count = task.shown.length;
    parts.cards = task.shown.map((one, place) => {
      const name = NAMES[place];
      const options = [...Array(count).keys()].map((i) => ({ text: `${i + 1}`, name: `Rank ${i + 1}` }));
      const group = choices(`Rank of ${noun(task)} ${name}`, [
        ...options, { text: "F", name: "F: junk, with a reason", kind: "junk" },
      ], (picked, how) => {
        mark(place, how);
        if (picked === count) junk(place);
        else rank(place, picked + 1, how);
      });
      const badge = make("span", { class: "badge" });
      const why = make("span", { class: "why" });
      const before = task.form === "continuation" ? lead(task.text) : "";
      const card = make(
        "li", { class: "card", "aria-labelledby": `name-${place}`, onclick: () => mark(place), onfocusin: () => follow(place) },
        make("h3", { id: `name-${place}`, tabindex: "-1" },
          make("span", { class: "letter" }, make("span", { class: "unseen" }, `${noun(task)} `), name),
          badge, why),
        answerText(one, before), group,
      );
      return { card, group, badge, why };
    });
    return make("ol", { class: "cards", role: "list" }, ...parts.cards.map((part) => part.card));
  };
  const oneCard = () => {
    const before = task.form === "continuation" ? task.text : "";
    parts.thumbs = choices("Your verdict", [
      { text: "▲ Up", name: "Thumbs up: yes", kind: "up" },
      { text: "▼ Down", name: "Thumbs down: no", kind: "down" },
    ], (place) => thumb(place === 0));
    return make("div", { class: "card alone" }, answerText(task.shown[0], before), parts.thumbs);
  };
  const sheet = () => {
    parts.answer = make("textarea", {
      id: "answer", rows: "8", dir: "auto", maxlength: "200000", spellcheck: "true",
      "aria-label": `Your ${noun(task)}`, "aria-describedby": "answer-hint",
      oninput: () => {
        state.answer = parts.answer.value;
        keepDraft();
        paint();
      },
    });
    const hint = make("p", { class: "hint", id: "answer-hint" }, task.form === "continuation"
      ? "Go on where the text stops; below is how it will be read."
      : "Ctrl+Enter submits. What you write is stored as it stands.");
    parts.preview = task.form === "continuation" ? make("div", { class: "text preview", dir: "auto" }) : null;
    return make("div", { class: "sheet" }, parts.answer, hint, parts.preview);
  };
  const confidence = () => {
    parts.confidence = choices("How sure are you?", CONFIDENCES.map(([, text]) => ({ text })), (place) => {
      const value = CONFIDENCES[place][0];
      change(() => { state.confidence = state.confidence === value ? null : value; });
    });
    return make("div", { class: "extra" }, make("p", { class: "label", "aria-hidden": "true" },
      "How sure are you?", make("kbd", {}, "c"), make("span", { class: "hint" }, "optional")), parts.confidence);
  };
  const note = () => {
    parts.note = make("input", {
      id: "note", maxlength: "2000", autocomplete: "off", dir: "auto",
      oninput: () => {
        state.note = parts.note.value;
        keepDraft();
      },
    });
    return make("div", { class: "extra grow" }, make("label", { class: "label", for: "note" },
      "Note", make("kbd", {}, "n"), make("span", { class: "hint" }, "optional")), parts.note);
  };

  // ---- painting what is the case ------------------------------------------------------------------

  const settings = () => ({ blur: store.get("blur") !== "off", letters: store.get("letters") !== "off" });
  const veiled = () => settings().blur && !revealed;
  const sayVeiled = () => say("The texts are blurred. Space shows them; then they can be judged.");
  const paint = () => {
    const done = doneTasks().length;
    const count = work.tasks.length;
    by("bar").max = count;
    by("bar").value = done;
    by("count").textContent = `${done} of ${count} done`;
    document.title = `${done}/${count} · Plumbline`;
    by("to-back").disabled = !earlier();
    paintTies();
    paintBlur();
    if (!task) return;
    by("place").textContent = `Task ${work.tasks.indexOf(task) + 1} of ${count}`
      + (correcting ? ` · correcting what you said (revision ${seen})` : "");
    by("to-leave").hidden = !correcting;
    by("to-skip").disabled = saving;
    by("to-undo").hidden = work.kind === "demonstration";  // a text field has its own
    by("to-undo").disabled = state.steps.length === 0;
    const left = work.kind === "ranking" ? open_().length : 0;
    by("submit").disabled = !complete() || saving;
    by("submit").replaceChildren(
      saving ? "Saving …" : left ? `Submit (${left} left)` : correcting ? "Save the correction" : "Submit",
      make("kbd", {}, work.kind === "demonstration" ? "Ctrl ↵" : "↵"),
    );
    parts.confidence.choose(CONFIDENCES.findIndex(([value]) => value === state.confidence));
    if (parts.note.value !== state.note) parts.note.value = state.note;
    ({ ranking: paintCards, thumbs: paintThumb, demonstration: paintSheet })[work.kind]();
  };
  const paintCards = () => {
    const tied = Object.fromEntries(levels().map(([number, names]) => [number, names.length > 1]));
    parts.cards.forEach(({ card, group, badge, why }, place) => {
      const id = ids(task)[place];
      const number = state.picks[id];
      const reason = state.junk[id];
      card.classList.toggle("ranked", number !== undefined);
      card.classList.toggle("junked", reason !== undefined);
      if (place === current) card.setAttribute("aria-current", "true");
      else card.removeAttribute("aria-current");
      badge.textContent = reason !== undefined ? "F" : number === undefined ? "" : `${number}${tied[number] ? " =" : ""}`;
      badge.hidden = badge.textContent === "";
      why.replaceChildren(...readable(reason ?? ""));
      group.choose(reason !== undefined ? task.shown.length : (number ?? 0) - 1);
    });
    const chips = levels().map(([number, names]) => make("span", { class: "chip" },
      make("b", {}, `${number}`), ` ${names.join(" = ")}`));
    if (junked().length) chips.push(make("span", { class: "chip junked" }, make("b", {}, "F"), ` ${junked().join(" ")}`));
    by("order").replaceChildren(...(chips.length ? chips : [make("span", { class: "hint" }, "Nothing is ranked yet.")]));
  };
  const paintThumb = () => {
    parts.thumbs.choose(state.up === null ? -1 : state.up ? 0 : 1);
    by("order").replaceChildren();
  };
  const paintSheet = () => {
    if (parts.answer.value !== state.answer) parts.answer.value = state.answer;
    if (parts.preview) {
      parts.preview.replaceChildren(
        make("span", { class: "lead" }, ...readable(task.text)), ...readable(written(task, state)),
      );
    }
    const words = state.answer.trim() ? state.answer.trim().split(/\s+/u).length : 0;
    by("order").replaceChildren(make("span", { class: "hint" }, plural(words, "word")));
  };
  const paintTies = () => {
    const { tied, total } = ties();
    const share = total ? tied / total : 0;
    const box = by("ties");
    box.hidden = work.kind !== "ranking" || total === 0;
    // Of the first few comparisons one tie is a large share already, and means nothing.
    const many = total >= 10 && share > work.tie_warning;
    box.classList.toggle("warn", many);
    box.textContent = `${many ? "⚠ " : ""}ties ${Math.round(100 * share)} %`
      + (many ? `, above ${Math.round(100 * work.tie_warning)} %: tie only what you cannot tell apart` : "");
  };
  const paintBlur = () => {
    const veil = veiled() && task !== null;
    by("to-blur").setAttribute("aria-pressed", String(settings().blur));
    by("blur").checked = settings().blur;
    by("letters").checked = settings().letters;
    document.body.classList.toggle("veiled", veil);
    by("veil").hidden = !veil;
    // Who hears the page is asked first, like who sees it.
    for (const text of document.querySelectorAll("main .text")) {
      if (veil) text.setAttribute("aria-hidden", "true");
      else text.removeAttribute("aria-hidden");
    }
  };
  const follow = (place) => {
    if (current === place) return;
    current = place;
    paintCards();
  };
  const mark = (place, { stay = false } = {}) => {
    current = place;
    paintCards();
    const { card } = parts.cards[place];
    if (!stay) by(`name-${place}`).focus({ preventScroll: true });
    const box = card.getBoundingClientRect();
    const room = innerHeight - by("bottom").offsetHeight;
    if (box.top < 0 || box.bottom > room) {
      card.scrollIntoView({ block: box.height > room ? "start" : "nearest" });
    }
  };

  let spoken = 0;
  const say = (text) => {
    // The same words twice would not be read out again.
    spoken += 1;
    by("status").textContent = text + (spoken % 2 ? "" : "\u00A0");
  };
  const complain = (text) => {
    by("banner").textContent = text;
    by("banner").hidden = !text;
  };

  // ---- from task to task ---------------------------------------------------------------------------

  const show = (one, { correct = false } = {}) => {
    tick();
    keepDraft();
    task = one;
    correcting = correct;
    current = 0;
    revealed = false;
    seen = revision(one);
    const kept = parsed(store.get(draftKey(one)));
    const line = last.get(one.key);
    state = (kept?.seen === seen ? kept : null) ?? (correct && line ? from(one, line) : fresh(one));
    tick();
    complain(remembers ? "" : FORGETS);
    by("choice").hidden = true;
    by("finished").hidden = true;
    by("main").hidden = by("bottom").hidden = false;
    build();
    paint();
    if (work.kind === "ranking" && open_().length) mark(nextOpen(task.shown.length - 1));
    by("question").focus({ preventScroll: true });
    scrollTo(0, 0);
  };
  const next = (said = "") => {
    const open = work.tasks.find((one) => !answered(one));
    if (!open) return finish(said);
    show(open);
    return say(`${said} Task ${work.tasks.indexOf(open) + 1} of ${work.tasks.length}. ${question(open)}`);
  };
  const earlier = () => {
    const before = history();
    const place = task && correcting ? before.indexOf(task) : before.length;
    return before[place - 1] ?? null;
  };
  const back = () => {
    const one = earlier();
    if (!one) return say("There is nothing before this.");
    show(one, { correct: true });
    return say(`Back at task ${work.tasks.indexOf(one) + 1}. ${orderInWords()} Submit saves a correction, Escape leaves it.`);
  };
  const leave = () => {
    store.drop(draftKey(task));
    state = null;
    next("Left as it was.");
  };
  const send = async (label) => {
    if (saving) return;
    tick();
    label.ms_active = Math.round(state.ms);
    saving = true;
    complain("");
    paint();
    try {
      await keeper.save(task, seen, label);
      sent("Saved.");
    } catch (error) {
      saving = false;
      if (!(error instanceof Elsewhere)) complain(error.message);
      // An answer whose acknowledgement was lost on its way is no second answer.
      else if (same(error.line, label)) await caughtUp("Saved.");
      else await caughtUp(null, label);
      paint();
    }
  };
  const sent = (said) => {
    saving = false;
    store.drop(draftKey(task));
    store.set("saved", `${task.id} ${Date.now()}`);
    state = null;
    next(said);
  };
  const caughtUp = async (said, label = null) => {
    await keeper.refresh().catch((error) => complain(error.message));
    if (said) return sent(said);
    return offer(label);
  };
  const submit = () => {
    if (complete()) return send(labelOf(task, state));
    if (work.kind !== "ranking") return say("There is nothing to submit yet.");
    const names = open_().map((id) => NAMES[ids(task).indexOf(id)]).join(", ");
    return say(`Without rank: ${names}. Give each a rank or an F.`);
  };
  const skip = () => askReason("Why skip this task?", SKIPS, (reason) => send(skipOf(task, state, reason)));
  const thumb = (up, { again = false } = {}) => {
    if (veiled()) return sayVeiled();
    if (state.up === up) return again ? submit() : null;
    change(() => { state.up = up; });
    return say(`${up ? "Up" : "Down"}. Enter submits.`);
  };
  const cycle = () => {
    const place = CONFIDENCES.findIndex(([value]) => value === state.confidence);
    const found = CONFIDENCES[place + 1];
    change(() => { state.confidence = found ? found[0] : null; });
    say(found ? `You are ${found[1]}.` : "How sure you are is left open.");
  };

  // A task was answered in another window: one that is untouched here moves on, any other asks.
  let mine = null;
  const offer = (label = null) => {
    mine = label;
    const line = last.get(task.key);
    const what = line.kind === "skip" ? "skipped" : "answered";
    by("choice-text").textContent = `This task was ${what} in another window (revision ${line.revision}). Nothing of it is lost.`;
    by("choice").hidden = false;
    by("keep-theirs").focus();
  };
  const lookAround = async () => {
    if (saving || !task) return;
    try { await keeper.refresh(); } catch { return; }
    if (saving || !task) return;
    if (revision(task) <= seen) paint();
    else if (touched()) offer();
    else {
      state = null;
      next("This task was answered in another window.");
    }
  };
  const finish = (said) => {
    tick();
    task = null;
    state = null;
    complain(remembers ? "" : FORGETS);
    by("main").hidden = by("bottom").hidden = true;
    by("choice").hidden = true;
    const own = doneTasks().map((one) => last.get(one.key));
    const skipped = own.filter((line) => line.kind === "skip").length;
    const minutes = Math.round(own.reduce((sum, line) => sum + (line.ms_active ?? 0), 0) / 60000);
    const { tied, total } = ties();
    const facts = [
      [`${own.length - skipped}`, { ranking: "ranked", thumbs: "judged", demonstration: "written" }[work.kind]],
      [`${skipped}`, "skipped"], [`${minutes}`, minutes === 1 ? "minute" : "minutes"],
      ...(work.kind === "ranking" ? [[`${total ? Math.round((100 * tied) / total) : 0} %`, "ties"]] : []),
    ];
    by("finished").replaceChildren(
      make("h1", { id: "finished-title", tabindex: "-1" }, "Done. Thank you."),
      make("dl", { class: "facts" }, ...facts.map(([value, name]) => make("div", {}, make("dd", {}, value), make("dt", {}, name)))),
      LIVE
        ? make("p", {}, "Your answers are in ", make("code", {}, work.file), "; ", make("code", {}, "dvc repro"), " takes them in. You may close this page.")
        : make("p", {}, "Download your labels and send the file ", make("code", {}, `${work.labeler}.jsonl`), " to whoever gave you this page."),
      make("p", { class: "actions" },
        LIVE ? null : make("button", { type: "button", class: "strong", onclick: download }, "Download my labels"),
        make("button", { type: "button", onclick: back, disabled: own.length === 0 }, "Back to the last task", make("kbd", {}, "p"))),
    );
    by("finished").hidden = false;
    paint();
    by("finished-title").focus();
    say(`${said} All ${plural(work.tasks.length, "task")} done.`);
  };

  // ---- dialogs ---------------------------------------------------------------------------------------

  let chosenReason = null;
  const askReason = (title, reasons, done) => {
    by("reason-title").textContent = title;
    by("own").value = "";
    chosenReason = done;
    by("reasons").replaceChildren(...reasons.map((reason, place) => make(
      "button", { type: "button", onclick: () => useReason(reason) }, make("kbd", {}, `${place + 1}`), reason,
    )));
    by("reason").showModal();
    by("own-key").textContent = `${reasons.length + 1}`;
    by("reasons").firstChild.focus();
  };
  const useReason = (reason) => {
    const done = chosenReason;
    chosenReason = null;
    by("reason").close();
    done(reason);
  };
  by("own-reason").addEventListener("submit", (event) => {
    event.preventDefault();
    const reason = by("own").value.trim();
    if (reason) useReason(reason);
  });
  by("reason").addEventListener("keydown", (event) => {
    if (event.target === by("own") || event.ctrlKey || event.altKey || event.metaKey) return;
    const options = [...by("reasons").children];
    const at = options.indexOf(document.activeElement);
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const picked = [...options, by("own")][Number(event.key) - 1];
    if (step) options[(at + step + options.length) % options.length].focus();
    else if (!picked || !settings().letters) return;
    else if (picked === by("own")) picked.focus();
    else picked.click();
    event.preventDefault();
  });
  const help = () => {
    if (!by("help").open) by("help").showModal();
    by("help").scrollTop = 0;
    tick();
  };
  by("help").addEventListener("close", () => {
    store.set("read", work.instructions_sha);
    tick();
    // The event comes after the closing; whoever writes by then goes on writing.
    const writes = document.activeElement.matches("input:not([type=checkbox]), textarea");
    if (task && !writes) by("question").focus({ preventScroll: true });
  });
  for (const dialog of [by("help"), by("reason")]) {
    for (const button of dialog.querySelectorAll("[data-close]")) {
      button.addEventListener("click", () => dialog.close());
    }
  }
  by("key-rows").replaceChildren(...[...KEYS[work.kind], ...COMMON_KEYS].map(([key, what]) => make(
    "tr", {}, make("th", { scope: "row" }, make("kbd", {}, key)), make("td", {}, what),
  )));

  // ---- keys --------------------------------------------------------------------------------------------

  const move = (step) => mark((current + step + task.shown.length) % task.shown.length);
  const set = (name, on) => {
    store.set(name, on ? "on" : "off");
    paint();
  };
  const blur = () => {
    set("blur", !settings().blur);
    say(settings().blur ? "Texts are blurred." : "Texts are shown.");
  };
  const reveal = () => {
    revealed = true;
    paint();
    say("Texts are shown.");
    if (work.kind === "ranking") mark(current);
    else by("question").focus({ preventScroll: true });
  };
  const ACTIONS = {
    "=": () => work.kind === "ranking" && tie(), f: () => work.kind === "ranking" && junk(current),
    0: clear, Backspace: clear, Delete: clear, u: undo, p: back, s: skip, c: cycle, b: blur, i: help,
    "?": help, n: () => parts.note.focus(), t: () => parts.answer?.focus(),
  };
  const onText = (event) => {
    if (event.key === "Escape") {
      event.preventDefault();
      by("question").focus({ preventScroll: true });
    } else if (event.key === "Enter" && event.target === parts.note) {
      event.preventDefault();
      if (work.kind === "ranking") mark(current);
      else by("question").focus({ preventScroll: true });
    }
  };
  const onArrow = (event) => {
    const up = event.key === "ArrowUp";
    if (work.kind === "ranking") move(up ? -1 : 1);
    else if (work.kind === "thumbs" && !event.repeat) thumb(up, { again: true });
    else return;
    event.preventDefault();
  };
  const onKey = (event) => {
    if (by("help").open) {
      if (event.key === "i" && !event.ctrlKey && !event.metaKey && settings().letters) by("help").close();
      return;
    }
    if (by("reason").open || saving || event.defaultPrevented) return;
    const typing = event.target.matches?.("input:not([type=checkbox]), textarea");
    const command = event.ctrlKey || event.metaKey;
    if (task && command && event.key === "Enter") {
      event.preventDefault();
      submit();
    } else if (typing) onText(event);
    else if (task && command && event.key.toLowerCase() === "z" && !event.shiftKey) {
      event.preventDefault();
      undo();
    } else if (!command && !event.altKey) onPlain(event);
  };
  const onPlain = (event) => {
    const { key } = event;
    if (!task) {
      if (key === "p" && settings().letters) back();
    } else if (key === "Escape" && correcting) leave();
    else if (key === "ArrowUp" || key === "ArrowDown") onArrow(event);
    else if ((key === " " || key === "Enter") && event.target.matches("button, summary, a")) return;
    else if (!settings().letters) return;
    else if (key === " " && veiled()) {
      event.preventDefault();
      reveal();
    } else if (key === "Enter") {
      event.preventDefault();
      if (!event.repeat) submit();
    } else if (/^[1-9]$/.test(key) && work.kind === "ranking") {
      event.preventDefault();
      rank(current, Number(key));
    } else if (Object.hasOwn(ACTIONS, key)) {
      event.preventDefault();
      ACTIONS[key]();
    }
  };
  addEventListener("keydown", onKey);
  for (const [id, action] of Object.entries({
    "to-help": help, "to-blur": blur, "to-back": back, "to-undo": undo, "to-skip": skip,
    "to-leave": leave, submit, reveal,
    "keep-theirs": () => {
      store.drop(draftKey(task));
      state = null;
      next("Kept.");
    },
    "keep-mine": () => {
      seen = revision(task);
      by("choice").hidden = true;
      if (mine) send(mine);
      else submit();
    },
  })) by(id).addEventListener("click", action);
  for (const name of ["blur", "letters"]) {
    by(name).addEventListener("change", (event) => set(name, event.target.checked));
  }

  // ---- time, other windows, and leaving -------------------------------------------------------------------

  document.addEventListener("visibilitychange", () => {
    tick();
    keepDraft();
    if (document.visibilityState === "visible") lookAround();
  });
  addEventListener("pagehide", () => {
    tick();
    keepDraft();
  });
  setInterval(() => {
    if (document.visibilityState !== "visible") return;  // a draft of another window may be newer
    tick();
    keepDraft();
  }, 5000);
  addEventListener("storage", (event) => {
    if (event.key === `${PREFIX}saved`) lookAround();
    else if (event.key === `${PREFIX}blur` || event.key === `${PREFIX}letters`) paint();
  });

  // ---- the file of a labeler without the program -------------------------------------------------------------

  const asFile = () => lines.map((line) => `${ordered(line)}\n`).join("");
  const download = () => {
    const place = URL.createObjectURL(new Blob([asFile()], { type: "application/x-ndjson" }));
    make("a", { href: place, download: `${work.labeler}.jsonl` }).click();
    setTimeout(() => URL.revokeObjectURL(place), 60000);
    store.set("downloaded", `${lines.length}`);
    say(`${plural(lines.length, "line")} downloaded as ${work.labeler}.jsonl.`);
  };
  const undownloaded = () => lines.length > Math.max(work.lines.length, Number(store.get("downloaded") ?? 0));
  const readLine = (text, number) => {
    const line = parsed(text);
    const fits = line && line.schema_version === 1 && Number.isInteger(line.revision)
      && ["ranking", "thumbs", "demonstration", "skip"].includes(line.kind)
      && (line.kind !== "ranking" && line.kind !== "skip" || Array.isArray(line.shown));
    if (!fits) throw new Error(`Line ${number} is no label. Nothing was loaded.`);
    if (line.labeler !== work.labeler) {
      throw new Error(`Line ${number} is ${line.labeler}'s, and this page is ${work.labeler}'s. Nothing was loaded.`);
    }
    return line;
  };
  const load = async (file) => {
    try {
      const rows = (await file.text()).split("\n").map((text, place) => [text, place + 1]);
      const found = rows.filter(([text]) => text.trim()).map(([text, number]) => readLine(text, number));
      await browser.refresh();
      const before = lines.length;
      const both = merged(lines, found);
      for (const key of store.keys("line/")) store.drop(key);
      for (const line of both.lines) store.set(lineKey(line), JSON.stringify(line));
      work.lines = [];  // what it held is among them, under the numbers they have now
      take(both.lines);
      if (lines.length === found.length) store.set("downloaded", `${lines.length}`);
      const clashes = both.renumbered
        ? ` ${plural(both.renumbered, "answer")} to tasks answered in both were put in order of time.` : "";
      next(`${plural(lines.length - before, "line")} loaded.${clashes}`);
      complain(`${plural(lines.length - before, "line")} loaded.${clashes}`);
    } catch (error) { complain(error.message); }
  };
  if (!LIVE) {
    by("to-download").addEventListener("click", download);
    by("to-load").addEventListener("click", () => by("file").click());
    by("file").addEventListener("change", (event) => {
      const [file] = event.target.files;
      event.target.value = "";
      if (file) load(file);
    });
    addEventListener("beforeunload", (event) => { if (undownloaded()) event.preventDefault(); });
  }

  // ---- begin -----------------------------------------------------------------------------------------------------

  take(work.lines);
  const start = async () => {
    if (!LIVE) await browser.refresh();
    store.set("works", "yes");  // finds out whether this browser remembers
    next();
    if (store.get("read") !== work.instructions_sha) help();
  };
  start();
})();
