// Opens pages of `diff --html` in a real browser: what each must show, at four widths and in both themes.
//
// usage: node check.mjs PAGE.html…      (CHROMIUM: the browser [default: /usr/bin/chromium])

import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const WIDTHS = [1400, 1024, 768, 390];
const results = { passed: 0, failed: 0 };
let of = "";

function check(name, right) {
  results[right ? "passed" : "failed"] += 1;
  if (!right) console.log(`FAIL ${of}: ${name}`);
}

const args = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync"];
const context = await chromium.launchPersistentContext(mkdtempSync(join(tmpdir(), "page-")), {
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args, colorScheme: "light", viewport: { width: 1400, height: 900 },
});

/** Texts whose contrast with what lies behind them is below 4.5 (WCAG 2.1, 1.4.3). */
function lowContrast() {
  const parse = (color) => {
    const canvas = (globalThis.contrastCanvas ??= Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true }));
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => (c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color[3] === 1) return color;
    }
    return [255, 255, 255, 1];
  };
  const low = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || ["SCRIPT", "STYLE", "OPTION", "TITLE", "title"].includes(element.tagName) || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const front = luminance(parse(element instanceof SVGElement ? style.fill : style.color));
    const back = luminance(behind(element));
    const contrast = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    if (contrast < 4.5) low.push(`${walker.currentNode.textContent.trim()} ${contrast.toFixed(2)}`);
  }
  return low;
}

/** With Tab and the arrow keys alone: how many of the cells of a map have had the focus. */
async function walkMap(page, selector) {
  const total = await page.locator(`${selector} td[data-at]`).count();
  if (total === 0) return 0;
  const seen = new Set();
  const here = () => page.evaluate(() => document.activeElement.dataset?.at);
  const columns = [...new Set(await page.locator(`${selector} td[data-at]`).evaluateAll((cells) => cells.map((c) => c.dataset.at.split(",")[1])))].length;
  await page.locator(`${selector} td[tabindex="0"]`).focus();
  await page.keyboard.press("Home");
  for (let column = 0; column < columns; column++) {
    for (const key of ["ArrowUp", "ArrowDown"]) {
      for (let before = null, at = await here(); at !== before; at = await here()) {
        seen.add((before = at));
        await page.keyboard.press(key);
      }
    }
    await page.keyboard.press("ArrowRight");
  }
  return total - seen.size;
}

async function keyboard(page) {
  for (const map of ["#map", "#strip"]) {
    if (!(await page.locator(map).isVisible())) continue;
    check(`the keyboard reaches every cell of ${map}`, (await walkMap(page, map)) === 0);
    check(`${map} is one stop of Tab`, (await page.locator(`${map} td[tabindex="0"]`).count()) === 1);
    const before = await page.locator("#detail h3").textContent();
    await page.keyboard.press("Enter");
    check(`Enter shows the numbers of a cell of ${map}`, (await page.locator("#detail h3").textContent()) !== before);
  }
  const rows = await page.locator("#tensors tbody tr").count();
  await page.locator('#tensors tbody tr[tabindex="0"]').focus();
  const seen = new Set();
  for (let i = 0; i < rows; i++) {
    seen.add(await page.evaluate(() => document.activeElement.rowIndex));
    await page.keyboard.press("ArrowDown");
  }
  check("the keyboard reaches every row", seen.size === rows);
  await page.keyboard.press("Enter");
  check("and they stand in view", await page.locator("#detail").evaluate((box) => box.getBoundingClientRect().bottom <= innerHeight + 1 && box.getBoundingClientRect().top >= 0));
  const name = await page.evaluate(() => document.activeElement.cells[0].textContent);
  check("Enter shows the numbers of a row", (await page.locator("#detail h3").textContent()) === name);
}

async function table(page) {
  const head = (key) => page.locator(`#tensors th[data-key="${key}"]`);
  const first = () => page.locator("#tensors tbody th").first().textContent();
  await head("name").locator("button").focus();
  await page.keyboard.press("Enter");
  check("the keyboard sorts", (await head("name").getAttribute("aria-sort")) === "ascending");
  const top = await first();
  await page.keyboard.press("Enter");
  check("a second press turns the order around", (await head("name").getAttribute("aria-sort")) === "descending" && (await first()) !== top);
  await page.locator("#search").fill("q_proj");
  const found = await page.locator("#tensors tbody th").allTextContents();
  check("the search filters", found.length > 0 && found.every((name) => name.includes("q_proj")));
  await page.locator("#search").fill("");
}

/** What sets one kind of page apart. */
const KINDS = {
  async tuned(page) {
    check("a fine-tune says how many tensors changed", /^\d+ of \d+ tensors changed$/.test(await page.locator("h1").textContent()));
    check("two facts stand out", (await page.locator("#facts > div").count()) === 2);
    const colors = await page.locator("#map td[data-at]").evaluateAll((cells) => cells.map((c) => c.style.background));
    check("the colours differ", new Set(colors).size > 3);
    const heads = await page.locator("#map thead tr:last-child th span").allTextContents();
    check("projections stand in the order of a forward pass", heads.slice(0, 7).join(" ") === "q k v o gate up down");
    check("the scale says what it is", (await page.locator("#legend").textContent()).includes("from the 2nd to the 98th percentile"));
    await page.locator("#map td[data-at]").nth(3).click();
    check("a click shows a histogram with counts and decades", (await page.locator("#detail .histogram text").allTextContents()).some((t) => t.startsWith("10")));
    const before = await page.locator("#map td[data-at]").nth(3).getAttribute("aria-label");
    await page.locator("#metric").selectOption("changed");
    check("another measure repaints the map", (await page.locator("#map td[data-at]").nth(3).getAttribute("aria-label")) !== before);
  },
  async half(page) {
    check("the verdict stands first", (await page.locator("h1").textContent()) === "The plan holds");
    const parts = await page.locator(".part").allTextContents();
    check("frozen, trained and unmoved are counted", parts.length === 3 && parts[0].startsWith("28Frozen") && parts[1].startsWith("29Trained") && parts[2].startsWith("0Unmoved"));
    check("frozen cells carry no colour", (await page.locator("#map td.frozen").first().evaluate((c) => c.style.background)) === "");
    await page.locator(".part.frozen").click();
    const states = await page.locator("#tensors tbody td:nth-child(2)").allTextContents();
    check("a part of the plan filters the table", states.length === 28 && states.every((state) => state === "frozen, bit-identical"));
    await page.locator("#state").selectOption("");
  },
  async identical(page) {
    check("identical models are said to be", (await page.locator("h1").textContent()) === "Bit-identical");
    check("and show no map", !(await page.locator("#map").isVisible()));
  },
  async unlike(page) {
    check("different architectures are said first", (await page.locator("h1").textContent()) === "Different architectures");
    check("what was not compared is marked", (await page.locator("#map td.apart").count()) > 0);
  },
  async overlap(page) {
    check("a three-way page tells the agreement", (await page.locator("h1").textContent()).includes("agree in sign on"));
    check("and how both overlap", (await page.locator("#detail .parts-key li").count()) === 4);
  },
  async advice(page) {
    check("advice is given with its source", (await page.locator("#checks .advice").allTextContents()).some((text) => text.includes("(arXiv:2511.21437)")));
    check("the recipe stands below it", (await page.locator("#checks pre").textContent()).includes("merge_method: task_arithmetic"));
    check("the map shows the top conflict", (await page.locator("#legend").textContent()).includes("top conflict"));
    const before = await page.locator("#names").textContent();
    await page.locator("#pair").selectOption("2");
    await page.waitForFunction((names) => ![names, "", undefined].includes(document.getElementById("names")?.textContent), before);
    check("another pair can be chosen", (await page.locator("#names").textContent()) !== before && (await page.locator("#pair").inputValue()) === "2");
  },
  async spectrum(page) {
    check("spectra say how many matrices have one", /^\d+ of \d+ matrices have a spectrum of the change$/.test(await page.locator("h1").textContent()));
    check("the map shows the effective rank", (await page.locator("#legend").textContent()).includes("effective rank"));
    await page.locator("#map td[data-at]").nth(3).click();
    check("a cell tells its ranks", (await page.locator("#detail dl").textContent()).includes("rank of 90 %"));
  },
};

async function look(path) {
  of = basename(path, ".html");
  const page = await context.newPage();
  page.setDefaultTimeout(5000);
  const [troubles, requests] = [[], []];
  page.on("console", (message) => message.type() === "error" && troubles.push(message.text()));
  page.on("pageerror", (error) => troubles.push(String(error)));
  page.on("request", (request) => requests.push(request.url()));
  await page.setViewportSize({ width: 1400, height: 900 });
  await page.goto(pathToFileURL(resolve(path)).href);
  check("the title names both sides and the verdict", /.+(→|over).+: .+/.test(await page.title()));
  await KINDS[of]?.(page);
  await keyboard(page);
  await table(page);
  for (const theme of ["light", "dark"]) {
    if ((await page.locator("html").getAttribute("data-theme")) !== theme) await page.locator("#theme").click();
    for (const width of WIDTHS) {
      await page.setViewportSize({ width, height: 900 });
      const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
      check(`no sideways scrolling at ${width}`, overflow <= 0);
      const low = await page.evaluate(lowContrast);
      check(`contrast of text at ${width} in ${theme}: ${low.slice(0, 3).join("; ")}`, low.length === 0);
    }
  }
  // A phone: the numbers come to the finger, and go again.
  await page.setViewportSize({ width: 390, height: 844 });
  const target = (await page.locator("#map").isVisible()) ? page.locator("#map td[data-at]").nth(2) : page.locator("#tensors tbody tr").first();
  await target.click();
  check("on a phone the detail is in view", await page.locator("#detail").evaluate((box) => box.getBoundingClientRect().bottom <= innerHeight + 1 && box.getBoundingClientRect().top < innerHeight));
  if (await page.locator("#map").isVisible()) {
    const [cell, box] = [await target.boundingBox(), await page.locator("#detail").boundingBox()];
    check("and does not hide the cell", cell.y >= 0 && cell.y + cell.height <= box.y);
  }
  await page.locator("#detail .close").click();
  check("and goes away", !(await page.locator("#detail").evaluate((box) => box.classList.contains("open"))));
  check("nothing but the page was asked for", requests.length > 0 && requests.every((url) => url.startsWith("file:") && url.split("#")[0] === requests[0]));
  check(`no error on the console ${troubles.join(" | ")}`, troubles.length === 0);
  await page.close();
}

for (const path of process.argv.slice(2)) await look(path);
await context.close();
console.log(`${results.passed} passed, ${results.failed} failed`);
process.exit(results.failed === 0 && results.passed > 0 ? 0 : 1);
