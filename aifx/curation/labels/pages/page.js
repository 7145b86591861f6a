"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const AHEAD = 10, RETRY_MS = 1000, WAIT_MS = 3000, SMALL = 128;
  let session = null, labeller = "", queue = [], history = [], progress = null, sending = false, fetching = false;
  let isLost = false, isEmpty = false, timer = 0;
  const seen = new Map(), images = new Map();
  const handled = new Set(), held = new Map();  // rows of this labeller that are not to come again; unsent labels, by id

  // The token and the name are in the fragment of the URL, which is sent to nobody, and in this tab.
  const given = new URLSearchParams(location.hash.slice(1));
  for (const name of ["token", "labeller"]) if (given.get(name)) sessionStorage.setItem(name, given.get(name));

  async function ask(path, options = {}) {
    const headers = { Authorization: `Bearer ${sessionStorage.getItem("token") || ""}` };
    let answer;
    try {
      answer = await fetch(path, { ...options, headers, cache: "no-store" });
    } catch {
      throw { status: 0, why: "the server does not answer" };
    }
    if (answer.ok) return answer;
    const why = await answer.json().then((body) => body.error, () => answer.statusText);
    throw { status: answer.status, why };
  }
  const json = async (path, options) => (await ask(path, options)).json();
  const element = (name, text, kind = "") => {
    const made = document.createElement(name);
    made.textContent = text;
    made.className = kind;
    return made;
  };

  // Labels that the server has not saved are in this page and in the browser's storage, each by itself, so that a reload
  // keeps them and another tab can send them. The server ignores a label that it has, so that two may send the same.
  const prefix = () => `aifx-label/${session.scope}/`;
  function unsent() {
    const all = new Map(held);
    for (const key of Object.keys(localStorage)) {
      if (key.startsWith(prefix())) all.set(key.slice(prefix().length), JSON.parse(localStorage.getItem(key)));
    }
    return [...all.values()].sort((a, b) => a.order - b.order);
  }
  function forget(id) {
    held.delete(id);
    localStorage.removeItem(prefix() + id);
  }
  const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
  let last = 0;
  function keep(action, row, label = null, note = "") {
    last = Math.max(Date.now(), last + 0.001);
    const entry = { order: last, body: { id: newId(), row, action, label, labeller, note } };
    held.set(entry.body.id, entry);
    try {
      localStorage.setItem(prefix() + entry.body.id, JSON.stringify(entry));
    } catch {
      // The storage is full or forbidden: the label is in this page alone.
    }
    send();
  }

  async function send() {
    if (sending) return;
    sending = true;
    try {
      for (let [first] = unsent(); first; [first] = unsent()) {
        showState();
        try {
          const saved = await json("/labels", { method: "POST", body: JSON.stringify(first.body) });
          found();
          if (first.body.labeller === labeller) progress = saved.progress;
        } catch (error) {
          if (error.status !== 400) throw error;
          complain(`A label was refused: ${error.why}`);
        }
        forget(first.body.id);
      }
    } catch (error) {
      lose(error);
    }
    sending = false;
    showState();
    if (unsent().length === 0) fill();
  }

  function found() {
    if (isLost) complain("");
    isLost = false;
  }
  function lose(error) {
    if (error.status === 401) return askToken();
    isLost = true;
    if (error.status) complain(error.why);
    clearTimeout(timer);
    timer = setTimeout(retry, RETRY_MS);
    showState();
  }
  const retry = () => (session === null ? begin() : send());
  function complain(why) {
    at("problem").textContent = why;
    at("problem").hidden = why === "";
  }

  async function fill() {
    if (fetching || labeller === "" || (queue.length > AHEAD / 2 && !isLost)) return;
    fetching = true;
    try {
      const who = labeller;
      const answer = await json(`/rows?count=${AHEAD}&labeller=${encodeURIComponent(who)}`);
      found();
      if (who === labeller) {
        progress = answer.progress;
        const known = new Set([...handled, ...queue.map((one) => one.row)]);
        const more = answer.rows.filter((row) => !known.has(row.row));
        queue.push(...more);
        isEmpty = answer.rows.length === 0;
        if (queue.length === 0) {
          clearTimeout(timer);
          timer = setTimeout(fill, isEmpty ? WAIT_MS : RETRY_MS);
        }
        if (queue.length === more.length) show();
        for (const row of queue.slice(0, 4)) image(row);
      }
    } catch (error) {
      lose(error);
    }
    fetching = false;
    showState();
  }

  function image(row) {
    if (session.kind !== "images") return null;
    if (!images.has(row.row)) {
      const url = ask(`/image/${encodeURIComponent(row.row)}`).then(async (answer) => URL.createObjectURL(await answer.blob()));
      images.set(row.row, url);
      url.catch(() => images.delete(row.row));
      if (images.size > 50) {
        const [oldest] = images.keys();
        images.get(oldest).then((old) => URL.revokeObjectURL(old), () => {});
        images.delete(oldest);
      }
    }
    return images.get(row.row);
  }

  function remember(row) {
    seen.set(row.row, row);
    if (seen.size > 200) seen.delete(seen.keys().next().value);
  }

  function show() {
    const [row] = queue;
    for (const id of ["card", "choices", "skip", "note"]) at(id).hidden = row === undefined;
    at("done").hidden = row !== undefined || !isEmpty;
    at("note").value = "";
    if (row === undefined) return;
    remember(row);
    at("card").scrollTop = 0;
    at("card").className = session.kind === "pairs" ? "pair" : "";
    at("card").dataset.row = row.row;
    const parts = [];
    if (session.kind === "images") {
      const shown = new Image();
      shown.alt = "The image to label";
      shown.onload = () => shown.classList.toggle("small", Math.max(shown.naturalWidth, shown.naturalHeight) <= SMALL);
      shown.onerror = () => complain("This image cannot be shown. Skip it.");
      image(row).then((url) => { shown.src = url; }, (error) => (error.status ? complain(error.why) : lose(error)));
      parts.push(shown);
    } else if (session.kind === "pairs") {
      if (row.context.length) parts.push(fieldList(row.context));
      const texts = element("div", "", "texts");
      row.fields.forEach((one, index) => {
        const box = document.createElement("div");
        box.append(element("b", String(index + 1)), element("p", one.text, "text"));
        texts.append(box);
      });
      parts.push(texts);
    } else if (session.kind === "table") parts.push(fieldList(row.fields));
    else parts.push(element("p", row.fields[0].text, "text"));
    if (row.source) parts.push(element("p", row.source, "source faint"));
    at("card").replaceChildren(...parts);
    showChoices(row);
  }

  function fieldList(fields) {
    const list = document.createElement("dl");
    for (const one of fields) list.append(element("dt", one.name), element("dd", one.text));
    return list;
  }

  // For pairs, the first two choices are the texts in the order in which they are shown.
  const choices = (row) => (session.kind === "pairs" ? [...row.fields.map((one) => one.name), session.labels[2]] : session.labels);
  function showChoices(row) {
    const names = session.kind === "pairs" ? ["the first is better", "the second is better", "neither"] : session.labels;
    at("choices").replaceChildren(...choices(row).map((label, index) => {
      const button = element("button", "");
      button.type = "button";
      if (index < 9) button.append(element("kbd", String(index + 1)));
      button.append(names[index]);
      button.onclick = () => act("label", label);
      return button;
    }));
  }

  function act(action, label = null) {
    const [row] = queue;
    if (row === undefined || labeller === "") return;
    complain("");
    history.push(row.row);
    handled.add(row.row);
    queue.shift();
    keep(action, row.row, label, at("note").value.trim());
    show();
    at("card").focus({ preventScroll: true });
    showState();
  }

  async function undo() {
    if (history.length === 0 || labeller === "") return;
    const row = history.pop();
    try {
      const shown = seen.get(row) || await json(`/rows/${encodeURIComponent(row)}`);
      handled.delete(row);
      queue = [shown, ...queue.filter((one) => one.row !== row)];
      keep("undo", row);
      show();
    } catch (error) {
      history.push(row);
      if (error.status === 404) history.pop();
      else lose(error);
    }
    showState();
  }

  function showState() {
    const waiting = session === null ? 0 : unsent().length;
    const [word, kind] = isLost
      ? [waiting ? `connection lost: ${waiting} kept here, trying again` : "connection lost, trying again", "critical"]
      : session === null ? ["connecting", "unknown"]
      : waiting ? [`saving ${waiting}`, "info"] : ["saved", "healthy"];
    if (at("state").textContent !== word) at("state").textContent = word;
    at("state").className = `word ${kind}`;
    at("undo").disabled = history.length === 0;
    if (progress === null) return;
    const skipped = progress.skipped ? `, ${progress.skipped} skipped` : "";
    at("counts").textContent = `${progress.done} of ${progress.rows} rows done; ${progress.labelled} labelled by you${skipped}`;
    at("bar").value = progress.done / progress.rows;
    at("done").textContent = progress.done === progress.rows
      ? "All rows are labelled. Thank you."
      : "No row is left for you. Others still work on some.";
  }

  function askToken() {
    session = null;
    at("work").hidden = at("who-form").hidden = true;
    at("token-form").hidden = false;
    at("state").textContent = "no access";
    at("state").className = "word warning";
    at("token").focus();
  }
  at("token-form").onsubmit = (event) => {
    event.preventDefault();
    sessionStorage.setItem("token", at("token").value.trim());
    at("token-form").hidden = true;
    begin();
  };
  at("who-form").onsubmit = (event) => {
    event.preventDefault();
    const name = at("who").value.trim();
    if (name) start(name);
  };
  at("change").onclick = () => {
    at("work").hidden = true;
    at("who-form").hidden = false;
    at("who").value = labeller;
    labeller = "";
    at("who").focus();
  };
  at("skip").onclick = () => act("skip");
  at("undo").onclick = undo;

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || at("work").hidden) return;
    if (event.target === at("note")) {
      if (event.key === "Enter" || event.key === "Escape") at("card").focus({ preventScroll: true });
      return;
    }
    if (event.target.tagName === "INPUT") return;
    const key = event.key.toLowerCase();
    if (/^[1-9]$/.test(key)) {
      const label = queue.length ? choices(queue[0])[Number(key) - 1] : undefined;
      if (label !== undefined) act("label", label);
    } else if (key === "s") act("skip");
    else if (key === "u" || key === "backspace") undo();
    else if (key === "n") at("note").focus();
    else return;
    event.preventDefault();
  });

  async function start(name) {
    labeller = name;
    sessionStorage.setItem("labeller", name);
    at("me").textContent = name;
    at("who-form").hidden = true;
    at("work").hidden = false;
    queue = [];
    history = [];
    handled.clear();
    for (const one of unsent()) if (one.body.labeller === name && one.body.action !== "undo") handled.add(one.body.row);
    isEmpty = false;
    for (const id of ["card", "choices", "skip", "note"]) at(id).hidden = true;
    try {
      const answer = await json(`/rows?count=1&labeller=${encodeURIComponent(name)}`);
      progress = answer.progress;
      history = answer.history;
    } catch (error) {
      if (error.status === 400) {
        complain(error.why);
        return;
      }
      lose(error);
    }
    await send();
    at("card").focus({ preventScroll: true });
  }

  async function begin() {
    try {
      session = await json("/session");
    } catch (error) {
      lose(error);
      return;
    }
    found();
    at("dataset").textContent = `${session.column} of ${session.dataset}`;
    document.title = `${session.dataset}: aifx data label`;
    const name = sessionStorage.getItem("labeller") || session.labeller;
    if (name) await start(name);
    else {
      at("who-form").hidden = false;
      at("who").focus();
    }
    showState();
  }
  begin();
})();
