// A click on a head sorts its table by that column, a second one the other way round.
for (const table of document.querySelectorAll(".sortable")) {
  table.classList.add("sorts");
  table.querySelectorAll("th").forEach((head, column) => {
    let down = false;
    head.addEventListener("click", () => {
      const body = table.tBodies[0];
      const key = (row) => {
        const found = row.cells[column].title || row.cells[column].textContent;
        const number = Number(found);
        return found === "" || found === "nan" || found === "–" ? null
          : Number.isNaN(number) ? found : number;
      };
      const sign = down ? -1 : 1;
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === null || y === null) return (x === null) - (y === null);
        if (typeof x === typeof y && typeof x === "number") return sign * (x - y);
        return sign * String(x).localeCompare(String(y));
      };
      body.append(...[...body.rows].sort(compare));
      down = !down;
    });
  });
}
