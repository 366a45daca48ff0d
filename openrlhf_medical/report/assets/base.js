// Helpers. Text from a run is untrusted: it enters the page as textContent and in no other way.

const $ = (id) => document.getElementById(id);

/** An element; `attributes` with `on…` functions are listeners, children are elements or strings. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined).map(textOr));
  return node;
}

const textOr = (child) => (child instanceof Node ? child : document.createTextNode(String(child)));

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const binary = atob(base64);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/** The text of an embedded part (gzip in base64), unpacked by the browser itself. */
async function unpacked(id) {
  const stream = new Blob([bytesOf($(id).textContent)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

/** Parts by number, each unpacked once. */
function parts(prefix) {
  const known = new Map();
  return (number) => {
    if (!known.has(number)) known.set(number, unpacked(`${prefix}-${number}`).then(JSON.parse));
    return known.get(number);
  };
}

function shortNumber(value) {
  if (typeof value !== "number") return "–";
  if (Number.isInteger(value)) return String(value);
  const size = Math.abs(value);
  return size >= 1000 ? value.toFixed(0) : size >= 0.001 ? String(Number(value.toPrecision(3))) : value.toExponential(2);
}

const later = (work) => (window.requestIdleCallback ? requestIdleCallback(work, { timeout: 500 }) : setTimeout(work, 50));

// ── What the reader chose: in the address, so that a reload (or a link) shows the same ──

const state = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");

function remember(changes) {
  for (const [key, value] of Object.entries(changes)) {
    if (value === null || value === "") state.delete(key);
    else state.set(key, value);
  }
  history.replaceState(null, "", state.size ? `#${state}` : location.pathname + location.search);
}

/** Storage may be forbidden for files: then the choice lasts as long as the page. */
function stored(storage, key, value) {
  try {
    if (value === undefined) return window[storage].getItem(key);
    window[storage].setItem(key, value);
  } catch {
    return null;
  }
  return value;
}
