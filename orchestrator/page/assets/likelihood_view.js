// Measure how likely an image is under the model.

import { attempt, notify, reportError } from "./messages.js";
import { bitmapOf, canvasOf, drawFitted, show } from "./pixels.js";

const element = (id) => document.getElementById(id);
const SIDE = 256;
const MEANING = {
  nll_nats: "Negative log likelihood, exact",
  negative_elbo_nats: "Upper bound of the negative log likelihood (ELBO)",
};

export function startLikelihoodView(backend, conditions) {
  element("likelihood").hidden = false;
  element("likelihood-file").onchange = (event) => {
    measure(backend, conditions, event.target.files[0]);
    event.target.value = "";
  };
  const target = element("likelihood-drop");
  target.ondragover = (event) => event.preventDefault();
  target.ondrop = (event) => {
    event.preventDefault();
    measure(backend, conditions, event.dataTransfer.files[0]);
  };
}

async function measure(backend, conditions, file) {
  if (!file) return;
  const result = element("likelihood-result");
  result.replaceChildren();
  try {
    const small = canvasOf(SIDE);
    drawFitted(small.getContext("2d"), await bitmapOf(file), SIDE, "crop");
    show(element("likelihood-canvas"), small);
    element("likelihood-frame").hidden = false;
  } catch {
    reportError(`${file.name} is not a picture that this browser reads; use PNG, JPEG or WebP.`);
    return;
  }
  notify("Measuring");
  await attempt(async () => {
    const class_ = conditions.chosenClass;
    const { name, nats, bits_per_dim: bits } = await backend.likelihood(file, class_);
    result.replaceChildren(
      ...entry(MEANING[name] ?? name, `${nats.toFixed(2)} nats`),
      ...entry("For each value of the image", `${bits.toFixed(3)} bits`),
      ...(class_ === undefined ? [] : entry("As an image of class", String(class_))),
    );
  });
  notify("");
}

function entry(term, value) {
  const [dt, dd] = [document.createElement("dt"), document.createElement("dd")];
  dt.textContent = term;
  dd.textContent = value;
  return [dt, dd];
}
