// How it looks and works for everybody: both widths, both colours, by keyboard, with very many models and very long names, and
// for a long time.

import assert from "node:assert/strict";
import { join } from "node:path";

import { SCHEMES, WIDTHS, act, live, open, overflow, stateOf, violations } from "./browser.mjs";

const fine = (page) => assert.deepEqual(page.faults, []);
const TABS = ["chat", "image", "music", "vectors", "options"];

// As long as a name may be.
const LONG = `org/${"a-very-long-name-".repeat(7)}upon`.slice(0, 128);
const MARKUP = "<img src=x onerror=alert(1)>&amp;<script>alert(2)</script>";

const views = async (page, name, screens, check) => {
  const shot = (part) => screens && page.screenshot({ path: join(screens, `${name}-${part}.png`), fullPage: true });
  await check("host");
  await shot("host");
  await page.click("#to-play");
  for (const tab of TABS) {
    await page.click(`#tab-${tab}`);
    if (tab === "options") await page.locator("#options-fields .option").first().waitFor();
    await check(tab);
    await shot(tab);
  }
  await page.click("#key-open");
  await check("key");
  await shot("key");
  await page.click("#key-close");
  await page.click("#to-host");
};

const busy = async (host) => {
  const chat = (model, content) => host.ask("/v1/chat/completions", { model, messages: [{ role: "user", content }], max_tokens: 20 });
  await chat("talker", "hello");
  await chat("broken", "hello");
  await chat("slow", "hello");
  await host.ask("/models/park", { model: "talker" });
  await host.ask("/v1/embeddings", { model: "words", input: ["a", "b"] });
  await host.ask("/v1/images/generations", { model: "fox", prompt: "a job", size: "48x32", steps: 2, background: true });
};

export const cases = {
  "look: nothing to object to for an accessibility engine, at both widths and in both colours": async ({ browser, start, screens }) => {
    const { everyKind } = await import("./host.mjs");
    const host = await start({ yaml: everyKind() });
    await busy(host);
    const found = [];
    for (const scheme of SCHEMES) {
      for (const [name, size] of Object.entries(WIDTHS)) {
        const page = await open(browser, host, { size, scheme });
        await live(page);
        await page.waitForTimeout(400);
        await views(page, `${scheme}-${name}`, screens, async (part) => {
          for (const one of await violations(page)) found.push(`${scheme} ${name} ${part}: ${one}`);
          const beyond = await overflow(page);
          if (beyond > 0) found.push(`${scheme} ${name} ${part}: the page is ${beyond} px too wide`);
        });
        fine(page);
        await page.context().close();
      }
    }
    assert.deepEqual(found, []);
  },

  "look: everything is reached and worked by keyboard": async ({ browser, shared }) => {
    const host = await shared();
    const page = await open(browser, host);
    await live(page);
    const focused = () => page.evaluate(() => (document.activeElement.id && `#${document.activeElement.id}`) || document.activeElement.dataset.act || document.activeElement.className);
    await page.keyboard.press("Tab");
    assert.equal(await focused(), "skip");
    const reached = [];
    for (let step = 0; step < 90 && !reached.includes("#log"); step += 1) {
      await page.keyboard.press("Tab");
      reached.push(await focused());
      const ring = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
      assert.notEqual(ring, "none", `no focus is seen at ${reached.at(-1)}`);
    }
    for (const wanted of ["#to-host", "#to-play", "#key-open", "#models-filter", "#models-up", "load", "pin", "log", "try", "#requests-filter", "#log-model", "#log-follow"]) {
      assert.ok(reached.includes(wanted), `${wanted} is not reached: ${reached}`);
    }
    // Other cases may have left it loaded.
    await host.ask("/models/unload", { model: "words" });
    await stateOf(page, "words", "cold");
    await page.focus("#models-filter");
    await page.keyboard.type("words");
    await page.keyboard.press("Tab");
    await page.keyboard.press("Tab");
    await page.keyboard.press("Tab");
    assert.equal(await focused(), "load");
    await page.keyboard.press("Enter");
    await stateOf(page, "words", "hot");
    await page.focus("#to-play");
    await page.keyboard.press("Enter");
    await page.focus("#tab-chat");
    await page.keyboard.press("ArrowRight");
    assert.equal(await focused(), "#tab-image");
    await page.keyboard.press("End");
    assert.equal(await focused(), "#tab-options");
    await page.keyboard.press("Home");
    assert.equal(await focused(), "#tab-chat");
    await page.focus("#key-open");
    await page.keyboard.press("Enter");
    assert.equal(await focused(), "#key");
    await page.keyboard.press("Escape");
    assert.equal(await focused(), "#key-open");
    await host.ask("/models/unload", { model: "words" });
    fine(page);
  },

  "look: very long names and names with markup stay text, and stay in their place": async ({ browser, start, screens }) => {
    const host = await start({
      yaml: `devices: [{id: cpu, memory: 1GiB}]\nmodels:\n  ${LONG}: {type: text, plugin: aihost/echo}\n  markup: {type: image, plugin: flux, source: {path: ${JSON.stringify(`/nowhere/${MARKUP}`)}}}\n  large: {type: text, plugin: aihost/faulty, options: {fault: huge_error, bytes: 100000}}\n  forged: {type: text, plugin: aihost/faulty, options: {fault: forge}}\n`,
    });
    for (const [name, size] of Object.entries(WIDTHS)) {
      const page = await open(browser, host, { size });
      await live(page);
      await host.ask("/models/load", { model: "markup" });
      for (const model of [LONG, "large", "forged"]) await host.ask("/v1/chat/completions", { model, messages: [{ role: "user", content: "x" }] });
      await page.locator("#requests tr").nth(2).waitFor();
      await page.locator("#attention-list .cause", { hasText: MARKUP.slice(0, 20) }).waitFor();
      await act(page, "forged", "log");
      await page.waitForTimeout(300);
      assert.equal(await page.locator("main img, main script").count(), 0);
            assert.equal(await overflow(page), 0);
      if (screens) await page.screenshot({ path: join(screens, `long-${name}.png`), fullPage: true });
      fine(page);
      await page.context().close();
    }
  },

  "look: five hundred models are smooth": async ({ browser, start, screens }) => {
    const { everyKind } = await import("./host.mjs");
    const host = await start({ yaml: everyKind(500) });
    const page = await open(browser, host);
    await live(page);
    assert.match(await page.innerText("#models-count"), /^507 models/);
    await page.evaluate(() => {
      globalThis.delays = [];
      new PerformanceObserver((list) => {
        for (const entry of list.getEntries()) if (entry.name === "keydown" || entry.name === "input") globalThis.delays.push(entry.duration);
      }).observe({ type: "event", durationThreshold: 16 });
    });
    let isOver = false;
    const bustle = (async () => {
      for (let at = 0; !isOver; at += 1) {
        const model = `library/model-${String(at % 40).padStart(3, "0")}`;
        await host.ask("/v1/chat/completions", { model, messages: [{ role: "user", content: "x" }] });
        await new Promise((done) => setTimeout(done, 150));
      }
      return true;
    })();
    await page.focus("#models-filter");
    let keys = 0;
    for (const word of ["library model-3", "talker", "model-49", "hot", "echo cold"]) {
      for (const letter of word) {
        await page.keyboard.type(letter);
        keys += 1;
        await page.waitForTimeout(40);
      }
      await page.keyboard.press("Control+A");
      await page.keyboard.press("Delete");
      keys += 2;
    }
    await page.waitForTimeout(500);
    isOver = true;
    await bustle;
    const delays = await page.evaluate(() => globalThis.delays);
    // What is not told took less than 16 ms.
    while (delays.length < keys) delays.push(16);
    delays.sort((a, b) => a - b);
    const p95 = delays[Math.floor(delays.length * 0.95)];
    if (screens) {
      await page.screenshot({ path: join(screens, "many-wide.png") });
      await page.setViewportSize(WIDTHS.narrow);
      assert.equal(await overflow(page), 0);
      await page.screenshot({ path: join(screens, "many-narrow.png") });
    }
    fine(page);
    assert.ok(p95 < 100, `95 of 100 inputs are shown after ${p95} ms`);
    return `95 of 100 inputs are shown within ${Math.round(p95)} ms, the slowest of ${delays.length} after ${Math.round(delays.at(-1))} ms`;
  },

  "look: a page that is left open does not grow, and neither does its host": async ({ browser, start, seconds }) => {
    const { everyKind } = await import("./host.mjs");
    const host = await start({ yaml: everyKind() });
    const page = await open(browser, host);
    await live(page);
    const session = await page.context().newCDPSession(page);
    await session.send("Performance.enable");
    const look = async () => {
      await session.send("HeapProfiler.collectGarbage");
      const { metrics } = await session.send("Performance.getMetrics");
      const of = (name) => metrics.find((one) => one.name === name).value;
      return { heap: of("JSHeapUsedSize"), nodes: of("Nodes"), listeners: of("JSEventListeners"), ...(await host.size()) };
    };
    let isOver = false;
    let asked = 0;
    const bustle = (async () => {
      while (!isOver) {
        const model = asked % 25 === 24 ? "words" : "talker";
        if (model === "words") {
          await host.ask("/v1/embeddings", { model, input: ["x"] });
          await host.ask("/models/unload", { model });
        } else {
          await host.ask("/v1/chat/completions", { model, messages: [{ role: "user", content: "x" }] });
        }
        asked += 1;
        // The lists are to be full soon; over an hour there is time.
        await new Promise((done) => setTimeout(done, seconds > 300 ? 250 : 40));
      }
    })();
    // The lists are full after two hundred requests and some swaps: what grows from then on is a leak.
    const begun = performance.now();
    const warm = Math.max(20, Math.min(120, seconds / 3));
    await new Promise((done) => setTimeout(done, warm * 1000));
    const first = await look();
    const rest = seconds * 1000 - (performance.now() - begun);
    await new Promise((done) => setTimeout(done, Math.max(10000, rest)));
    const last = await look();
    isOver = true;
    await bustle;
    const told = `${asked} requests in ${Math.round((performance.now() - begun) / 1000)} s; heap ${first.heap} to ${last.heap} bytes, ${first.nodes} to ${last.nodes} nodes, ${first.listeners} to ${last.listeners} listeners; host ${first.resident} to ${last.resident} bytes, ${first.files} to ${last.files} files`;
    assert.ok(last.heap - first.heap < 2 << 20, told);
    assert.ok(last.nodes - first.nodes < 1500 && last.listeners - first.listeners < 400, told);
    assert.ok(last.resident - first.resident < 24 << 20 && last.files - first.files < 8, told);
    await live(page);
    fine(page);
    return told;
  },
};
