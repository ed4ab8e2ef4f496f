// Draw, and see what the model makes of it.

import { EXAMPLES } from "./examples.js";
import { History } from "./history.js";
import { Latest } from "./latest.js";
import { attempt, randomSeed, readSeed, reportError } from "./messages.js";
import { bitmapOf, canvasOf, save, show } from "./pixels.js";
import { followKeys, followPointer } from "./pointer.js";
import { EMPTY, Sheet } from "./sheet.js";

const element = (id) => document.getElementById(id);
const BRUSH_UNITS = 256;
const EXAMPLE_WIDTH = 7 / BRUSH_UNITS;

export function startTranslateView(backend) {
  const view = new TranslateView(backend);
  element("translate").hidden = false;
  view.start();
}

class TranslateView {
  #history = new History(EMPTY);
  #stroke = null;
  #result = null;

  constructor(backend) {
    this.backend = backend;
    this.facts = backend.facts;
    this.sheet = new Sheet(element("drawing"), this.facts.image_size);
    this.latest = new Latest(() => attempt(() => this.#translate()));
  }

  start() {
    element("colour-field").hidden = this.facts.channels === 1;
    element("hole-note").hidden = !this.facts.hole;
    element("hole-colour-note").hidden = !this.facts.hole_colour;
    // The brush paints holes at first; a picture to paint them into comes from a file.
    if (this.facts.hole_colour) element("colour").value = this.facts.hole_colour;
    const result = element("result");
    result.width = result.height = this.facts.image_size;
    this.#drawOverlay(null);
    this.sheet.show(this.#history.state);
    this.#connectPens();
    this.#connectButtons();
    this.#connectFiles();
    addExamples((lines) => this.#change({ ...EMPTY, strokes: lines.map(strokeOf) }));
  }

  async #translate() {
    const seed = readSeed(element("seed"));
    const start = performance.now();
    const result = await this.backend.translate(this.sheet.input(), seed);
    this.#result = { picture: result, seed };
    show(element("result"), result);
    element("result-note").textContent = `${Math.round(performance.now() - start)} ms`;
    element("save-result").disabled = false;
  }

  // Strokes

  #connectPens() {
    const canvas = element("drawing");
    const listener = {
      begin: (point, erase) => this.#begin(point, erase),
      move: (points) => this.#extend(points),
      end: () => this.#end(),
      say: (text) => (element("pen-state").textContent = text),
    };
    followPointer(canvas, listener);
    followKeys(canvas, listener, (cursor, isDown) => this.#drawOverlay(cursor, isDown));
  }

  #begin(point, erase) {
    this.#stroke = {
      points: [point],
      width: Number(element("brush").value) / BRUSH_UNITS,
      colour: this.facts.channels === 1 ? "#000000" : element("colour").value,
      erase: erase || element("tool-eraser").checked,
    };
    this.sheet.extend(this.#stroke, 0);
    element("invitation").hidden = true;
    this.latest.request();
  }

  #extend(points) {
    if (!this.#stroke) return;
    const from = this.#stroke.points.length;
    this.#stroke.points.push(...points);
    this.sheet.extend(this.#stroke, from);
    this.latest.request();
  }

  #end() {
    if (!this.#stroke) return;
    const { state } = this.#history;
    const strokes = [...state.strokes, this.#stroke];
    this.#stroke = null;
    this.#change({ ...state, strokes });
  }

  /** Take a new state, draw it and what the model makes of it. */
  #change(state) {
    this.#history.push(state);
    this.#refresh();
  }

  #refresh() {
    const { state } = this.#history;
    this.sheet.show(state);
    element("undo").disabled = !this.#history.canUndo;
    element("redo").disabled = !this.#history.canRedo;
    element("fit").value = state.fit;
    element("invitation").hidden = state.picture !== null || state.strokes.length > 0;
    this.latest.now();
  }

  #drawOverlay(cursor, isDown) {
    const canvas = element("overlay");
    const side = (canvas.width = canvas.height = element("drawing").width);
    const pen = canvas.getContext("2d");
    if (this.facts.hole) drawHole(pen, this.facts.hole, side / this.facts.image_size);
    if (!cursor) return;
    const [x, y] = cursor.map((at) => at * side);
    for (const [colour, width] of [["#ffffff", 7], ["#1a5fb4", 3]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = width;
      pen.beginPath();
      pen.arc(x, y, isDown ? 8 : 14, 0, 2 * Math.PI);
      for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
        pen.moveTo(x + 14 * dx, y + 14 * dy);
        pen.lineTo(x + 26 * dx, y + 26 * dy);
      }
      pen.stroke();
    }
  }

  // Buttons and files

  #connectButtons() {
    const undo = () => (this.#history.undo(), this.#refresh());
    const redo = () => (this.#history.redo(), this.#refresh());
    element("undo").onclick = undo;
    element("redo").onclick = redo;
    element("clear").onclick = () => this.#change({ ...EMPTY, fit: this.#history.state.fit });
    document.addEventListener("keydown", (event) => {
      const isText = event.target.matches("input:not([type=range], [type=radio]), textarea");
      if (!(event.ctrlKey || event.metaKey) || isText) return;
      const key = event.key.toLowerCase();
      if (key === "z" && !event.shiftKey) undo();
      else if (key === "y" || key === "z") redo();
      else return;
      event.preventDefault();
    });
    element("seed").oninput = () => this.latest.request();
    element("new-seed").onclick = () => {
      element("seed").value = randomSeed();
      this.latest.now();
    };
    element("save-result").onclick = () =>
      save(this.#result.picture, `${this.facts.name}-${this.#result.seed}.png`);
    element("save-input").onclick = () => save(this.sheet.input(), `${this.facts.name}-drawing.png`);
  }

  #connectFiles() {
    const paper = element("paper");
    element("upload").onchange = (event) => {
      this.#take(event.target.files[0]);
      event.target.value = ""; // so that the same file can be chosen once more
    };
    paper.ondragover = (event) => {
      event.preventDefault();
      paper.classList.add("target");
    };
    paper.ondragleave = () => paper.classList.remove("target");
    paper.ondrop = (event) => {
      event.preventDefault();
      paper.classList.remove("target");
      this.#take(event.dataTransfer.files[0]);
    };
    element("fit").onchange = (event) => {
      this.#history.replace({ ...this.#history.state, fit: event.target.value });
      this.#refresh();
    };
  }

  async #take(file) {
    if (!file) return;
    try {
      this.#change({ picture: await bitmapOf(file), fit: element("fit").value, strokes: [] });
    } catch {
      reportError(`${file.name} is not a picture that this browser reads; use PNG, JPEG or WebP.`);
    }
  }
}

function strokeOf(points) {
  return { points, width: EXAMPLE_WIDTH, colour: "#000000", erase: false };
}

function drawHole(pen, [top, left, height, width], scale) {
  pen.fillStyle = "rgba(120, 120, 120, 0.25)";
  pen.fillRect(left * scale, top * scale, width * scale, height * scale);
  pen.setLineDash([14, 10]);
  for (const [colour, offset] of [["#ffffff", 0], ["#333333", 12]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = 3;
    pen.lineDashOffset = offset;
    pen.strokeRect(left * scale, top * scale, width * scale, height * scale);
  }
  pen.setLineDash([]);
}

/** Add a button with a small drawing for each example; `use` gets its lines. */
function addExamples(use) {
  for (const { name, lines } of EXAMPLES) {
    const button = document.createElement("button");
    const canvas = canvasOf(128);
    new Sheet(canvas, 128).show({ ...EMPTY, strokes: lines.map(strokeOf) });
    canvas.setAttribute("aria-hidden", "true");
    button.type = "button";
    button.append(canvas, name);
    button.onclick = () => use(lines);
    element("examples").append(button);
  }
}
