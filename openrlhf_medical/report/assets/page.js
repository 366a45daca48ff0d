// The page itself: theme, refreshing, the confusion matrix, and starting the rest.

const THEMES = ["auto", "light", "dark"];

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = `Theme: ${theme}`;
  redrawAll();
}

function startTheme() {
  const wanted = stored("localStorage", "report-theme");
  setTheme(THEMES.includes(wanted) ? wanted : "auto");
  $("theme").addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
    stored("localStorage", "report-theme", next);
    setTheme(next);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
}

/** While a run writes, the file is written anew: load it again, where the reader is and what they chose. */
function startLive() {
  const seconds = Number(document.documentElement.dataset.live || 0);
  if (!seconds) return;
  const button = $("pause");
  let paused = stored("sessionStorage", "report-paused") === "yes";
  const show = () => (button.textContent = paused ? "Resume refreshing" : "Pause refreshing");
  button.addEventListener("click", () => {
    paused = !paused;
    stored("sessionStorage", "report-paused", paused ? "yes" : "no");
    show();
  });
  show();
  setInterval(() => {
    const typing = document.activeElement?.matches("input, select");
    if (paused || document.hidden || typing) return;
    stored("sessionStorage", "report-place", JSON.stringify({ y: scrollY, focus: document.activeElement?.id || "", open: openDetails() }));
    location.reload();
  }, seconds * 1000);
}

const openDetails = () => [...document.querySelectorAll("details[id]")].filter((d) => d.open).map((d) => d.id);

function returnToPlace() {
  const place = JSON.parse(stored("sessionStorage", "report-place") || "null");
  if (!place) return;
  stored("sessionStorage", "report-place", "null");
  place.open.forEach((id) => $(id) && ($(id).open = true));
  if (place.focus && $(place.focus)) $(place.focus).focus({ preventScroll: true });
  scrollTo(0, place.y);
}

// ── Confusion matrix of the chosen games ──

function startConfusion() {
  const choice = $("confusion-of");
  if (!choice) return;
  const matrices = JSON.parse($("confusions").textContent);
  matrices.forEach(({ name }, i) => choice.append(el("option", { value: i }, name)));
  const show = () => {
    const { counts } = matrices[Number(choice.value)];
    counts.forEach((row, t) => {
      const total = row.reduce((a, b) => a + b, 0);
      row.forEach((count, v) => {
        const cell = $(`confusion-${t}-${v}`);
        cell.textContent = total ? `${count} (${Math.round((100 * count) / total)} %)` : "0";
        cell.style.setProperty("--share", total ? count / total : 0);
      });
      $(`confusion-${t}-total`).textContent = total;
    });
    remember({ confusion: choice.value === "0" ? null : choice.value });
  };
  if (matrices[Number(state.get("confusion"))]) choice.value = state.get("confusion") || "0";
  choice.addEventListener("change", show);
  show();
}

/** A link within the page moves the focus, and leaves the address to what was chosen. */
function startLinks() {
  for (const link of document.querySelectorAll("a[href^='#']"))
    link.addEventListener("click", (event) => {
      event.preventDefault();
      const target = $(link.getAttribute("href").slice(1));
      target.scrollIntoView();
      target.focus({ preventScroll: true });
    });
}

async function start() {
  startTheme();
  startLive();
  startLinks();
  startConfusion();
  if (!window.DecompressionStream) {
    $("unsupported").hidden = false;
    return;
  }
  await startGames();
  returnToPlace();
  later(startCharts);
}

start();
