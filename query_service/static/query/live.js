// Updates the page's counts: listens to /v1/stream, shows how fresh they are, and asks about members.
"use strict";

const AGAIN_MS = 2000;        // between attempts when the browser has given up
const GRACE_MS = 1500;        // a stream that is back within this time only moved to another worker
const LOOK_MS = 10000;        // between two reads of what no event says: windows and groups
const QUIET_MS = 60000;       // a stream that is silent for this long may be dead: a laptop slept, a network changed

// As charts.py draws: in seconds, and in units of the drawing.
const HOUR = 3600, SAMPLE = 10, GAP = 25, MARGIN = 4;

const number = new Intl.NumberFormat("en");
const connection = document.querySelector("[data-part=connection]");
const sections = new Map([...document.querySelectorAll("[data-counter]")].map((s) => [s.dataset.counter, s]));

// For each counter [seconds since 1970, count], in order: the samples of the service, and the stream's counts since then.
const points = new Map([...sections.keys()].map((name) => [name, []]));
const drawable = new Set();   // counters whose samples have been read: until then the chart stays as the server drew it

let latest = null;            // the last event's document
let receivedAt = 0;           // when it came, on the page's own steady clock
let lostSince = null;         // the time of day when the stream was lost
let graceTimer = null;
let stream = null;
let heardAt = 0;              // when the stream was opened, or last sent an event

const part = (section, name) => section.querySelector(`[data-part="${name}"]`);

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// "0.8 s", "42 s", "3 minutes", "2 hours", "5 days"
function span(seconds) {
  const units = [[86400, "day"], [3600, "hour"], [60, "minute"]];
  for (const [size, name] of units) {
    const many = Math.floor(seconds / size);
    if (many >= 1) return `${many} ${name}${many > 1 ? "s" : ""}`;
  }
  return `${seconds < 10 ? seconds.toFixed(1) : Math.floor(seconds)} s`;
}

// Ages use the clock that wrote `as_of`, and the time since then: the visitor's clock may be wrong.
function ago(moment) {
  const atServer = (Date.parse(latest.as_of) - Date.parse(moment)) / 1000;
  return `${span(Math.max(0, atServer + (performance.now() - receivedAt) / 1000))} ago`;
}

const members = (many) => (many === 1 ? "1 member" : `${number.format(many)} members`);

// As pages.py writes it: what a repair has repaired comes before the time of the verification, what is still wrong after it.
function proofWords(counter) {
  const { missing, extra } = counter.drift || {};
  const verified = `verified ${ago(counter.verified_at)}`;
  if (!counter.drift) return [verified];
  if (!missing && !extra) return [verified, "no drift"];
  if (counter.repaired === false) {
    const wrong = [missing && `${number.format(missing)} missing`, extra && `${number.format(extra)} extra`];
    return [verified, `drift: ${wrong.filter(Boolean).join(", ")}`];
  }
  const were = missing === 1 ? "was" : "were";
  const mended = [missing && `${members(missing)} ${were} missing and ${were} added`, extra && `${members(extra)} left`];
  return [...mended.filter(Boolean), verified];
}

function freshness(counter) {
  if (counter.count === null) return "";
  const words = [];
  if (counter.complete_through) words.push(`complete to ${ago(counter.complete_through)}`);
  words.push(...(counter.verified_at ? proofWords(counter) : ["not verified yet"]));
  return words.join(", ");
}

function showCold(section, { progress, reason }) {
  const bar = part(section, "progress");   // a card has one, a row has none
  if (bar) bar.hidden = !progress;
  if (progress) {
    if (bar) {
      bar.max = Math.max(progress.expected, progress.read, 1);
      bar.value = progress.read;
    }
    setText(part(section, "cold-words"), `Being built: ${number.format(progress.read)} of about ${number.format(progress.expected)} members`);
  } else {
    setText(part(section, "cold-words"), reason ? `Cannot be counted now: ${reason}` : "Being built");
  }
}

function showCounter(section, counter) {
  section.dataset.state = counter.state;
  const count = part(section, "count");
  const text = counter.count === null ? "—" : number.format(counter.count);
  if (count.textContent !== text) {
    count.textContent = text;
    count.classList.remove("changed");
    void count.offsetWidth;   // lets the animation start again
    count.classList.add("changed");
  }
  part(section, "building").hidden = counter.state !== "cold";
  if (counter.state === "cold") showCold(section, counter);
}

function showAges() {
  if (!latest) return;
  for (const [name, section] of sections) {
    const counter = latest.counters[name];
    if (counter) setText(part(section, "freshness"), freshness(counter));
  }
}

// A point may be anywhere after the last sample; the next point replaces it until the two are a sample's distance apart.
function addPoint(name, at, count) {
  const known = points.get(name);
  const before = known.at(-2);
  if (before && at - before[0] < SAMPLE) known.pop();
  known.push([at, count]);
}

async function readHistory(name) {
  if (!part(sections.get(name), "chart")) return;
  try {
    const response = await fetch(`/v1/counts/${name}/history`);
    if (!response.ok) return;
    const { samples } = await response.json();
    const newest = samples.length ? samples.at(-1)[0] : 0;
    points.set(name, [...samples, ...points.get(name).filter(([at]) => at > newest)]);
  } catch {
    // The service does not answer: the stream notices that too, and shows it.
  } finally {
    drawable.add(name);
    drawChart(name);
  }
}

// Draws the line as charts.py drew it for the page, with the present points.
function drawChart(name) {
  if (!latest || !drawable.has(name)) return;
  const now = Date.parse(latest.as_of) / 1000 + (performance.now() - receivedAt) / 1000;
  const shown = points.get(name).filter(([at]) => at >= now - HOUR);
  const figure = part(sections.get(name), "chart");
  points.set(name, shown);
  figure.hidden = shown.length === 0;
  if (figure.hidden) return;

  const counts = shown.map(([, count]) => count);
  const low = Math.min(...counts), high = Math.max(...counts);
  const svg = figure.querySelector("svg");
  const { width, height } = svg.viewBox.baseVal;
  let before = -Infinity;
  const steps = shown.map(([at, count]) => {
    const x = Math.round(width * Math.min(1, 1 - (now - at) / HOUR));
    const share = high > low ? (count - low) / (high - low) : 0.5;
    const y = Math.round(height - MARGIN - share * (height - 2 * MARGIN));
    const isJoined = at - before <= GAP;
    before = at;
    return isJoined ? `L${x} ${y}` : `M${x} ${y}h0`;
  });
  svg.querySelector("path").setAttribute("d", steps.join(""));
  const [least, most] = [number.format(low), number.format(high)];
  setText(part(figure, "high"), most);
  setText(part(figure, "low"), least === most ? "" : least);
  svg.setAttribute("aria-label", `The last hour: ${least === most ? `${least} all the time` : `between ${least} and ${most}`}`);
}

function drawCharts() {
  for (const name of sections.keys()) drawChart(name);
}

function showConnection(kind, text) {
  connection.dataset.kind = kind;
  setText(connection, text);
}

const timeOfDay = (moment) => moment.toLocaleTimeString("en-GB");

function receive(event) {
  clearTimeout(graceTimer);
  graceTimer = lostSince = null;
  latest = JSON.parse(event.data);
  heardAt = receivedAt = performance.now();
  for (const [name, section] of sections) {
    const counter = latest.counters[name];
    if (!counter) continue;
    showCounter(section, counter);
    if (counter.state === "live") addPoint(name, Date.parse(latest.as_of) / 1000, counter.count);
  }
  showAges();
  drawCharts();
  if (Object.values(latest.counters).some((counter) => counter.state === "stale" || counter.state === "unavailable")) {
    const since = latest.as_of ? `: stale since ${timeOfDay(new Date(latest.as_of))}` : "";
    showConnection("lost", `The counts cannot be read at the moment${since}`);
  } else {
    showConnection("live", "Live");
  }
}

function showLoss() {
  showConnection("lost", `Connection lost: stale since ${timeOfDay(lostSince)}; connecting again`);
  for (const section of sections.values()) {
    if (section.dataset.state === "live") section.dataset.state = "stale";
  }
}

function noteLoss(since) {
  if (lostSince) return;
  lostSince = since;
  graceTimer = setTimeout(showLoss, GRACE_MS);
}

function listen() {
  heardAt = performance.now();
  stream = new EventSource("/v1/stream");
  stream.addEventListener("open", () => [...sections.keys()].forEach(readHistory));
  stream.addEventListener("message", receive);
  stream.addEventListener("error", () => {
    noteLoss(new Date());
    // The browser reconnects itself, unless the answer was not a stream.
    if (stream.readyState === EventSource.CLOSED) setTimeout(listen, AGAIN_MS);
  });
}

// A new stream sends an event at once. So opening one tells a quiet service from one that does not answer.
function checkQuiet() {
  const quiet = performance.now() - heardAt;
  if (quiet < QUIET_MS || stream.readyState === EventSource.CLOSED) return;
  noteLoss(new Date(Date.now() - quiet));
  stream.close();
  listen();
}

// The page as the server would draw it now has them.
async function lookAtTheRest() {
  const places = document.querySelectorAll("[data-live]");
  if (!places.length || document.hidden || lostSince) return;
  try {
    const response = await fetch(location.href);
    if (!response.ok) return;
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
    for (const place of places) {
      const found = fresh.querySelector(`[data-live="${CSS.escape(place.dataset.live)}"]`);
      if (found && found.innerHTML !== place.innerHTML) place.replaceChildren(...found.childNodes);
    }
  } catch {
    // Out of reach: the stream notices that too, and says so.
  }
}

async function ask(event) {
  event.preventDefault();
  const form = event.target;
  const output = part(form, "answer");
  const values = new FormData(form);
  values.delete("find-counters");
  const asked = [...values.values()].join(", ");
  delete output.dataset.answer;
  try {
    const response = await fetch(`${form.dataset.action}?${new URLSearchParams(values)}`);
    const answer = await response.json();
    if (response.ok) {
      output.dataset.answer = answer.member ? "yes" : "no";
      setText(output, answer.member ? `Yes, “${asked}” is counted.` : `No, “${asked}” is not counted.`);
    } else {
      setText(output, `No answer: ${answer.detail}.`);
    }
  } catch {
    setText(output, "No answer: the service cannot be reached.");
  }
}

for (const section of sections.values()) section.querySelector("form")?.addEventListener("submit", ask);
setInterval(lookAtTheRest, LOOK_MS);
setInterval(showAges, 250);
setInterval(checkQuiet, 1000);
setInterval(drawCharts, 5000);
listen();
