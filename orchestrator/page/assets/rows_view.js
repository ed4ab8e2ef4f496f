// Watch a model paint an image row by row.

import { attempt, notify, notifyBriefly, readSeed } from "./messages.js";
import { save } from "./pixels.js";

const element = (id) => document.getElementById(id);

export function startRowsView(backend, conditions) {
  const { image_size: size, name } = backend.facts;
  const canvas = element("rows-canvas");
  const seedField = element("rows-seed");
  let stop = null;
  canvas.width = canvas.height = size;
  element("rows").hidden = false;
  element("rows-progress").max = size;

  async function paint(signal) {
    const seed = readSeed(seedField);
    const request = { seeds: [seed], ...conditions.request([conditions.classAt(0)]) };
    canvas.getContext("2d").clearRect(0, 0, size, size);
    await backend.rows(request, showRow, signal);
  }

  async function start() {
    stop = new AbortController();
    setBusy(true);
    const isDone = await attempt(() => paint(stop.signal));
    setBusy(false);
    element("rows-save").disabled = !isDone;
    notify("");
    if (isDone) notifyBriefly("The image is painted.");
  }

  function showRow(row, picture) {
    canvas.getContext("2d").drawImage(picture, 0, row);
    element("rows-progress").value = row + 1;
    element("rows-note").textContent = `row ${row + 1} of ${size}`;
  }

  function setBusy(isBusy) {
    element("rows-paint").disabled = element("rows-next").disabled = isBusy;
    element("rows-stop").disabled = !isBusy;
    if (isBusy) {
      element("rows-progress").value = 0;
      element("rows-note").textContent = "";
      element("rows-save").disabled = true;
      notify("Painting");
    }
  }

  element("rows-paint").onclick = start;
  element("rows-next").onclick = () => {
    seedField.value = Number(seedField.value) + 1;
    start();
  };
  element("rows-stop").onclick = () => stop?.abort();
  element("rows-save").onclick = () => save(canvas, `${name}-${seedField.value}.png`);
}
