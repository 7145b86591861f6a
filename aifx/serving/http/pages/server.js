"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const EVERY_MS = 1000, POINTS = 120, MOST_TOKENS = 256;
  let status = null, before = null, rates = [], running = null;

  const headers = (more = {}) => {
    const key = sessionStorage.getItem("key");
    return key ? { ...more, Authorization: `Bearer ${key}` } : more;
  };
  const count = (x) => x.toLocaleString("en-US", { maximumFractionDigits: x < 10 ? 1 : 0 });
  const seconds = (s) => s === null ? "–" : s < 1 ? `${count(s * 1000)} ms` : `${count(s)} s`;
  const show = (word, kind) => { at("state").textContent = word; at("state").className = `word ${kind}`; };
  const element = (name, text, kind = "") => {
    const made = document.createElement(name);
    made.textContent = text;
    made.className = kind;
    return made;
  };

  const tile = (name, value) => {
    const made = element("div", "", "tile");
    made.append(element("b", value), element("span", name));
    return made;
  };

  function draw() {
    const most = Math.max(...rates, 1e-9);
    const points = rates.map((rate, i) => `${(600 * i) / (POINTS - 1)},${76 - (72 * rate) / most}`);
    at("curve").setAttribute("points", points.join(" "));
    at("caption").textContent =
      `${status.work[0].name} per second over the last two minutes; peak ${count(Math.max(...rates, 0))}`;
  }

  function render(now) {
    const first = before === null || before.status.started !== now.started;
    const time = performance.now(), passed = first ? 0 : (time - before.time) / 1000;
    status = now;
    at("model").textContent = now.model;
    document.title = `${now.model}: aifx serve`;
    at("fingerprint").textContent = `${now.system_fingerprint}, ${now.is_reproducible
      ? "reproducible in any batch" : "on this device, answers depend on the other requests in a batch"}`;
    show(now.is_draining ? "stopping" : "ready", now.is_draining ? "warning" : "healthy");
    if (first) rates = [];
    const speeds = now.work.map((work, i) =>
      first || passed === 0 ? 0 : Math.max(work.total - before.status.work[i].total, 0) / passed);
    if (!first) rates = [...rates, speeds[0]].slice(-POINTS);
    const tiles = now.work.map((work, i) => tile(`${work.name} per second`, count(speeds[i])));
    tiles.push(tile("running", count(now.running)), tile("waiting", count(now.waiting)));
    if (now.pages) {
      const free = now.pages.total - now.pages.used - now.pages.cached;
      tiles.push(tile("pages used", count(now.pages.used)), tile("pages cached", count(now.pages.cached)),
        tile("pages free", count(free)));
    }
    tiles.push(tile("compilations since the start", count(now.compilations)),
      tile("swaps", count(now.swaps)), tile("swaps refused", count(now.swaps_refused)));
    at("tiles").replaceChildren(...tiles);
    at("latencies").replaceChildren(...now.latencies.map((one) => {
      const row = document.createElement("tr");
      row.append(element("td", one.name));
      for (const [name, value] of [["median", one.p50_s], ["p90", one.p90_s], ["p99", one.p99_s]]) {
        const cell = element("td", seconds(value), "number");
        cell.dataset.name = name;
        row.append(cell);
      }
      return row;
    }));
    draw();
    before = { status: now, time };
    if (at("live").hidden) begin();
  }

  function begin() {
    const labels = {
      text: "A text to continue", chat: "A message", file: "A picture", rows: "A row as JSON, or a list of rows",
    };
    at("label").textContent = labels[status.input];
    at("label").htmlFor = status.input === "file" ? "file" : "prompt";
    at("prompt").hidden = status.input === "file";
    at("file").hidden = status.input !== "file";
    at("live").hidden = false;
    at("key-form").hidden = true;
  }

  async function poll() {
    try {
      const answer = await fetch("/status", { headers: headers(), cache: "no-store" });
      if (answer.status === 401) {
        show("needs a key", "warning");
        at("key-form").hidden = false;
        at("live").hidden = true;
        return;
      }
      if (!answer.ok) throw new Error(answer.statusText);
      render(await answer.json());
    } catch {
      show("no answer", "critical");
    }
    setTimeout(poll, document.hidden ? 5 * EVERY_MS : EVERY_MS);
  }

  function parse(text) {
    try {
      return JSON.parse(text);
    } catch (error) {
      throw new Error(`This is not JSON: ${error.message}`);
    }
  }

  // A small model's context may have no room for as many tokens as a reader wants.
  async function room(prompt, headers) {
    const answer = await fetch("/tokenize", { method: "POST", headers, body: JSON.stringify({ prompt }) });
    const found = await answer.json();
    return answer.ok ? Math.min(Math.max(found.max_model_len - found.count, 1), MOST_TOKENS) : MOST_TOKENS;
  }

  async function request() {
    const json = headers({ "Content-Type": "application/json" });
    const text = at("prompt").value;
    if (status.input === "file") {
      const file = at("file").files[0];
      if (!file) throw new Error("Choose a file first.");
      return [status.route, { headers: headers({ "Content-Type": file.type }), body: file }];
    }
    if (status.input === "rows") return [status.route, { headers: json, body: JSON.stringify({ rows: parse(text) }) }];
    const what = status.input === "chat" ? { messages: [{ role: "user", content: text }] }
      : { prompt: text, max_tokens: await room(text, json) };
    const body = JSON.stringify({ ...what, stream: true, stream_options: { include_usage: true } });
    return [status.route, { headers: json, body }];
  }

  async function* events(answer) {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) if (part !== "data: [DONE]") yield JSON.parse(part.slice(6));
    }
  }

  async function send() {
    const output = at("answer"), start = performance.now();
    running = new AbortController();
    at("send").disabled = true;
    at("stop").disabled = false;
    at("took").textContent = "";
    output.textContent = "";
    output.hidden = false;
    try {
      const [route, options] = await request();
      const answer = await fetch(route, { method: "POST", signal: running.signal, ...options });
      if (!(answer.headers.get("Content-Type") || "").startsWith("text/event-stream")) {
        const found = await answer.json();
        output.textContent = found.error ? found.error.message : JSON.stringify(found, null, 2);
        at("took").textContent = seconds((performance.now() - start) / 1000);
        return;
      }
      let usage = null, first = null;
      for await (const event of events(answer)) {
        if (event.error) throw new Error(event.error.message);
        usage = event.usage || usage;
        const choice = event.choices[0];
        const text = choice && (choice.text ?? choice.delta.content);
        if (text) { first ??= (performance.now() - start) / 1000; output.append(text); }
      }
      const took = (performance.now() - start) / 1000;
      at("took").textContent = `${usage ? `${count(usage.completion_tokens)} tokens, ` : ""}first after ` +
        `${seconds(first)}, all after ${seconds(took)}`;
    } catch (error) {
      output.append(error.name === "AbortError" ? "\n(stopped)" : error.message);
    } finally {
      running = null;
      at("send").disabled = false;
      at("stop").disabled = true;
    }
  }

  at("try").addEventListener("submit", (event) => { event.preventDefault(); if (!running) send(); });
  at("stop").addEventListener("click", () => running && running.abort());
  at("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("try").requestSubmit();
  });
  at("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem("key", at("key").value);
    poll();
  });
  poll();
})();
