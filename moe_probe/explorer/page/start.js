function notes() {
  const listed = models.some(({ layers }) => layers.some(({ listed: all, num_experts: count }) => all < count));
  return `Weights have ${DIGITS} significant digits; router logits are rounded to ${models[0].layers[0].step}. ` +
    (listed ? "Each token lists the experts that it chooses, and the runners-up. " : "") +
    "Tokens that use a picked expert have its color, or are underlined.";
}

async function start() {
  byId("name").textContent = models.map(({ model: name, family }) => `${name} (${family})`).join(" and ");
  document.body.classList.toggle("two", models.length > 1);
  byId("note").textContent = notes();
  await Promise.all(models.map((own) => own.open()));
  linked = areLinked();
  models.forEach((own) => layOut(own, panelOf(own)));
  makeMaps();
  listenToControls();
  await writeTexts();
  chunks.flat().filter(({ element }) => element.firstChild).forEach(({ element }) => watcher.observe(element));
  readAddress();
  await show();
  document.body.dataset.first = performance.now();
  await writeOtherTexts();
  if (view().held) revealToken(state.model, view().token);
  document.addEventListener("keydown", onKey);
  addEventListener("popstate", restore);
  addEventListener("hashchange", restore);
  document.body.dataset.ready = "true";
}

start();
