// The playground: chat, images, music, vectors, options, and what is copied from it.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtemp, readFile, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

import { act, live, open } from "./browser.mjs";

const run = promisify(execFile);
const fine = (page) => assert.deepEqual(page.faults, []);

const playing = async ({ browser, shared }, tab) => {
  const host = await shared();
  const page = await open(browser, host, { path: "/#play" });
  await live(page);
  await page.click(`#tab-${tab}`);
  return { host, page };
};

const copied = async (page, tab, what) => {
  await page.evaluate(() => navigator.clipboard.writeText("nothing"));
  await page.locator(`[data-snippets=${tab}] button`, { hasText: what }).click();
  await page.locator("#toast", { hasText: `${what} copied` }).waitFor();
  return page.evaluate(() => navigator.clipboard.readText());
};

export const cases = {
  "play: a chat is streamed, its reasoning is folded, its calls are shown, and markup is text": async (bench) => {
    const { page } = await playing(bench, "chat");
    await page.selectOption("#chat-form [name=model]", "talker");
    await page.fill("#chat-send [name=message]", 'think: let me see\nsay: <b id="bold">hello</b> there\ncall: now {"zone": "utc"}');
    await page.click("#chat-send [type=submit]");
    const turn = page.locator(".turn.assistant").last();
    await turn.locator(".calls pre").waitFor();
    assert.match(await turn.locator(".calls pre").innerText(), /^now\(\{"zone": ?"utc"\}\)$/);
    assert.equal((await turn.locator(":scope > .text").innerText()).trim(), '<b id="bold">hello</b> there');
    assert.equal(await page.locator("#bold").count(), 0);
    const thinking = turn.locator("details.thinking");
    assert.equal(await thinking.getAttribute("open"), null);
    await thinking.locator("summary").click();
    assert.equal((await thinking.locator(".text").innerText()).trim(), "let me see");
    assert.match(await turn.locator(".sub").innerText(), /first token after .* · \d+ tokens/);
    // It goes on from what was said.
    await page.fill("#chat-send [name=message]", "and again");
    await page.press("#chat-send [name=message]", "Enter");
    await page.waitForFunction(() => document.querySelectorAll(".turn").length === 4);
    await page.click("#chat-new");
    assert.equal(await page.locator(".turn").count(), 0);
    fine(page);
  },

  "play: an answer is stopped": async (bench) => {
    const { host, page } = await playing(bench, "chat");
    await page.selectOption("#chat-form [name=model]", "slow");
    await page.fill("#chat-send [name=message]", "on and on");
    await page.click("#chat-send [type=submit]");
    await page.waitForFunction(() => document.querySelector(".turn.assistant > .text")?.textContent.length > 20, null, { timeout: 20000 });
    await page.click("#chat-stop");
    await page.locator("#chat-said", { hasText: "stopped" }).waitFor();
    const { body } = await host.ask("/admin/overview");
    assert.ok(body.models.find((model) => model.id === "slow").active <= 1);
    await page.click("#to-host");
    await page.locator("#requests .status", { hasText: "left" }).first().waitFor();
    await host.ask("/models/unload", { model: "slow" });
    fine(page);
  },

  "play: bad tools and a refusal are said where they are": async (bench) => {
    const { page } = await playing(bench, "chat");
    await page.selectOption("#chat-form [name=model]", "broken");
    await page.fill("#chat-form [name=tools]", "[{");
    await page.fill("#chat-send [name=message]", "hi");
    await page.click("#chat-send [type=submit]");
    await page.locator("#chat-said", { hasText: "Tools must be JSON" }).waitFor();
    await page.fill("#chat-form [name=tools]", "");
    await page.fill("#chat-send [name=message]", "hi");
    await page.click("#chat-send [type=submit]");
    await page.locator("#chat-said", { hasText: "The answer ended: " }).waitFor();
    fine(page);
  },

  "play: what is copied for a shell, Python and JavaScript does the same": async (bench) => {
    const { page } = await playing(bench, "chat");
    await page.selectOption("#chat-form [name=model]", "talker");
    await page.fill("#chat-send [name=message]", `it's "quoted" $HOME`);
    const shell = await copied(page, "chat", "curl");
    const said = JSON.parse((await run("sh", ["-c", shell])).stdout).choices[0].message.content;
    assert.equal(said.trim(), `it's "quoted" $HOME`);
    const folder = await mkdtemp(join(tmpdir(), "aihost-snippets-"));
    await writeFile(join(folder, "ask.py"), await copied(page, "chat", "Python"));
    const python = (await run("python3", [join(folder, "ask.py")])).stdout;
    assert.match(python, /it's "quoted" \$HOME|it\\'s "quoted" \$HOME/);
    await writeFile(join(folder, "ask.mjs"), await copied(page, "chat", "JavaScript"));
    const javascript = (await run("node", [join(folder, "ask.mjs")])).stdout;
    assert.equal(JSON.parse(javascript).choices[0].message.content.trim(), `it's "quoted" $HOME`);

    await page.click("#tab-vectors");
    const vectors = JSON.parse((await run("sh", ["-c", await copied(page, "vectors", "curl")])).stdout);
    assert.equal(vectors.data.length, 3);
    await page.click("#tab-music");
    await page.fill("#music-form [name=prompt]", "a beat");
    await page.fill("#music-form [name=duration]", "0.4");
    await run("sh", ["-c", await copied(page, "music", "curl")], { cwd: folder });
    assert.equal((await readFile(join(folder, "out.wav"))).subarray(0, 4).toString(), "RIFF");
    fine(page);
  },

  "play: an image comes out step by step, and its PNG tells what made it": async (bench) => {
    const { page } = await playing(bench, "image");
    await page.selectOption("#image-form [name=model]", "fox");
    const fields = { prompt: "a red fox, \u72d0 <i>", size: "48x32", steps: "12", seed: "7", guidance: "4" };
    for (const [name, value] of Object.entries(fields)) await page.fill(`#image-form [name=${name}]`, value);
    await page.fill("#image-form [name=partial_images]", "3");
    await page.evaluate(() => {
      globalThis.partials = 0;
      globalThis.steps = 0;
      new MutationObserver((all) => {
        globalThis.partials += all.filter((one) => one.attributeName === "src").length;
        if (/Step \d+ of 12/.test(document.querySelector("#image-said").textContent)) globalThis.steps += 1;
      }).observe(document.querySelector("#play-image"), { subtree: true, childList: true, attributes: true });
    });
    await page.click("#image-form [type=submit]");
    const figure = page.locator("#image-out figure[data-state=done]").first();
    await figure.waitFor({ timeout: 30000 });
    const seen = await page.evaluate(() => [globalThis.partials, globalThis.steps]);
    assert.ok(seen[0] >= 3 && seen[1] >= 1, `${seen}`);
    assert.match(await figure.locator("figcaption").innerText(), /seed 7, 48x32/);
    assert.equal(await figure.locator("img").evaluate((image) => image.naturalWidth), 48);
    const waits = page.waitForEvent("download");
    await figure.locator("a", { hasText: "Save" }).click();
    const file = await (await waits).path();
    const png = [...(await readFile(file))];

    for (const name of Object.keys(fields)) await page.fill(`#image-form [name=${name}]`, name === "size" ? "64x64" : "1");
    await page.evaluate((bytes) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([new Uint8Array(bytes)], "made.png", { type: "image/png" }));
      document.querySelector("#image-drop").dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
    }, png);
    await page.locator("#image-said", { hasText: "Read from made.png: prompt, model, seed, steps, size, guidance" }).waitFor();
    for (const [name, value] of Object.entries(fields)) assert.equal(await page.inputValue(`#image-form [name=${name}]`), value, name);
    await page.setInputFiles("#image-file", { name: "text.png", mimeType: "image/png", buffer: Buffer.from("no image at all") });
    await page.locator("#image-said", { hasText: "text.png is no PNG." }).waitFor();
    fine(page);
  },

  "play: music has a player and a waveform": async (bench) => {
    const { page } = await playing(bench, "music");
    await page.selectOption("#music-form [name=model]", "tune");
    await page.fill("#music-form [name=prompt]", "lo-fi beat");
    await page.fill("#music-form [name=duration]", "1");
    await page.click("#music-form [type=submit]");
    const track = page.locator("#music-out figure").first();
    await track.waitFor({ timeout: 60000 });
    assert.ok((await track.locator(".wave path").getAttribute("d")).length > 500);
    const waits = page.waitForEvent("download");
    await track.locator("a", { hasText: "Save" }).click();
    const made = await readFile(await (await waits).path());
    assert.equal(made.readUInt32LE(4), made.length - 8, "the head knows how long it is");
    // The tiny model has fewer samples a second than this browser plays, which is said.
    await track.locator("p", { hasText: "does not play 1600 samples a second" }).waitFor();

    // The same with a rate that real models have.
    await page.route("**/v1/audio/generations", (route) => {
      const wav = Buffer.concat([made.subarray(0, 44), Buffer.alloc(32000)]);
      wav.writeUInt32LE(16000, 24);
      wav.writeUInt32LE(32000, 28);
      const events = [
        { type: "audio_generation.progress", done: 1, total: 2 },
        { type: "audio_generation.delta", audio: wav.toString("base64") },
        { type: "audio_generation.done", response_format: "wav", sample_rate: 16000, channels: 1, seconds: 1 },
      ];
      return route.fulfill({ contentType: "text/event-stream", body: events.map((one) => `event: ${one.type}\ndata: ${JSON.stringify(one)}\n\n`).join("") });
    });
    await page.click("#music-form [type=submit]");
    await page.waitForFunction(() => document.querySelector("#music-out audio")?.duration > 0);
    assert.equal(await page.locator("#music-out audio").first().evaluate((audio) => audio.duration), 1);
    await page.locator("#music-out audio").first().evaluate((audio) => audio.play());
    await page.waitForFunction(() => document.querySelector("#music-out audio").currentTime > 0);
    fine(page);
  },

  "play: lines are compared": async (bench) => {
    const { page } = await playing(bench, "vectors");
    await page.fill("#vectors-form [name=input]", "one\none\nsomething else <b>");
    await page.click("#vectors-form [type=submit]");
    await page.locator("#vectors-out tbody tr").nth(2).waitFor();
    const cells = await page.locator("#vectors-out tbody td").allInnerTexts();
    assert.equal(cells.length, 9);
    assert.deepEqual([cells[0], cells[1], cells[4], cells[8]], ["1.000", "1.000", "1.000", "1.000"]);
    assert.ok(Number(cells[2]) < 1);
    await page.fill("#vectors-form [name=input]", Array.from({ length: 30 }, (_, at) => `${at}`).join("\n"));
    await page.click("#vectors-form [type=submit]");
    await page.locator("#vectors-said", { hasText: "from 1 to 24 lines" }).waitFor();
    fine(page);
  },

  "play: the options of a plugin are a form, and what models.yaml says of them": async (bench) => {
    const { page } = await playing(bench, "options");
    await page.selectOption("#options-form [name=model]", "slow");
    const field = page.locator("#options-fields [name=latency_ms]");
    await field.waitFor();
    assert.equal(await field.inputValue(), "40");
    assert.match(await page.innerText("#options-fields"), /Milliseconds before each token/);
    await field.fill("15");
    assert.match(await page.innerText("#options-out"), /slow:\n {4}options:\n(.|\n)* {6}latency_ms: 15/);
    await page.click("#options-copy");
    await page.locator("#toast", { hasText: "Options copied" }).waitFor();
    assert.match(await page.evaluate(() => navigator.clipboard.readText()), /latency_ms: 15/);
    fine(page);
  },

  "play: a model is tried from its row": async ({ browser, shared }) => {
    const page = await open(browser, await shared());
    await live(page);
    await act(page, "tune", "try");
    await page.locator("#play-music").waitFor();
    assert.equal(await page.inputValue("#music-form [name=model]"), "tune");
    fine(page);
  },
};
