const FEW_EXPERTS = 16; // up to so many, layers lie along x
const AROUND = 160; // tokens that the overview shows at a time
const LEFT = 30, TOP = 5, BELOW = 18; // pixels around the cells, for the numbers of rows and columns
const BIGGEST = 22, TALLEST = 260; // pixels: of a cell, of a map

// a picture of cells to point at, to click, and to walk over with the arrow keys

class CellMap {
  constructor(id, name, help) {
    this.cursor = null;
    this.canvas = make("canvas", {
      tabindex: "0", role: "application", "aria-label": `${name}. ${help}`, "aria-describedby": `${id}-cell`,
      onpointermove: (event) => this.point(this.cellAt(event)), onpointerleave: () => this.point(null),
      onclick: (event) => { const cell = this.cellAt(event); if (cell) this.choose(cell, event); },
      onkeydown: (event) => this.walk(event), onblur: () => this.point(null),
    });
    this.title = make("h2", { text: name });
    this.caption = make("p", { class: "cell", id: `${id}-cell` });
    this.legend = make("p", { class: "note" });
    const tools = make("span", { class: "tools" },
      tool("CSV", `Save the map as CSV: ${name}`, () => download(fileName(id, "csv"), asCsv(this.asRows()), "text/csv")),
      tool("SVG", `Save the map as SVG: ${name}`, () => download(fileName(id, "svg"), this.asSvg(), "image/svg+xml")));
    byId(id).replaceChildren(make("div", { class: "head" }, this.title, tools), this.canvas, this.caption, this.legend);
  }

  // what a subclass says: columns, rows, color(column, row), text(column, row), choose(cell, event), marks()

  get size() {
    const wide = Math.max(60, this.canvas.parentElement.clientWidth - LEFT - 2);
    const width = Math.min(BIGGEST, wide / this.columns);
    const height = Math.max(2, Math.min(this.tallest(width), TALLEST / this.rows));
    return { width, height };
  }

  tallest(width) { return Math.min(BIGGEST, Math.max(width, 4)); }

  draw() { // anew; what is marked alone is drawn over what was drawn before
    const { width, height } = this.size, scale = devicePixelRatio || 1;
    const [wide, high] = [LEFT + width * this.columns + 2, TOP + height * this.rows + BELOW];
    this.cells = make("canvas", { width: Math.round(wide * scale), height: Math.round(high * scale) });
    const pen = this.cells.getContext("2d");
    pen.scale(scale, scale);
    for (let row = 0; row < this.rows; row++) {
      for (let column = 0; column < this.columns; column++) {
        pen.fillStyle = this.color(column, row);
        pen.fillRect(LEFT + column * width, TOP + row * height, width + 0.3, height + 0.3);
      }
    }
    this.drawNumbers(pen);
    Object.assign(this.canvas, { width: this.cells.width, height: this.cells.height });
    Object.assign(this.canvas.style, { width: `${wide}px`, height: `${high}px` });
    this.mark();
  }

  mark() {
    const pen = this.canvas.getContext("2d"), scale = devicePixelRatio || 1;
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    pen.drawImage(this.cells, 0, 0);
    pen.scale(scale, scale);
    this.marks().forEach((each) => this.drawMark(pen, each));
    if (this.cursor) this.drawMark(pen, { ...this.cursor, thin: true });
  }

  drawMark(pen, { column, row, wide = 1, thin = false }) {
    const { width, height } = this.size, style = getComputedStyle(document.body);
    const box = [LEFT + column * width - 1, TOP + row * height - 1, width * wide + 2, height + 2];
    for (const [color, line] of [["--paper", thin ? 3 : 4], ["--ink", thin ? 1 : 2]]) {
      pen.strokeStyle = style.getPropertyValue(color);
      pen.lineWidth = line;
      pen.strokeRect(...box);
    }
  }

  drawNumbers(pen) {
    pen.fillStyle = getComputedStyle(document.body).getPropertyValue("--soft");
    pen.font = "11px system-ui, sans-serif";
    for (const { x, y, text, anchor } of this.numbers()) {
      pen.textAlign = anchor === "end" ? "right" : "center";
      pen.fillText(text, x, y);
    }
  }

  numbers() {
    const { width, height } = this.size, places = [];
    for (const row of roundPlaces(this.rows, height, 13)) {
      places.push({ x: LEFT - 4, y: TOP + (row + 0.5) * height + 4, text: this.rowName(row), anchor: "end" });
    }
    for (const column of roundPlaces(this.columns, width, 26)) {
      places.push({ x: LEFT + (column + 0.5) * width, y: TOP + this.rows * height + 14, text: this.columnName(column), anchor: "middle" });
    }
    return places;
  }

  cellAt(event) {
    const box = this.canvas.getBoundingClientRect(), { width, height } = this.size;
    const column = Math.floor((event.clientX - box.left - LEFT) / width), row = Math.floor((event.clientY - box.top - TOP) / height);
    return column >= 0 && column < this.columns && row >= 0 && row < this.rows ? { column, row } : null;
  }

  point(cell) {
    if (cell?.column === this.cursor?.column && cell?.row === this.cursor?.row) return;
    this.cursor = cell;
    this.caption.textContent = cell ? this.text(cell.column, cell.row) : this.hint;
    this.mark();
  }

  walk(event) {
    const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (by !== undefined) {
      const from = this.cursor ?? this.marks().at(-1) ?? { column: 0, row: 0 };
      const to = this.cursor === null ? [0, 0] : by;
      const clamp = (value, most) => Math.max(0, Math.min(most - 1, value));
      this.point({ column: clamp(from.column + to[0], this.columns), row: clamp(from.row + to[1], this.rows) });
      say(this.caption.textContent);
    } else if ((event.key === "Enter" || event.key === " ") && this.cursor) this.choose(this.cursor, event);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  asRows() {
    const cells = [this.names];
    for (let row = 0; row < this.rows; row++) {
      for (let column = 0; column < this.columns; column++) cells.push(this.values(column, row));
    }
    return cells.filter((each) => each !== null);
  }

  asSvg() {
    const { width, height } = this.size, parts = [], ink = getComputedStyle(document.body).color;
    for (let row = 0; row < this.rows; row++) {
      for (let column = 0; column < this.columns; column++) {
        const [x, y] = [LEFT + column * width, TOP + row * height].map((each) => each.toFixed(2));
        parts.push(`<rect x="${x}" y="${y}" width="${(width + 0.1).toFixed(2)}" height="${(height + 0.1).toFixed(2)}" ` +
          `fill="${this.color(column, row)}"/>`);
      }
    }
    for (const { x, y, text, anchor } of this.numbers()) {
      parts.push(`<text x="${x}" y="${y}" fill="${ink}" text-anchor="${anchor}">${escaped(text)}</text>`);
    }
    return svgDocument(Math.ceil(LEFT + width * this.columns + 2), Math.ceil(TOP + height * this.rows + BELOW), parts);
  }
}

// numbers that are multiples of 1, 2, 4, 8, ..., so that they are at least `apart` pixels from each other

function roundPlaces(count, size, apart) {
  let step_ = 1;
  while (step_ * size < apart) step_ *= 2;
  return Array.from({ length: Math.ceil(count / step_) }, (_, at) => at * step_);
}

class LoadMap extends CellMap {
  constructor() {
    super("load", "Load of every expert", "Arrow keys walk over the cells, Enter picks an expert.");
    this.hint = "Click a cell to pick its expert.";
    this.names = ["layer", "expert", "share", "times even"];
    this.loads = [];
  }
  refresh() {
    this.loads = model().layers.map((_, at) => model().load(at));
    this.most = Math.max(...model().layers.map(({ num_experts: count }) => count));
    this.turned = this.most <= FEW_EXPERTS;
    [this.columns, this.rows] = this.turned ? [model().layers.length, this.most] : [this.most, model().layers.length];
    if (!this.cursor) this.caption.textContent = this.hint;
    const [across, down] = this.turned ? ["Layers", "experts"] : ["Experts", "layers"];
    this.legend.replaceChildren(`${across} across, ${down} down. `, make("span", { class: "ramp ratio", "aria-hidden": "true" }),
      " ⅛× to 8× an even share; ", make("span", { class: "dead", "aria-hidden": "true" }), " never chosen.");
    this.draw();
  }
  cell(column, row) { return this.turned ? { at: column, expert: row } : { at: row, expert: column }; }
  place(at, expert) { return this.turned ? { column: at, row: expert } : { column: expert, row: at }; }
  ratio(at, expert) { return this.loads[at][expert] * this.loads[at].length; }
  color(column, row) {
    const { at, expert } = this.cell(column, row), ratio = this.ratio(at, expert);
    if (Number.isNaN(ratio)) return getComputedStyle(document.body).getPropertyValue("--paper");
    return ratio === 0 ? DEAD : ratioColor(ratio);
  }
  text(column, row) {
    const { at, expert } = this.cell(column, row), ratio = this.ratio(at, expert);
    const where = `Layer ${model().layers[at].index}, expert ${expert}`;
    if (Number.isNaN(ratio)) return `${where}: there is none`;
    return `${where}: ${ratio === 0 ? "never chosen" : `${percent(this.loads[at][expert])} of the choices, ${times(ratio)} an even share`}`;
  }
  values(column, row) {
    const { at, expert } = this.cell(column, row), share = this.loads[at][expert];
    return share === undefined ? null : [model().layers[at].index, expert, share.toPrecision(6), this.ratio(at, expert).toPrecision(6)];
  }
  rowName(row) { return String(this.turned ? row : model().layers[row].index); }
  columnName(column) { return String(this.turned ? model().layers[column].index : column); }
  choose(cell, event) {
    const { at, expert } = this.cell(cell.column, cell.row);
    if (this.loads[at][expert] === undefined) return;
    state.find = "";
    pick(expert, { at, more: event.shiftKey || event.ctrlKey || event.metaKey });
  }
  marks() { return view().experts.map((expert) => this.place(view().at, expert)); }
}

class TokenMap extends CellMap {
  constructor() {
    super("overview", "A text through the layers", "Arrow keys walk over the cells, Enter picks a token in a layer.");
    this.hint = "Click a cell to hold its token in that layer.";
    this.names = ["layer", "token", "string", "first expert", "weight"];
    this.data = [];
  }
  async refresh() {
    const own = model(), shown = own.shownDocuments(), focus = view().token ?? shown[0]?.from ?? 0;
    const { from, to, number } = own.documentOf[focus];
    this.from = Math.max(from, Math.min(focus - AROUND / 2, to - AROUND));
    [this.columns, this.rows] = [Math.min(to - this.from, AROUND), own.layers.length];
    this.title.textContent = `Text ${number} through the layers`;
    const what = this.byExpert() ? "the color of its first expert" : "the weight of its first expert";
    this.legend.textContent = `Tokens ${this.from} to ${this.from + this.columns - 1} across, layers down; ${what}.`;
    if (!this.cursor) this.caption.textContent = this.hint;
    this.reading = (this.reading ?? 0) + 1;
    const mine = this.reading;
    if (this.of !== own) [this.of, this.data] = [own, []];
    this.draw();
    for (let at = 0; at < this.rows; at++) {
      if (this.data[at]) continue;
      const data = await own.layerData(at);
      if (mine !== this.reading) return;
      this.data[at] = this.summary(data);
      if (at % 4 === 3) this.draw();
    }
    this.draw();
  }
  summary(data) { // first experts and their weights, of every token
    const first = new Uint16Array(this.of.size), weight = new Float32Array(this.of.size);
    for (let token = 0; token < this.of.size; token++) {
      first[token] = data.expert(token * this.of.parts, 0);
      weight[token] = data.weightOf(token * this.of.parts, 0);
    }
    return { first, weight, largest: data.largestWeight[0] || 1 };
  }
  tallest() { return 14; }
  byExpert() { return this.most() <= COLORED; }
  most() { return Math.max(...model().layers.map(({ num_experts: count }) => count)); }
  color(column, row) {
    const data = this.data[row], token = this.from + column;
    if (data === undefined) return getComputedStyle(document.body).getPropertyValue("--line");
    const expert = data.first[token];
    const picked = row === view().at ? view().experts.indexOf(expert) : -1;
    if (this.byExpert()) return OKABE_ITO[expert];
    return picked >= 0 ? OKABE_ITO[picked] : scaleColor(data.weight[token] / data.largest);
  }
  text(column, row) {
    const token = this.from + column, data = this.data[row];
    const what = data ? `: expert ${data.first[token]}, weight ${data.weight[token].toPrecision(DIGITS)}` : "";
    return `Layer ${model().layers[row].index}, token ${token} “${written(model().string(token))}”${what}`;
  }
  values(column, row) {
    const token = this.from + column, data = this.data[row];
    return data ? [model().layers[row].index, token, model().string(token), data.first[token], data.weight[token].toPrecision(DIGITS)] : null;
  }
  rowName(row) { return String(model().layers[row].index); }
  columnName(column) { return String(this.from + column); }
  choose({ column, row }) {
    change((_, own) => {
      Object.assign(own, { token: this.from + column, held: true, at: row });
      revealToken(state.model, this.from + column);
    });
  }
  marks() {
    const { token, at } = view(), column = token - this.from;
    const here = token !== null && column >= 0 && column < this.columns;
    return [{ column: 0, row: at, wide: this.columns, thin: true }, ...(here ? [{ column, row: at }] : [])];
  }
}

let loadMap, tokenMap;
function makeMaps() {
  [loadMap, tokenMap] = [new LoadMap(), new TokenMap()];
  const redraw = () => { loadMap.draw(); tokenMap.draw(); };
  new ResizeObserver(redraw).observe(byId("maps"));
  darkness.addEventListener("change", () => { redraw(); repaint(); });
}

function drawMaps() {
  loadMap.refresh();
  tokenMap.refresh();
}
