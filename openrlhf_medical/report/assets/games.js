// The game browser: filters, a list that draws one page of rows, and search in all texts.

const ROWS = 15;
const FILTERS = ["category", "outcome", "status", "kind", "truth", "verdict", "step"];
const games = { index: null, shown: [], page: 0, chosen: null, details: parts("details"), strings: parts("strings") };
const words = (name) => String(name ?? "–").replaceAll("_", " ");

async function startGames() {
  if (!$("games-index")) return;
  games.index = JSON.parse(await unpacked("games-index"));
  const index = games.index;
  index.kind = index.held_out.map((held) => (held ? "held out" : "training"));
  for (const name of FILTERS) fillFilter(name);
  $("filter-text").value = state.get("text") || "";
  $("filter-text").disabled = !index.texts;
  let wait = 0;
  $("filters").addEventListener("input", (event) => {
    clearTimeout(wait);
    if (event.target.id === "filter-text") wait = setTimeout(() => filter(), 250);
    else filter();
  });
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("clear-filters").addEventListener("click", () => {
    $("filters").reset();
    for (const name of FILTERS) $(`filter-${name}`).value = "";
    filter();
  });
  $("first-page").addEventListener("click", () => showPage(0));
  $("previous-page").addEventListener("click", () => showPage(games.page - 1));
  $("next-page").addEventListener("click", () => showPage(games.page + 1));
  $("last-page").addEventListener("click", () => showPage(Infinity));
  $("rows").addEventListener("keydown", moveAmongRows);
  await filter(Number(state.get("page") || 0));
  const wanted = index.step.findIndex((_, i) => nameOf(i) === state.get("game"));
  if (wanted >= 0) await openGame(wanted, { quietly: true });
  performance.mark("games-ready");
}

/** Names a game for good, also after the page was written anew. */
const nameOf = (i) => `${games.index.step[i]}.${games.index.game[i]}.${games.index.held_out[i]}`;

function fillFilter(name) {
  const select = $(`filter-${name}`);
  const counts = new Map();
  for (const value of games.index[name]) counts.set(value, (counts.get(value) || 0) + 1);
  const order = name === "step" ? (a, b) => a[0] - b[0] : name === "outcome" ? byOutcome : (a, b) => String(a[0]).localeCompare(String(b[0]));
  for (const [value, count] of [...counts].sort(order)) {
    const title = name === "outcome" ? games.index.outcomes[value] : name === "step" && value < 0 ? "before training" : words(value ?? "none");
    select.append(el("option", { value: value ?? "none" }, `${title} (${count})`));
  }
  if ([...select.options].some((option) => option.value === state.get(name))) select.value = state.get(name);
}

function byOutcome(a, b) {
  const order = Object.keys(games.index.outcomes);
  return order.indexOf(a[0]) - order.indexOf(b[0]);
}

async function filter(page = 0) {
  const wanted = FILTERS.map((name) => [name, $(`filter-${name}`).value]).filter(([, value]) => value !== "");
  const text = $("filter-text").value.trim();
  remember({ ...Object.fromEntries(FILTERS.map((name) => [name, $(`filter-${name}`).value])), text });
  let shown = [];
  for (let i = 0; i < games.index.step.length; i++)
    if (wanted.every(([name, value]) => String(games.index[name][i] ?? "none") === value)) shown.push(i);
  if (text) {
    $("count").textContent = "Searching…";
    const hits = await gamesWith(text);
    if (text !== $("filter-text").value.trim()) return; // a later search is under way
    shown = shown.filter((i) => hits.has(i));
  }
  games.shown = shown;
  $("count").textContent = `${shown.length.toLocaleString("en")} of ${games.index.step.length.toLocaleString("en")} games`;
  showPage(page);
}

/** The games that hold a text: in a note, a thought, an answer, a finding of the judge, or as the note's name. */
async function gamesWith(text) {
  const wanted = text.toLowerCase();
  const stringParts = document.querySelectorAll("script[id^='strings-']").length;
  const hits = new Set();
  for (let p = 0; p < stringParts; p++)
    (await games.strings(p)).forEach((string, i) => {
      if (string.toLowerCase().includes(wanted)) hits.add(p * games.index.strings_per_part + i);
    });
  const found = new Set();
  const detailParts = Math.ceil(games.index.step.length / games.index.games_per_part);
  for (let p = 0; p < detailParts; p++)
    (await games.details(p)).forEach((game, i) => {
      const n = p * games.index.games_per_part + i;
      if (stringsOf(game).some((number) => hits.has(number)) || games.index.note[n].toLowerCase().includes(wanted)) found.add(n);
    });
  return found;
}

const stringsOf = (game) => [
  game.seed, game.reference, game.presented, game.reason, game.failures, game.attacker?.thinking, game.attacker?.answer,
  game.assessor?.thinking, game.assessor?.answer, ...Object.values(game.label?.texts || {}),
];

// ── The list ──

function showPage(page) {
  const pages = Math.max(1, Math.ceil(games.shown.length / ROWS));
  games.page = Math.max(0, Math.min(page, pages - 1));
  remember({ page: games.page || null });
  $("rows").replaceChildren(...games.shown.slice(games.page * ROWS, (games.page + 1) * ROWS).map(rowOf));
  $("page-of").textContent = `Page ${games.page + 1} of ${pages}`;
  // A disabled button would lose the focus: these stay, and say that they do nothing.
  for (const id of ["first-page", "previous-page"]) $(id).setAttribute("aria-disabled", games.page === 0);
  for (const id of ["next-page", "last-page"]) $(id).setAttribute("aria-disabled", games.page === pages - 1);
}

function rowOf(i) {
  const index = games.index;
  const name = `${index.step[i] < 0 ? "before" : index.step[i]} · ${index.game[i]}`;
  const open = el("button", { type: "button", class: "link", id: `open-${i}`, "data-game": i, "aria-label": `Open game ${index.game[i]} of step ${index.step[i]}`, onclick: () => openGame(i) }, name);
  const cell = (value, kind) => el("td", { class: kind }, value);
  return el("tr", { "aria-current": games.chosen === i ? "true" : null, onclick: (event) => event.target.closest("button") || openGame(i) },
    el("th", { scope: "row" }, open), cell(words(index.category[i])), cell(badge(index.outcome[i])),
    cell(index.truth[i] ?? "–", "wide"), cell(words(index.verdict[i]), "wide"),
    cell(index.changed[i] ?? "–", "number wide"), cell(shortNumber(index.attacker[i]), "number wide"), cell(shortNumber(index.assessor[i]), "number wide"));
}

const badge = (outcome) => el("span", { class: `badge ${outcome}` }, games.index.outcomes[outcome]);

function moveAmongRows(event) {
  const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!move || !event.target.dataset.game) return;
  event.preventDefault();
  const buttons = [...$("rows").querySelectorAll("button")];
  const next = buttons.indexOf(event.target) + move;
  if (next >= 0 && next < buttons.length) return buttons[next].focus();
  const page = games.page;
  showPage(page + move);
  if (page !== games.page) [...$("rows").querySelectorAll("button")].at(move > 0 ? 0 : -1).focus();
}
