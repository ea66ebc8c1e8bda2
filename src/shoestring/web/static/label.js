"use strict";
// A key presses the button that names it; y and n answer the first open question of several.
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const key = CSS.escape(event.key.toLowerCase());
  const named = document.querySelector(`button[data-key="${key}"]`);
  const open = [...document.querySelectorAll("#label fieldset")].find((one) => !one.querySelector(":checked"));
  const answer = { y: "yes", n: "no" }[event.key.toLowerCase()];
  const pressed = named || (answer && open?.querySelector(`[value=${answer}]`));
  if (pressed) {
    event.preventDefault();
    pressed.click();
  }
});
