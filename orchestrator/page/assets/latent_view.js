// Change the latent of one image, and go from one image to another.

import { titleOf } from "./conditions.js";
import { Latest } from "./latest.js";
import { attempt } from "./messages.js";
import { save, show } from "./pixels.js";

const element = (id) => document.getElementById(id);
const SLIDERS = 6;
const STEPS = 8;

export class LatentView {
  #item = null;
  #pair = [];
  #original = [];
  #latent = [];
  #picture = null;

  constructor(backend, conditions) {
    this.backend = backend;
    this.conditions = conditions;
    this.latest = new Latest(() => attempt(() => this.#decode()));
    element("latents-reset").onclick = () => this.#reset();
    element("latents-save").onclick = () => {
      if (this.#picture) save(this.#picture, `${backend.facts.name}-${this.#item.seed}-changed.png`);
    };
    element("between-draw").onclick = () => attempt(() => this.#interpolate());
  }

  /** Take the images that are chosen in the gallery: the last one is changed. */
  choose(items) {
    this.#pair = items.length === 2 ? items : [];
    element("between-draw").disabled = this.#pair.length === 0;
    element("strip").replaceChildren();
    const item = items.at(-1) ?? null;
    if (item === this.#item) return;
    this.#item = item;
    element("latents-work").hidden = !item;
    element("latents-hint").hidden = Boolean(item);
    if (item) attempt(() => this.#load(item));
  }

  async #load(item) {
    show(element("latent-canvas"), item.picture);
    element("latent-note").textContent = titleOf(item);
    element("sliders").replaceChildren();
    const [latent] = await this.backend.latents([item.seed]);
    if (item !== this.#item) return; // another was chosen meanwhile
    this.#original = latent;
    this.#reset();
  }

  #reset() {
    this.#latent = [...this.#original];
    this.#picture = this.#item.picture;
    show(element("latent-canvas"), this.#item.picture);
    const largest = Math.max(...this.#latent.map(Math.abs));
    const limit = largest <= 1 ? 1 : Math.max(3, Math.ceil(largest));
    const order = this.#latent.map((_, index) => index);
    order.sort((a, b) => Math.abs(this.#latent[b]) - Math.abs(this.#latent[a]));
    const rows = order.slice(0, SLIDERS).map((index) => this.#slider(index, limit));
    element("sliders").replaceChildren(...rows);
  }

  #slider(index, limit) {
    const label = document.createElement("label");
    const input = document.createElement("input");
    const value = document.createElement("output");
    label.className = "slider";
    Object.assign(input, { type: "range", min: -limit, max: limit, step: limit / 100 });
    input.value = this.#latent[index];
    value.textContent = this.#latent[index].toFixed(2);
    input.oninput = () => {
      this.#latent[index] = Number(input.value);
      value.textContent = this.#latent[index].toFixed(2);
      this.latest.request();
    };
    label.append(`Dimension ${index}`, input, value);
    return label;
  }

  async #decode() {
    const item = this.#item;
    if (!item) return;
    const request = { latents: [this.#latent], ...this.conditions.request([item.class_]) };
    const [picture] = await this.backend.decode(request);
    if (item !== this.#item) return;
    this.#picture = picture;
    show(element("latent-canvas"), picture);
  }

  async #interpolate() {
    const pair = this.#pair;
    const request = {
      seeds: pair.map((item) => item.seed),
      steps: STEPS,
      ...this.conditions.request(pair.map((item) => item.class_)),
    };
    const pictures = await this.backend.interpolate(request);
    if (pair !== this.#pair) return;
    const [from, to] = pair.map(titleOf);
    pictures.forEach((picture, index) => {
      picture.setAttribute("role", "img");
      picture.setAttribute("aria-label", `${index + 1} of ${pictures.length}, ${from} to ${to}`);
    });
    element("strip").replaceChildren(...pictures);
  }
}
