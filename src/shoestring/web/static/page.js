"use strict";
// What htmx does not do by itself. No text of a run is ever put in as HTML here.

const LOST = "What is shown moves no more: the page's server does not answer, or what was here is gone. " +
  "Reload the page; if that fails, start the server again with: shoestring ui";

// What went wrong is said at the top of the page, and seen from anywhere on it.
function tell(text) {
  const told = document.getElementById("told");
  if (told.textContent !== text) told.textContent = text;
}

document.addEventListener("htmx:responseError", (event) => {
  tell(event.detail.xhr.responseText.slice(0, 600) || "The page's server refused.");
});
document.addEventListener("htmx:sendError", () => tell("The page's server does not answer; start it again with: shoestring ui"));
document.addEventListener("htmx:beforeRequest", () => tell(""));

// A run takes up to a second to show that it was asked to stop: its button says so at once, and again what it does
// where the server refused. It stays focusable, for the keyboard.
document.addEventListener("htmx:beforeRequest", (event) => {
  const button = event.target.querySelector?.("button[data-asked]");
  if (!button) return;
  if (button.getAttribute("aria-disabled") === "true") { event.preventDefault(); return; }
  button.dataset.does = button.textContent;
  button.textContent = button.dataset.asked;
  button.setAttribute("aria-disabled", "true");
  document.getElementById("said").textContent = button.dataset.asked;
});
for (const name of ["htmx:responseError", "htmx:sendError"])
  document.addEventListener(name, (event) => {
    const button = event.target.querySelector?.("button[data-does]");
    if (!button) return;
    button.textContent = button.dataset.does;
    button.removeAttribute("aria-disabled");
    document.getElementById("said").textContent = "";
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
  say: (text) => { document.getElementById("said").textContent = text; },
  fresh: (id) => htmx.ajax("GET", location.pathname + location.search,
    { target: "#" + id, select: "#" + id, swap: "outerHTML" }),
};

function follow(element) {
  let source = null;
  const open = () => {
    let num_failed = 0;  // one is a connection that is made again
    source = new EventSource(element.dataset.events);
    source.addEventListener("open", () => { if (num_failed > 1) tell(""); num_failed = 0; });
    source.addEventListener("error", (event) => {
      num_failed += event.target.readyState === EventSource.CLOSED ? 2 : 1;
      if (num_failed > 1) tell(LOST);
    });
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

// ---- curves of a training under way ---------------------------------------------------------

const curves = { model: null, rows: [], plots: [] };

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function plot(into, title, columns, range) {
  const axis = { stroke: colour("--soft"), grid: { stroke: colour("--grid"), width: 1 }, ticks: { show: false },
    font: "11px system-ui, sans-serif" };
  const box = document.createElement("div");
  into.append(box);
  const one = new uPlot({
    title, width: Math.max(240, box.clientWidth), height: 190, cursor: { y: false },
    scales: { x: { time: false }, y: { range: range || ((u, low, high) => [Math.min(0, low), high * 1.05 || 1]) } },
    axes: [{ ...axis, size: 26 }, { ...axis, size: 44 }],
    series: [{ label: "step" }, ...columns.map(([label, variable, dots]) => ({
      label, stroke: colour(variable), width: 1.8, spanGaps: true,
      points: { show: dots, size: 7, fill: colour(variable) },
      value: (u, value) => (value == null ? "–" : value.toFixed(3)),
    }))],
  }, columns.map(() => []).concat([[]]), box);
  new ResizeObserver(() => one.setSize({ width: Math.max(240, box.clientWidth), height: 190 })).observe(box);
  return one;
}

function draw() {
  const into = document.getElementById("live-curves");
  if (!into) return;
  into.hidden = curves.model === null || !curves.rows.length;
  if (into.hidden) return;
  if (!curves.plots.length) {
    into.replaceChildren();
    curves.plots = [
      plot(into, curves.model + ": loss a token", [["training", "--c1", false], ["dev", "--c2", true]]),
      plot(into, "dev score", [["dev", "--c1", true]], [0, 1]),
    ];
  }
  const [step, loss, devLoss, devScore] = [0, 1, 2, 3].map((i) => curves.rows.map((row) => row[i]));
  curves.plots[0].setData([step, loss, devLoss]);
  curves.plots[1].setData([step, devScore]);
  const last = curves.rows[curves.rows.length - 1];
  into.setAttribute("aria-label", `${curves.model}: loss ${last[1]?.toFixed(3)} a token at step ${last[0]}`);
}

DOES.steps = (data) => {
  if (data.all || data.model !== curves.model) {
    curves.plots.forEach((one) => one.destroy());
    Object.assign(curves, { model: data.model, rows: [], plots: [] });
  }
  curves.rows.push(...(data.rows || []));
  draw();
};

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  curves.plots.forEach((one) => one.destroy());
  curves.plots = [];
  draw();
});
