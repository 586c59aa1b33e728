// Devices: what each may hold, holds and has, now and over the last hour.

import { byId, draw, keyed, make, mark, say } from "./dom.js";
import { state } from "./feed.js";
import { bytes, span } from "./format.js";

const HOUR_MS = 3600000;
const WIDTH = 360;
const HEIGHT = 72;

const known = new Map();

const figure = (name, title) => {
  const value = make("dd", {});
  return { name, value, elements: [make("div", { class: `figure ${name}` }, make("dt", { text: title }), value)] };
};

const create = (device) => {
  const figures = [
    figure("budget", "Budget"),
    figure("used", "Used by models"),
    figure("others", "Used by others"),
    figure("free", "Free"),
    figure("total", "Total"),
  ];
  const held = draw("path", { class: "area held" });
  const others = draw("path", { class: "area others" });
  const budget = draw("line", { class: "budget", x1: 0, x2: WIDTH });
  const title = draw("title", {});
  const picture = draw(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", class: "history" },
    title,
    others,
    held,
    budget,
  );
  const bar = { held: make("span", { class: "held" }), others: make("span", { class: "others" }) };
  const element = make(
    "article",
    { class: "device", "aria-label": `Device ${device.id}` },
    make("h3", { text: device.id }),
    make("div", { class: "meter", "aria-hidden": "true" }, bar.held, bar.others),
    make("dl", {}, ...figures.flatMap((one) => one.elements)),
    picture,
    make("p", { class: "axis", "aria-hidden": "true" }, make("span", { text: "an hour ago" }), make("span", { text: "now" })),
  );
  return { element, figures, held, others, budget, title, picture, bar };
};

// A filled curve over samples of the time and two heights.
const area = (samples, now, top, low, high) => {
  const x = (at) => (WIDTH * (1 - (now - at) / HOUR_MS)).toFixed(1);
  const y = (value) => (HEIGHT * (1 - Math.min(1, value / top))).toFixed(1);
  const over = samples.map((one) => `${x(one[0])},${y(high(one))}`);
  const under = samples.map((one) => `${x(one[0])},${y(low(one))}`).reverse();
  return over.length > 1 ? `M${over.join("L")}L${under.join("L")}Z` : "";
};

const update = (row, device) => {
  const used = device.held ?? device.reserved;
  const values = { budget: device.budget, used, others: device.others, free: device.free, total: device.total };
  for (const { name, value } of row.figures) say(value, bytes(values[name]));
  const now = Date.now() + state.ahead;
  const samples = (state.history.get(device.id) ?? []).filter((one) => now - one[0] < HOUR_MS);
  const held = (one) => one[2] ?? one[1];
  // What others use counts where the budget is most of the device, as on a card. Of a machine's whole memory it would hide
  // all that the models do.
  const isWhole = device.total !== null && device.total < 1.6 * device.budget;
  const top = isWhole ? device.total : Math.max(1.1 * device.budget, used, ...samples.map(held), 1);
  row.bar.held.style.setProperty("--part", `${(100 * used) / top}%`);
  row.bar.others.style.setProperty("--part", isWhole ? `${(100 * (device.others ?? 0)) / top}%` : "0%");
  const both = (one) => held(one) + (one[3] ?? 0);
  mark(row.held, "d", area(samples, now, top, () => 0, held));
  mark(row.others, "d", isWhole ? area(samples, now, top, held, both) : "");
  const line = HEIGHT * (1 - device.budget / top);
  mark(row.budget, "y1", line.toFixed(1));
  mark(row.budget, "y2", line.toFixed(1));
  const peaks = samples.map(held);
  const told = samples.length
    ? `from ${bytes(Math.min(...peaks))} to ${bytes(Math.max(...peaks))} over the last ${span(now - samples[0][0])}`
    : "no readings yet";
  say(row.title, `Memory of ${device.id}: models use ${bytes(used)} of a budget of ${bytes(device.budget)}, ${told}; others use ${bytes(device.others)}, ${bytes(device.free)} free`);
};

export const drawDevices = () => keyed(byId("devices"), known, state.devices, (device) => device.id, create, update);
