// Opens the page of `diff --html` in a real browser.
//
// usage: node check.mjs PAGE.html [SCREENSHOT_DIR]      (CHROMIUM: the browser [default: /usr/bin/chromium])

import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const page_path = resolve(process.argv[2]);
const shots = process.argv[3];
const results = { passed: 0, failed: 0 };

function check(name, right) {
  results[right ? "passed" : "failed"] += 1;
  console.log(`${right ? "ok  " : "FAIL"} ${name}`);
}

const args = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync"];
const context = await chromium.launchPersistentContext(mkdtempSync(join(tmpdir(), "page-")), {
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args, colorScheme: "light", viewport: { width: 1280, height: 900 },
});
const page = await context.newPage();
const troubles = [];
const requests = [];
page.on("console", (message) => message.type() === "error" && troubles.push(message.text()));
page.on("pageerror", (error) => troubles.push(String(error)));
page.on("request", (request) => requests.push(request.url()));

const shot = async (name) => shots && page.screenshot({ path: join(shots, `${name}.png`), fullPage: false });
const text = (selector) => page.locator(selector).first().textContent();
const firstName = () => text("#tensors tbody th");
const sortOf = (key) => page.locator(`#tensors th[data-key="${key}"]`).getAttribute("aria-sort");
const head = (key) => page.locator(`#tensors th[data-key="${key}"] button`);

await page.goto(pathToFileURL(page_path).href);
check("the summary is filled", (await page.locator("#summary dt").count()) >= 6);
check("the heat map has cells", (await page.locator("#map td[data-at]").count()) > 10);
check("the colours differ", new Set(await page.locator("#map td[data-at]").evaluateAll((cells) => cells.map((c) => c.style.background))).size > 3);

check("sorted by relative L2 at first", (await sortOf("rel_l2")) === "descending");
const top = await firstName();
await head("rel_l2").click();
check("a click turns the order around", (await sortOf("rel_l2")) === "ascending" && (await firstName()) !== top);
await head("name").focus();
await page.keyboard.press("Enter");
check("the keyboard sorts too", (await sortOf("name")) === "ascending" && (await sortOf("rel_l2")) === "none");
const names = await page.locator("#tensors tbody th").allTextContents();
check("names come in natural order", names.indexOf("model.layers.2.mlp.up_proj.weight") < names.indexOf("model.layers.3.mlp.up_proj.weight"));

const cell = page.locator("#map td[data-at]").nth(3);
await cell.click();
const title = await text("#detail h3");
check("a click on a cell shows its tensors", /^Layer \d+ · /.test(title) && (await cell.getAttribute("aria-selected")) === "true");
check("with a histogram and numbers", (await page.locator("#detail .histogram i").count()) > 1 && (await page.locator("#detail dd").count()) >= 9);
await cell.focus();
await page.keyboard.press("ArrowDown");
await page.keyboard.press("Enter");
check("arrows and Enter do the same", (await text("#detail h3")) !== title);
check("one cell takes the focus of Tab", (await page.locator('#map td[tabindex="0"]').count()) === 1);

await page.locator("#search").fill("q_proj");
const found = await page.locator("#tensors tbody th").allTextContents();
check("the search filters", found.length > 0 && found.every((name) => name.includes("q_proj")));
await page.locator("#search").fill("");
await page.locator("#status").selectOption("changed");
check("the status filters", (await page.locator("#tensors tbody td:nth-child(2)").allTextContents()).every((status) => status === "changed"));
await page.locator("#status").selectOption("");
const before = await cell.evaluate((c) => c.style.background);
await page.locator("#metric").selectOption("changed");
check("another measure repaints the map", (await cell.getAttribute("aria-label")).includes("share changed") && before !== "");
await page.locator("#metric").selectOption("rel_l2");
await page.evaluate(() => { document.activeElement.blur(); scrollTo(0, 0); });
await shot("diff-light");
await page.locator("#theme").click();
check("the theme changes", (await page.locator("html").getAttribute("data-theme")) === "dark");
await shot("diff-dark");

await page.setViewportSize({ width: 390, height: 844 });
const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
check("a phone needs no sideways scrolling", overflow <= 0);
await page.locator("#theme").click();
await shot("diff-phone");

check("nothing but the page was asked for", requests.length === 1 && requests[0].startsWith("file:"));
check(`no error on the console ${troubles.join(" | ")}`, troubles.length === 0);
await context.close();
console.log(`\n${results.passed} passed, ${results.failed} failed`);
process.exit(results.failed === 0 ? 0 : 1);
