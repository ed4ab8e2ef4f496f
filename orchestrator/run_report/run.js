// The slider of each film shows its pictures at one number of images; pointing at a plot shows the
// values there. Both are set up again when a live page takes in a newer one.
const count = (number) => Number(number).toLocaleString("en");

function setUpFilm(film) {
  const slider = film.querySelector(".slider");
  if (!slider) return;
  const steps = film.dataset.steps.split(",").map(Number);
  const [range, output, button] = slider.querySelectorAll("input, output, button");
  const reels = [...film.querySelectorAll(".reel")].map((reel) => {
    const stage = document.createElement("img");
    stage.className = "stage";
    reel.querySelector(".frames").before(stage);
    return { stage, at: reel.querySelector(".at"), frames: [...reel.querySelectorAll(".frames img")] };
  });
  const show = () => {
    const step = steps[range.value];
    output.textContent = count(step);
    range.setAttribute("aria-valuetext", `${count(step)} images`);
    for (const { stage, at, frames } of reels) {
      // A run without a picture there shows its newest one before.
      const frame = frames.filter((each) => Number(each.dataset.at) <= step).at(-1) ?? frames[0];
      stage.src = frame.src;
      stage.alt = frame.alt;
      stage.width = frame.getAttribute("width");
      stage.height = frame.getAttribute("height");
      at.textContent = ` after ${count(frame.dataset.at)} images`;
      for (const each of frames) each.classList.toggle("now", each === frame);
    }
  };
  for (const { frames } of reels) {
    for (const frame of frames) {
      frame.addEventListener("click", () => {
        range.value = steps.indexOf(Number(frame.dataset.at));
        show();
      });
    }
  }
  let timer = null;
  const pause = () => { clearInterval(timer); timer = null; button.textContent = "Play"; };
  button.addEventListener("click", () => {
    if (timer !== null) { pause(); return; }
    if (Number(range.value) === steps.length - 1) range.value = 0;
    button.textContent = "Pause";
    timer = setInterval(() => {
      if (!film.isConnected || Number(range.value) === steps.length - 1) { pause(); return; }
      range.value = Number(range.value) + 1;
      show();
    }, 250);
    show();
  });
  range.addEventListener("input", show);
  slider.hidden = false;
  show();
  for (const strip of film.querySelectorAll(".frames")) strip.scrollLeft = strip.scrollWidth;
}

function setUpPlot(figure, logged) {
  const plot = figure.querySelector("svg");
  const readout = figure.querySelector(".readout");
  const [left, right, top, bottom] = [58, 348, 10, 164]; // as in line_plot.py
  const cursor = plot.querySelector("path").cloneNode();
  cursor.setAttribute("class", "cursor");
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const place = ((event.clientX - box.left) / box.width) * plot.viewBox.baseVal.width;
    const share = Math.min(1, Math.max(0, (place - left) / (right - left)));
    const wanted = share * Number(plot.dataset.last);
    const words = [];
    let nearest = null;
    logged.metrics[figure.dataset.metric].forEach((points, run) => {
      if (!points) return;
      const far = (k) => Math.abs(points[0][k] - wanted);
      const best = points[0].reduce((found, _, k) => (far(k) < far(found) ? k : found), 0);
      if (nearest === null || far(best) < Math.abs(nearest - wanted)) nearest = points[0][best];
      const name = logged.runs.length > 1 ? `${logged.runs[run]}: ` : "";
      const value = points[1][best];
      const shown = typeof value === "number" ? Number(value.toPrecision(6)) : value;
      words.push(`${name}${shown} at ${count(points[0][best])}`);
    });
    const x = left + ((right - left) * nearest) / Number(plot.dataset.last);
    cursor.setAttribute("d", `M${x} ${top}V${bottom}`);
    plot.append(cursor);
    readout.textContent = words.join("; ");
  });
  plot.addEventListener("pointerleave", () => { cursor.remove(); readout.textContent = ""; });
}

function setUp() {
  const logged = JSON.parse(document.getElementById("points").textContent);
  document.querySelectorAll(".film").forEach(setUpFilm);
  document.querySelectorAll("figure[data-metric]").forEach((figure) => setUpPlot(figure, logged));
}

setUp();
