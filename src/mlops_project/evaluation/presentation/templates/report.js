"use strict";
// A table sorts by the column whose header is clicked, or chosen with Enter; again, it turns round.
const texts = new Intl.Collator("en", { numeric: true });

function compare(a, b, direction) {
  if ("missing" in a.dataset || "missing" in b.dataset) {
    return ("missing" in a.dataset) - ("missing" in b.dataset); // last, either way
  }
  if ("value" in a.dataset && "value" in b.dataset) {
    return direction * (a.dataset.value - b.dataset.value);
  }
  return direction * texts.compare(a.textContent.trim(), b.textContent.trim());
}

function sort(table, header) {
  const direction = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
  const column = header.cellIndex;
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => compare(a.cells[column], b.cells[column], direction));
  table.tBodies[0].append(...rows);
}

for (const table of document.querySelectorAll("table")) {
  for (const header of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => sort(table, header));
  }
}

window.addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
