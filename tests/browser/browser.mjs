// The browser, and what every test does with it. A page that throws, or breaks its own policy, fails whatever is tested.

import { createRequire } from "node:module";
import { join } from "node:path";
import { readFile } from "node:fs/promises";

// The packages lie outside of the repository: the variable names the folder that has node_modules.
const modules = createRequire(join(process.env.AIHOST_BROWSER_MODULES, "package.json"));
const { chromium } = modules("playwright-core");
const axe = await readFile(modules.resolve("axe-core/axe.min.js"), "utf8");

export const WIDTHS = { wide: { width: 1440, height: 1000 }, narrow: { width: 375, height: 812 } };
export const SCHEMES = ["light", "dark"];

export const launch = () =>
  chromium.launch({
    executablePath: process.env.AIHOST_CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-dev-shm-usage", "--autoplay-policy=no-user-gesture-required"],
  });

// A page of this host. `faults` gets what went wrong in it.
export const open = async (browser, host, { size = WIDTHS.wide, scheme = "light", path = "/" } = {}) => {
  const context = await browser.newContext({ viewport: size, colorScheme: scheme, acceptDownloads: true });
  await context.grantPermissions(["clipboard-read", "clipboard-write"]);
  const page = await context.newPage();
  page.faults = [];
  page.on("pageerror", (error) => page.faults.push(`the page threw: ${error.stack}`));
  page.on("console", (message) => {
    // A request that the host refuses, or that nobody answers, is the browser's own line; what comes of it is tested.
    if (message.type() === "error" && !/Failed to load resource/.test(message.text())) page.faults.push(message.text());
  });
  const assets = process.env.AIHOST_PAGE_ASSETS;
  if (assets) {
    const serve = async (route, name) => {
      const kinds = { html: "text/html", css: "text/css", js: "text/javascript", svg: "image/svg+xml" };
      const body = await readFile(join(assets, name));
      await route.fulfill({ body, contentType: `${kinds[name.split(".").at(-1)]}; charset=utf-8` });
    };
    await page.route(/\/page\/[a-z_.]+$/, (route) => serve(route, route.request().url().split("/").at(-1)));
    await page.route((url) => url.pathname === "/", (route) => serve(route, "index.html"));
  }
  await page.goto(host.base + path);
  return page;
};

export const live = (page) => page.locator("#connection[data-state=live]").waitFor({ timeout: 10000 });

export const row = (page, model) => page.locator("#models-body tr").filter({ has: page.locator(`.name[title="${model}"]`) });

export const stateOf = (page, model, state) => row(page, model).locator(`.state[data-state=${state}]`).waitFor({ timeout: 20000 });

export const act = (page, model, name) => row(page, model).locator(`button[data-act=${name}]`).click();

// What an engine for accessibility finds: contrast, labels, roles.
export const violations = async (page) => {
  await page.evaluate(axe);
  const found = await page.evaluate(() => globalThis.axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] }));
  return found.violations.map((one) => `${one.id}: ${one.help}: ${one.nodes.slice(0, 4).map((node) => `${node.target.join(" ")} (${node.any.map((check) => check.message).join("; ").slice(0, 200)})`).join(" | ")}`);
};

// How far the page can be moved sideways, which it never should.
export const overflow = (page) => page.evaluate(() => document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth);
