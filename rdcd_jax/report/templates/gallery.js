"use strict";
// Filters groups by score and by what stands in a path, and lists the paths of what is shown. Without it all is shown.
(() => {
  const least = document.getElementById("least");
  const text = document.getElementById("text");
  const list = document.getElementById("paths");
  const count = document.getElementById("count");
  const groups = [...document.querySelectorAll(".group")];

  function update() {
    const score = least && least.value !== "" ? Number(least.value) : -Infinity;
    const wanted = text.value.toLowerCase();
    const paths = [];
    let shown = 0;
    for (const group of groups) {
      const figures = [...group.querySelectorAll("figure")];
      const matches = (figure) => (figure.dataset.path || "").toLowerCase().includes(wanted);
      const scored = group.dataset.score === undefined || Number(group.dataset.score) >= score;
      group.hidden = !(scored && (wanted === "" || figures.some(matches)));
      if (group.hidden) continue;
      shown += 1;
      for (const figure of figures) {
        if (!figure.classList.contains("query") && figure.dataset.path) paths.push(figure.dataset.path);
      }
    }
    list.value = paths.join("\n");
    count.textContent = `${shown} of ${groups.length} shown; ${paths.length} paths`;
  }

  for (const input of [least, text]) if (input) input.addEventListener("input", update);
  document.getElementById("copy").addEventListener("click", () => {
    list.select();
    if (navigator.clipboard) navigator.clipboard.writeText(list.value).catch(() => document.execCommand("copy"));
    else document.execCommand("copy");
  });
  document.getElementById("filter").hidden = false;
  update();
})();
