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
