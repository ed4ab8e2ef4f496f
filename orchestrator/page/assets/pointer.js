// Turns mouse, touch, pen and keyboard on a canvas into strokes.
//
// `listener` has begin(point, erase), move(points), end() and say(text).

const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const STEP = 1 / 64;
const LARGE_STEP = 1 / 16;
const PEN_ERASER = 32;

export function followPointer(canvas, listener) {
  let drawing = null; // the pointer that draws; others of a touch are left out
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (drawing !== null || (event.pointerType === "mouse" && event.button !== 0)) return;
    drawing = event.pointerId;
    canvas.setPointerCapture(drawing);
    listener.begin(place(event), (event.buttons & PEN_ERASER) > 0);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerId !== drawing) return;
    const all = event.getCoalescedEvents?.() ?? [];
    listener.move((all.length ? all : [event]).map(place));
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, (event) => {
      if (event.pointerId !== drawing) return;
      drawing = null;
      listener.end();
    });
  }
}

/** Draw with a cursor that the arrow keys move; `showCursor` gets its place, or null. */
export function followKeys(canvas, listener, showCursor) {
  let cursor = [0.5, 0.5];
  let isDown = false;
  const lift = () => {
    if (!isDown) return;
    isDown = false;
    listener.end();
    listener.say("Pen up");
  };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const way = KEYS[event.key];
    if (way) {
      const step = event.shiftKey ? LARGE_STEP : STEP;
      cursor = cursor.map((at, axis) => Math.min(Math.max(at + way[axis] * step, 0), 1));
      if (isDown) listener.move([cursor]);
    } else if (event.key === " " || event.key === "Enter") {
      if (event.repeat) return;
      if (isDown) lift();
      else {
        isDown = true;
        listener.begin(cursor, false);
        listener.say("Pen down");
      }
    } else if (event.key === "Escape") lift();
    else return;
    event.preventDefault();
    showCursor(cursor, isDown);
  });
  canvas.addEventListener("focus", () => {
    if (canvas.matches(":focus-visible")) showCursor(cursor, false);
  });
  canvas.addEventListener("blur", () => {
    lift();
    showCursor(null);
  });
  canvas.addEventListener("pointerdown", () => {
    lift();
    showCursor(null);
  });
}
