"use strict";
// A file may be dropped anywhere on the field; the form sends it as a chosen one.
for (const zone of document.querySelectorAll("[data-dropzone]")) {
  const input = zone.querySelector("input[type=file]");
  const said = zone.querySelector("[data-chosen]");
  const form = zone.closest("form");
  const most = Number(form.dataset.maxBytes);
  const tell = () => {
    const file = input.files[0];
    if (!file) { said.textContent = ""; return; }
    const mib = (file.size / 1048576).toFixed(file.size < 1048576 ? 2 : 1);
    const isLong = file.size > most;
    said.textContent = isLong ? `${file.name}: ${mib} MiB, more than the page takes; use shoestring init` : `${file.name}, ${mib} MiB`;
    form.querySelector("button[type=submit]").disabled = isLong;
  };
  for (const kind of ["dragenter", "dragover"])
    zone.addEventListener(kind, (event) => { event.preventDefault(); zone.classList.add("over"); });
  for (const kind of ["dragleave", "drop"])
    zone.addEventListener(kind, (event) => { event.preventDefault(); zone.classList.remove("over"); });
  zone.addEventListener("drop", (event) => {
    if (!event.dataTransfer.files.length) return;
    input.files = event.dataTransfer.files;
    tell();
  });
  input.addEventListener("change", tell);
  tell();  // a file may have been chosen before this script came
}
