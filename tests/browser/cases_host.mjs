// The view of the host: devices, models and what is done with them, swaps, requests, jobs, the log.

import assert from "node:assert/strict";

import { act, live, open, row, stateOf } from "./browser.mjs";

const clipboard = (page) => page.evaluate(() => navigator.clipboard.readText());

const fine = (page) => assert.deepEqual(page.faults, []);

const chat = (host, model, content, extra = {}) =>
  host.ask("/v1/chat/completions", { model, messages: [{ role: "user", content }], ...extra });

export const cases = {
  "host: devices are told in figures and as a picture with words": async ({ browser, shared }) => {
    const page = await open(browser, await shared());
    await live(page);
    const device = page.locator(".device[aria-label='Device cpu']");
    for (const title of ["Budget", "Used by models", "Used by others", "Free", "Total"]) {
      const figure = device.locator(".figure", { hasText: title }).locator("dd").first();
      assert.match(await figure.innerText(), /^\d[\d.]* (MiB|GiB|TiB)$/, title);
    }
    const words = await device.locator("svg title").textContent();
    assert.match(words, /^Memory of cpu: models use .* of a budget of 1\.0 GiB/);
    // The picture grows: a sample comes every ten seconds.
    await page.waitForFunction(() => document.querySelector(".area.held").getAttribute("d")?.startsWith("M"), null, { timeout: 30000 });
    fine(page);
  },

  "host: a model is filtered, loaded, parked, woken, pinned and unloaded by hand": async ({ browser, shared }) => {
    const host = await shared();
    const page = await open(browser, host);
    await live(page);
    await page.fill("#models-filter", "talk");
    await page.waitForFunction(() => document.querySelectorAll("#models-body tr").length === 1);
    assert.match(await page.innerText("#models-count"), /^1 of 7 models/);
    await page.fill("#models-filter", "no such thing");
    assert.equal(await page.innerText("#models-empty"), "No model fits the filter.");
    await page.fill("#models-filter", "");

    await act(page, "talker", "load");
    await stateOf(page, "talker", "hot");
    assert.equal(await page.innerText("#toast"), "talker: loaded");
    const swap = page.locator(".swap", { hasText: "Load talker" }).first();
    await swap.waitFor();
    assert.match(await swap.locator(".lane").getAttribute("aria-label"), /start of the worker .*load .*, done$/);
    assert.match(await swap.innerText(), /asked by an operator/);

    await act(page, "talker", "park");
    await stateOf(page, "talker", "parked");
    await page.locator(".swap", { hasText: "Park talker" }).first().waitFor();
    await act(page, "talker", "load");
    await stateOf(page, "talker", "hot");
    await page.locator(".swap", { hasText: "Wake talker" }).first().waitFor();

    await act(page, "talker", "pin");
    await row(page, "talker").locator("button[data-act=pin][aria-pressed=true]").waitFor();
    assert.equal((await host.ask("/admin/status")).body.find((model) => model.id === "talker").pinned, true);
    await act(page, "talker", "pin");
    await row(page, "talker").locator("button[data-act=pin][aria-pressed=false]").waitFor();

    await page.check("#models-up");
    await row(page, "words").waitFor({ state: "detached" });
    await page.uncheck("#models-up");
    await act(page, "talker", "unload");
    await stateOf(page, "talker", "cold");
    await page.locator(".swap", { hasText: "Unload talker" }).first().waitFor();
    fine(page);
  },

  "host: a model that fails at once stands there with its cause and one command": async ({ browser, shared }) => {
    const page = await open(browser, await shared());
    await live(page);
    await act(page, "broken", "load");
    const card = page.locator("#attention-list li", { hasText: "broken" });
    await card.waitFor();
    assert.match(await card.locator(".cause").innerText(), /\w+ \w+ \w+/);
    await card.locator("button", { hasText: "Copy" }).click();
    await page.locator("#toast", { hasText: "copied" }).waitFor();
    assert.equal(await clipboard(page), "aihost models load broken");
    const swap = page.locator(".swap[data-outcome=failed]", { hasText: "broken" }).first();
    await swap.waitFor();
    assert.ok((await swap.locator(".cause").innerText()).length > 10);
    assert.match(await page.innerText("#toast"), /copied/);
    fine(page);
  },

  "host: who waits and for how long, and the seconds that a load has to go": async ({ browser, shared }) => {
    const host = await shared();
    const page = await open(browser, host);
    await live(page);
    // How long it takes is known once it was loaded.
    assert.equal((await host.ask("/models/load", { model: "slow" })).status, 200);
    await host.ask("/models/unload", { model: "slow" });
    const answer = chat(host, "slow", "hi", { max_tokens: 2 });
    const waiting = page.locator("#waiting li", { hasText: "slow" });
    await waiting.waitFor();
    assert.match(await waiting.innerText(), /req_\w+, for the model to be loaded/);
    await page.waitForFunction(() => /(\d+ s to go|longer than)/.test(document.querySelector("#models-body").innerText), null, { timeout: 5000 });
    assert.equal((await answer).status, 200);
    await page.waitForFunction(() => document.querySelector("#waiting-empty").checkVisibility());
    await host.ask("/models/unload", { model: "slow" });
    fine(page);
  },

  "host: each request has a row with its figures, and never what it said": async ({ browser, shared }) => {
    const host = await shared();
    const page = await open(browser, host);
    await live(page);
    const told = await fetch(`${host.base}/v1/chat/completions`, {
      method: "POST",
      headers: { "content-type": "application/json", "x-request-id": "shown-1" },
      body: JSON.stringify({ model: "talker", messages: [{ role: "user", content: "a secret that nobody is to read" }] }),
    });
    assert.equal(told.status, 200);
    const one = page.locator("#requests tr", { hasText: "shown-1" });
    await one.waitFor();
    const cells = await one.locator("td, th").allInnerTexts();
    assert.match(cells[1], /talker/);
    assert.match(cells[2], /^200/);
    assert.match(cells[3], /\d+ ms/);
    assert.match(cells[4], /\d/);
    assert.match(cells[6], /\d+ → \d+/);
    await chat(host, "talker", "x", { temperature: 9 });
    await page.locator("#requests tr .status[data-bad]").first().waitFor();
    await page.fill("#requests-filter", "shown-1");
    await page.waitForFunction(() => [...document.querySelectorAll("#requests tr")].filter((row) => !row.hidden).length === 1);
    await page.fill("#requests-filter", "");
    const whole = JSON.stringify((await host.ask("/admin/overview")).body) + (await page.content());
    assert.ok(!whole.includes("nobody is to read"), "a prompt is shown");
    fine(page);
  },

  "host: jobs are seen from their beginning to their end, and ended": async ({ browser, shared }) => {
    const host = await shared();
    const page = await open(browser, host);
    await live(page);
    const ask = (more) => host.ask("/v1/images/generations", { model: "fox", prompt: "a job", background: true, ...more });
    const { body } = await ask({ size: "48x32", steps: 3 });
    await page.locator("#jobs li", { hasText: body.id }).locator(".state[data-state=completed]").waitFor({ timeout: 20000 });
    const long = await ask({ size: "256x256", steps: 100, n: 10 });
    const item = page.locator("#jobs li", { hasText: long.body.id });
    await item.waitFor();
    await item.locator("button").click();
    await page.click("#ask-yes");
    await item.locator(".state[data-state=cancelled]").waitFor();
    fine(page);
  },

  "host: the log follows, and thousands of lines a second cost neither the page nor its reader": async ({ browser, start, shared }) => {
    void shared;
    const host = await start({
      yaml: `devices: [{id: cpu, memory: 1GiB}]\nmodels:\n  noisy: {type: text, plugin: aihost/faulty, options: {fault: many_records, bytes: 4000000}}\n  calm: {type: text, plugin: aihost/echo}\n`,
    });
    const page = await open(browser, host);
    await live(page);
    await act(page, "noisy", "log");
    await page.waitForFunction(() => document.activeElement.id === "log");
    await page.locator("#log-hint", { hasText: "following" }).waitFor();
    for (let round = 0; round < 3; round += 1) await chat(host, "noisy", "shout");
    await page.waitForFunction(() => document.querySelector("#log").textContent.length > 200);
    const lines = await page.evaluate(() => document.querySelector("#log").innerText.split("\n").length);
    assert.ok(lines <= 2100, `${lines} lines`);
    // Whatever comes, it is cut: the page's own limit, by a stream of its own making.
    await page.route("**/logs/calm*", (route) => {
      const body = Array.from({ length: 20000 }, (_, at) => `data: line ${at} <img src=x>\n\n`).join("");
      return route.fulfill({ contentType: "text/event-stream", body });
    });
    await page.selectOption("#log-model", "calm");
    await page.locator("#log .skipped").waitFor();
    assert.match(await page.textContent("#log .skipped"), /19000 lines came faster than can be shown/);
    assert.equal(await page.locator("#log img").count(), 0);
    await page.uncheck("#log-follow");
    await page.click("#log-clear");
    assert.equal((await page.innerText("#log")).trim(), "");
    fine(page);
  },

  "host: two browsers see the same": async ({ browser, shared }) => {
    const host = await shared();
    const pages = await Promise.all([open(browser, host), open(browser, host)]);
    await Promise.all(pages.map(live));
    await act(pages[0], "words", "load");
    await Promise.all(pages.map((page) => stateOf(page, "words", "hot")));
    await act(pages[1], "words", "unload");
    await Promise.all(pages.map((page) => stateOf(page, "words", "cold")));
    pages.forEach(fine);
  },
};
