// The feed: one stream of what changes on the host, with a sign of life each second. Where a proxy holds the stream back, the
// page asks every two seconds instead and says so; where nothing answers, it says that the connection is lost.

import { HostError, events, json, request } from "./api.js";

// Silence after which the connection counts as lost. Together with the look below: within three seconds.
const SILENCE_MS = 2200;
const LOOK_EVERY_MS = 250;
const POLL_EVERY_MS = 2000;
// So often a stream is tried again where one was held back.
const STREAM_AGAIN_MS = 60000;
const RETRY_MS = [300, 700, 1500, 2500];

export const state = {
  host: null,
  models: new Map(),
  devices: [],
  history: new Map(),
  waiting: [],
  swaps: new Map(),
  requests: [],
  jobs: [],
  // What the playground offers to whoever may ask models and not look into the host.
  offered: new Map(),
  // By this page's clock: when each part was told, and how far the host's clock is ahead.
  at: { models: new Map(), waiting: 0 },
  ahead: 0,
};

const REQUESTS_MAX = 200;
const SAMPLES_MAX = 360;

let listeners = [];
export const onChange = (listener) => listeners.push(listener);

let tellState = () => {};
export const onConnection = (listener) => {
  tellState = listener;
};

let current = { name: "connecting", since: performance.now() };
const become = (name) => {
  if (current.name !== name) current = { name, since: performance.now() };
  tellState(current);
};

let wake = () => {};
// Tries again at once: a key was given.
export const reconnect = () => {
  stopStream();
  wake();
};

let stopStream = () => {};

const pause = (milliseconds) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    wake = () => {
      clearTimeout(timer);
      resolve();
    };
  });

const sample = (now) => {
  for (const device of state.devices) {
    const samples = state.history.get(device.id) ?? [];
    state.history.set(device.id, samples);
    const last = samples.at(-1);
    if (last && now - last[0] < 9500) continue;
    samples.push([now, device.reserved, device.held, device.others, device.free]);
    if (samples.length > SAMPLES_MAX) samples.shift();
  }
};

const take = (message, isWhole) => {
  const changed = new Set();
  const now = performance.now();
  state.ahead = message.now_ms - Date.now();
  if (isWhole) {
    state.models.clear();
    state.at.models.clear();
    state.swaps.clear();
    state.requests = [];
    state.host = message.host;
    state.history = new Map(Object.entries(message.history?.devices ?? {}));
    changed.add("host");
  }
  for (const model of message.models ?? []) {
    state.models.set(model.id, model);
    state.at.models.set(model.id, now);
    changed.add("models");
  }
  for (const id of message.gone ?? []) {
    state.models.delete(id);
    state.at.models.delete(id);
    changed.add("models");
  }
  if (message.devices) {
    state.devices = message.devices;
    sample(message.now_ms);
    changed.add("devices");
  }
  if (message.waiting) {
    state.waiting = message.waiting;
    state.at.waiting = now;
    changed.add("waiting");
  }
  for (const swap of message.swaps ?? []) {
    swap.heard = now;
    state.swaps.set(swap.number, swap);
    changed.add("swaps");
  }
  // What the host has forgotten is forgotten here.
  while (state.swaps.size > 80) state.swaps.delete(Math.min(...state.swaps.keys()));
  if (message.requests) {
    state.requests = [...state.requests, ...message.requests].slice(-REQUESTS_MAX);
    changed.add("requests");
  }
  if (message.jobs) {
    state.jobs = message.jobs;
    changed.add("jobs");
  }
  if (isWhole) for (const part of ["models", "devices", "waiting", "swaps", "requests", "jobs"]) changed.add(part);
  if (changed.size) listeners.forEach((listener) => listener(changed));
};

// Resolves once the stream is over: to whether it said anything at all.
const stream = async () => {
  const abort = new AbortController();
  stopStream = () => abort.abort();
  let heard = performance.now();
  let said = false;
  const watch = setInterval(() => {
    if (performance.now() - heard > SILENCE_MS) {
      if (current.name === "live") become("lost");
      abort.abort();
    }
  }, LOOK_EVERY_MS);
  try {
    const response = await request("/admin/events", { signal: abort.signal });
    await events(
      response,
      (name, text) => {
        if (name !== "beat") take(JSON.parse(text), name === "snapshot");
        said = true;
        become("live");
      },
      () => {
        heard = performance.now();
      },
    );
    return said;
  } catch (error) {
    if (error instanceof HostError) throw error;
    return said;
  } finally {
    clearInterval(watch);
    abort.abort();
  }
};

const poll = async () => {
  const abort = new AbortController();
  stopStream = () => abort.abort();
  const timer = setTimeout(() => abort.abort(), SILENCE_MS);
  try {
    take(await json("/admin/overview", { signal: abort.signal }), true);
    return true;
  } catch (error) {
    if (error instanceof HostError) throw error;
    return false;
  } finally {
    clearTimeout(timer);
  }
};

const offer = async () => {
  const list = await json("/v1/models").catch(() => ({ data: [] }));
  state.offered = new Map(list.data.map((model) => [model.id, model]));
  listeners.forEach((listener) => listener(new Set(["models"])));
};

// For ever.
export const follow = async () => {
  let failures = 0;
  let streamDue = 0;
  for (;;) {
    try {
      if (performance.now() >= streamDue) {
        if (await stream()) {
          failures = 0;
          become("lost");
        } else if (await poll()) {
          // The host answers, and its stream does not come through.
          streamDue = performance.now() + STREAM_AGAIN_MS;
          become("late");
          await pause(POLL_EVERY_MS);
          continue;
        } else {
          become("lost");
        }
      } else if (await poll()) {
        failures = 0;
        become("late");
        await pause(POLL_EVERY_MS);
        continue;
      } else {
        become("lost");
        streamDue = 0;
      }
    } catch (error) {
      if (error.status === 403) await offer();
      become(error.status === 401 || error.status === 403 ? "locked" : "refused");
      current.why = error.message;
      tellState(current);
      await pause(error.status === 401 || error.status === 403 ? 30000 : 2500);
      continue;
    }
    await pause(RETRY_MS[Math.min(failures, RETRY_MS.length - 1)]);
    failures += 1;
  }
};
