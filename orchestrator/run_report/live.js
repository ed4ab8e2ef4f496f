// Take in a newer page every few seconds; what the reader has opened and set stays.
const EVERY_MS = 3000;
let version = null;

function takeIn(text) {
  const newer = new DOMParser().parseFromString(text, "text/html");
  const open = [...document.querySelectorAll("details[open]")].map((each) => each.id);
  const focused = document.activeElement?.id;
  const atEnd = {};
  const set = {};
  for (const range of document.querySelectorAll(".slider input")) {
    const steps = range.closest(".film").dataset.steps.split(",");
    atEnd[range.id] = range.value === range.max;
    set[range.id] = steps[range.value];
  }
  for (const name of ["header", "main", "#points"]) {
    document.querySelector(name).replaceWith(document.adoptNode(newer.querySelector(name)));
  }
  document.title = newer.title;
  for (const id of open) document.getElementById(id)?.setAttribute("open", "");
  setUp();
  setUpSorting();
  for (const range of document.querySelectorAll(".slider input")) {
    const place = range.closest(".film").dataset.steps.split(",").indexOf(set[range.id]);
    if (!atEnd[range.id] && place >= 0) {
      range.value = place;
      range.dispatchEvent(new Event("input"));
    }
  }
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
}

async function refresh() {
  const live = document.getElementById("live");
  try {
    const answer = await fetch("/", { headers: version ? { "If-None-Match": version } : {} });
    if (answer.status === 200) {
      version = answer.headers.get("ETag");
      takeIn(await answer.text());
    } else if (answer.status !== 304) {
      live.textContent = `The server of this page answered ${answer.status}.`;
    }
  } catch {
    live.textContent = "The server of this page has ended; what is shown is its last page.";
  }
  setTimeout(refresh, EVERY_MS);
}

setTimeout(refresh, EVERY_MS);
