"use strict";
// One question to every model at once; answers are put in as text as they come.
const chat = document.getElementById("chat");
if (chat) {
  const columns = [...chat.querySelectorAll("[data-model]")].map((section) => ({
    model: section.dataset.model, said: section.querySelector(".said"), speed: section.querySelector(".speed"), turns: [],
  }));
  const question = document.getElementById("question"), send = document.getElementById("send");
  const halt = document.getElementById("halt");
  let stopping = null;

  const bubble = (column, who, text) => {
    const node = document.createElement("div");
    node.className = `bubble ${who}`;
    node.dir = "auto";
    node.textContent = text;
    column.said.append(node);
    column.said.scrollTop = column.said.scrollHeight;
    return node;
  };

  async function answer(column, signal) {
    const shown = bubble(column, "model", "");
    shown.setAttribute("aria-busy", "true");
    const began = performance.now();
    let first = 0, last = 0, num = 0, text = "", rest = "", reason = "";
    column.speed.textContent = "";
    try {
      const reply = await fetch(chat.dataset.address, {
        method: "POST", signal, headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ model: column.model, messages: column.turns,
          max_tokens: Number(document.getElementById("max_tokens").value),
          temperature: Number(document.getElementById("temperature").value) }),
      });
      if (!reply.ok) throw new Error((await reply.json()).error);
      const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        const lines = (rest + value).split("\n");
        rest = lines.pop();
        for (const line of lines) {
          if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
          const piece = JSON.parse(line.slice(6));
          if (piece.error) throw new Error(piece.error.message);
          if (piece.usage) num = piece.usage.completion_tokens;
          const choice = piece.choices?.[0];
          const more = choice?.delta?.content || "";
          reason = choice?.finish_reason || reason;
          if (more) {
            last = performance.now();
            first = first || last;
            text += more;
            shown.textContent = text;
            column.said.scrollTop = column.said.scrollHeight;
          }
        }
      }
      column.turns.push({ role: "assistant", content: text });
      if (!text) shown.textContent = "(an empty answer)";
    } catch (error) {
      shown.classList.add("failed");
      shown.textContent = error.name === "AbortError" ? `${text} (stopped)` : `No answer: ${error.message}`;
      column.turns.push({ role: "assistant", content: text });
    }
    shown.removeAttribute("aria-busy");
    if (first && num) {
      const seconds = (last - began) / 1000;  // pieces that come together would make a shorter span mean nothing
      column.speed.textContent = `${num} token${num === 1 ? "" : "s"}, ${(num / seconds).toFixed(1)} tokens a second ` +
        `with the wait, the first after ${((first - began) / 1000).toFixed(2)} s` +
        (reason === "length" ? "; cut at the longest answer" : "");
    }
  }

  document.getElementById("ask").addEventListener("submit", async (event) => {
    event.preventDefault();
    const text = question.value;
    if (!text.trim() || stopping) return;
    question.value = "";
    stopping = new AbortController();
    send.disabled = true;
    halt.hidden = false;
    for (const column of columns) {
      column.turns.push({ role: "user", content: text });
      bubble(column, "person", text);
    }
    await Promise.all(columns.map((column) => answer(column, stopping.signal)));
    stopping = null;
    send.disabled = false;
    halt.hidden = true;
    question.focus();
  });
  halt.addEventListener("click", () => stopping?.abort());
  question.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      document.getElementById("ask").requestSubmit();
    }
  });
  document.getElementById("anew").addEventListener("click", () => {
    stopping?.abort();
    for (const column of columns) {
      column.turns = [];
      column.said.replaceChildren();
      column.speed.textContent = "";
    }
    question.focus();
  });
  for (const button of chat.querySelectorAll("[data-sample]"))
    button.addEventListener("click", () => { question.value = button.dataset.sample; question.focus(); });
}
