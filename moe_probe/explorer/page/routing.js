const KEPT_NUMBERS = 6e7; // of unpacked layers

// numbers as they were packed: codes of significant digits (0 for 0), and multiples of a step

function significantValue(code, exponent) {
  if (code === 0) return 0;
  const base = 10 ** (DIGITS - 1), magnitude = Math.abs(code) - 1;
  const power = Math.floor(magnitude / (9 * base)) + exponent - DIGITS + 1;
  const mantissa = (magnitude % (9 * base)) + base;
  return Math.sign(code) * (power < 0 ? mantissa / 10 ** -power : mantissa * 10 ** power);
}

const unfolded = (value) => (value % 2 ? -(value + 1) / 2 : value / 2);
const decimals = (step) => Math.max(0, Math.round(-Math.log10(step)));

class LayerData {
  constructor(layer, index, weight, logits) {
    Object.assign(this, { layer, index, weight, logits });
    this.rows = index.length / layer.listed;
    this.k = layer.top_k;
    this.addUp();
  }
  addUp() {
    const { rows, k, layer } = this;
    const weight = Int32Array.from(this.weight), logits = Int32Array.from(this.logits);
    for (let at = rows; at < weight.length; at++) weight[at] = weight[at - rows] - weight[at];
    for (let at = 0; at < logits.length; at++) logits[at] = unfolded(logits[at]);
    this.weight = weight;
    for (let rank = 1; rank < layer.listed; rank++) {
      for (let row = 0; row < rows; row++) {
        const at = rank * rows + row;
        let expected = logits[at - rows];
        if (layer.predicted && rank < k && weight[at] > 0 && weight[row] > 0) {
          const ratio = significantValue(weight[at], layer.exponent) / significantValue(weight[row], layer.exponent);
          expected = logits[row] + Math.floor(Math.log(ratio) / layer.step + 0.5);
        }
        logits[at] += expected;
      }
    }
    this.logits = logits;
  }
  expert(row, rank) { return this.index[rank * this.rows + row]; }
  weightOf(row, rank) { return significantValue(this.weight[rank * this.rows + row], this.layer.exponent); }
  weightText(row, rank) { return this.weightOf(row, rank).toPrecision(DIGITS); }
  logitText(row, rank) {
    return (this.logits[rank * this.rows + row] * this.layer.step).toFixed(decimals(this.layer.step));
  }
  eachChoice(row, react) { // places without an expert are left out
    for (let rank = 0; rank < this.k; rank++) {
      const expert = this.expert(row, rank);
      if (expert < this.layer.num_experts) react(expert, rank);
    }
  }
  rankOf(row, expert) {
    for (let rank = 0; rank < this.k; rank++) if (this.expert(row, rank) === expert) return rank;
    return -1;
  }
  weightIn(token, expert) { // the largest applied weight in a token's rows; -1 where it is not chosen
    const parts = this.layer.subtokens;
    let best = -1;
    for (let row = token * parts; row < (token + 1) * parts; row++) {
      const rank = this.rankOf(row, expert);
      if (rank >= 0) best = Math.max(best, this.weightOf(row, rank));
    }
    return best;
  }
  choices(token) { // experts of all rows of a token
    const parts = this.layer.subtokens, experts = [];
    for (let row = token * parts; row < (token + 1) * parts; row++) {
      this.eachChoice(row, (expert) => experts.push(expert));
    }
    return experts;
  }
  get largestWeight() { // of the choices of each rank
    this.largest ??= Array.from({ length: this.k }, (_, rank) => {
      let best = 0;
      for (let row = 0; row < this.rows; row++) best = Math.max(best, this.weight[rank * this.rows + row]);
      return significantValue(best, this.layer.exponent);
    });
    return this.largest;
  }
}

class Model {
  constructor(known, number) {
    Object.assign(this, known, { number, unpacked: new Map() });
    let from = 0;
    this.documents = known.documents.map(([document_, label, tokens]) => {
      const whole_ = { number: document_, label: known.labels[label], from, to: from + tokens };
      from += tokens;
      return whole_;
    });
    this.parts = this.layers[0].subtokens;
    this.size = from;
    this.kindOf = (layer, expert) => layer.kinds?.[expert] ?? "ffn";
    this.specials = new Set(this.special);
  }
  array(name) { return unpack(`${this.number}-${name}`); }
  async open() {
    this.tokens = await this.array("tokens");
    this.documentOf = new Array(this.size);
    for (const each of this.documents) this.documentOf.fill(each, each.from, each.to);
    const counts = await Promise.all(this.layers.map(({ index }) => this.array(`${index}-count`)));
    this.counts = counts;
  }
  string(token) { return this.strings[this.tokens[token]]; }
  layerData(at) {
    const known = this.unpacked.get(at) ?? this.unpackLayer(at);
    this.unpacked.delete(at); // the layer that was asked for last goes last
    this.unpacked.set(at, known);
    const numbers = 3 * this.size * this.parts * this.layers[at].listed;
    while (this.unpacked.size > 4 && this.unpacked.size * numbers > KEPT_NUMBERS) {
      this.unpacked.delete(this.unpacked.keys().next().value);
    }
    return known;
  }
  async unpackLayer(at) {
    const layer = this.layers[at];
    const arrays = ["index", "weight", "logits"].map((name) => this.array(`${layer.index}-${name}`));
    return new LayerData(layer, ...(await Promise.all(arrays)));
  }
  shownDocuments() {
    return state.label === null ? this.documents : this.documents.filter(({ label }) => label === state.label);
  }
  choicesOf(at) { // how often each expert of a layer is chosen in the texts that are shown
    const count = this.layers[at].num_experts, choices = new Float64Array(count);
    this.labels.forEach((label, place) => {
      if (state.label !== null && label !== state.label) return;
      for (let expert = 0; expert < count; expert++) choices[expert] += this.counts[at][place * count + expert];
    });
    return choices;
  }
  load(at) { // each expert's share of these choices
    const choices = this.choicesOf(at), all = choices.reduce((sum, each) => sum + each, 0);
    return all > 0 ? choices.map((each) => each / all) : choices;
  }
  rates(at) { // the share of the rows that choose each expert
    const rows = this.parts * this.shownDocuments().reduce((sum, { from, to }) => sum + to - from, 0);
    return this.choicesOf(at).map((each) => each / rows);
  }
}

const models = facts.models.map((known, number) => new Model(known, number));
