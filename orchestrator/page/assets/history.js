// States that can be undone. A state is never changed; each change is a new one.

const LONGEST = 200;

export class History {
  #before = [];
  #after = [];

  constructor(state) {
    this.state = state;
  }

  push(state) {
    this.#before.push(this.state);
    if (this.#before.length > LONGEST) this.#before.shift();
    this.#after = [];
    this.state = state;
  }

  /** Take the place of the present state. */
  replace(state) {
    this.state = state;
  }

  get canUndo() {
    return this.#before.length > 0;
  }

  get canRedo() {
    return this.#after.length > 0;
  }

  undo() {
    if (!this.canUndo) return;
    this.#after.push(this.state);
    this.state = this.#before.pop();
  }

  redo() {
    if (!this.canRedo) return;
    this.#before.push(this.state);
    this.state = this.#after.pop();
  }
}
