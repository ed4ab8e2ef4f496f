// Starts the page: opens the backend and shows what its model can do.

import { openBackend } from "./backend.js";
import { startGenerateView } from "./generate_view.js";
import { startLikelihoodView } from "./likelihood_view.js";
import { renderMarkdown } from "./markdown.js";
import { askForToken, attempt, notify } from "./messages.js";
import { startTranslateView } from "./translate_view.js";

const element = (id) => document.getElementById(id);

await attempt(async () => {
  let backend = null;
  backend = await openBackend({ notify, askForToken, onVersion: () => showVersion(backend.facts) });
  showFacts(backend.facts);
  if (backend.facts.translates) startTranslateView(backend);
  else {
    const conditions = startGenerateView(backend);
    if (backend.facts.likelihood) startLikelihoodView(backend, conditions);
  }
  document.documentElement.dataset.ready = "";
});
if (element("status").textContent === "Loading") notify("");

function showFacts(facts) {
  const title = facts.name || facts.model;
  document.title = title;
  element("name").textContent = title;
  element("summary").textContent = summaryOf(facts);
  showVersion(facts);
  if (!facts.card) return;
  element("card").hidden = false;
  element("card-text").append(renderMarkdown(facts.card));
}

function showVersion({ version }) {
  element("version").hidden = version === null;
  element("version").textContent = `version ${version}`;
}

function summaryOf({ translates, image_size: size, channels, hole, rows }) {
  const images = `${channels === 1 ? "grey" : "colour"} images of ${size} × ${size} pixels`;
  if (hole) return `Fills a region of ${images}.`;
  if (translates) return `Turns a drawing or a picture into ${images}.`;
  return rows ? `Paints ${images}, row by row.` : `Draws ${images}.`;
}
