// The sheet that is drawn on: white paper, a picture on it, ink above.
//
// Its state is {picture, fit, strokes}; a stroke is {points, width, colour, erase} with points
// [x, y] and width as parts of the sheet's side, from 0 to 1. The model gets it at its own size:
// a picture of that size to the bit, and ink as the mean of the pixels that it covers.

import { canvasOf, drawFitted, penOf } from "./pixels.js";

const LEAST_SIDE = 512;

export const EMPTY = Object.freeze({ picture: null, fit: "crop", strokes: [] });

export class Sheet {
  #ink;
  #halves = [];
  #state = EMPTY;

  /** `canvas` shows the sheet; `size` is that of the model's images. */
  constructor(canvas, size) {
    this.size = size;
    this.canvas = canvas;
    let side = size;
    while (side < LEAST_SIDE) side *= 2;
    canvas.width = canvas.height = side;
    this.#ink = canvasOf(side);
    for (let half = side / 2; half >= size; half /= 2) this.#halves.push(canvasOf(half));
  }

  /** Draw a state anew. */
  show(state) {
    this.#state = state;
    const pen = this.#ink.getContext("2d");
    pen.clearRect(0, 0, this.#ink.width, this.#ink.width);
    state.strokes.forEach((stroke) => this.#drawStroke(stroke));
    this.#compose();
  }

  /** Draw the end of a stroke, from its point `from` on. */
  extend(stroke, from) {
    this.#drawStroke({ ...stroke, points: stroke.points.slice(Math.max(from - 2, 0)) });
    this.#compose();
  }

  #drawStroke({ points, width, colour, erase }) {
    const pen = this.#ink.getContext("2d");
    const side = this.#ink.width;
    pen.globalCompositeOperation = erase ? "destination-out" : "source-over";
    pen.strokeStyle = pen.fillStyle = colour;
    pen.lineWidth = width * side;
    pen.lineCap = pen.lineJoin = "round";
    pen.beginPath();
    if (points.length === 1) {
      pen.arc(points[0][0] * side, points[0][1] * side, (width * side) / 2, 0, 2 * Math.PI);
      pen.fill();
      return;
    }
    points.forEach(([x, y]) => pen.lineTo(x * side, y * side));
    pen.stroke();
  }

  #compose() {
    const pen = this.canvas.getContext("2d");
    this.#drawPaper(pen, this.canvas.width);
    pen.drawImage(this.#ink, 0, 0);
  }

  #drawPaper(pen, side) {
    pen.fillStyle = "#ffffff";
    pen.fillRect(0, 0, side, side);
    const { picture, fit } = this.#state;
    if (picture) drawFitted(pen, picture, side, fit);
  }

  /** Return what the model is given, at its size. */
  input() {
    let ink = this.#ink;
    for (const half of this.#halves) {
      const pen = half.getContext("2d");
      pen.clearRect(0, 0, half.width, half.width);
      pen.drawImage(ink, 0, 0, half.width, half.width);
      ink = half;
    }
    const made = canvasOf(this.size);
    const pen = penOf(made);
    this.#drawPaper(pen, this.size);
    pen.drawImage(ink, 0, 0);
    return made;
  }
}
