// Runs model.onnx beside the page, so that one can draw on while it computes.

import * as ort from "../onnxruntime/ort.js";

const MOST_THREADS = 4;

// The address of this file alone: given a folder, it would look for its JavaScript there too.
const wasm = new URL("../onnxruntime/ort-wasm-simd-threaded.wasm", import.meta.url);
ort.env.wasm.wasmPaths = { wasm: wasm.href };
// Threads share memory, which browsers allow with the headers COOP and COEP alone.
ort.env.wasm.numThreads = self.crossOriginIsolated
  ? Math.min(navigator.hardwareConcurrency || 1, MOST_THREADS)
  : 1;

let session;

self.onmessage = async ({ data }) => {
  if (data.model) {
    session = load(data.model);
    session.catch((error) => {
      self.postMessage({ progress: "" });
      self.postMessage({ failure: `The model cannot be run: ${text(error)}` });
    });
    return;
  }
  const { id, seed, condition } = data;
  try {
    const images = await draw(await session, seed, condition);
    self.postMessage({ id, images }, [images.buffer]);
  } catch (error) {
    self.postMessage({ id, error: text(error) });
  }
};

async function load(address) {
  const reply = await fetch(address);
  if (!reply.ok) throw new Error(`model.onnx: status ${reply.status}`);
  const parts = [];
  let length = 0;
  for await (const part of partsOf(reply.body)) {
    parts.push(part);
    length += part.length;
    self.postMessage({ progress: `Loading the model: ${(length / 1e6).toFixed(1)} MB` });
  }
  const content = new Uint8Array(await new Blob(parts).arrayBuffer());
  const made = await ort.InferenceSession.create(content, { executionProviders: ["wasm"] });
  self.postMessage({ progress: "" });
  return made;
}

async function* partsOf(stream) {
  const reader = stream.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) yield part.value;
}

async function draw(made, seed, condition) {
  const feeds = { seeds: new ort.Tensor("int64", BigInt64Array.of(BigInt(seed)), [1]) };
  if (condition) {
    feeds.condition = new ort.Tensor(condition.type, condition.data, condition.shape);
  }
  const { images } = await made.run(feeds);
  return Uint8Array.from(images.data);
}

function text(error) {
  return String(error?.message ?? error).split("\n")[0].slice(0, 300);
}
