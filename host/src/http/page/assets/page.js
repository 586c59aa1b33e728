// The page: which view is shown, the state of the connection, the key; and when what is redrawn.

import { hasKey, onKeyWanted, useKey } from "./api.js";
import { byId, mark, say, show } from "./dom.js";
import { drawDevices } from "./devices.js";
import { follow, onChange, onConnection, reconnect, state } from "./feed.js";
import { seconds } from "./format.js";
import { drawLogModels, startLog } from "./log.js";
import { drawModels, startModels, tickModels } from "./models.js";
import { drawPlayModels, startPlay } from "./play.js";
import { drawJobs, drawRequests, drawWaiting, startRequests, tickWaiting } from "./requests.js";
import { drawSwaps, startSwaps, tickSwaps } from "./swaps.js";

const SENTENCES = {
  connecting: () => "Connecting",
  live: () => "Live",
  late: () => "Updates are late: a proxy holds the stream back, so this page asks every 2 s",
  lost: () => "Connection lost; trying again",
  locked: () => "A key is wanted",
  refused: (why) => `The host refuses: ${why}`,
};

let connection = { name: "connecting", since: 0 };

const drawConnection = () => {
  const element = byId("connection");
  mark(element, "data-state", connection.name);
  // What counts on is for eyes alone: it would be read out each second.
  say(byId("connection-text"), SENTENCES[connection.name](connection.why));
  say(byId("connection-since"), connection.name === "lost" ? seconds(performance.now() - connection.since) : "");
  mark(document.body, "data-stale", connection.name === "lost" || connection.name === "locked" || connection.name === "refused");
  document.title = connection.name === "lost" ? "aihost: connection lost" : "aihost";
};

const drawAbout = () => {
  if (!state.host) return;
  const up = Date.now() + state.ahead - state.host.started_s * 1000;
  say(byId("about"), `${state.host.version}, up ${seconds(up)}`);
};

const PARTS = {
  models: [drawModels, drawLogModels, drawPlayModels],
  devices: [drawDevices],
  waiting: [drawWaiting],
  jobs: [drawJobs],
  swaps: [drawSwaps],
  requests: [drawRequests],
  host: [drawAbout],
};

// What changed is drawn once a frame, whatever comes meanwhile; a page that nobody sees draws nothing.
const due = new Set();
let isDrawing = false;
const drawDue = () => {
  isDrawing = false;
  for (const part of due) PARTS[part].forEach((drawPart) => drawPart());
  due.clear();
};
const schedule = () => {
  if (isDrawing || document.hidden || !due.size) return;
  isDrawing = true;
  requestAnimationFrame(drawDue);
};

const tick = () => {
  if (document.hidden) return;
  drawConnection();
  drawAbout();
  tickModels();
  tickWaiting();
  tickSwaps();
};

const startKey = () => {
  const dialog = byId("key-dialog");
  const ask = (why) => {
    byId("key-why").textContent = why;
    if (!dialog.open) dialog.showModal();
    byId("key").focus();
  };
  onKeyWanted(ask);
  byId("key-open").addEventListener("click", () => ask(hasKey() ? "Another key takes the place of this one." : "This page sends no key yet."));
  byId("key-close").addEventListener("click", () => dialog.close());
  byId("key-form").addEventListener("submit", () => {
    useKey(byId("key").value);
    byId("key").value = "";
    reconnect();
  });
};

const startViews = () => {
  const views = { host: byId("view-host"), play: byId("view-play") };
  const turn = () => {
    const name = location.hash.startsWith("#play") ? "play" : "host";
    for (const [one, view] of Object.entries(views)) {
      show(view, one === name);
      mark(byId(`to-${one}`), "aria-current", one === name ? "page" : null);
    }
  };
  addEventListener("hashchange", turn);
  turn();
};

onChange((changed) => {
  changed.forEach((part) => due.add(part));
  schedule();
});
onConnection((now) => {
  connection = now;
  drawConnection();
});
document.addEventListener("visibilitychange", () => {
  schedule();
  tick();
});
setInterval(tick, 1000);
startViews();
startKey();
startModels();
startSwaps();
startRequests();
startLog();
startPlay();
follow();
