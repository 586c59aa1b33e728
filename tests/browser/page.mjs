// The page as people use it, in a real browser before a real host: `cargo xtask page` runs this.
//
//   node page.mjs BUILT [--only WORDS] [--screens FOLDER] [--seconds N]
//
// BUILT is the folder with `aihost` and the plugins. --seconds: how long the page is left open to see whether it grows.

import assert from "node:assert/strict";
import { mkdir } from "node:fs/promises";
import { parseArgs } from "node:util";

import { launch } from "./browser.mjs";
import { cases as hostCases } from "./cases_host.mjs";
import { cases as lookCases } from "./cases_look.mjs";
import { cases as playCases } from "./cases_play.mjs";
import { cases as troubleCases } from "./cases_trouble.mjs";
import { Host, PLUGINS, everyKind } from "./host.mjs";

// Longest that a case may take beside its own clock.
const CASE_MS = 90000;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { only: { type: "string" }, screens: { type: "string" }, seconds: { type: "string", default: "40" } },
});
const built = positionals[0];
assert(built, "name the folder of what was built");
if (values.screens) await mkdir(values.screens, { recursive: true });

const browser = await launch();
const hosts = new Map();
const bench = {
  browser,
  built,
  screens: values.screens,
  seconds: Number(values.seconds),
  // One host for the cases that leave it as it was.
  shared: async (many = 0) => {
    if (!hosts.has(many)) hosts.set(many, await Host.start({ built, yaml: everyKind(many), plugins: PLUGINS }));
    return hosts.get(many);
  },
  start: async (setup) => {
    const host = await Host.start({ built, plugins: PLUGINS, ...setup });
    hosts.set(host, host);
    return host;
  },
};

let failed = 0;
const all = { ...hostCases, ...playCases, ...lookCases, ...troubleCases };
for (const [name, run] of Object.entries(all)) {
  if (values.only && !name.includes(values.only)) continue;
  const begun = performance.now();
  const late = CASE_MS + bench.seconds * 1000;
  let timer;
  const limit = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not over after ${late} ms`)), late);
  });
  try {
    const told = await Promise.race([run(bench), limit]);
    console.log(`ok      ${((performance.now() - begun) / 1000).toFixed(1)} s  ${name}${told ? `: ${told}` : ""}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED  ${((performance.now() - begun) / 1000).toFixed(1)} s  ${name}\n${error.stack}`);
  }
  clearTimeout(timer);
  for (const context of browser.contexts()) await context.close();
}
await browser.close();
for (const host of hosts.values()) await host.stop();
console.log(failed ? `${failed} failed` : "all passed");
process.exit(failed ? 1 : 0);
