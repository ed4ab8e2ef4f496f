// A click on a head sorts its table by that column, a second one the other way round.
function setUpSorting() {
  for (const table of document.querySelectorAll(".sortable")) {
    table.classList.add("sorts");
    table.querySelectorAll("thead th").forEach((head, column) => {
      let down = false;
      const sort = () => {
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
        table.querySelectorAll("thead th").forEach((each) => each.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        down = !down;
      };
      head.tabIndex = 0;
      head.addEventListener("click", sort);
      head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
    });
  }
}

setUpSorting();
