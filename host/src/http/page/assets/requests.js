// Requests: who waits, what was answered and how fast, and what is worked on as jobs.

import { json } from "./api.js";
import { byId, confirmed, copy, keyed, make, mark, say, show, toast } from "./dom.js";
import { state } from "./feed.js";
import { clock, plural, rate, seconds, span } from "./format.js";

const known = new Map();
const waiting = new Map();
const jobs = new Map();
let filter = "";

// Tokens a second once it had begun.
const speed = (request) => {
  if (!request.tokens_out) return "";
  const before = (request.queue_ms ?? 0) + (request.swap_ms ?? 0);
  const ms = request.duration_ms - Math.max(before, request.first_token_ms ?? 0);
  return ms > 0 ? rate((1000 * request.tokens_out) / ms) : "";
};

const create = (request) => {
  const cell = (label, text, more = {}) => make("td", { role: "cell", "data-label": label, ...more }, make("div", {}, ...[].concat(text)));
  const number = { class: "n" };
  const isBad = request.status >= 400;
  const status = make("span", { class: "status", "data-bad": isBad, text: request.status === 499 ? "left" : String(request.status) });
  const code = request.code ? make("span", { class: "sub", text: request.code }) : null;
  const told = request.cause ? make("p", { class: "cause", text: request.cause, title: request.cause }) : null;
  const tokens = request.tokens_in === null && request.tokens_out === null ? "" : `${request.tokens_in ?? 0} → ${request.tokens_out ?? 0}`;
  const element = make(
    "tr",
    { role: "row" },
    cell("Ended", clock(request.ended_ms)),
    make("th", { scope: "row", role: "rowheader" }, make("div", {}, make("span", { class: "name", text: request.model ?? "–", title: request.model ?? "" }), make("span", { class: "sub", text: `${request.method} ${request.path}`, title: request.path }))),
    cell("Status", [status, code, told].filter(Boolean)),
    cell("Queue", span(request.queue_ms), number),
    cell("Swap", span(request.swap_ms), number),
    cell("First token", span(request.first_token_ms), number),
    cell("Tokens", tokens, number),
    cell("Tokens/s", speed(request), number),
    cell("Total", span(request.duration_ms), number),
    make(
      "td",
      { role: "cell", "data-label": "Request" },
      make(
        "div",
        {},
        make("button", { type: "button", class: "link", text: request.id, title: "Copy this id", "aria-label": `Copy the id ${request.id}`, on: { click: () => copy(request.id, "Id") } }),
        make("span", { class: "sub", text: request.key ? `key ${request.key}` : "" }),
      ),
    ),
  );
  const text = [request.id, request.model, request.key, request.status, request.code, request.path].join(" ").toLowerCase();
  return { element, text };
};

const fits = (row) => filter.split(" ").every((word) => row.text.includes(word));

const count = () => {
  const shown = [...known.values()].filter((row) => !row.element.hidden).length;
  say(byId("requests-count"), shown === known.size ? `the last ${known.size}` : `${shown} of the last ${known.size}`);
  say(byId("requests-empty"), known.size ? "No request fits the filter." : "No request was answered yet.");
  show(byId("requests-empty"), shown === 0);
};

export const drawRequests = () => {
  const newest = [...state.requests].reverse();
  keyed(byId("requests"), known, newest, (request) => request.number, create, (row) => show(row.element, fits(row)));
  count();
};

const createWaiting = (one) => {
  const waited = make("span", { class: "n" });
  const what = make("span", { class: "sub" });
  const element = make("li", {}, make("span", { class: "name", text: one.model, title: one.model }), what, waited);
  return { element, waited, what };
};

const updateWaiting = (row, one) => {
  const id = one.request || "an operator";
  say(row.what, `${id}, ${one.awaits === "slot" ? "for a free slot" : "for the model to be loaded"}`);
  say(row.waited, seconds(one.waited_ms + performance.now() - state.at.waiting));
};

export const drawWaiting = () => {
  const all = state.waiting.map((one, at) => ({ ...one, key: `${one.model} ${one.request || at}` }));
  keyed(byId("waiting"), waiting, all, (one) => one.key, createWaiting, updateWaiting);
  show(byId("waiting-empty"), all.length === 0);
  say(byId("waiting-count"), all.length ? plural(all.length, "request", "requests") : "");
};

export const tickWaiting = () => {
  if (state.waiting.length) drawWaiting();
};

const ENDED = new Set(["completed", "failed", "cancelled", "expired"]);

const createJob = (job) => {
  const row = {
    what: make("span", { class: "sub" }),
    state: make("span", { class: "state" }),
    bar: make("progress", { max: 100, value: 0, "aria-label": `Progress of ${job.id}` }),
    cause: make("p", { class: "cause", hidden: true }),
    end: make("button", { type: "button", class: "small", text: "Cancel", "aria-label": `Cancel ${job.id}` }),
  };
  row.end.addEventListener("click", async () => {
    if (!(await confirmed("Cancel this job?", `${job.id} of ${job.model} ends and has no answer.`, "Cancel it"))) return;
    try {
      await json(`/v1/jobs/${job.id}/cancel`, { method: "POST" });
    } catch (error) {
      toast(error.message);
    }
  });
  row.element = make("li", {}, make("span", { class: "name", text: job.model, title: job.model }), row.what, row.state, row.bar, row.end, row.cause);
  return row;
};

const updateJob = (row, job) => {
  const isOver = ENDED.has(job.status);
  say(row.state, job.status.replace("_", " "));
  mark(row.state, "data-state", job.status);
  say(row.what, `${job.id} · ${job.endpoint}`);
  mark(row.what, "title", job.id);
  row.bar.value = job.progress;
  show(row.bar, job.status === "in_progress");
  show(row.end, !isOver);
  const why = job.error?.message ?? "";
  say(row.cause, why);
  show(row.cause, why !== "");
};

export const drawJobs = () => {
  keyed(byId("jobs"), jobs, state.jobs, (job) => job.id, createJob, updateJob);
  show(byId("jobs-empty"), state.jobs.length === 0);
  const open = state.jobs.filter((job) => !ENDED.has(job.status)).length;
  say(byId("jobs-count"), state.jobs.length ? `${open} open, the last ${state.jobs.length}` : "");
};

export const startRequests = () => {
  byId("requests-filter").addEventListener("input", () => {
    filter = byId("requests-filter").value.trim().toLowerCase();
    for (const row of known.values()) show(row.element, fits(row));
    count();
  });
};
