// What the page tells: a line of status, a line of error, the question for the token.

import { BusyError } from "./backend.js";

const BRIEF_MS = 4000;
const element = (id) => document.getElementById(id);

export function notify(text) {
  element("status").textContent = text;
}

export function notifyBriefly(text) {
  notify(text);
  setTimeout(() => element("status").textContent === text && notify(""), BRIEF_MS);
}

export function reportError(error) {
  const line = element("alert");
  line.textContent = String(error?.message ?? error).split("\n")[0];
  line.hidden = false;
}

function clearError() {
  const line = element("alert");
  if (line.hidden) return;
  line.hidden = true;
  line.textContent = "";
}

/** Do `work`, again and again while the server is busy; report an error. True if it was done. */
export async function attempt(work) {
  for (;;) {
    try {
      await work();
      clearError();
      return true;
    } catch (error) {
      if (error.name === "AbortError") return false;
      if (!(error instanceof BusyError)) {
        reportError(error);
        return false;
      }
      notify(error.message);
      await new Promise((resolve) => setTimeout(resolve, error.seconds * 1000));
      notify("");
    }
  }
}

let question = null;

/** Resolve with the token that the user gives; requests that need it meanwhile wait for the same. */
export function askForToken(wasRefused) {
  question ??= ask(wasRefused).finally(() => (question = null));
  return question;
}

function ask(wasRefused) {
  const dialog = element("token-dialog");
  if (wasRefused) element("token-note").textContent = "That token is not accepted. Check it and try again.";
  notify("");
  return new Promise((resolve) => {
    dialog.oncancel = (event) => event.preventDefault(); // nothing works without it
    element("token-form").onsubmit = () => {
      resolve(element("token").value.trim());
      element("token").value = "";
    };
    dialog.showModal();
  });
}

export function readSeed(field) {
  return readNumber(field, "seed", Number.MAX_SAFE_INTEGER);
}

/** Return the whole number in a field; throw an error if it is none, or larger than `most`. */
export function readNumber(field, what, most) {
  const number = Number(field.value);
  const isFine = field.value.trim() !== "" && Number.isSafeInteger(number) && number >= 0 && number <= most;
  field.setAttribute("aria-invalid", String(!isFine));
  if (!isFine) throw new Error(`A ${what} is a whole number from 0 to ${most}.`);
  return number;
}

export function randomSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}
