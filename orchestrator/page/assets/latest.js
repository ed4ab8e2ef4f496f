// Does the newest of many requests, one at a time.

export class Latest {
  #work;
  #delayMs;
  #timer = 0;
  #isBusy = false;
  #isDue = false;

  /** `work` reads what is newest when it is called; it reports its own errors. */
  constructor(work, delayMs = 60) {
    this.#work = work;
    this.#delayMs = delayMs;
  }

  /** Work soon; further requests until then are one. */
  request() {
    this.#timer ||= setTimeout(() => this.now(), this.#delayMs);
  }

  /** Work now, or as soon as the present work is done. */
  async now() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    this.#isDue = true;
    if (this.#isBusy) return;
    this.#isBusy = true;
    try {
      while (this.#isDue) {
        this.#isDue = false;
        await this.#work();
      }
    } finally {
      this.#isBusy = false;
    }
  }
}
