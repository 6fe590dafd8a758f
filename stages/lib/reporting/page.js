(() => {
  "use strict";
  const data = document.getElementById("answers-data");
  if (!data) return;
  const { baseline, scorers, prompts, policies } = JSON.parse(data.textContent);
  const by = (id) => document.getElementById(id);
  const make = (tag, name, ...inside) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    made.append(...inside);
    return made;
  };
  // A change of the first scorer, the independent one, that is more than a trifle
  const CLEAR = 0.1;
  const PAGE = 10;
  let shown = PAGE;

  for (const kind of [...new Set(prompts.map((prompt) => prompt[1]))].sort()) by("kind").append(make("option", "", kind));

  const couples = () => policies[by("of").value].flatMap((own, n) => own.map((after, k) => {
    const before = policies[baseline][n][k];
    return { prompt: prompts[n], before, after, change: after[1][0] - before[1][0] };
  }));
  const chosen = () => {
    const which = by("which").value;
    const kind = by("kind").value;
    const sought = by("sought").value.trim().toLowerCase();
    const found = couples().filter(({ prompt, before, after, change }) =>
      (which !== "improved" || change <= -CLEAR) && (which !== "worsened" || change >= CLEAR)
      && (which !== "apart" || after[2]) && (!kind || prompt[1] === kind)
      && (!sought || [prompt[2], before[0], after[0]].some((text) => text.toLowerCase().includes(sought))));
    if (which === "improved") found.sort((a, b) => a.change - b.change);
    if (which === "worsened") found.sort((a, b) => b.change - a.change);
    return found;
  };

  // The words of a text, those marked that are not in a longest common subsequence with the other.
  const marked = (text, other) => {
    const [a, b] = [text, other].map((one) => one.match(/\s+|\S+/gu) ?? []);
    const length = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
    for (let i = a.length - 1; i >= 0; i -= 1) {
      for (let j = b.length - 1; j >= 0; j -= 1) {
        length[i][j] = a[i] === b[j] ? length[i + 1][j + 1] + 1 : Math.max(length[i + 1][j], length[i][j + 1]);
      }
    }
    const parts = [];
    for (let i = 0, j = 0; i < a.length; i += 1) {
      while (j < b.length && a[i] !== b[j] && length[i][j + 1] === length[i][j]) j += 1;
      const both = j < b.length && a[i] === b[j];
      if (both) j += 1;
      parts.push(both || !a[i].trim() ? a[i] : make("mark", "", a[i]));
    }
    return parts;
  };
  const answer = (name, [text, scores], other) => {
    const who = make("div", "who", make("strong", "", name), ...scorers.map((scorer, i) => make("span", "", `${scorer} ${scores[i].toFixed(3)}`)));
    const box = make("input");
    box.type = "checkbox";
    box.setAttribute("aria-label", "Show this completion");
    const said = make("span", "text blur", ...(text.trim() ? marked(text, other[0]) : ["(empty)"]));
    return make("div", "answer", who, make("label", "", box, said));
  };
  const paint = () => {
    const found = chosen();
    const now = found.slice(0, shown);
    by("found").textContent = `${found.length} of ${couples().length} answers${found.length > now.length ? `, the first ${now.length} shown` : ""}`;
    by("list").replaceChildren(...now.map(({ prompt: [id, category, text], before, after }) => make("div", "sample",
      make("p", "hint", `${category} · `, make("code", "", id)), make("blockquote", "", text),
      make("div", "two", answer(baseline, before, after), answer(by("of").value, after, before)))));
    by("more").hidden = found.length <= now.length;
  };
  for (const id of ["of", "which", "kind", "sought"]) {
    by(id).addEventListener("input", () => {
      shown = PAGE;
      paint();
    });
  }
  by("more").addEventListener("click", () => {
    shown += PAGE;
    paint();
  });
  paint();
})();
(() => {
  "use strict";
  const boxes = [...document.querySelectorAll("[data-figure]")];
  const colour = (name) =>
    getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // Text, grid and frame take the page's colours, so that a change of theme changes them too.
  const themed = (layout) => {
    const styled = structuredClone(layout);
    const font = getComputedStyle(document.body).fontFamily;
    styled.font = { family: font, size: 13, color: colour("--soft") };
    styled.hoverlabel = {
      ...styled.hoverlabel, bgcolor: colour("--card"), bordercolor: colour("--line"),
      font: { family: font, color: colour("--ink") },
    };
    for (const axis of ["xaxis", "yaxis"]) {
      styled[axis] = {
        gridcolor: colour("--line"), linecolor: colour("--line"), ...styled[axis],
      };
    }
    return styled;
  };

  const specs = new Map(
    boxes.map((box) => [box, JSON.parse(document.getElementById(box.dataset.figure).textContent)])
  );
  const draw = (size) => {
    for (const [box, spec] of specs) {
      Plotly.react(box, spec.data, { ...themed(spec.layout), ...size }, {
        responsive: true, displayModeBar: false, displaylogo: false,
      });
    }
  };
  draw({});
  // Some browsers lay out nothing in a closed box; the event does not bubble.
  addEventListener("toggle", ({ target }) => {
    if (target.open) for (const box of target.querySelectorAll("[data-figure]")) Plotly.Plots.resize(box);
  }, true);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw({}));
  // Paper has two columns; a plot keeps the width it had on the screen unless it is told.
  addEventListener("beforeprint", () => draw({ width: 300 }));
  addEventListener("afterprint", () => draw({}));
})();
