// Models: where each stands, how far it is, who wants it, and what may be done with it. A row is kept for as long as it is shown,
// and only what changed is touched. Of very many models the first forty are shown, those in use before all others.

import { json } from "./api.js";
import { byId, confirmed, copy, keyed, make, mark, say, show, toast } from "./dom.js";
import { state } from "./feed.js";
import { bytes, plural, seconds, span } from "./format.js";
import { openLog } from "./log.js";
import { tryModel } from "./play.js";

const COMING = new Set(["starting", "waiting", "loading", "unparking"]);
const LEAVING = new Set(["draining", "parking", "stopping"]);
const WORDS = { starting: "starting", waiting: "waits for memory", unparking: "waking", stopping: "unloading" };

const STEP = 40;

const known = new Map();
// What a filter is looked for in, by model.
const texts = new Map();
let most = STEP;
const attention = new Map();
const busy = new Map();
let filter = "";
let onlyUp = false;

const act = async (id, verb, body) => {
  if (busy.has(id)) return;
  busy.set(id, verb);
  redraw(id);
  try {
    await json(`/models/${verb}`, { body: { model: id, ...body } });
    toast(`${id}: ${DONE[verb](body)}`);
  } catch (error) {
    toast(`${id}: ${error.message}`);
  } finally {
    busy.delete(id);
    redraw(id);
  }
};

const DONE = {
  load: () => "loaded",
  unload: () => "unloaded",
  park: () => "parked",
  pin: (body) => (body.pinned ? "stays whatever others need, until models.yaml is read again" : "may leave for others again"),
};

const button = (text, name, run) => make("button", { type: "button", class: "small", "data-act": name, text, on: { click: run } });

const create = (model) => {
  const id = model.id;
  const cells = {
    kind: make("span", { class: "sub" }),
    state: make("span", { class: "state" }),
    left: make("span", { class: "sub" }),
    progress: make("progress", { max: 1000, value: 0, "aria-label": `Progress of ${id}`, hidden: true }),
    device: make("span", { class: "sub" }),
    memory: make("span", {}),
    active: make("span", {}),
    waits: make("span", { class: "sub" }),
    used: make("span", {}),
    loads: make("span", { class: "sub" }),
  };
  const buttons = {
    load: button("Load", "load", () => act(id, "load")),
    park: button("Park", "park", () => act(id, "park")),
    unload: button("Unload", "unload", async () => {
      const now = state.models.get(id);
      const isFree = !now || now.active === 0;
      const title = `Unload ${id}?`;
      const text = `${plural(now?.active ?? 0, "request is", "requests are")} being answered: they end first, and nobody is served beside them.`;
      if (isFree || (await confirmed(title, text, "Unload"))) act(id, "unload");
    }),
    pin: button("Pin", "pin", () => act(id, "pin", { pinned: !state.models.get(id)?.pinned })),
    log: button("Log", "log", () => openLog(id)),
    try: button("Try", "try", () => tryModel(id)),
  };
  for (const one of Object.values(buttons)) one.setAttribute("aria-label", `${one.textContent} ${id}`);
  const cell = (label, ...children) => make("td", { role: "cell", "data-label": label }, make("div", {}, ...children));
  const element = make(
    "tr",
    { role: "row" },
    make("th", { scope: "row", role: "rowheader" }, make("div", {}, make("span", { class: "name", text: id, title: id }), cells.kind)),
    cell("State", cells.state, cells.left, cells.progress),
    cell("Memory", cells.memory, cells.device),
    cell("Requests", cells.active, cells.waits),
    cell("Used", cells.used, cells.loads),
    make("td", { role: "cell", class: "acts", "data-label": "Actions" }, make("div", {}, ...Object.values(buttons))),
  );
  say(cells.kind, [model.kind, model.plugin, ...model.aliases.map((alias) => `alias ${alias}`)].join(" · "));
  return { element, cells, buttons };
};

const stateOf = (model) => (model.quarantined ? "quarantined" : model.state);

const update = (row, model) => {
  const { cells, buttons } = row;
  const told = stateOf(model);
  say(cells.state, model.step ?? WORDS[told] ?? told);
  mark(cells.state, "data-state", told);
  mark(cells.state, "data-pinned", model.pinned);
  const hasProgress = model.progress !== null && (COMING.has(told) || model.step);
  show(cells.progress, hasProgress);
  if (hasProgress && cells.progress.value !== model.progress) cells.progress.value = model.progress;
  say(cells.memory, model.memory ? bytes(model.memory) : "–");
  say(cells.device, [model.device, model.measured ? `holds ${bytes(model.measured)}` : null].filter(Boolean).join(" · "));
  say(cells.active, model.active || model.queued ? `${model.active} active, ${model.queued} queued` : "–");
  say(cells.loads, model.loads ? plural(model.loads, "load", "loads") + (model.wakes ? `, ${plural(model.wakes, "wake", "wakes")}` : "") : "");
  const doing = busy.get(model.id);
  const isCold = told === "cold" || told === "failed" || told === "quarantined";
  show(buttons.load, isCold || told === "parked");
  show(buttons.unload, !isCold);
  show(buttons.park, told === "hot");
  for (const [name, one] of Object.entries(buttons)) one.disabled = doing !== undefined && name !== "log" && name !== "try";
  mark(row.element, "aria-busy", doing !== undefined ? "true" : null);
  say(buttons.pin, model.pinned ? "Unpin" : "Pin");
  mark(buttons.pin, "aria-label", `${model.pinned ? "Unpin" : "Pin"} ${model.id}`);
  mark(buttons.pin, "aria-pressed", String(model.pinned));
  tickRow(row, model);
};

// What time alone changes.
const tickRow = (row, model) => {
  const passed = performance.now() - (state.at.models.get(model.id) ?? 0);
  const { cells } = row;
  const told = stateOf(model);
  let left = "";
  if (model.left_ms !== null && COMING.has(told)) {
    const ms = model.left_ms - passed;
    left = ms > 500 ? `${seconds(ms)} to go` : "longer than the last time";
  } else if (model.since_ms !== null && (COMING.has(told) || LEAVING.has(told))) {
    left = `for ${seconds(model.since_ms + passed)}`;
  }
  if (model.progress !== null && left) left = `${Math.floor(model.progress / 10)} %, ${left}`;
  say(cells.left, left || (model.pinned ? "pinned" : ""));
  say(cells.waits, model.waits_ms !== null ? `longest waits ${seconds(model.waits_ms + passed)}` : "");
  const idle = model.idle_ms !== null ? `${span(model.idle_ms + passed)} ago` : "";
  say(cells.used, model.active ? "now" : idle || "–");
};

const fits = (model) => {
  const isUp = model.state !== "cold" || model.quarantined || model.queued > 0;
  if (onlyUp && !isUp) return false;
  if (!filter) return true;
  let known = texts.get(model.id);
  if (known?.model !== model) {
    known = { model, text: `${model.id} ${model.kind} ${model.plugin} ${stateOf(model)} ${model.aliases.join(" ")}`.toLowerCase() };
    texts.set(model.id, known);
  }
  return filter.split(" ").every((word) => known.text.includes(word));
};

const redraw = (id) => {
  const row = known.get(id);
  const model = state.models.get(id);
  if (row && model) update(row, model);
};

const count = (shown) => {
  const models = [...state.models.values()];
  const hot = models.filter((model) => model.state === "hot" || model.state === "draining").length;
  const all = plural(models.length, "model", "models");
  say(byId("models-count"), shown === models.length ? `${all}, ${hot} loaded` : `${shown} of ${all}, ${hot} loaded`);
  const none = models.length ? "No model fits the filter." : "models.yaml has no models yet: `aihost models add` finds some.";
  say(byId("models-empty"), none);
  show(byId("models-empty"), shown === 0);
  const beyond = shown - known.size;
  show(byId("models-more"), beyond > 0);
  say(byId("models-more"), `Show ${Math.min(STEP, beyond)} more of ${beyond}`);
};

const RANK = { quarantined: 3, failed: 3, cold: 5, parked: 2 };
const rank = (model) => RANK[stateOf(model)] ?? 1;

// Those that do something come first; the rest by name, as the host tells them.
const ordered = () => {
  const all = [...state.models.values()];
  return all.sort((a, b) => rank(a) - rank(b) || (a.id < b.id ? -1 : 1));
};

export const drawModels = () => {
  for (const id of texts.keys()) if (!state.models.has(id)) texts.delete(id);
  const all = ordered().filter(fits);
  keyed(byId("models-body"), known, all.slice(0, most), (model) => model.id, create, update);
  count(all.length);
  drawAttention();
};

export const tickModels = () => {
  for (const [id, row] of known) {
    const model = state.models.get(id);
    if (model && model.state !== "cold") tickRow(row, model);
  }
};

// The command that a sentence names, or the one that tries again.
const command = (model) => /`(aihost [^`]+)`/.exec(model.error)?.[1] ?? `aihost models load ${model.id}`;

const createCause = (model) => {
  const cause = make("p", { class: "cause" });
  const line = make("code", {});
  const what = make("span", { class: "state" });
  const element = make(
    "li",
    {},
    make("p", {}, make("span", { class: "name", text: model.id }), " ", what),
    cause,
    make(
      "p",
      { class: "command" },
      line,
      make("button", { type: "button", class: "small", text: "Copy", "aria-label": `Copy the command for ${model.id}`, on: { click: () => copy(line.textContent, "Command") } }),
      make("button", { type: "button", class: "small", text: "Load again", "aria-label": `Load again: ${model.id}`, on: { click: () => act(model.id, "load") } }),
      make("button", { type: "button", class: "small", text: "Log", "aria-label": `Show the log of ${model.id}`, on: { click: () => openLog(model.id) } }),
    ),
  );
  return { element, cause, line, what };
};

const updateCause = (row, model) => {
  const told = model.error ? stateOf(model) : "note";
  say(row.what, told === "cold" ? "cannot be loaded" : told);
  mark(row.what, "data-state", told === "cold" ? "failed" : told);
  say(row.cause, model.error ?? model.note);
  say(row.line, model.error ? command(model) : `aihost models unload ${model.id}`);
};

const drawAttention = () => {
  const all = ordered().filter((model) => model.error || model.note);
  keyed(byId("attention-list"), attention, all, (model) => model.id, createCause, updateCause);
  show(byId("attention"), all.length > 0);
  say(byId("attention-title"), all.length > 1 ? `Needs attention (${all.length})` : "Needs attention");
};

export const startModels = () => {
  let isDue = false;
  const redrawSoon = () => {
    if (isDue) return;
    isDue = true;
    requestAnimationFrame(() => {
      isDue = false;
      drawModels();
    });
  };
  const refilter = () => {
    filter = byId("models-filter").value.trim().toLowerCase();
    onlyUp = byId("models-up").checked;
    most = STEP;
    redrawSoon();
  };
  byId("models-more").addEventListener("click", () => {
    most += STEP;
    drawModels();
  });
  byId("models-filter").addEventListener("input", refilter);
  byId("models-up").addEventListener("change", refilter);
};
