"use strict";
// Sliders beside the numbers: a number outside a slider's ends stays as it was written.
for (const slider of document.querySelectorAll("input[type=range][data-for]")) {
  const field = document.getElementById(slider.dataset.for);
  const low = Number(slider.dataset.low), high = Number(slider.dataset.high), step = Number(slider.dataset.step);
  const isLog = slider.dataset.log === "1", hasNone = slider.dataset.none === "1";
  const most = hasNone ? 97 : 100;  // the last bit of the way means: none

  const valueAt = (place) => {
    if (hasNone && place > most) return "";
    const frac = place / most;
    const exact = isLog ? low * (high / low) ** frac : low + (high - low) * frac;
    const size = isLog ? 10 ** Math.max(Math.floor(Math.log10(exact)) - 1, Math.log10(step)) : step;
    return String(Number((Math.round(exact / size) * size).toPrecision(6)));
  };
  const place = () => {
    const value = Number(field.value);
    if (field.value === "") slider.value = hasNone ? 100 : 0;
    else {
      const frac = isLog ? Math.log(Math.max(value, low) / low) / Math.log(high / low) : (value - low) / (high - low);
      slider.value = most * Math.min(1, Math.max(0, frac));
    }
    slider.setAttribute("aria-valuetext", field.value || field.placeholder || "none");
  };
  slider.hidden = false;
  place();
  field.addEventListener("input", place);
  slider.addEventListener("input", () => {
    field.value = valueAt(Number(slider.value));
    slider.setAttribute("aria-valuetext", field.value || field.placeholder || "none");
  });
}
document.addEventListener("htmx:beforeRequest", () => document.getElementById("told-plan")?.setAttribute("aria-busy", "true"));
document.addEventListener("htmx:afterRequest", () => document.getElementById("told-plan")?.setAttribute("aria-busy", "false"));
