import { MaskCanvas } from "./canvas.js";

const $ = (id) => document.getElementById(id);
const enc = encodeURIComponent;
const chosen = { category: null, normal: null, reference: null, own: null, ownMask: null };
let references = [], painting = null, drafting = 0;

function say(text, bad = false) {
  $("message").textContent = text;
  $("message").hidden = !text;
  $("message").classList.toggle("error", bad);
}

async function ask(path, options) {
  const answer = await fetch(path, options).catch(() => null);
  if (!answer) throw new Error("The studio does not answer: is acontrol studio still running?");
  if (!answer.ok) {
    const reason = await answer.json().catch(() => ({}));
    throw new Error(reason.error || `refused (${answer.status})`);
  }
  return answer;
}
const get = async (path) => (await ask(path)).json();
const post = async (path, body = "") => ask(path, { method: "POST", body });

// What fails is said where everybody looks, and in one line.
const guard = (work) => async (...args) => {
  try { await work(...args); } catch (error) { say(error.message, true); }
};
const on = (id, name, work) => $(id).addEventListener(name, guard(work));

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// --- Tabs -----------------------------------------------------------------------------------

const tabs = [...document.querySelectorAll("[role=tab]")];
const opened = { understand: showUnderstand, kept: showKept, runs: showRuns };
function show(name) {
  for (const tab of tabs) {
    const own = tab.getAttribute("aria-controls") === name;
    tab.setAttribute("aria-selected", own);
    tab.tabIndex = own ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !own;
  }
  guard(async () => opened[name] && opened[name]())();
}
tabs.forEach((tab, index) => {
  tab.addEventListener("click", () => show(tab.getAttribute("aria-controls")));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(index + step + tabs.length) % tabs.length];
    next.focus();
    next.click();
  });
});

// --- Choosing -------------------------------------------------------------------------------

function choices(place, rows, pick) {
  place.replaceChildren(...rows.map((row) => {
    const button = element("button", { title: row.title }, element("img", { src: row.src, alt: row.alt, loading: "lazy" }), row.label);
    button.setAttribute("aria-pressed", "false");
    button.dataset.name = row.name;
    button.addEventListener("click", guard(() => pick(row.name)));
    return button;
  }));
}
function mark(place, name) {
  for (const button of place.children) button.setAttribute("aria-pressed", button.dataset.name === name);
}

async function pickCategory(name) {
  chosen.category = name;
  $("category").value = name;
  const found = await get(`api/category/${enc(name)}`);
  references = found.references;
  choices($("normals"), found.normals.map((file) => ({
    name: file, label: "", title: file, alt: `good image ${file}`, src: `api/thumbnail/${enc(name)}/${enc(file)}`,
  })), pickNormal);
  choices($("references"), references.map((row) => ({
    name: row.key, label: row.defect, title: `${row.key}: ${row.phrase}`, alt: `${row.phrase}, outlined`, src: `api/reference/${row.key.split("/").map(enc).join("/")}`,
  })), pickReference);
  if (references.length) pickReference(references[0].key);
  else { chosen.reference = null; }
  if (found.normals.length) await pickNormal(found.normals[0]);
}

async function open(name) {
  const image = new Image();
  image.src = `api/normal/${enc(chosen.category)}/${enc(name)}`;
  await image.decode().catch(() => { throw new Error(`${name}: the image cannot be shown`); });
  canvas.load(image);
}

async function pickNormal(name) {
  chosen.normal = name;
  painting = null;
  $("own-hint").hidden = true;
  mark($("normals"), name);
  await open(name);
}

function pickReference(key) {
  Object.assign(chosen, { reference: key, own: null, ownMask: null });
  mark($("references"), key);
  const row = references.find((other) => other.key === key);
  $("phrase").placeholder = row.phrase;
  $("defect").placeholder = row.defect;
  ready();
}

on("category", "change", () => pickCategory($("category").value));
on("upload", "change", async () => {
  const { name } = await (await post("api/upload", $("upload").files[0])).json();
  await pickNormal(name);
});
on("own-reference", "change", async () => {
  const { name } = await (await post("api/upload", $("own-reference").files[0])).json();
  painting = name;
  $("own-hint").hidden = false;
  await open(name);
});
on("own-done", "click", async () => {
  const { name } = await (await post("api/mask", await canvas.png())).json();
  Object.assign(chosen, { reference: null, own: painting, ownMask: name });
  mark($("references"), null);
  await pickNormal(chosen.normal);
  say("Your reference is used; give it words and a label under How.");
});

// --- Painting -------------------------------------------------------------------------------

const canvas = new MaskCanvas($("canvas"), () => {
  const count = canvas.painted;
  $("painted").textContent = canvas.image
    ? `${canvas.width} x ${canvas.height} pixels, ${count.toLocaleString("en")} painted. Wheel zooms, Shift and drag moves.`
    : "Choose an image to paint on.";
  ready();
  clearTimeout(drafting);
  drafting = setTimeout(draft, 400);
});

// What is painted survives a closed tab, in this browser.
async function draft() {
  if (!canvas.image || painting || restoring) return;
  const { category, normal, reference } = chosen;
  let mask = null;
  if (canvas.painted) {
    const bytes = new Uint8Array(await (await canvas.png()).arrayBuffer());
    if (bytes.length > 2e6) return;
    mask = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  }
  try { localStorage.setItem("draft", JSON.stringify({ category, normal, reference, mask })); } catch { /* A full or forbidden storage. */ }
}

function setTool(name) {
  canvas.tool = name;
  canvas.corners = [];
  for (const button of $("tools").children) button.setAttribute("aria-pressed", button.dataset.tool === name);
}
for (const button of $("tools").children) button.addEventListener("click", () => setTool(button.dataset.tool));
function setSize(value) {
  canvas.size = Math.min(200, Math.max(1, value));
  $("size").value = canvas.size;
  $("size-shown").textContent = `${canvas.size} px`;
}
$("size").addEventListener("input", () => setSize(Number($("size").value)));
$("undo").addEventListener("click", () => canvas.undo());
$("clear").addEventListener("click", () => canvas.clear());
$("in").addEventListener("click", () => canvas.zoom(canvas.scale * 1.5));
$("out").addEventListener("click", () => canvas.zoom(canvas.scale / 1.5));
$("fit").addEventListener("click", () => canvas.fit());
$("one").addEventListener("click", () => canvas.zoom(1));

const suggest = (source) => async () => {
  if (!chosen.reference) throw new Error("Choose a reference first: its kind says what masks look like.");
  const seed = Math.floor(Math.random() * 2 ** 31);
  const { category, normal, reference } = chosen;
  const answer = await post("api/suggest", JSON.stringify({ category, normal, reference, source, seed }));
  await canvas.set(await answer.blob());
};
on("suggest-real", "click", suggest("real"));
on("suggest-perlin", "click", suggest("perlin"));

document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, select, textarea")) return;
  if (event.ctrlKey || event.metaKey) {
    if (event.key === "z") { canvas.undo(); event.preventDefault(); }
    return;
  }
  const keys = {
    b: () => setTool("brush"), e: () => setTool("eraser"), r: () => setTool("rectangle"), p: () => setTool("polygon"),
    "[": () => setSize(canvas.size - 1), "]": () => setSize(canvas.size + 1),
    "+": () => canvas.zoom(canvas.scale * 1.5), "-": () => canvas.zoom(canvas.scale / 1.5), 0: () => canvas.fit(), 1: () => canvas.zoom(1),
    a: () => document.querySelector("#cards .accept")?.click(), x: () => document.querySelector("#cards .reject")?.click(),
  };
  if (!$("draw").hidden && keys[event.key]) keys[event.key]();
});

// --- Drawing --------------------------------------------------------------------------------

for (const name of ["scale", "asea", "strength"]) {
  $(name).addEventListener("input", () => { $(`${name}-shown`).textContent = $(name).value; });
}

function ready() {
  const missing = [];
  if (!chosen.normal) missing.push("an image");
  if (!chosen.reference && !chosen.own) missing.push("a reference");
  if (!canvas.image || !canvas.painted) missing.push("a painted place");
  $("go").disabled = missing.length > 0;
  $("missing").textContent = missing.length ? `Still needed: ${missing.join(", ")}.` : "";
}

async function draw(more = {}) {
  // All of it as it is now: the next click may change it before the mask has arrived.
  const painted = canvas.png();
  const request = {
    category: chosen.category, normal: chosen.normal,
    scale: Number($("scale").value), asea_steps: Number($("asea").value),
    steps: Number($("steps").value), solver: $("solver").value, detail: $("detail").checked,
    guidance_scale: Number($("guidance").value),
    start: $("start").value, seed: Number($("seed").value), count: Number($("count").value),
  };
  if (request.start !== "noise") request.strength = Number($("strength").value);
  if (chosen.reference) request.reference = chosen.reference;
  else Object.assign(request, { reference_image: chosen.own, reference_mask: chosen.ownMask });
  if ($("phrase").value.trim()) request.reference_phrase = $("phrase").value.trim();
  if ($("defect").value.trim()) request.defect = $("defect").value.trim();
  const { name: mask } = await (await post("api/mask", await painted)).json();
  await post("api/draw", JSON.stringify({ ...request, mask, ...more }));
  await refresh();
}
on("go", "click", async () => {
  say("");
  const asked = draw();
  $("seed").value = Number($("seed").value) + Number($("count").value);
  await asked;
});
on("strip", "click", async () => {
  if ($("go").disabled) throw new Error(`On the Draw tab: ${$("missing").textContent}`);
  for (const scale of [0, 0.5, 1, 2, 3]) await draw({ scale, count: 1 });
  show("draw");
});

// --- Results --------------------------------------------------------------------------------

function pictures(row, kinds) {
  return element("div", { className: "pictures" }, ...kinds.map(([kind, label]) => element("figure", {},
    element("a", { href: `api/drawing/${row.id}/${kind}`, target: "_blank", title: "The whole picture" },
      element("img", { src: `api/drawing/${row.id}/${kind}?near`, alt: `${label}: ${row.defect} on ${row.category}`, loading: "lazy",
        onload(event) { event.target.parentElement.classList.toggle("small", event.target.naturalWidth < 160); } })),
    element("figcaption", { textContent: label }))));
}

function act(label, row, action, className = "") {
  const button = element("button", { textContent: label, className });
  button.addEventListener("click", guard(async () => {
    button.disabled = true;
    await post(`api/drawing/${row.id}/${action}`);
    await refresh();
    if (!$("kept").hidden) await showKept();
  }));
  return button;
}

function verdict(row) {
  return [
    element("p", { textContent: `${row.prompt}, seed ${row.seed}. ${row.scores}.` }),
    row.missed.length
      ? element("p", { className: "missed", textContent: `Would not pass the gate: ${row.missed.join("; ")}.` })
      : element("p", { className: "passed", textContent: "Passes the gate." }),
  ];
}

function card(row) {
  const made = element("article", { className: "card" });
  made.dataset.id = row.id;
  made.setAttribute("aria-label", `Drawing ${row.id}`);
  fill(made, row);
  return made;
}

function fill(made, row) {
  made.dataset.state = row.state;
  if (row.state === "waiting") {
    let bar = made.querySelector("progress");
    if (!bar) {
      made.replaceChildren(element("p"), element("progress"), element("div", { className: "preview small" }), act("Cancel", row, "cancel"));
      bar = made.querySelector("progress");
      bar.setAttribute("aria-label", "Progress");
    }
    const text = row.steps ? `Drawing ${row.defect} on ${row.category}: step ${row.step} of ${row.steps}`
      : row.before ? `Waiting: ${row.before} before it` : "Waiting: the next one";
    made.querySelector("p").textContent = text;
    if (row.steps) { bar.max = row.steps; bar.value = row.step; } else { bar.removeAttribute("value"); }
    if (row.preview) {
      const image = element("img", { src: `api/drawing/${row.id}/preview?${row.step}`, alt: "The square being drawn, as it forms" });
      image.style.maxWidth = "12rem";
      image.onload = () => made.querySelector(".preview")?.replaceChildren(image);
    }
  } else if (row.state === "failed") {
    made.replaceChildren(element("p", { className: "missed", textContent: `Failed: ${row.error}` }), act("Dismiss", row, "dismiss"));
  } else {
    made.replaceChildren(
      pictures(row, [["normal", "Good image"], ["image", "Result"], ["difference", "Difference, x3"]]),
      ...verdict(row),
      element("span", { className: "group" }, act("Accept", row, "keep", "accept"), act("Reject", row, "reject", "reject")));
  }
}

let timer = 0;
async function refresh() {
  clearTimeout(timer);
  const { drawings: rows, kept } = await get("api/drawings");
  const place = $("cards"), now = new Map([...place.children].filter((c) => c.dataset.id).map((c) => [c.dataset.id, c]));
  const cards = rows.map((row) => {
    const made = now.get(row.id);
    if (!made) return card(row);
    if (made.dataset.state !== row.state || row.state === "waiting") fill(made, row);
    return made;
  });
  // Cards that stay keep the focus of whoever is about to press one of their buttons.
  for (const old of [...place.children]) if (!cards.includes(old)) old.remove();
  cards.forEach((made, index) => { if (place.children[index] !== made) place.insertBefore(made, place.children[index] || null); });
  if (!cards.length) place.append(element("p", { className: "quiet", textContent: "Nothing waits for a decision. Paint a place and press Draw." }));
  $("kept-count").textContent = kept ? `(${kept})` : "";
  const busy = rows.some((row) => row.state === "waiting");
  timer = setTimeout(guard(refresh), busy ? 500 : 5000);
}

// --- Kept -----------------------------------------------------------------------------------

async function showKept() {
  const rows = await get("api/kept"), state = $("filter").value, only = $("filter-defect").value;
  const names = [...new Set(rows.map((row) => row.defect))].sort();
  $("filter-defect").replaceChildren(element("option", { value: "", textContent: "all" }), ...names.map((name) => element("option", { value: name, textContent: name })));
  $("filter-defect").value = names.includes(only) ? only : "";
  const shown = rows.filter((row) => row.state === state && (!only || row.defect === only));
  const buttons = { kept: [["Delete", "delete"]], rejected: [["Accept after all", "keep"]], deleted: [["Undo: keep it", "keep"]] }[state];
  $("gallery").replaceChildren(...shown.map((row) => element("article", { className: "card" },
    pictures(row, [["image", "Image"], ["mask", "Mask"], ["difference", "Difference, x3"]]), ...verdict(row),
    element("span", { className: "group" }, ...buttons.map(([label, action]) => act(label, row, action))))));
  if (!shown.length) $("gallery").append(element("p", { className: "quiet", textContent: "None." }));
}
on("filter", "change", showKept);
on("filter-defect", "change", showKept);
for (const button of document.querySelectorAll("[data-export]")) {
  button.addEventListener("click", guard(async () => {
    const { folder } = await (await post(`api/export/${button.dataset.export}`)).json();
    say(`Written to ${folder}`);
  }));
}

// --- Understand and Health ------------------------------------------------------------------

function curve(values) {
  const top = Math.max(...values, 1e-6), last = Math.max(1, values.length - 1);
  const at = (value, step) => [34 + (step / last) * 206, 230 - (value / top) * 200];
  const points = values.map((value, step) => at(value, step).join(",")).join(" ");
  $("u-curve").innerHTML = `<polyline points="34,20 34,230 246,230" fill="none" stroke="#aab2bb"/>
    <polyline points="${points}" fill="none" stroke="#0b5c8a" stroke-width="2.5"/>
    ${values.map((value, step) => { const [x, y] = at(value, step); return `<circle cx="${x}" cy="${y}" r="3" fill="#0b5c8a"/>`; }).join("")}
    <text x="4" y="32">${top.toFixed(2)}</text><text x="22" y="246">0</text><text x="232" y="246">${values.length - 1}</text>`;
}

async function showUnderstand() {
  const steps = $("understand-steps").value;
  $("steps-shown").textContent = steps;
  if (!chosen.reference) throw new Error("Choose a reference on the Draw tab.");
  const found = await get(`api/understand?reference=${enc(chosen.reference)}&steps=${steps}`);
  for (const name of ["image", "before", "after"]) $(`u-${name}`).src = `data:image/png;base64,${found[name]}`;
  $("u-before-text").textContent = `Before ASEA: E = ${found.energies[0].toFixed(3)}`;
  $("u-after-text").textContent = `After ${steps} steps: E = ${found.energies.at(-1).toFixed(3)}`;
  curve(found.energies);
}
on("understand-steps", "input", showUnderstand);
on("inspect", "click", async () => {
  $("report").textContent = "Looking at every image ...";
  $("report").textContent = (await get("api/health")).text;
});

// --- Runs -----------------------------------------------------------------------------------

async function showRuns() {
  const found = await get("api/runs");
  $("runs-where").textContent = found.message || `MLflow at ${found.uri}`;
  const table = (heads, rows) => element("table", {},
    element("thead", {}, element("tr", {}, ...heads.map((text) => element("th", { scope: "col", textContent: text })))),
    element("tbody", {}, ...rows.map((cells) => element("tr", {}, ...cells.map((cell) => element("td", {}, cell))))));
  const use = (model) => {
    const button = element("button", { textContent: "Draw with this one" });
    button.addEventListener("click", () => {
      $("command").textContent = found.command.replace("MODEL", model);
      $("command-text").hidden = false;
      $("command").focus();
    });
    return button;
  };
  $("runs-list").replaceChildren(
    element("h2", { textContent: "Registered models" }),
    found.models.length ? table(["model", "version", "aliases", ""], found.models.map((m) => [m.name, m.version, m.aliases.join(", "), use(m.uri)]))
      : element("p", { className: "quiet", textContent: "None." }),
    element("h2", { textContent: "Runs" }),
    found.runs.length ? table(["run", "experiment", "status", "last loss", ""], found.runs.map((r) => [r.name, r.experiment, r.status, r.loss, r.output ? use(r.output) : "no folder here"]))
      : element("p", { className: "quiet", textContent: "None." }));
}

// --- Start ----------------------------------------------------------------------------------

let restoring = true;
guard(async () => {
  const state = await get("api/state"), { defaults } = state;
  const short = (path) => path.replace(/\/+$/, "").split("/").pop();
  $("where").textContent = `${short(state.model)} on ${short(state.data)}`;
  $("where").title = `${state.model} on ${state.data}`;
  $("kept-where").textContent = `Accepted images are in ${state.out}; acontrol generate --replay draws them again, byte for byte.`;
  $("category").replaceChildren(...state.categories.map((name) => element("option", { value: name, textContent: name })));
  $("scale").value = defaults.scale;
  $("asea").value = defaults.asea_steps;
  $("steps").value = defaults.steps;
  $("solver").value = defaults.solver;
  $("detail").checked = defaults.detail;
  $("guidance").value = defaults.guidance_scale;
  $("count").max = defaults.most;
  for (const name of ["scale", "asea"]) $(`${name}-shown`).textContent = $(name).value;
  let saved = null;
  try { saved = JSON.parse(localStorage.getItem("draft")); } catch { /* Damaged: begin anew. */ }
  const known = saved && state.categories.includes(saved.category);
  await pickCategory(known ? saved.category : state.categories[0]);
  if (known) {
    if (saved.normal) await guard(pickNormal)(saved.normal);
    if (references.some((row) => row.key === saved.reference)) pickReference(saved.reference);
    if (saved.mask) {
      const bytes = Uint8Array.from(atob(saved.mask), (letter) => letter.charCodeAt(0));
      await canvas.set(new Blob([bytes], { type: "image/png" }));
    }
  }
  await refresh();
})().finally(() => { restoring = false; });
