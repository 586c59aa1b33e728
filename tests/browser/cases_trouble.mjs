// When something is wrong: no key, a wrong one, one that is not enough, a host that dies, a proxy that holds everything back.

import assert from "node:assert/strict";
import { createServer, request as ask } from "node:http";
import { once } from "node:events";
import { join } from "node:path";

import { act, live, open, stateOf } from "./browser.mjs";
import { everyKind } from "./host.mjs";

const fine = (page) => assert.deepEqual(page.faults, []);

// Before this host, as a proxy is that keeps an answer until it has all of it.
const holding = async (host) => {
  const server = createServer((received, reply) => {
    const sent = ask(host.base + received.url, { method: received.method, headers: { ...received.headers, host: `127.0.0.1:${host.port}` } }, (answer) => {
      const pieces = [];
      answer.on("data", (piece) => pieces.push(piece));
      answer.on("end", () => {
        reply.writeHead(answer.statusCode, answer.headers);
        reply.end(Buffer.concat(pieces));
      });
    });
    sent.on("error", () => reply.destroy());
    reply.on("close", () => sent.destroy());
    received.pipe(sent);
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  return { base: `http://127.0.0.1:${server.address().port}`, close: () => server.closeAllConnections() || server.close() };
};

export const cases = {
  "trouble: a key is asked for once, a wrong one is said to be wrong, one that is not enough too": async ({ browser, start }) => {
    const host = await start({
      yaml: `api_keys: [{name: chief, key: env:PAGE_CHIEF, scope: [use, operate]}, {name: guest, key: env:PAGE_GUEST, scope: use}]\n${everyKind()}`,
      env: { PAGE_CHIEF: "the-key-of-the-chief", PAGE_GUEST: "the-key-of-a-guest" },
    });
    const page = await open(browser, host);
    await page.locator("#key-dialog[open]").waitFor();
    assert.equal(await page.innerText("#key-why"), "This host asks for an API key.");
    const give = async (key) => {
      await page.fill("#key", key);
      await page.press("#key", "Enter");
    };
    await give("wrong");
    await page.locator("#key-why", { hasText: "does not know this key" }).waitFor();
    await give("the-key-of-a-guest");
    await page.locator("#key-why", { hasText: "This key is not enough" }).waitFor();
    // It may ask models all the same.
    await page.keyboard.press("Escape");
    await page.click("#to-play");
    await page.fill("#chat-send [name=message]", "hello");
    await page.selectOption("#chat-form [name=model]", "talker");
    await page.press("#chat-send [name=message]", "Enter");
    await page.locator(".turn.assistant .text", { hasText: "hello" }).waitFor();
    await page.click("#to-host");
    await page.click("#key-open");
    await give("the-key-of-the-chief");
    await live(page);
    assert.equal(await page.locator("#key-dialog[open]").count(), 0);
    await act(page, "words", "load");
    await stateOf(page, "words", "hot");
    // Nowhere but in memory.
    const kept = await page.evaluate(() => [Object.keys(localStorage).length, Object.keys(sessionStorage).length, document.cookie, location.origin, location.search].join(" "));
    assert.equal(kept, `0 0  ${host.base} `);
    assert.ok(!(await page.content()).includes("the-key-of"));
    // What is copied names a variable.
    await page.click("#to-play");
    await page.locator("[data-snippets=chat] button", { hasText: "curl" }).click();
    const curl = await page.evaluate(() => navigator.clipboard.readText());
    assert.ok(curl.includes("$AIHOST_API_KEY") && !curl.includes("the-key-of"), curl);
    fine(page);
  },

  "trouble: a host that dies is said to be lost within three seconds, and found again": async ({ browser, start, screens }) => {
    const host = await start({ yaml: everyKind() });
    const page = await open(browser, host);
    await live(page);
    await act(page, "talker", "load");
    await stateOf(page, "talker", "hot");
    const killed = performance.now();
    await host.kill();
    await page.locator("#connection", { hasText: "Connection lost" }).waitFor({ timeout: 3000 });
    const lost = performance.now() - killed;
    if (screens) await page.screenshot({ path: join(screens, "dead.png") });
    await host.up();
    await live(page);
    // It is another process, which has nothing loaded.
    await stateOf(page, "talker", "cold");
    // One that hangs says nothing either.
    host.child.kill("SIGSTOP");
    const stopped = performance.now();
    await page.locator("#connection", { hasText: "Connection lost" }).waitFor({ timeout: 3500 });
    const hung = performance.now() - stopped;
    host.child.kill("SIGCONT");
    await live(page);
    fine(page);
    assert.ok(lost < 3000 && hung < 3000, `${lost} ms, ${hung} ms`);
    return `said ${Math.round(lost)} ms after it was killed, ${Math.round(hung)} ms after it was stopped`;
  },

  "trouble: behind a proxy that holds the stream back the page says so and goes on": async ({ browser, shared }) => {
    const host = await shared();
    const proxy = await holding(host);
    const page = await open(browser, proxy);
    await page.locator("#connection", { hasText: "Updates are late" }).waitFor({ timeout: 15000 });
    await host.ask("/models/load", { model: "talker" });
    await stateOf(page, "talker", "hot");
    await host.ask("/models/unload", { model: "talker" });
    await stateOf(page, "talker", "cold");
    fine(page);
    await page.context().close();
    proxy.close();
  },
};
