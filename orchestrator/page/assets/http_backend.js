// A backend that asks the server that this page is from.

import { BackendError, BusyError } from "./backend.js";
import { fromBase64, pictureOf, pngOf } from "./pixels.js";

const TOKEN = "orchestrator-token";
const LONGEST_WAIT_S = 60;

export async function openHttpBackend({ askForToken, onVersion }) {
  const server = new Server(askForToken, onVersion);
  server.facts = await (await server.call("v1/model")).json();
  return server;
}

class Server {
  facts = null;
  #askForToken;
  #onVersion;

  constructor(askForToken, onVersion) {
    this.#askForToken = askForToken;
    this.#onVersion = onVersion;
  }

  /** Return the reply; ask for the token as often as it is refused. */
  async call(path, options = {}) {
    for (let wasRefused = false; ; wasRefused = true) {
      const token = sessionStorage.getItem(TOKEN);
      const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
      const reply = await this.#fetch(path, { ...options, headers });
      if (reply.status === 401) {
        sessionStorage.setItem(TOKEN, await this.#askForToken(wasRefused || token !== null));
        continue;
      }
      if (reply.status === 429) {
        const wait = Number(reply.headers.get("Retry-After")) || 1;
        throw new BusyError(Math.min(Math.max(wait, 1), LONGEST_WAIT_S));
      }
      if (!reply.ok) throw new BackendError(await reasonOf(reply));
      return reply;
    }
  }

  async #fetch(path, options) {
    try {
      return await fetch(path, { cache: "no-store", ...options });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new BackendError("The server does not answer; is it running?");
    }
  }

  async #ask(path, request, signal) {
    const reply = await this.call(path, {
      method: "POST",
      body: JSON.stringify(request),
      headers: { "Content-Type": "application/json", Accept: "application/json" },
      signal,
    });
    const found = await reply.json();
    if (found.version !== undefined) this.#see(found.version);
    return found;
  }

  async #pictures(path, request, signal) {
    const { images } = await this.#ask(path, request, signal);
    return Promise.all(images.map((image) => pictureOf(fromBase64(image.png))));
  }

  /** Notice that the server draws with another version than before. */
  #see(version) {
    if (this.facts.version === null || version === null || String(version) === String(this.facts.version)) return;
    this.facts.version = version;
    this.#onVersion();
  }

  async translate(input, seed) {
    const reply = await this.call(`v1/translate?seed=${seed}`, {
      method: "POST",
      body: await pngOf(input),
      headers: { "Content-Type": "image/png", Accept: "image/png" },
    });
    this.#see(reply.headers.get("X-Model-Version"));
    return pictureOf(await reply.blob());
  }

  async sample(request, onPicture, signal) {
    const pictures = await this.#pictures("v1/sample", request, signal);
    pictures.forEach((picture, index) => onPicture(index, picture));
  }

  async rows({ seeds, classes, caption }, onRow, signal) {
    const request = { seed: seeds[0], ...(classes && { class: classes[0] }), caption };
    const reply = await this.call("v1/sample/rows", {
      method: "POST",
      body: JSON.stringify(request),
      headers: { "Content-Type": "application/json" },
      signal,
    });
    for await (const line of linesOf(reply.body)) {
      const found = JSON.parse(line);
      if (found.error) throw new BackendError(found.error);
      onRow(found.row, await pictureOf(fromBase64(found.png)));
    }
  }

  async latents(seeds) {
    return (await this.#ask("v1/latents", { seeds })).latents;
  }

  decode(request) {
    return this.#pictures("v1/decode", request);
  }

  interpolate({ classes, ...request }) {
    return this.#pictures("v1/interpolate", { ...request, ...(classes && { class: classes[0] }) });
  }

  async likelihood(file, class_) {
    const query = class_ === undefined ? "" : `?class=${class_}`;
    const reply = await this.call(`v1/likelihood${query}`, {
      method: "POST",
      body: file,
      headers: { "Content-Type": file.type || "application/octet-stream" },
    });
    return reply.json();
  }
}

async function reasonOf(reply) {
  try {
    const { error } = await reply.json();
    if (error) return String(error);
  } catch {
    // Not of our server, but of something between it and this page.
  }
  return `The server answers with status ${reply.status}.`;
}

async function* linesOf(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    const lines = (rest + (value ?? "")).split("\n");
    rest = done ? "" : lines.pop();
    yield* lines.filter((line) => line.trim());
    if (done) return;
  }
}
