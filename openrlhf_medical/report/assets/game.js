// One game: the note before and after, what both sides thought and said, the label, the rewards.

async function openGame(i, { quietly = false } = {}) {
  const index = games.index;
  games.chosen = i;
  remember({ game: nameOf(i) });
  for (const row of $("rows").children) {
    const own = row.querySelector("button").dataset.game === String(i);
    if (own) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
  }
  const part = Math.floor(i / index.games_per_part);
  const detail = (await games.details(part))[i - part * index.games_per_part];
  const texts = await textsOf(stringsOf(detail));
  if (games.chosen !== i) return; // another one was opened meanwhile
  $("game").replaceChildren(...gameView(i, detail, texts));
  $("game").hidden = false;
  if (quietly) return;
  $("game-title").focus({ preventScroll: true });
  if (!matchMedia("(min-width: 1100px)").matches) $("game").scrollIntoView();
  else if ($("game").getBoundingClientRect().top < 0) $("game").scrollIntoView({ block: "start" });
}

async function textsOf(numbers) {
  const size = games.index.strings_per_part;
  const found = new Map();
  for (const number of numbers)
    if (Number.isInteger(number)) found.set(number, (await games.strings(Math.floor(number / size)))[number % size]);
  return (number) => found.get(number) ?? null;
}

function gameView(i, game, text) {
  const index = games.index;
  const at = games.shown.indexOf(i);
  const turn = (step, label) =>
    el("button", { type: "button", "aria-disabled": !(at >= 0 && at + step >= 0 && at + step < games.shown.length), onclick: () => turnTo(at, step) }, label);
  const kind = index.held_out[i] ? "held out" : "training";
  return [
    el("div", { class: "game-head" },
      el("h3", { id: "game-title", tabindex: "-1" }, `Game ${index.game[i]}, ${index.step[i] < 0 ? "before training" : `step ${index.step[i]}`}`),
      el("div", { class: "buttons" }, turn(-1, "Previous"), turn(1, "Next"),
        el("button", { type: "button", onclick: backToList }, "Back to the list"))),
    el("p", { class: "facts" }, badge(index.outcome[i]), ` ${words(index.category[i])} · ${kind} · status ${words(index.status[i])}`,
      ` · note ${index.note[i] || "–"} · truth ${index.truth[i] ?? "unknown"} · verdict ${words(index.verdict[i])}`,
      game.faithful === null || game.faithful === undefined ? "" : ` · ${game.faithful ? "faithful" : "not faithful"} to the task`),
    game.reason === null ? null : el("p", { class: "quiet" }, `Why: ${text(game.reason)}`),
    game.failures === null ? null : el("p", { class: "quiet" }, `The judge failed before: ${text(game.failures)}`),
    ...notesView(game, text),
    el("div", { class: "turns" }, turnView("Attacker", game.attacker, game.booked.attacker, text, index.held_out[i], "The note was passed on as it is: the attacker wrote nothing."),
      turnView("Assessor", game.assessor, game.booked.assessor, text, index.held_out[i], "The assessor did not play.")),
    labelView(game.label, text),
  ].filter((node) => node !== null);
}

async function turnTo(at, step) {
  const next = games.shown[at + step];
  if (at < 0 || next === undefined) return;
  showPage(Math.floor((at + step) / ROWS));
  await openGame(next);
}

function backToList() {
  const button = $(`open-${games.chosen}`);
  (button || $("filter-category")).focus();
  (button || $("filters")).scrollIntoView({ block: "center" });
}

// ── The note before and after ──

function notesView(game, text) {
  if (!games.index.texts) return [el("p", { class: "quiet" }, "Notes, thoughts and answers were left out of this report (--without-text).")];
  const seed = text(game.seed), presented = text(game.presented), reference = text(game.reference);
  if (presented === null)
    return [el("h4", {}, "The note"), el("p", { class: "quiet" }, "Nothing reached the assessor. The seed note:"), el("p", { class: "note" }, seed ?? "–")];
  const holder = el("div", { class: "notes", id: "notes" });
  const compare = (before, diff, title) => holder.replaceChildren(...sides(before, presented, diff, title));
  const choices = [["seed", "Seed note", seed, game.from_seed], ["reference", "Clean reference", reference, game.from_reference]];
  const buttons = choices.filter(([, , note, diff]) => note !== null && diff).map(([key, title, note, diff]) =>
    el("button", { type: "button", "data-before": key, onclick: (event) => { press(event.currentTarget); compare(note, diff, title); } }, title));
  const press = (chosen) => buttons.forEach((button) => button.setAttribute("aria-pressed", button === chosen));
  const words = game.changed === 1 ? "1 word" : `${game.changed ?? "?"} words`;
  if (buttons.length) { press(buttons[0]); compare(...[seed, game.from_seed, "Seed note"]); }
  else holder.replaceChildren(el("p", { class: "note" }, presented));
  return [el("h4", {}, `The note: ${game.changed === 0 ? "passed on unchanged" : `${words} changed`}`),
    el("div", { class: "buttons", role: "group", "aria-label": "Compare the note with" }, el("span", { class: "quiet" }, "Compare with"), ...buttons), holder];
}

/** The same words on both sides plain, removed ones struck through on the left, added ones underlined on the right. */
function sides(before, after, diff, title) {
  const left = [], right = [];
  let i = 0, j = 0;
  for (let at = 0; at < diff.length; at += 4) {
    const [keptBefore, keptAfter, removed, added] = diff.slice(at, at + 4);
    left.push(before.slice(i, i + keptBefore));
    right.push(after.slice(j, j + keptAfter));
    i += keptBefore;
    j += keptAfter;
    if (removed) left.push(el("del", {}, before.slice(i, i + removed)));
    if (added) right.push(el("ins", {}, after.slice(j, j + added)));
    i += removed;
    j += added;
  }
  const side = (heading, pieces) => el("div", {}, el("h5", {}, heading), el("p", { class: "note" }, ...pieces));
  return [side(`Before: ${title.toLowerCase()}`, left), side("After: what the assessor saw", right)];
}

// ── Turns, label ──

function turnView(title, turn, booked, text, heldOut, absent) {
  const earned = turn && Object.keys(turn.reward || {}).length ? turn.reward : booked;
  if (!turn) return el("section", { class: "turn" }, el("h4", {}, title), el("p", { class: "quiet" }, absent), rewardsView(title, earned, "booked"));
  const who = `${turn.player || "policy"}${turn.policy_version == null ? "" : `, version ${turn.policy_version}`}${turn.frozen ? ", frozen" : ""}`;
  const said = turn.verdict ? `verdict ${turn.verdict}` : words(turn.status);
  const learned = heldOut ? "held out" : turn.trained ? "trained on" : "not trained on";
  return el("section", { class: "turn" }, el("h4", {}, title), el("p", { class: "quiet" }, `${who} · ${said} · ${learned}`),
    block("Thoughts", text(turn.thinking)), block("Answer", text(turn.answer)), rewardsView(title, earned, turn.trained && !heldOut ? "" : learned));
}

function block(title, content) {
  if (!games.index.texts) return null;
  return el("div", {}, el("h5", {}, title), content === null ? el("p", { class: "quiet" }, "none") : el("p", { class: "note" }, content));
}

function rewardsView(title, rewards, remark) {
  const entries = Object.entries(rewards || {}).filter(([, value]) => typeof value === "number");
  if (!entries.length) return el("p", { class: "quiet" }, "No reward.");
  const total = entries.reduce((sum, [, value]) => sum + value, 0);
  const row = (name, value, kind) => el("tr", { class: kind }, el("th", { scope: "row" }, words(name)), el("td", { class: "number" }, signed(value)));
  return el("table", { class: "rewards" }, el("caption", {}, `Reward of the ${title.toLowerCase()}${remark ? ` (${remark})` : ""}`),
    el("tbody", {}, ...entries.map(([name, value]) => row(name, value)), row("total", total, "total")));
}

const signed = (value) => `${value > 0 ? "+" : ""}${shortNumber(value).replace("-", "−")}`;

function labelView(label, text) {
  if (!label) return el("section", { class: "turn" }, el("h4", {}, "Label"), el("p", { class: "quiet" }, "No label: none was asked for."));
  const facts = Object.entries(label.facts).map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, words(name)), el("td", {}, value === true ? "yes" : value === false ? "no" : words(value))));
  const rest = Object.entries(label.texts).filter(([, number]) => text(number) !== null).map(([name, number]) => block(words(name), text(number)));
  return el("section", { class: "turn label" }, el("h4", {}, "Label"), el("table", {}, el("caption", { class: "unseen" }, "What the label says"), el("tbody", {}, ...facts)), ...rest);
}
