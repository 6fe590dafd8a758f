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
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw({}));
  // Paper has two columns; a plot keeps the width it had on the screen unless it is told.
  addEventListener("beforeprint", () => draw({ width: 300 }));
  addEventListener("afterprint", () => draw({}));
})();
