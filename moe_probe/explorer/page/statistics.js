const SMOOTHING = 5; // imagined rows, routed as rows are on the average, that are added to those that were seen
const LEAST = 2; // hits that a lift is given for

const lift = (hits, rows, share) => (hits + SMOOTHING * share) / (rows + SMOOTHING) / share;

function eachRow(model, react) {
  for (const { from, to } of model.shownDocuments()) {
    for (let row = from * model.parts; row < to * model.parts; row++) react(row, Math.floor(row / model.parts));
  }
}

// how often every token string chose every expert of a layer, in the texts that are shown

function countTypes(model, data) {
  const experts = data.layer.num_experts, types = model.strings.length;
  if (model.counted?.data === data && model.counted.label === state.label) return model.counted;
  const hits = new Int32Array(types * experts), rows = new Int32Array(types);
  eachRow(model, (row, token) => {
    const type = model.tokens[token];
    rows[type] += 1;
    data.eachChoice(row, (expert) => { hits[type * experts + expert] += 1; });
  });
  model.counted = { data, label: state.label, hits, rows };
  return model.counted;
}

function topTokens(model, at, data, expert, most) {
  const { hits, rows } = countTypes(model, data), experts = data.layer.num_experts;
  const share = model.rates(at)[expert], lifted = [];
  for (let type = 0; type < rows.length; type++) {
    const hit = hits[type * experts + expert];
    if (hit >= LEAST) lifted.push({ type, hits: hit, rows: rows[type], lift: lift(hit, rows[type], share) });
  }
  return lifted.sort((a, b) => b.lift - a.lift || b.hits - a.hits || a.type - b.type).slice(0, most);
}

// the token of every string that gives an expert its largest weight

function bestPlaces(model, data, expert) {
  const best = new Map();
  eachRow(model, (row, token) => {
    const rank = data.rankOf(row, expert);
    if (rank < 0) return;
    const type = model.tokens[token], weight = data.weight[rank * data.rows + row], known = best.get(type);
    if (known === undefined || weight > known.weight) best.set(type, { type, token, row, rank, weight });
  });
  return best;
}

function coactivation(model, at, data, expert) {
  const both = new Int32Array(data.layer.num_experts);
  let rows = 0;
  eachRow(model, (row) => {
    if (data.rankOf(row, expert) < 0) return;
    rows += 1;
    data.eachChoice(row, (other) => { both[other] += 1; });
  });
  const rates = model.rates(at);
  return Array.from(both, (hits, other) => ({ other, hits, rows, lift: lift(hits, rows, rates[other]) }))
    .filter(({ other, hits }) => other !== expert && hits >= LEAST)
    .sort((a, b) => b.lift - a.lift || a.other - b.other);
}

function shareByLabel(model, at, expert) {
  const experts = model.layers[at].num_experts;
  return model.labels.map((label, place) => {
    const counts = model.counts[at].subarray(place * experts, (place + 1) * experts);
    return { label, share: counts[expert] / counts.reduce((sum, each) => sum + each, 0) };
  });
}

// experts of a layer by how much more often they are chosen by some tokens than by all

function liftsOfTokens(model, at, data, wanted) {
  const hits = new Int32Array(data.layer.num_experts), rates = model.rates(at);
  let rows = 0;
  eachRow(model, (row, token) => {
    if (!wanted.has(model.tokens[token])) return;
    rows += 1;
    data.eachChoice(row, (expert) => { hits[expert] += 1; });
  });
  return Array.from(hits, (hit, expert) => ({ at, expert, hits: hit, rows, lift: lift(hit, rows, rates[expert]) }))
    .filter(({ hits: hit }) => hit >= Math.min(LEAST, rows));
}
