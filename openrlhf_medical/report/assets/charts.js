// Charts: the data of Python's report/charts.py drawn by plotly, once they come into sight.

const charts = new Map(JSON.parse($("charts").textContent).map((chart) => [chart.id, chart]));
const drawn = new Set();
const hiddenRuns = new Set();
const DASHES = ["solid", "dash", "dot", "dashdot"];
const SYMBOLS = ["circle", "diamond", "square", "triangle-up"];
const MANY = 40; // steps, from which a curve has no markers

/** plotly reads a few tags in names: none of ours are meant as such. */
const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;");

/** The page's colours as they are now, light or dark: a probe, as a variable alone reads `light-dark(…)`. */
function palette() {
  const probe = $("probe");
  return (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
}

function traceOf(series, chart, colour) {
  const tone = colour(`tone-${series.tone}`);
  const common = { name: plain(series.name), x: series.x, y: series.y, visible: !hiddenRuns.has(series.run) };
  if (chart.kind === "stacked") {
    const pattern = { shape: ["", "/", "x", ".", "\\", "+"][chart.series.indexOf(series) % 6], size: 6, solidity: 0.25, fgcolor: colour("card"), bgcolor: tone };
    return { ...common, type: "bar", marker: { color: tone, pattern, line: { width: 0 } } };
  }
  const marker = { color: tone, symbol: SYMBOLS[series.dash % 4] + (series.style === "points" ? "-open" : ""), size: series.style === "points" ? 11 : 5, line: { width: 2, color: tone } };
  const mode = series.style === "points" ? "markers" : series.style === "level" || series.x.length > MANY ? "lines" : "lines+markers";
  return { ...common, type: "scatter", mode, marker, line: { color: tone, width: series.style === "level" ? 1.5 : 2, dash: DASHES[series.dash % 4] } };
}

function layoutOf(chart, colour, width) {
  const axis = { gridcolor: colour("grid"), zerolinecolor: colour("line"), linecolor: colour("line"), tickfont: { size: 12 }, automargin: true, fixedrange: true };
  const title = (text) => ({ text, standoff: 8, font: { size: 12 } });
  const xs = chart.series.flatMap((series) => series.x);
  const span = Math.max(...xs) - Math.min(...xs);
  const x = { ...axis, title: title(chart.x_title), zeroline: false, ...(span < 8 ? { dtick: 1 } : { nticks: width < 500 ? 6 : 10 }), ...(span === 0 ? { range: [xs[0] - 1, xs[0] + 1] } : {}) };
  const y = { ...axis, title: title(chart.unit), nticks: 6 };
  if (chart.share) Object.assign(y, { range: [-0.03, 1.03], tickformat: ".0%", title: { text: "" }, zeroline: false });
  else if (chart.zero || chart.kind === "stacked") y.rangemode = "tozero";
  return {
    autosize: true, height: chart.series.length > 6 ? 340 : 280, barmode: "stack", bargap: 0.25, dragmode: false, hovermode: "x unified",
    margin: { l: 46, r: 14, t: 8, b: 40 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 12.5, color: colour("text") },
    hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("text") } },
    showlegend: chart.series.length > 1, legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", itemclick: false, itemdoubleclick: false },
    xaxis: x, yaxis: y,
  };
}

function draw(holder) {
  const chart = charts.get(holder.dataset.chart);
  const colour = palette();
  drawn.add(holder);
  return Plotly.react(holder, chart.series.map((series) => traceOf(series, chart, colour)), layoutOf(chart, colour, holder.clientWidth),
    { displayModeBar: false, responsive: true, doubleClick: false });
}

const redrawAll = () => window.Plotly && drawn.forEach(draw);

/** The chart's numbers, one row a step. Made when it is opened. */
function tableOf(chart) {
  const xs = [...new Set(chart.series.flatMap((series) => series.x))].sort((a, b) => a - b);
  const columns = chart.series.map((series) => new Map(series.x.map((x, i) => [x, series.y[i]])));
  const head = el("tr", {}, el("th", { scope: "col" }, chart.x_title), ...chart.series.map((s) => el("th", { scope: "col" }, s.name)));
  const rows = xs.map((x) => el("tr", {}, el("th", { scope: "row" }, shortNumber(x)), ...columns.map((c) => el("td", {}, shortNumber(c.get(x))))));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Numbers of ${chart.title}` },
    el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)));
}

async function startCharts() {
  for (const details of document.querySelectorAll("details[data-numbers]"))
    details.addEventListener("toggle", () => details.querySelector("table") || details.append(tableOf(charts.get(details.dataset.numbers))));
  if (!charts.size) return;
  // The chart library is a part like the games: its hash is in the page's policy, so it may run and nothing else may.
  const script = document.createElement("script");
  script.textContent = await unpacked("plotly");
  document.head.append(script);
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      draw(target);
    }
  }, { rootMargin: "300px" });
  document.querySelectorAll("[data-chart]").forEach((holder) => seen.observe(holder));
  window.addEventListener("beforeprint", () => document.querySelectorAll("[data-chart]").forEach(draw));
  for (const box of document.querySelectorAll("[data-run]"))
    box.addEventListener("change", () => {
      if (box.checked) hiddenRuns.delete(box.dataset.run);
      else hiddenRuns.add(box.dataset.run);
      redrawAll();
    });
  performance.mark("charts-ready");
}
