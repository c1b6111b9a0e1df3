"use strict";
(() => {
  document.documentElement.classList.add("js");

  // Tables: a button in each heading sorts by its column, what has no value last.
  for (const table of document.querySelectorAll("table.sortable")) {
    const headings = [...table.tHead.rows[0].cells];
    const value = (row, column) => {
      const cell = row.cells[column];
      if (cell.dataset.value === undefined) return cell.textContent.trim();
      return cell.dataset.value === "" ? null : Number(cell.dataset.value);
    };
    const compared = (a, b) =>
      typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
    headings.forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        // Of figures the largest is wanted first, of words the first.
        const first = heading.classList.contains("number") ? "descending" : "ascending";
        const other = first === "descending" ? "ascending" : "descending";
        const order = heading.getAttribute("aria-sort") === first ? other : first;
        for (const each of headings) each.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        const rows = [...table.tBodies[0].rows].sort((one, two) => {
          const [a, b] = [value(one, column), value(two, column)];
          if (a === null || b === null) return (a === null) - (b === null);
          return sign * compared(a, b);
        });
        table.tBodies[0].append(...rows);
      });
    });
  }

  // Charts: the legend shows and hides lines; the nearest point tells its values.
  for (const chart of document.querySelectorAll(".chart")) {
    const canvas = chart.querySelector(".canvas");
    const svg = canvas.querySelector("svg");
    const tooltip = canvas.querySelector(".tooltip");
    const dot = svg.querySelector(".dot");
    const lines = JSON.parse(canvas.querySelector(".places").textContent);
    const drawn = [...svg.querySelectorAll(".line")];
    const boxes = [...chart.querySelectorAll(".legend input")];
    let at = null;

    const visible = (line) => boxes[line].checked && lines[line].points.length > 0;
    const hide = () => {
      tooltip.hidden = true;
      dot.setAttribute("cx", -9);
    };
    const tell = (line, point) => {
      at = { line, point };
      const [x, y, note] = lines[line].points[point];
      const { width, height } = svg.viewBox.baseVal;
      dot.setAttribute("cx", x);
      dot.setAttribute("cy", y);
      tooltip.textContent = `${lines[line].name}: ${note}`;
      tooltip.hidden = false;
      const across = (x / width) * canvas.clientWidth;
      const down = (y / height) * canvas.clientHeight;
      const left = across + 12 + tooltip.offsetWidth > canvas.clientWidth ? across - 12 - tooltip.offsetWidth : across + 12;
      const top = down + 12 + tooltip.offsetHeight > canvas.clientHeight ? down - 12 - tooltip.offsetHeight : down + 12;
      tooltip.style.left = `${Math.max(0, left)}px`;
      tooltip.style.top = `${Math.max(0, top)}px`;
    };
    const nearest = (x, y) => {
      let found = null;
      let least = Infinity;
      lines.forEach((line, i) => {
        if (!visible(i)) return;
        line.points.forEach(([px, py], j) => {
          const distance = (px - x) ** 2 + (py - y) ** 2;
          if (distance < least) [least, found] = [distance, [i, j]];
        });
      });
      return found;
    };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const { width, height } = svg.viewBox.baseVal;
      const position = [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
      const found = nearest(...position);
      if (found) tell(...found);
    });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", (event) => {
      const shown = lines.map((_, i) => i).filter(visible);
      const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
      if (event.key === "Escape") hide();
      if (!step || !shown.length) return;
      event.preventDefault();
      if (!at || !shown.includes(at.line)) return tell(shown[0], 0);
      const line = shown[(shown.indexOf(at.line) + step[0] + shown.length) % shown.length];
      const last = lines[line].points.length - 1;
      tell(line, Math.min(last, Math.max(0, at.point + step[1])));
    });
    boxes.forEach((box, i) => {
      const update = () => {
        drawn[i].toggleAttribute("hidden", !box.checked);
        hide();
      };
      box.addEventListener("change", update);
      // A browser may come back to a page with boxes as they were left.
      update();
    });
  }

  // Mistakes: what is chosen above them decides which are seen.
  const filters = document.getElementById("filters");
  if (filters) {
    const cases = [...document.querySelectorAll("#cases > li")].map((item) => ({
      item,
      run: item.dataset.run,
      outcome: item.dataset.outcome,
      kinds: JSON.parse(item.dataset.kinds),
      names: item.dataset.names.toLowerCase(),
    }));
    const update = () => {
      const chosen = (name) => (filters.elements[name] ? filters.elements[name].value : "");
      const [run, outcome, kind, text] = ["run", "outcome", "kind", "text"].map(chosen);
      let shown = 0;
      for (const each of cases) {
        const fits =
          (run === "" || each.run === run) &&
          (outcome === "" || each.outcome === outcome) &&
          (kind === "" || each.kinds.includes(kind)) &&
          each.names.includes(text.trim().toLowerCase());
        each.item.hidden = !fits;
        shown += fits;
      }
      document.getElementById("shown").textContent = `${shown} of ${cases.length} shown`;
    };
    filters.addEventListener("input", update);
    filters.addEventListener("submit", (event) => event.preventDefault());
    filters.hidden = false;
    update();
  }
})();
