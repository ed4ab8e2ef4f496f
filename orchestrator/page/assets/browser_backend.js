// A backend that draws in this browser: model.onnx by onnxruntime-web, in a worker.

import { BackendError } from "./backend.js";
import { pictureOfPlanes, planesOf } from "./pixels.js";

const CAPTION_BYTES = 256;

export async function openBrowserBackend({ notify }) {
  const reply = await fetch("model.json").catch(() => null);
  if (!reply?.ok) throw new BackendError("model.json cannot be read; serve this folder over HTTP.");
  return new Browser(await reply.json(), notify);
}

class Browser {
  #worker = new Worker(new URL("./model_worker.js", import.meta.url), { type: "module" });
  #waiting = new Map();
  #next = 0;
  #failure = null;

  constructor(facts, notify) {
    this.facts = facts;
    this.#worker.onmessage = ({ data }) => this.#receive(data, notify);
    this.#worker.onerror = () => this.#fail("The model cannot be run by this browser.");
    this.#worker.postMessage({ model: new URL("model.onnx", document.baseURI).href });
  }

  #receive({ id, images, error, progress, failure }, notify) {
    if (progress !== undefined) return notify(progress);
    if (failure) return this.#fail(failure);
    const { resolve, reject } = this.#waiting.get(id);
    this.#waiting.delete(id);
    return error ? reject(new BackendError(error)) : resolve(images);
  }

  #fail(reason) {
    this.#failure = new BackendError(reason);
    this.#waiting.forEach(({ reject }) => reject(this.#failure));
    this.#waiting.clear();
  }

  async #draw(seed, condition) {
    if (this.#failure) throw this.#failure;
    const id = this.#next++;
    const images = await new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ id, seed, condition });
    });
    return pictureOfPlanes(images, this.facts.image_size, this.facts.channels);
  }

  translate(input, seed) {
    const { channels, image_size: size } = this.facts;
    const shape = [1, channels, size, size];
    return this.#draw(seed, { type: "uint8", shape, data: planesOf(input, channels) });
  }

  async sample({ seeds, classes, caption }, onPicture, signal) {
    for (const [index, seed] of seeds.entries()) {
      const picture = await this.#draw(seed, conditionOf(classes?.[index], caption));
      if (signal?.aborted) return;
      onPicture(index, picture);
    }
  }
}

function conditionOf(class_, caption) {
  if (caption !== undefined) {
    const data = new Uint8Array(CAPTION_BYTES);
    data.set(new TextEncoder().encode(caption).subarray(0, CAPTION_BYTES));
    return { type: "uint8", shape: [1, CAPTION_BYTES], data };
  }
  if (class_ === undefined) return null;
  return { type: "int64", shape: [1], data: BigInt64Array.of(BigInt(class_)) };
}
