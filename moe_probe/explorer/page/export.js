function download(name, text, kind) {
  const url = URL.createObjectURL(new Blob([text], { type: kind }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
  say(`Saved ${name}`);
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // a page from disk may not ask for the clipboard
    const area = make("textarea", { "aria-hidden": "true", class: "unseen" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  say("Copied");
}

const cellText = (text) => (/[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
const asCsv = (rows) => rows.map((row) => row.map((cell) => cellText(String(cell))).join(",")).join("\r\n") + "\r\n";
const asTsv = (rows) => rows.map((row) => row.map((cell) => String(cell).replace(/[\t\n\r]+/g, " ")).join("\t")).join("\n");
const escaped = (text) =>
  String(text).replace(/[&<>"']/g, (each) => `&#${each.charCodeAt(0)};`).replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f]/g, "�");
const fileName = (what, end) => `${`${model().model} layer ${layer().index} ${what}`.replace(/[^\w.-]+/g, "-")}.${end}`;

function tool(name, title, react) {
  return make("button", { type: "button", class: "tool", text: name, title, "aria-label": title, onclick: react });
}

// what stands in the table of a block

function tableRows(content) {
  return [...content.querySelectorAll("tr")].map((row) => [...row.cells].map((cell) => cell.textContent.trim()));
}

function tableTools(content, file) {
  return make("span", { class: "tools" },
    tool("copy", `Copy ${file}`, () => copy(asTsv(tableRows(content)))),
    tool("CSV", `Save ${file} as CSV`, () => download(fileName(file, "csv"), asCsv(tableRows(content)), "text/csv")));
}

function svgDocument(width, height, parts) {
  const paper = getComputedStyle(document.body).backgroundColor;
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" ` +
    `font-family="DejaVu Sans Mono, monospace" font-size="12"><rect width="100%" height="100%" fill="${paper}"/>` +
    `${parts.join("")}</svg>\n`;
}

// the text as it stands on the screen, colors and all

function textSvg(panel) {
  const frame = panel.getBoundingClientRect(), parts = [];
  const ink = getComputedStyle(panel).color;
  for (const span of panel.querySelectorAll("[data-token]")) {
    const text = span.textContent.replaceAll("\n", "");
    for (const box of span.getClientRects()) {
      if (box.width === 0 || box.bottom < frame.top || box.top > frame.bottom) continue;
      const [x, y] = [box.left - frame.left, box.top - frame.top].map((each) => each.toFixed(1));
      const fill = getComputedStyle(span).backgroundColor;
      parts.push(`<rect x="${x}" y="${y}" width="${box.width.toFixed(1)}" height="${box.height.toFixed(1)}" fill="${fill}"/>`);
      parts.push(`<text x="${x}" y="${(Number(y) + box.height * 0.76).toFixed(1)}" fill="${ink}" ` +
        `textLength="${box.width.toFixed(1)}" xml:space="preserve">${escaped(text)}</text>`);
      break;
    }
  }
  return svgDocument(Math.ceil(frame.width), Math.ceil(frame.height), parts);
}

// every token of the texts that are shown, with its experts in the layer that is shown

function textRows(number) {
  const own = models[number], { data } = views[number], rows = [];
  rows.push(["text", "label", "token", "string", "sub-token",
    ...Array.from({ length: data.k }, (_, rank) => [`expert ${rank + 1}`, `weight ${rank + 1}`]).flat()]);
  eachRow(own, (row, token) => {
    const { number: document_, label } = own.documentOf[token];
    const experts = Array.from({ length: data.k }, (_, rank) => data.expert(row, rank) < data.layer.num_experts ? [data.expert(row, rank), data.weightText(row, rank)] : ["", ""]);
    rows.push([document_, label, token, own.string(token), row - token * own.parts, ...experts.flat()]);
  });
  return rows;
}

function textTools(number, panel) {
  const rows = () => textRows(number);
  return make("span", { class: "tools" },
    tool("copy", "Copy the tokens and their experts", () => copy(asTsv(rows()))),
    tool("CSV", "Save the tokens and their experts as CSV", () => download(fileName("tokens", "csv"), asCsv(rows()), "text/csv")),
    tool("SVG", "Save the text that is seen as SVG", () => download(fileName("text", "svg"), textSvg(panel), "image/svg+xml")));
}
