// Swaps: each load, wake, park and unload as a bar of its phases, and why it was. What left for a model stands below what came.

import { byId, keyed, make, mark, say, show } from "./dom.js";
import { state } from "./feed.js";
import { clock, span } from "./format.js";

const SHOWN_MAX = 50;
const PHASES = {
  start: "start of the worker",
  copy: "weights copied",
  verify: "weights hashed",
  memory: "waits for memory",
  load: "load",
  wake: "wake",
  drain: "drain",
  park: "park",
  stop: "unload",
};
const VERBS = { load: "Load", wake: "Wake", park: "Park", unload: "Unload", lost: "Lost" };

const known = new Map();

const why = (swap) => {
  const ids = swap.requests ? ` ${swap.requests}` : "";
  switch (swap.cause) {
    case "request":
      return `for${ids || " a request"}`;
    case "operator":
      return swap.kind === "load" || swap.kind === "wake" ? `asked by an operator${ids}` : "asked by an operator";
    case "preload":
      return "is to be loaded at start";
    case "replica":
      return "another replica";
    case "memory":
      return swap.for ? `makes room for ${swap.for}` : "its memory was needed";
    case "idle":
      return "idle for its keep_alive";
    case "asked":
      return "asked by an operator, or a shutdown";
    case "reload":
      return "its entry changed";
    case "unwanted":
      return "nobody waited for it any more";
    case "failed":
      return swap.kind === "lost" ? "its worker ended by itself" : "it failed";
    default:
      return swap.cause;
  }
};

const stepsOf = (swap) => {
  const steps = swap.steps.map((step) => ({ ...step }));
  if (swap.outcome === "underway" && steps.length) steps.at(-1).ms += performance.now() - swap.heard;
  return steps;
};

const create = (swap) => {
  const row = {
    time: make("time", { class: "when" }),
    name: make("span", { class: "name" }),
    verb: make("span", { class: "verb" }),
    why: make("span", { class: "sub" }),
    bar: make("div", { class: "lane", role: "img" }),
    total: make("span", { class: "total" }),
    cause: make("p", { class: "cause", hidden: true }),
    parts: new Map(),
  };
  row.element = make(
    "li",
    { class: `swap ${swap.kind}` },
    row.time,
    make("div", { class: "what" }, make("p", {}, row.verb, " ", row.name), row.why),
    make("div", { class: "phases" }, row.bar, row.cause),
    row.total,
  );
  return row;
};

// The longest of those that are shown is as wide as there is room.
const scale = (all) => Math.max(1, ...all.map((swap) => stepsOf(swap).reduce((sum, step) => sum + step.ms, 0)));

let longest = 1;

const update = (row, swap) => {
  const steps = stepsOf(swap);
  const total = steps.reduce((sum, step) => sum + step.ms, 0);
  say(row.time, clock(swap.began_ms));
  say(row.verb, VERBS[swap.kind] ?? swap.kind);
  say(row.name, swap.model);
  mark(row.name, "title", swap.model);
  say(row.why, `${why(swap)} · ${swap.device}`);
  mark(row.why, "title", `${why(swap)} · ${swap.device}`);
  mark(row.element, "data-outcome", swap.outcome);
  say(row.total, swap.kind === "lost" ? "" : span(total));
  const told = steps.map((step) => `${PHASES[step.name] ?? step.name} ${span(step.ms)}`).join(", ");
  mark(row.bar, "aria-label", `${VERBS[swap.kind]} of ${swap.model}: ${told || "no phases"}, ${swap.outcome}`);
  mark(row.bar, "title", told);
  // A short swap beside a long one is still to be seen.
  row.bar.style.setProperty("--length", `${Math.min(100, Math.max(4, 100 * Math.sqrt(total / longest))).toFixed(1)}%`);
  const items = steps.map((step, at) => ({ ...step, key: `${at} ${step.name}` }));
  keyed(
    row.bar,
    row.parts,
    items,
    (step) => step.key,
    (step) => ({ element: make("span", { class: `phase ${step.name}` }) }),
    (part, step) => part.element.style.setProperty("--grow", String(Math.max(1, Math.round(step.ms)))),
  );
  const sentence = swap.error ?? (swap.outcome === "dropped" ? "It was broken off." : "");
  say(row.cause, sentence);
  show(row.cause, sentence !== "");
};

const shown = () => [...state.swaps.values()].sort((a, b) => b.number - a.number).slice(0, SHOWN_MAX);

export const drawSwaps = () => {
  const all = shown();
  longest = scale(all);
  keyed(byId("swaps"), known, all, (swap) => swap.number, create, update);
  show(byId("swaps-empty"), all.length === 0);
};

export const tickSwaps = () => {
  for (const [number, row] of known) {
    const swap = state.swaps.get(number);
    if (swap?.outcome === "underway") update(row, swap);
  }
};

export const startSwaps = () => {
  for (const [name, title] of Object.entries(PHASES)) {
    byId("swaps-legend").append(make("li", {}, make("span", { class: `phase ${name}`, "aria-hidden": "true" }), title));
  }
};
