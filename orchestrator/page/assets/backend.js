// Opens what draws: a server, or this browser. The page knows no other difference between them.
//
// A backend has the following members. Pictures are canvases of the model's size. Methods reject
// with BackendError, whose message is one line for people, or with BusyError.
//
//   facts                                    the keys of /v1/model
//   translate(input, seed)                   canvas of the model's size -> picture
//   sample(request, onPicture, signal)       onPicture(index, picture) for each of request.seeds
//   rows(request, onRow, signal)             of one seed; onRow(row, picture 1 pixel high)
//   latents(seeds)                           -> [[number, ...], ...]
//   decode(request)                          request.latents -> pictures
//   interpolate(request)                     request.seeds, request.steps -> pictures
//   likelihood(file, class)                  -> {name, nats, bits_per_dim}
//
// A request may have `classes`, one for each image, and `caption`, where the model takes them.

/** @param {{notify: Function, askForToken: Function, onVersion: Function}} page */
export async function openBackend(page) {
  if (document.querySelector('meta[name="backend"]').content === "browser") {
    return (await import("./browser_backend.js")).openBrowserBackend(page);
  }
  return (await import("./http_backend.js")).openHttpBackend(page);
}

export class BackendError extends Error {}

/** The server has no room now. */
export class BusyError extends Error {
  constructor(seconds) {
    super(`The server is busy; trying again in ${seconds} s.`);
    this.seconds = seconds;
  }
}
