const COLORS = ["expert", "weight", "ffn", "distinct", "differs"];
const state = { model: 0, rank: 0, part: 0, color: "expert", label: null, find: "" };
const views = models.map(() => ({ at: 0, experts: [], token: null, held: false, by: "lift", data: null }));

const model = () => models[state.model];
const view = () => views[state.model];
const layer = () => model().layers[view().at];
const pickedExpert = () => view().experts.at(-1) ?? null;

// whether both models saw the same tokens, so that a token of one is a token of the other
let linked = false;
const areLinked = () =>
  models.length === 2 &&
  models[0].size === models[1].size &&
  models[0].tokens.every((_, token) => models[0].string(token) === models[1].string(token));

let version = 0; // of what is shown; what was asked for before is dropped
async function show() {
  version += 1;
  const mine = version;
  const wanted = await Promise.all(models.map((each, number) => each.layerData(views[number].at)));
  if (mine !== version) return false;
  wanted.forEach((data, number) => { views[number].data = data; });
  views.forEach((each, number) => {
    const { num_experts: count } = models[number].layers[each.at];
    each.experts = each.experts.filter((expert) => expert < count);
  });
  showControls();
  showPanels();
  repaint();
  showToken();
  showAbout();
  drawMaps();
  document.body.dataset.layer = layer().index;
  document.body.dataset.shown = mine;
  return true;
}

async function change(react) {
  react(state, view());
  writeAddress();
  return show();
}

const goTo = (at) => change((_, own) => { own.at = Math.max(0, Math.min(at, model().layers.length - 1)); });

function pick(expert, { at = view().at, more = false } = {}) {
  return change((_, own) => {
    const others = more && at === own.at ? own.experts.filter((each) => each !== expert) : [];
    const dropped = more && at === own.at && own.experts.includes(expert);
    own.at = at;
    own.experts = expert === null ? [] : dropped ? others : [...others, expert].slice(-COLORED);
  });
}

function hold(token, { held = true, scroll = false } = {}) {
  return change((_, own) => {
    for (const each of linked ? views : [own]) Object.assign(each, { token, held });
    if (scroll) revealToken(state.model, token);
  });
}
