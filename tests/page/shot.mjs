// A picture of a page as the browser shows it.
//
// usage: node shot.mjs PAGE.html WIDTHxHEIGHT light|dark PICTURE.png [SELECTOR]      (SELECTOR: clicked first; CHROMIUM: the browser)

import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const [path, size, colorScheme, picture, selector] = process.argv.slice(2);
const [width, height] = size.split("x").map(Number);
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"] });
const page = await browser.newPage({ viewport: { width, height }, colorScheme });
await page.goto(pathToFileURL(resolve(path)).href);
if (selector) await page.locator(selector).first().click();
await page.screenshot({ path: picture });
await browser.close();
