// On a phone the style sheet shows each row of a table with four columns or more as a block of "column: cell" lines.
// It needs the number of columns at the table, and the column's heading at each cell.
for (const table of document.querySelectorAll(".md-typeset table:not([class])")) {
  const headings = [...table.rows[0].cells].map((cell) => cell.innerText.trim());
  if (headings.length < 4) continue;
  table.dataset.columns = headings.length < 9 ? "many" : "most";
  for (const row of [...table.rows].slice(1)) {
    [...row.cells].forEach((cell, place) => {
      cell.dataset.heading = headings[place] ?? "";
      // One element holds the cell's text, so that it stays in one column beside the heading.
      const content = document.createElement("div");
      content.append(...cell.childNodes);
      cell.append(content);
    });
  }
}
