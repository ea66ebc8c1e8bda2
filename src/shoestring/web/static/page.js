"use strict";
// What htmx does not do by itself. No text of a run is ever put in as HTML here.

// A refusal (status 4xx, 5xx) is said at the top of the page.
document.addEventListener("htmx:responseError", (event) => {
  const told = document.getElementById("told");
  told.textContent = event.detail.xhr.responseText.slice(0, 600) || "The page's server refused.";
  told.scrollIntoView({ block: "nearest" });
});
document.addEventListener("htmx:sendError", () => {
  document.getElementById("told").textContent =
    "The page's server does not answer; start it again with: shoestring ui";
});
document.addEventListener("htmx:beforeRequest", () => {
  document.getElementById("told").textContent = "";
});

// ---- what changes while it is looked at -----------------------------------------------------
// An element with data-events is followed while the tab is seen: browsers allow few connections to one server.

function put(id, html) {
  const target = document.getElementById(id);
  if (!target) return;
  const active = target.contains(document.activeElement) ? document.activeElement : null;
  const opened = new Set(Array.from(target.querySelectorAll("details[open] > summary"), (one) => one.textContent));
  target.innerHTML = html;
  for (const summary of target.querySelectorAll("details > summary"))
    if (opened.has(summary.textContent)) summary.parentElement.open = true;
  htmx.process(target);
  if (active) (document.getElementById(active.id) || target.querySelector("button, a[href], summary"))?.focus();
  begin(target);
}

const DOES = {
  part: (data) => put(data.id, data.html),
  say: (text) => { document.getElementById("told").textContent = text; },
  fresh: (id) => htmx.ajax("GET", location.pathname + location.search,
    { target: "#" + id, select: "#" + id, swap: "outerHTML" }),
};

function follow(element) {
  let source = null;
  const open = () => {
    source = new EventSource(element.dataset.events);
    for (const [name, act] of Object.entries(DOES))
      source.addEventListener(name, (event) => act(JSON.parse(event.data), element));
  };
  const turn = () => {
    if (!element.isConnected || document.hidden) {
      source?.close();
      source = null;
    } else if (!source) open();
    if (!element.isConnected) document.removeEventListener("visibilitychange", turn);
  };
  document.addEventListener("visibilitychange", turn);
  element.closeEvents = () => { source?.close(); document.removeEventListener("visibilitychange", turn); };
  turn();
}

function begin(root) {
  const all = [...root.querySelectorAll("[data-events]")];
  if (root.matches?.("[data-events]")) all.push(root);
  for (const element of all) if (!element.closeEvents) follow(element);
}

document.addEventListener("DOMContentLoaded", () => begin(document));
document.addEventListener("htmx:load", (event) => begin(event.detail.elt));
document.addEventListener("htmx:beforeCleanupElement", (event) => event.detail.elt.closeEvents?.());
