"use strict";
// One session, watched as it happens. Everything shown came from this server; text is only ever set as text.

const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const HUES = [205, 25, 140, 290, 60, 340, 175, 0];
const SIDES = { main: byId("main"), beside: byId("beside-side") };
let talk = null;
let inspected = null;
let open = {};
let totals = {};
let watching = null;

function told(text, bad = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("bad", bad);
}

function bytes(count) {
  for (const unit of ["B", "kB", "MB"]) {
    if (count < 1000) return unit === "B" ? `${count} B` : `${count.toFixed(1)} ${unit}`;
    count /= 1000;
  }
  return `${count.toFixed(1)} GB`;
}

function headers(more = {}) {
  const token = byId("token").value.trim();
  return token ? { Authorization: `Bearer ${token}`, ...more } : more;
}

async function ask(method, path, body) {
  const how = { method, headers: headers(body ? { "Content-Type": "application/json" } : {}) };
  const response = await fetch(path, body ? { ...how, body: JSON.stringify(body) } : how);
  if (response.status === 204) return null;
  const data = await response.json();
  if (!response.ok) throw new Error(data.error.message);
  return data;
}

function element(parent, kind, attributes = {}, text = null) {
  const made = parent.namespaceURI === SVG ? document.createElementNS(SVG, kind) : document.createElement(kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== null) made.textContent = text;
  parent.append(made);
  return made;
}

// The graph: agents on a circle, links between them, a parcel for each hand-over.

function place(agent) {
  const at = talk.agents.indexOf(agent);
  const angle = (2 * Math.PI * at) / talk.agents.length - Math.PI / 2;
  return [200 + 130 * Math.cos(angle), 134 + 84 * Math.sin(angle)];
}

function line(sender, receiver) {
  return document.getElementById(`link-${[sender, receiver].map((each) => talk.agents.indexOf(each)).sort().join("-")}`);
}

function draw() {
  const graph = byId("graph");
  graph.replaceChildren();
  for (const { sender, receiver } of talk.links) {
    if (line(sender, receiver)) continue;
    const [x1, y1] = place(sender);
    const [x2, y2] = place(receiver);
    const id = `link-${[sender, receiver].map((each) => talk.agents.indexOf(each)).sort().join("-")}`;
    element(graph, "line", { x1, y1, x2, y2, id });
  }
  for (const agent of talk.agents) {
    const [cx, cy] = place(agent);
    element(graph, "circle", { cx, cy, r: 20, id: `agent-${talk.agents.indexOf(agent)}` });
    element(graph, "text", { class: "agent", x: cx, y: cy + (cy < 130 ? -28 : 38) }, agent);
  }
}

function move(event) {
  const [x1, y1] = place(event.sender);
  const [x2, y2] = place(event.receiver);
  const graph = byId("graph");
  const link = line(event.sender, event.receiver);
  if (link) link.classList.add("moving");
  const label = element(graph, "text", { class: "moved" });
  const what = [`${event.channel}, ${bytes(event.bytes_moved)}, ${event.seconds.toFixed(2)} s`];
  if (event.recognised) what.push(`recognised as ${event.recognised}`);
  what.forEach((each, at) => element(label, "tspan", { x: (x1 + x2) / 2, y: (y1 + y2) / 2 + 14 * at }, each));
  const parcel = element(graph, "circle", { class: "parcel", r: 7, cx: x1, cy: y1 });
  const began = performance.now();
  const step = (now) => {
    const share = Math.min(1, (now - began) / 900);
    parcel.setAttribute("cx", x1 + (x2 - x1) * share);
    parcel.setAttribute("cy", y1 + (y2 - y1) * share);
    if (share < 1) requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
  setTimeout(() => parcel.remove(), 2500);
}

function settle() {
  for (const label of byId("graph").querySelectorAll("text.moved")) label.remove();
  for (const link of byId("graph").querySelectorAll("line.moving")) link.classList.remove("moving");
}

function speaking(agent, yes) {
  const circle = document.getElementById(`agent-${talk.agents.indexOf(agent)}`);
  if (circle) circle.classList.toggle("speaking", yes);
}

// The conversation, once for each side.

function entry(side, kind, text) {
  const made = element(SIDES[side].querySelector("ol"), "li", { class: kind }, text);
  made.scrollIntoView({ block: "nearest" });
  return made;
}

function moved(event) {
  const who = event.recognised ? `, recognised as ${event.recognised}` : "";
  return (
    `${event.sender} to ${event.receiver} by ${event.channel}: ${event.passages.length} passages, ` +
    `${event.tokens_skipped} columns, ${bytes(event.bytes_moved)}, ${event.tokens_prefilled} tokens read, ` +
    `${event.seconds.toFixed(2)} s${who}`
  );
}

function see(event) {
  const side = event.side;
  const sum = (totals[side] ??= { exchanges: 0, moved: 0, read: 0, columns: 0, seconds: 0 });
  if (event.event === "said") {
    entry(side, "said", `you to ${event.passage.hearer}: ${event.passage.text}`);
    if (side === "main") {
      settle(); // What moved last stays in sight until somebody speaks again.
      speaking(event.passage.hearer, true);
    }
  } else if (event.event === "handed over") {
    entry(side, "moved", moved(event));
    sum.moved += event.bytes_moved;
    sum.read += event.tokens_prefilled;
    sum.columns += event.tokens_skipped;
    sum.seconds += event.seconds;
    if (side === "main") move(event);
  } else if (event.event === "piece") {
    open[side] ??= entry(side, "replied", "");
    open[side].textContent += event.text;
  } else if (event.event === "replied") {
    open[side] ??= entry(side, "replied", "");
    open[side].textContent = `${event.passage.speaker}: ${event.passage.text}`;
    open[side] = undefined;
    sum.exchanges += 1;
    sum.read += event.tokens_prefilled;
    sum.seconds += event.seconds;
    if (side === "main") speaking(event.passage.speaker, false);
  } else if (event.event === "failed") {
    open[side] = undefined;
    entry(side, "failed", event.problem);
    for (const agent of talk.agents) speaking(agent, false);
  } else if (event.event === "settled" && side === "main") {
    minds(event.minds);
    if (inspected) inspect(inspected);
  }
  sums();
}

function sums() {
  const body = byId("totals").querySelector("tbody");
  body.replaceChildren();
  for (const [side, sum] of Object.entries(totals)) {
    const row = element(body, "tr");
    const cells = [side === "main" ? talk.channel : talk.beside, sum.exchanges, bytes(sum.moved), sum.read, sum.columns];
    for (const cell of [...cells, sum.seconds.toFixed(2)]) element(row, "td", {}, String(cell));
  }
}

// What an agent has in mind.

function minds(list) {
  byId("minds").replaceChildren();
  for (const mind of list) {
    const text = `${mind.agent}: ${mind.passages} passages, ${mind.columns} columns, ${bytes(mind.bytes)}`;
    const button = element(element(byId("minds"), "li"), "button", { type: "button" }, text);
    button.setAttribute("aria-pressed", String(mind.agent === inspected));
    button.addEventListener("click", () => inspect(mind.agent));
  }
}

async function inspect(agent) {
  inspected = agent;
  for (const button of byId("minds").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.textContent.startsWith(`${agent}: `)));
  }
  try {
    paint(await ask("GET", `v1/sessions/${talk.id}/minds/${encodeURIComponent(agent)}`));
  } catch (error) {
    told(error.message, true);
  }
}

function paint(mind) {
  const canvas = byId("heat");
  const [layers, cells] = [mind.rows.length, mind.rows[0].length];
  const [wide, high, bar] = [Math.max(1, Math.floor(768 / cells)), 8, 10];
  canvas.hidden = false;
  canvas.width = cells * wide;
  canvas.height = layers * high + bar;
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, canvas.width, canvas.height);
  mind.rows.forEach((row, layer) => {
    row.forEach((value, cell) => {
      pen.fillStyle = `hsl(215 60% ${Math.round(96 - 76 * value)}%)`;
      pen.fillRect(cell * wide, (layers - 1 - layer) * high, wide, high);
    });
  });
  const speakers = [...new Set(mind.spans.map((span) => span.speaker))];
  const colour = (speaker) => `hsl(${HUES[speakers.indexOf(speaker) % HUES.length]} 65% 50%)`;
  for (const span of mind.spans) {
    pen.fillStyle = colour(span.speaker);
    const [start, stop] = [span.start, span.stop].map((column) => (column / mind.columns) * canvas.width);
    pen.fillRect(start, layers * high + 1, Math.max(1, stop - start - 1), bar - 1);
  }
  byId("spans").replaceChildren();
  for (const speaker of speakers) {
    const label = element(byId("spans"), "span", {}, speaker === "user" ? "the user's words" : `${speaker}'s words`);
    label.style.borderColor = colour(speaker);
  }
  byId("inspect-told").textContent =
    `${mind.agent}: size of the values of ${mind.columns} columns in ${layers} layers, the last on top; ` +
    "darker is larger within a layer. Below, whose words the columns are.";
}

// Watching.

async function watch(id) {
  watching?.abort();
  const mine = (watching = new AbortController());
  let since = 0;
  while (!mine.signal.aborted) {
    try {
      const response = await fetch(`v1/sessions/${id}/events?since=${since}`, { headers: headers(), signal: mine.signal });
      if (response.status === 404) {
        told("This session is over. Begin another one.", true);
        return;
      }
      if (!response.ok) throw new Error((await response.json()).error.message);
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let rest = ""; ; ) {
        const { value, done } = await reader.read();
        if (done) break;
        const events = (rest + value).split("\n\n");
        rest = events.pop();
        for (const each of events.filter((text) => text.startsWith("data: "))) {
          const event = JSON.parse(each.slice(6));
          since = event.number + 1;
          see(event);
        }
      }
    } catch (error) {
      if (mine.signal.aborted) return;
      told(`Not connected: ${error.message}. Trying again.`, true);
      await new Promise((resolve) => setTimeout(resolve, 2000));
    }
  }
}

byId("begin").addEventListener("submit", async (event) => {
  event.preventDefault();
  const agents = byId("agents").value.split(",").map((name) => ({ name: name.trim() })).filter((agent) => agent.name);
  const beside = byId("beside").value.trim();
  const wanted = { agents, channel: byId("channel").value.trim(), topology: byId("topology").value };
  told("The agents read their cards ...");
  try {
    talk = await ask("POST", "v1/sessions", beside ? { ...wanted, beside } : wanted);
  } catch (error) {
    told(error.message, true);
    return;
  }
  [inspected, open, totals] = [null, {}, {}];
  for (const side of Object.values(SIDES)) side.querySelector("ol").replaceChildren();
  SIDES.beside.hidden = !talk.beside;
  byId("main-title").textContent = `by ${talk.channel}`;
  byId("beside-title").textContent = talk.beside ? `the same by ${talk.beside}` : "";
  byId("to").replaceChildren();
  for (const name of [...talk.agents, "all"]) element(byId("to"), "option", {}, name);
  byId("say").querySelector("button").disabled = false;
  draw();
  minds(talk.minds);
  sums();
  told(`${talk.agents.join(", ")} are here.`);
  byId("words").focus();
  watch(talk.id);
});

byId("say").addEventListener("submit", async (event) => {
  event.preventDefault();
  const words = byId("words").value.trim();
  const button = byId("say").querySelector("button");
  if (!talk || !words || button.disabled) return;
  button.disabled = true;
  byId("words").value = "";
  told("...");
  try {
    await ask("POST", `v1/sessions/${talk.id}/say`, { to: byId("to").value, words });
    told("");
  } catch (error) {
    told(error.message, true);
  }
  button.disabled = false;
  byId("words").focus();
});
