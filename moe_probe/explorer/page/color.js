// at most eight colors that readers with any color vision tell apart (Okabe and Ito); all else is grey, or a scale

const OKABE_ITO = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999"];
const DIVERGING = { // log2 of a ratio from -3 to 3; brown is less and purple more, as in the figures
  light: ["#7f3b08", "#e08214", "#fdc98a", "#f7f7f7", "#b6b0d8", "#6a51a3", "#3b1a6e"],
  dark: ["#ffcf8f", "#d9822b", "#7a4a12", "#23262c", "#4a4180", "#8a75d6", "#b9a7ff"],
};
const SCALE = { light: ["#f4f7fb", "#b4d2ec", "#5fa4dc"], dark: ["#1d2128", "#1f4468", "#2b6aa8"] };
const DEAD = "#009E73"; // of experts that are never chosen
const KINDS = { constant: 22, copy: 14, zero: 30 }; // percent of grey
const darkness = matchMedia("(prefers-color-scheme: dark)");
const theme = () => (darkness.matches ? "dark" : "light");

function between(stops, share) {
  const place = Math.max(0, Math.min(0.999999, share)) * (stops.length - 1), at = Math.floor(place);
  const parse = (hex) => [1, 3, 5].map((from) => parseInt(hex.slice(from, from + 2), 16));
  const [one, other] = [parse(stops[at]), parse(stops[at + 1])];
  return `rgb(${one.map((each, k) => Math.round(each + (other[k] - each) * (place - at))).join(" ")})`;
}

const scaleColor = (share) => between(SCALE[theme()], share);
const ratioColor = (ratio) => between(DIVERGING[theme()], (Math.log2(Math.max(ratio, 1e-9)) + 3) / 6);
const isSmall = (own = layer()) => own.num_experts <= COLORED;
const hueOf = (expert, own = view(), layer_ = layer()) =>
  OKABE_ITO[isSmall(layer_) ? expert : own.experts.indexOf(expert)] ?? null;

// the background of text that belongs to an expert; `part` of 1 is the strongest

function tint(expert, own, layer_, part = 1) {
  const kind = layer_.kinds?.[expert] ?? "ffn";
  if (kind in KINDS && !own.experts.includes(expert)) return `color-mix(in oklab, var(--ink) ${KINDS[kind]}%, var(--paper))`;
  const hue = hueOf(expert, own, layer_);
  if (hue === null) return "transparent";
  return `color-mix(in oklab, ${hue} calc(${Math.round(100 * (0.55 + 0.45 * part)) / 100} * var(--tint)), var(--paper))`;
}
const markOf = (expert) => hueOf(expert) ?? "var(--line)";

function tokenColor(number, token) {
  const own = views[number], data = own.data, { k } = data;
  if (state.color === "ffn") {
    const all = data.choices(token);
    return scaleColor(all.filter((expert) => models[number].kindOf(data.layer, expert) === "ffn").length / all.length);
  }
  if (state.color === "distinct") {
    const all = data.choices(token);
    return scaleColor((new Set(all).size - 1) / Math.max(1, Math.min(data.layer.num_experts, all.length) - 1));
  }
  if (state.color === "differs") return scaleColor(differing(number, token));
  const row = token * models[number].parts + state.part, rank = Math.min(state.rank, k - 1);
  const byWeight = state.color === "weight" || (!isSmall(data.layer) && own.experts.length === 0);
  if (byWeight) return scaleColor(data.weightOf(row, rank) / (data.largestWeight[rank] || 1));
  if (isSmall(data.layer)) return tint(data.expert(row, rank), own, data.layer);
  return pickedColor(own, data, token);
}

// whether the color alone tells which tokens use a picked expert

const isPickedColor = (number) => state.color === "expert" && !isSmall(views[number].data.layer);

// of the picked experts that a token uses, the one with the largest weight

function pickedColor(own, data, token) {
  let best = null, most = -1;
  for (const expert of own.experts) {
    const weight = data.weightIn(token, expert);
    if (weight > most) [best, most] = [expert, weight];
  }
  return most < 0 ? "transparent" : tint(best, own, data.layer, most / (data.largestWeight[0] || 1));
}

// share of a token's experts that the other model does not choose for it, at the layer that it shows

function differing(number, token) {
  const other = new Set(views[1 - number].data.choices(token)), all = views[number].data.choices(token);
  return all.filter((expert) => !other.has(expert)).length / all.length;
}

const uses = (number, token) => views[number].experts.some((expert) => views[number].data.weightIn(token, expert) >= 0);
