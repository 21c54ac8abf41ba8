"use strict";

// Outlines on and off in the overlays.
for (const box of document.querySelectorAll("[data-toggle]")) {
  box.addEventListener("change", () => document.body.classList.toggle("hide-" + box.dataset.toggle, !box.checked));
}

// A table sorts by the heading that is clicked; again, the other way round. Missing values stay last.
function sortValue(cell) {
  const text = cell.textContent.trim();
  if (text === "–" || text === "") return null;
  const number = Number(text.replace("−", "-"));
  return Number.isNaN(number) ? text : number;
}
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const sort = () => {
      const up = heading.getAttribute("aria-sort") !== "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => {
        const x = sortValue(a.cells[column]), y = sortValue(b.cells[column]);
        if (x === null || y === null) return (x === null) - (y === null);
        const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
        return up ? order : -order;
      });
      table.tBodies[0].append(...rows);
    };
    heading.tabIndex = 0;
    heading.addEventListener("click", sort);
    heading.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
  });
}

// A cine: one picture a frame, outlines swapped with it, a cursor in the volume curve.
for (const cine of document.querySelectorAll(".cine")) {
  const data = JSON.parse(cine.querySelector("script").textContent);
  const pictures = [...cine.querySelectorAll("img")], outlines = [...cine.querySelectorAll("path[data-structure]")];
  const button = cine.querySelector(".play"), slider = cine.querySelector("input[type=range]"), output = cine.querySelector("output");
  const curve = cine.querySelector(".curve"), cursor = cine.querySelector(".cursor");
  let at = 0, timer = null;

  function show(i) {
    pictures[at].classList.add("later");
    pictures[i].classList.remove("later");
    for (const path of outlines) path.setAttribute("d", data.paths[i][path.dataset.structure] || "");
    if (cursor) {
      const x = curve.points[data.frames[i]].x;
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
    }
    at = i;
    slider.value = i;
    output.textContent = `frame ${data.frames[i]} (0 to ${data.total - 1})`;
    cine.dataset.frame = i;
  }
  function play() {
    if (timer) return;
    timer = setInterval(() => show((at + 1) % pictures.length), Math.max(data.step_ms, 20));
    button.textContent = "Pause";
  }
  function pause() {
    clearInterval(timer);
    timer = null;
    button.textContent = "Play";
  }
  button.addEventListener("click", () => (timer ? pause() : play()));
  slider.addEventListener("input", () => { pause(); show(Number(slider.value)); });
  cine.querySelector(".show").addEventListener("change", (event) => cine.classList.toggle("bare", !event.target.checked));
  show(0);
  for (const control of [button, slider, output]) control.hidden = pictures.length < 2;

  // Plays by itself the first time it is seen, unless the reader asked for less motion.
  if (pictures.length > 1 && !matchMedia("(prefers-reduced-motion: reduce)").matches) {
    const watcher = new IntersectionObserver(([seen]) => {
      if (seen.isIntersecting) { watcher.disconnect(); play(); }
    }, { threshold: 0.4 });
    watcher.observe(cine);
  }
}
