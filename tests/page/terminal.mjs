// A picture of what a terminal shows: text with 24-bit colours.
//
// usage: node terminal.mjs OUTPUT.txt COMMAND PICTURE.png      (CHROMIUM: the browser [default: /usr/bin/chromium])

import { readFileSync } from "node:fs";
import { chromium } from "playwright-core";

const [file, command, picture] = process.argv.slice(2);
const escape = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;");
const styled = escape(readFileSync(file, "utf8"))
  .replace(/\u001b\[(30|97);48;2;(\d+);(\d+);(\d+)m/g, (_, front, r, g, b) => `<span style="background:rgb(${r} ${g} ${b});color:${front === "30" ? "#000" : "#fff"}">`)
  .replace(/\u001b\[0m/g, "</span>");
const page_text = `<!doctype html><meta charset="utf-8"><style>body{margin:0;background:#14161a}
pre{display:inline-block;margin:0;padding:18px 22px;color:#dfe1e5;font:13px/1.35 "DejaVu Sans Mono",monospace}b{color:#8db2ff;font-weight:400}</style>
<pre><b>${escape(command)}</b>\n${styled}</pre>`;

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"] });
const page = await browser.newPage({ viewport: { width: 1400, height: 900 } });
await page.setContent(page_text);
await page.locator("pre").screenshot({ path: picture });
await browser.close();
