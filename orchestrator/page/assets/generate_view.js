// Images by seed: a gallery to choose from, and what can be done with the chosen ones.

import { Conditions, titleOf } from "./conditions.js";
import { Latest } from "./latest.js";
import { LatentView } from "./latent_view.js";
import { attempt, notify, randomSeed, readSeed } from "./messages.js";
import { canvasOf, save, show } from "./pixels.js";
import { startRowsView } from "./rows_view.js";

const element = (id) => document.getElementById(id);
const MOST_IMAGES = 12;
const MOST_CHOSEN = 2;

/** Show the view; return the conditions that are chosen in it. */
export function startGenerateView(backend) {
  element("generate").hidden = false;
  const view = new GenerateView(backend);
  view.start();
  return view.conditions;
}

class GenerateView {
  #items = [];
  #chosen = [];
  #drawing = new AbortController();

  constructor(backend) {
    this.backend = backend;
    this.facts = backend.facts;
    this.count = Math.min(MOST_IMAGES, this.facts.limits.images);
    this.conditions = new Conditions(this.facts, () => this.#changed());
    this.latest = new Latest(() => this.#draw(), 250);
    this.help = "Choose an image to download it.";
    this.latents = this.facts.latent_size > 0 ? new LatentView(backend, this.conditions) : null;
  }

  start() {
    if (this.latents) this.help = "Choose one image to change it, or two to see the way between them.";
    if (this.facts.rows) startRowsView(this.backend, this.conditions);
    element("latents").hidden = element("between").hidden = !this.latents;
    const turn = (pages) => () => {
      const first = Number(element("first-seed").value) + pages * this.count;
      this.#show(Math.min(Math.max(first, 0), Number.MAX_SAFE_INTEGER - this.count + 1));
    };
    element("previous").onclick = turn(-1);
    element("next").onclick = turn(1);
    element("new-seeds").onclick = () => this.#show(randomSeed());
    element("first-seed").oninput = () => this.#changed();
    element("save-chosen").onclick = () => this.#save();
    // One that draws value by value takes long, so it waits until it is asked.
    if (this.facts.rows) this.#hint("Next or New seeds draws a page of images, which takes a while.");
    else this.latest.now();
  }

  #show(first) {
    element("first-seed").value = first;
    this.isAsked = true;
    this.#redraw();
  }

  #changed() {
    if (this.facts.rows && !this.isAsked) return;
    this.#drawing.abort();
    this.latest.request();
  }

  #redraw() {
    this.#drawing.abort();
    this.latest.now();
  }

  async #draw() {
    if (this.conditions.isIncomplete) {
      this.#hint("Write a caption to draw images for it.");
      return;
    }
    this.#drawing = new AbortController();
    const images = element("images");
    images.setAttribute("aria-busy", "true");
    notify("Drawing");
    if (await attempt(() => this.#sample(this.#drawing.signal))) this.#hint(this.help);
    notify("");
    images.removeAttribute("aria-busy");
  }

  async #sample(signal) {
    const first = readSeed(element("first-seed"));
    const count = Math.min(this.count, Number.MAX_SAFE_INTEGER - first + 1);
    const seeds = Array.from({ length: count }, (_, index) => first + index);
    const items = seeds.map((seed, index) => new Item(seed, this.conditions.classAt(index), this.facts));
    let isShown = false;
    const onPicture = (index, picture) => {
      if (!isShown) this.#replace(items); // the old ones stay until there is something to show
      isShown = true;
      items[index].show(picture);
    };
    const request = { seeds, ...this.conditions.request(items.map((item) => item.class_)) };
    await this.backend.sample(request, onPicture, signal);
  }

  #replace(items) {
    this.#items = items;
    this.#choose([]);
    element("images").replaceChildren(...items.map((item) => item.button));
    items.forEach((item) => (item.button.onclick = () => this.#toggle(item)));
  }

  #toggle(item) {
    if (!item.picture) return;
    const others = this.#chosen.filter((other) => other !== item);
    const isNew = others.length === this.#chosen.length;
    this.#choose(isNew ? [...others, item].slice(-MOST_CHOSEN) : others);
  }

  #choose(items) {
    this.#chosen = items;
    this.#items.forEach((item) => item.mark(items.includes(item)));
    element("save-chosen").disabled = items.length === 0;
    this.latents?.choose(items);
  }

  #save() {
    for (const item of this.#chosen) save(item.picture, `${this.facts.name}-${item.seed}.png`);
  }

  #hint(text) {
    element("gallery-hint").textContent = text;
  }
}

/** One image of the gallery: a button. */
class Item {
  picture = null;

  constructor(seed, class_, facts) {
    this.seed = seed;
    this.class_ = class_;
    this.canvas = canvasOf(facts.image_size);
    this.canvas.setAttribute("aria-hidden", "true");
    this.button = document.createElement("button");
    this.button.type = "button";
    this.button.className = "image";
    this.button.setAttribute("aria-pressed", "false");
    const caption = document.createElement("span");
    caption.textContent = titleOf(this);
    this.button.append(this.canvas, caption);
  }

  show(picture) {
    this.picture = picture;
    show(this.canvas, picture);
  }

  mark(isChosen) {
    this.button.setAttribute("aria-pressed", String(isChosen));
  }
}
