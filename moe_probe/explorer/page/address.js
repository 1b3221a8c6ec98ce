// the address keeps what is shown: layers, experts and tokens as their numbers, those of the second model with a 2

const suffix = (number) => (number === 0 ? "" : String(number + 1));

function addressOf() {
  const parts = [];
  const add = (name, value) => parts.push(`${name}=${encodeURIComponent(value)}`);
  if (state.model > 0) add("model", state.model + 1);
  models.forEach((own, number) => {
    const { at, experts, token, held } = views[number], end = suffix(number);
    add(`layer${end}`, own.layers[at].index);
    if (experts.length) parts.push(`expert${end}=${experts.join(",")}`);
    if (held && token !== null) add(`token${end}`, token);
  });
  if (state.rank) add("choice", state.rank + 1);
  if (state.part) add("part", state.part);
  if (state.color !== "expert") add("color", state.color);
  if (state.label !== null) add("label", state.label);
  if (state.find) add("find", state.find);
  return `#${parts.join("&")}`;
}

// steps along the slider or along the tokens, and letters of a search, replace each other

const isStep = (one, other) => {
  const bare = (address) => address.replace(/(layer2?|token2?|find)=[^&]*/g, "$1");
  return bare(one) === bare(other);
};

function writeAddress() {
  const address = addressOf(), now = location.hash;
  if (address === now) return;
  try {
    history[isStep(address, now) ? "replaceState" : "pushState"](null, "", address);
  } catch { /* inside of another page, addresses may not be written */ }
}

function number(text, count) {
  const value = Number(text);
  return text !== null && text !== "" && Number.isInteger(value) && value >= 0 && value < count ? value : null;
}

function readAddress() {
  const asked = new Map(location.hash.slice(1).split("&").filter(Boolean).map((part) => {
    const [name, ...value] = part.split("=");
    return [name, decoded(value.join("="))];
  }));
  const get = (name) => asked.get(name) ?? null;
  models.forEach((own, at) => readView(own, views[at], (name) => get(name + suffix(at))));
  const least = (name, count) => number(String(Number(get(name) ?? 1) - 1), count) ?? 0;
  state.model = least("model", models.length);
  state.rank = least("choice", Math.max(...models.flatMap(({ layers }) => layers.map(({ top_k: k }) => k))));
  state.part = number(get("part"), model().parts) ?? 0;
  state.color = COLORS.includes(get("color")) ? get("color") : "expert";
  state.label = model().labels.includes(get("label")) ? get("label") : null;
  state.find = get("find") ?? "";
}

function readView(own, into, get) {
  const at = own.layers.findIndex(({ index }) => String(index) === get("layer"));
  into.at = Math.max(0, at);
  const experts = (get("expert") ?? "").split(",").map((each) => number(each, own.layers[into.at].num_experts));
  into.experts = [...new Set(experts.filter((each) => each !== null))].slice(-COLORED);
  into.token = number(get("token"), own.size);
  into.held = into.token !== null;
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function restore() {
  readAddress();
  const { token, held } = view();
  if (held) revealToken(state.model, token);
  return show();
}
