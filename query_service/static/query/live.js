// Keeps the page's counts moving: listens to /v1/stream, says how fresh they are, and asks about members.
"use strict";

const AGAIN_MS = 2000;        // between attempts where the browser itself has given up
const GRACE_MS = 1500;        // a stream that comes back within this was only handed to another worker

const number = new Intl.NumberFormat("en");
const connection = document.querySelector("[data-part=connection]");
const sections = new Map([...document.querySelectorAll("[data-counter]")].map((s) => [s.dataset.counter, s]));

let latest = null;            // the last event's document
let receivedAt = 0;           // when it came, on the page's own steady clock
let lostSince = null;         // the time of day when the stream was lost
let graceTimer = null;

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

// Ages are told by the clock that wrote `as_of`, and the time since it came: the visitor's clock may be wrong.
function ago(moment) {
  const atServer = (Date.parse(latest.as_of) - Date.parse(moment)) / 1000;
  return `${span(Math.max(0, atServer + (performance.now() - receivedAt) / 1000))} ago`;
}

function freshness(counter) {
  if (counter.count === null) return "";
  const words = [];
  if (counter.complete_through) words.push(`complete to ${ago(counter.complete_through)}`);
  words.push(counter.verified_at ? `verified ${ago(counter.verified_at)}` : "not verified yet");
  if (counter.drift) {
    const { missing, extra } = counter.drift;
    words.push(missing || extra
      ? `drift then: ${number.format(missing)} missing, ${number.format(extra)} extra`
      : "no drift");
  }
  return words.join(", ");
}

function showProgress(section, progress) {
  const bar = part(section, "progress");
  if (progress) {
    bar.max = Math.max(progress.expected, progress.read, 1);
    bar.value = progress.read;
  } else {
    bar.removeAttribute("value");
  }
  setText(part(section, "progress-words"), progress
    ? `: ${number.format(progress.read)} of about ${number.format(progress.expected)} members`
    : "");
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
  if (counter.state === "cold") showProgress(section, counter.progress);
}

function showAges() {
  if (!latest) return;
  for (const [name, section] of sections) {
    const counter = latest.counters[name];
    if (counter) setText(part(section, "freshness"), freshness(counter));
  }
}

function showConnection(kind, text) {
  connection.dataset.kind = kind;
  setText(connection, text);
}

const timeOfDay = (moment) => moment.toLocaleTimeString();

function receive(event) {
  clearTimeout(graceTimer);
  graceTimer = lostSince = null;
  latest = JSON.parse(event.data);
  receivedAt = performance.now();
  for (const [name, section] of sections) {
    if (latest.counters[name]) showCounter(section, latest.counters[name]);
  }
  showAges();
  if (event.type === "stale") {
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

function listen() {
  const stream = new EventSource("/v1/stream");
  stream.addEventListener("counts", receive);
  stream.addEventListener("stale", receive);
  stream.addEventListener("error", () => {
    if (!lostSince) {
      lostSince = new Date();
      graceTimer = setTimeout(showLoss, GRACE_MS);
    }
    // The browser connects again by itself, unless it was told something else than a stream.
    if (stream.readyState === EventSource.CLOSED) setTimeout(listen, AGAIN_MS);
  });
}

async function ask(event) {
  event.preventDefault();
  const form = event.target;
  const output = part(form, "answer");
  const values = new FormData(form);
  const asked = [...values.values()].join(", ");
  delete output.dataset.answer;
  try {
    const response = await fetch(`${form.action}?${new URLSearchParams(values)}`);
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

for (const section of sections.values()) section.querySelector("form").addEventListener("submit", ask);
setInterval(showAges, 250);
listen();
