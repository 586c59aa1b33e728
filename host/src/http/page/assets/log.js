// The log of a model's workers: the last lines, and what they write from then on. A worker may write thousands of lines a
// second: they are shown a few times a second, the last thousand of them, and how many were left out is said.

import { events, request } from "./api.js";
import { byId, make, say } from "./dom.js";
import { state } from "./feed.js";
import { plural } from "./format.js";

const LINES_MAX = 1000;
const FLUSH_MS = 200;
const AGAIN_MS = 2000;

let model = "";
let abort = null;
let fresh = [];
let skipped = 0;
let left = 0;
// Blocks of lines as they were drawn, and how many lines each has.
let blocks = [];
let listed = "";

const status = (text) => say(byId("log-hint"), text);

const clear = () => {
  fresh = [];
  skipped = 0;
  left = 0;
  blocks = [];
  byId("log").replaceChildren();
};

const add = (line) => {
  fresh.push(line);
  if (fresh.length > LINES_MAX) {
    fresh.shift();
    skipped += 1;
  }
};

const flush = () => {
  if (!fresh.length && !skipped) return;
  const box = byId("log");
  const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  if (skipped) {
    left += skipped;
    box.append(make("div", { class: "skipped", text: `(${plural(skipped, "line", "lines")} came faster than can be shown)` }));
    blocks.push({ element: box.lastElementChild, lines: 1 });
    skipped = 0;
  }
  if (fresh.length) {
    const element = make("div", { text: fresh.join("\n") });
    blocks.push({ element, lines: fresh.length });
    box.append(element);
    fresh = [];
  }
  let lines = blocks.reduce((sum, block) => sum + block.lines, 0);
  while (blocks.length > 1 && lines - blocks[0].lines > LINES_MAX) {
    const block = blocks.shift();
    lines -= block.lines;
    block.element.remove();
  }
  if (atEnd) box.scrollTop = box.scrollHeight;
  if (left) status(`following; ${plural(left, "line was", "lines were")} left out`);
};

const read = async (name) => {
  abort?.abort();
  const own = new AbortController();
  abort = own;
  clear();
  if (!name) {
    status("");
    return;
  }
  const isFollowing = () => byId("log-follow").checked && !own.signal.aborted;
  const path = `/logs/${name.split("/").map(encodeURIComponent).join("/")}`;
  for (;;) {
    try {
      if (isFollowing()) {
        const response = await request(`${path}?follow=true`, { signal: own.signal });
        clear();
        status("following");
        await events(response, (_, line) => add(line));
        status("the host ended the log; trying again");
      } else {
        const text = await (await request(path, { signal: own.signal })).text();
        clear();
        text.split("\n").slice(0, -1).forEach(add);
        status(text ? "" : "its workers wrote nothing yet");
        return;
      }
    } catch (error) {
      if (own.signal.aborted) return;
      status(error.status ? error.message : "the log cannot be reached; trying again");
    }
    if (!isFollowing()) return;
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    if (own.signal.aborted) return;
  }
};

export const openLog = (id) => {
  model = id;
  drawLogModels();
  byId("log-model").value = id;
  read(id);
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  byId("log-panel").scrollIntoView({ behavior: calm ? "auto" : "smooth" });
  byId("log").focus({ preventScroll: true });
};

// Keeps the list of models to choose from. It is the same most of the time.
export const drawLogModels = () => {
  const ids = [...state.models.keys()].sort();
  if (model && !state.models.has(model)) ids.push(model);
  const now = ids.join("\n");
  if (now === listed) return;
  listed = now;
  const select = byId("log-model");
  select.replaceChildren(make("option", { value: "", text: "choose a model" }), ...ids.map((id) => make("option", { value: id, text: id })));
  select.value = model;
};

export const startLog = () => {
  byId("log-model").addEventListener("change", () => {
    model = byId("log-model").value;
    read(model);
  });
  byId("log-follow").addEventListener("change", () => read(model));
  byId("log-clear").addEventListener("click", () => {
    clear();
    if (model) status(byId("log-follow").checked ? "following" : "");
  });
  setInterval(flush, FLUSH_MS);
};
