// The console: shows the state of everything, and asks for runs. All its data comes from manage's API.
"use strict";

const BUSY_MS = 1000;         // between two requests during a run or a build, or while manage cannot be reached
const CALM_MS = 5000;         // otherwise
const ANSWER_MS = 20000;      // manage gives up on a stopped replica only after a while
const SHOWN_RUNS = 20;
const SHOWN_PROOFS = 48;      // in a chart
const SHOWN_FOUND = 5;        // a run of more counters shows those with drift, and the number of the others
const KEY = "rollcall-manage-token";

const PHASES = {
  "": "starting",
  queued: "waiting",
  build: "building",
  missing: "reading the table",
  extra: "looking for extra members",
  mark: "marking the suspects",
  fence: "waiting for the replica",
  sweep: "going through the suspects",
  waiting: "waiting for the replica",
};

const number = new Intl.NumberFormat("en");
const asksToken = document.body.dataset.asksToken === "yes";
const counters = new Map([...document.querySelectorAll("[data-counter]")].map((s) => [s.dataset.counter, s]));
const groupings = new Map([...document.querySelectorAll("[data-grouping]")].map((s) => [s.dataset.grouping, s]));
const rows = new Map();       // run id -> its row in the table
const openBefore = new Set(); // ids of runs that had not ended at the last request
const cancelled = new Set();  // ids of runs that this page has asked to stop

let token = asksToken ? sessionStorage.getItem(KEY) : null;
let session = 0;              // counts logins, so that the page does not show an answer for an earlier one
let timer = null;
let looking = false;
let lookAgain = false;
let newestProof = null;       // the newest reconcile in the charts

const part = (name, within = document) => within.querySelector(`[data-part="${name}"]`);

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function make(tag, text = "", className = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  if (className) element.className = className;
  return element;
}

// -- words

// "0.8 s", "42 s", "3 minutes", "2 hours", "5 days"
function span(seconds) {
  for (const [size, name] of [[86400, "day"], [3600, "hour"], [60, "minute"]]) {
    const many = Math.floor(seconds / size);
    if (many >= 1) return `${many} ${name}${many > 1 ? "s" : ""}`;
  }
  return `${seconds < 10 ? seconds.toFixed(1) : Math.floor(seconds)} s`;
}

// Ages use the clock of the service: the reader's may be wrong.
const seconds = (from, to) => Math.max(0, (Date.parse(to) - Date.parse(from)) / 1000);
function ago(moment, now) {
  if (!moment) return "never";
  const age = seconds(moment, now);
  return age < 1 ? "just now" : `${span(age)} ago`;
}

const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const day = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const timeOf = (moment) => clock.format(new Date(moment));

function driftWords({ missing, extra }) {
  const words = [];
  if (missing) words.push(`${number.format(missing)} missing`);
  if (extra) words.push(`${number.format(extra)} extra`);
  return words.join(", ") || "no drift";
}

const members = (many) => (many === 1 ? "1 member" : `${number.format(many)} members`);

// What a repair has repaired, or what a check has found and not changed.
function foundWords(drift, repaired) {
  const { missing, extra } = drift;
  if (!repaired || !(missing || extra)) return driftWords(drift);
  const were = missing === 1 ? "was" : "were";
  const words = [missing && `${members(missing)} ${were} missing and ${were} added`, extra && `${members(extra)} left`];
  return words.filter(Boolean).join(", ");
}

const shown = (value) => (value === null ? "–" : number.format(value));
const xact = (value) => (value === null ? "–" : String(value));

// "users", "users by state"
function titleOf(name) {
  const [total, ...by] = name.split(":");
  const title = total.replaceAll("_", " ");
  return by.length ? `${title} by ${by.join(":").replaceAll(",", ", ")}` : title;
}

// The counters of a run, and not each of their groupings: "users with 3 groupings, cities".
function titlesOf(names) {
  const words = [];
  for (const name of names) {
    const below = names.filter((other) => other.startsWith(`${name}:`)).length;
    if (below) words.push(`${titleOf(name)} with ${below} ${below === 1 ? "grouping" : "groupings"}`);
    else if (!names.includes(name.split(":")[0]) || !name.includes(":")) words.push(titleOf(name));
  }
  return words.join(", ");
}

// A member; one of a group or a day with the names of its fields.
function memberWords(name, member) {
  const fields = Object.entries(member);
  const byField = name.includes(":") || fields.some(([field]) => field.includes("("));
  return fields.map(([field, value]) => (byField ? `${field} ${value}` : value)).join(", ");
}

// -- asking

class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

async function ask(path, method = "GET", body = undefined) {
  const headers = {};
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body) headers["Content-Type"] = "application/json";
  let answer;
  try {
    const signal = AbortSignal.timeout(ANSWER_MS);
    answer = await fetch(path, { method, headers, body: body && JSON.stringify(body), credentials: "omit", signal });
  } catch {
    throw new Refused(0, "manage cannot be reached");
  }
  const document_ = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(answer.status, document_.detail || `manage answered ${answer.status}`);
  return document_;
}

// -- the token

function showLogin(reason) {
  session += 1;
  token = null;
  sessionStorage.removeItem(KEY);
  clearTimeout(timer);
  part("console").hidden = part("forget").hidden = true;
  part("login").hidden = false;
  setText(part("login-error"), reason);
  showConnection("", "");
  part("login").elements.token.focus();
}

async function logIn(event) {
  event.preventDefault();
  const field = event.target.elements.token;
  const given = field.value.trim();
  // A header allows only these characters, and so does a token.
  if (!/^[\x21-\x7e]+$/.test(given)) {
    setText(part("login-error"), "This is not a token: it has letters, digits, - and _ only.");
    return;
  }
  token = given;
  try {
    await ask("/v1/status");
  } catch (error) {
    if (error.status === 401) {
      token = null;
      setText(part("login-error"), "This token is not valid here. Manage has tokens of its own: one of ingest or query opens nothing.");
      field.select();
      return;
    }
    // Any other error is not the token's fault; the console shows it.
  }
  sessionStorage.setItem(KEY, given);
  field.value = "";
  openConsole();
}

function openConsole() {
  session += 1;
  newestProof = null;
  part("login").hidden = true;
  setText(part("login-error"), "");
  part("console").hidden = false;
  part("forget").hidden = !asksToken;
  showConnection("", "Reading …");
  look();
}

// -- looking, again and again

async function look() {
  clearTimeout(timer);
  if (looking) {
    lookAgain = true;
    return;
  }
  looking = true;
  const asked = session;
  let wait = CALM_MS;
  try {
    const [status, { runs }] = await Promise.all([ask("/v1/status"), ask(`/v1/runs?limit=${SHOWN_RUNS}`)]);
    if (asked !== session) return;
    showStatus(status, runs);
    showRuns(runs, status.as_of);
    await showCharts(status.counters);
    showConnection("live", "Live");
    if (isBusy(status)) wait = BUSY_MS;
  } catch (error) {
    if (asked !== session) return;
    if (!(error instanceof Refused)) throw error;
    if (error.status === 401) {
      showLogin("This token is not valid any more.");
      return;
    }
    showConnection("lost", `${error.message}; trying again`);
    wait = BUSY_MS;
  } finally {
    looking = false;
    if (lookAgain || asked !== session) wait = 0;
    lookAgain = false;
    if (!part("console").hidden && !document.hidden) timer = setTimeout(look, wait);
  }
}

function isBusy(status) {
  return status.open_runs.length > 0 || Object.values(status.counters).some((counter) => counter.building || counter.state === "cold");
}

function showConnection(kind, text) {
  const connection = part("connection");
  connection.dataset.kind = kind;
  setText(connection, text);
}

// -- how everything stands

function showPill(pill, kind, text) {
  pill.dataset.kind = kind;
  setText(pill, text);
}

function showStatus(status, runs) {
  const { keeper, replica, as_of: now } = status;
  showPill(part("keeper-state"), keeper.state === "alive" ? "good" : "bad", keeper.state);
  const words = [`caught up ${ago(keeper.ticked_at, now)}`];
  if (keeper.job) words.push(`doing ${keeper.job}`);
  words.push(keeper.holder ? `process ${keeper.holder.pid} on ${keeper.holder.host} holds the lock` : "nobody holds the lock");
  if (keeper.failure) words.push(keeper.failure);
  setText(part("keeper-words"), words.join(" · "));
  showPill(part("replica-state"), replica.reachable ? "good" : "bad", replica.reachable ? "reachable" : "not reachable");
  setText(part("replica-words"), replica.reachable ? `${span(replica.lag_seconds)} behind` : replica.detail);
  showFindings(status.findings);
  for (const [name, section] of counters) {
    const counter = status.counters[name];
    if (counter) showCounter(section, name, counter, runs, now);
  }
  for (const [name, item] of groupings) {
    const counter = status.counters[name];
    if (counter) showGrouping(item, counter, now);
  }
  for (const [name, section] of counters) showSummary(section, name, status.counters);
}

function showFindings(findings) {
  const list = part("findings");
  part("all-is-well").hidden = findings.length > 0;
  list.hidden = findings.length === 0;
  while (list.children.length > findings.length) list.lastChild.remove();
  findings.forEach((finding, at) => setText(list.children[at] || list.appendChild(make("li")), spelled(finding.detail)));
}

function showCounter(section, name, counter, runs, now) {
  section.dataset.state = counter.state;
  showPill(part("state", section), counter.state === "live" ? "good" : "bad", counter.building ? "building" : counter.state);
  setText(part("count", section), counter.count === null ? "—" : number.format(counter.count));
  part("reason", section).hidden = !(counter.reason || counter.withheld) || Boolean(counter.building);
  const why = counter.reason ? `Cannot be counted: ${counter.reason}` : `Complete only up to then: ${counter.withheld}`;
  setText(part("reason", section), `${spelled(why)}.`);
  part("building", section).hidden = !counter.building;
  if (counter.building) {
    const { read, expected } = counter.building;
    setText(part("building-words", section), progressWords(read, expected));
    showBar(part("building-bar", section), read, expected);
  }
  setText(part("complete-through", section), ago(counter.complete_through, now));
  setText(part("verified", section), ago(counter.verified_at, now));
  setText(part("lag", section), counter.replica_lag_seconds === null ? "not known" : span(counter.replica_lag_seconds));
  for (const fact of ["cursor", "horizon", "watermark"]) setText(part(fact, section), xact(counter[fact]));
  if ("days" in counter) setText(part("days", section), counter.days === null ? "–" : `${number.format(counter.days)} different ${counter.days === 1 ? "day" : "days"}`);
  setText(part("drift-words", section), lastLook(counter));
  const last = runs.find((run) => run.drift[name] && run.drift[name].verified_at);
  showSamples(part("samples", section), name, last && counter.drift ? last.drift[name] : null, counter.repaired);
}

// The counter by one grouping, in two lines.
function showGrouping(item, counter, now) {
  const { building, broken_groups: broken, groups } = counter;
  const word = building ? "building" : broken ? `${number.format(broken)} cold` : counter.state;
  showPill(part("grouping-state", item), word === "live" ? "good" : "bad", word);
  const words = [];
  if (building) words.push(progressWords(building.read, building.expected));
  else if (counter.state === "cold") words.push(spelled(counter.reason));
  else {
    words.push(`${number.format(counter.count)} in ${number.format(groups)} ${groups === 1 ? "group" : "groups"}`);
    words.push(`complete to ${ago(counter.complete_through, now)}`);
    words.push(counter.verified_at ? `verified ${ago(counter.verified_at, now)}: ${foundWords(counter.drift, counter.repaired)}` : "not verified yet");
    if (counter.withheld) words.push(counter.withheld);
  }
  setText(part("grouping-words", item), words.filter(Boolean).join(" · "));
}

// The line that a folded list of groupings shows.
function showSummary(section, name, all) {
  const summary = part("groupings-words", section);
  const of = [...groupings.keys()].filter((grouping) => grouping.startsWith(`${name}:`) && all[grouping]);
  if (!summary || !of.length) return;
  const wrong = of.filter((grouping) => all[grouping].state === "cold" || all[grouping].broken_groups).length;
  summary.dataset.kind = wrong ? "bad" : "good";
  setText(summary, `${of.length} ${of.length === 1 ? "grouping" : "groupings"}${wrong ? `, ${wrong} not live` : ", all live"}`);
}

function lastLook({ drift, repaired }) {
  if (!drift) return "Nobody has looked yet.";
  const words = foundWords(drift, repaired);
  if (!drift.missing && !drift.extra) return `The last look: ${words}`;
  return repaired ? `The last repair: ${words}` : `The last check, which repairs nothing: ${words}`;
}

// Members hold any text that a producer sent. Invisible characters, and those that reverse the text, are shown as escapes.
const UNSEEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu;
const spelled = (text) => text.replace(UNSEEN, (sign) => `\\u{${sign.codePointAt(0).toString(16)}}`);

function showSamples(box, name, drift, repaired) {
  const key = JSON.stringify(drift && [drift.missing_sample, drift.extra_sample, drift.missing, drift.extra, repaired]);
  if (box.dataset.key === key) return;
  box.dataset.key = key;
  box.replaceChildren();
  if (!drift) return;
  const kinds = repaired
    ? [["missing", "added", "was missing"], ["extra", "left", "has no row any longer"]]
    : [["missing", "missing", "in the table only"], ["extra", "extra", "in the set only"]];
  for (const [kind, word, where] of kinds) {
    const members = drift[`${kind}_sample`];
    if (!members.length) continue;
    const line = make("p", "", kind);
    line.append(make("b", word), ` (${where}): `);
    members.forEach((member, at) => line.append(at ? " " : "", make("bdi", spelled(memberWords(name, member)))));
    if (drift[kind] > members.length) line.append(` and ${number.format(drift[kind] - members.length)} more`);
    box.append(line);
  }
}

function progressWords(read, expected) {
  return expected ? `${number.format(read)} of about ${number.format(expected)} members` : "";
}

function showBar(bar, read, expected) {
  if (expected) {
    bar.max = expected;
    bar.value = Math.min(read, expected);
  } else {
    bar.removeAttribute("value");
  }
}

// -- drift over time

async function showCharts(standing) {
  const newest = JSON.stringify([...counters.keys()].map((name) => standing[name] && standing[name].verified_at));
  if (newest === newestProof) return;
  const asked = session;
  const { counters: proofs } = await ask("/v1/drift");
  if (asked !== session) return;
  newestProof = newest;
  for (const [name, section] of counters) drawChart(section, titleOf(name), (proofs[name] || []).slice(-SHOWN_PROOFS));
}

function drawn(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// A bar for each reconcile, the newest on the right: missing members upwards, extra ones downwards.
function drawChart(section, title, proofs) {
  part("chart", section).hidden = proofs.length === 0;
  if (!proofs.length) return;
  const [width, middle, reach] = [480 / SHOWN_PROOFS, 48, 44];
  const most = Math.max(...proofs.map((proof) => Math.max(proof.missing, proof.extra)), 1);
  // With the square root, one member is visible next to a thousand.
  const tall = (members) => (members ? Math.max(4, reach * Math.sqrt(members / most)) : 0);
  const bars = proofs.map((proof, at) => {
    const x = 480 - (proofs.length - at) * width;
    const words = `${timeOf(proof.verified_at)}, ${proof.mode}: ${foundWords(proof, proof.mode === "repair")}`;
    const group = drawn("g", {}, drawn("title", {}, words), drawn("rect", { class: "slot", x, y: 0, width, height: 96 }));
    const bar = (kind, y, height) => group.append(drawn("rect", { class: kind, x: x + width * .2, y, width: width * .6, height }));
    if (proof.missing) bar("missing", middle - tall(proof.missing), tall(proof.missing));
    if (proof.extra) bar("extra", middle, tall(proof.extra));
    if (!proof.missing && !proof.extra) bar("none", middle - 1.5, 3);
    return group;
  });
  const svg = part("bars", section);
  svg.replaceChildren(drawn("line", { class: "zero", x1: 0, x2: 480, y1: middle, y2: middle }), ...bars);
  const worst = driftWords({
    missing: Math.max(...proofs.map((proof) => proof.missing)),
    extra: Math.max(...proofs.map((proof) => proof.extra)),
  });
  const many = proofs.length > 1 ? `${proofs.length} reconciles` : "1 reconcile";
  const words = `${many} since ${day.format(new Date(proofs[0].verified_at))}: ${worst === "no drift" ? worst : `at most ${worst}`}`;
  svg.setAttribute("aria-label", `Drift of ${title}. ${words}`);
  setText(part("chart-words", section), `${words}.`);
}

// -- runs

function showRuns(runs, now) {
  const body = part("runs");
  for (const [id, row] of rows) {
    if (!runs.some((run) => run.id === id)) {
      row.remove();
      rows.delete(id);
    }
  }
  runs.forEach((run, at) => {
    let row = rows.get(run.id);
    if (!row) rows.set(run.id, (row = makeRow(run)));
    if (body.children[at] !== row) body.insertBefore(row, body.children[at] || null);
    showRun(row, run, now);
  });
  part("no-runs").hidden = runs.length > 0;
}

function makeRow(run) {
  const row = make("tr");
  row.dataset.run = run.id;
  const named = (name, ...children) => {
    const cell = make("td");
    cell.dataset.part = name;
    cell.append(...children);
    row.append(cell);
    return cell;
  };
  const asked = named("asked", make("span"), make("small", run.asked_by === "schedule" ? "by the keeper" : `by ${run.asked_by}`));
  asked.title = day.format(new Date(run.asked_at));
  named("run", make("span", `${run.mode} ${titlesOf(run.counters)}`), make("small", run.id));
  const status = make("span", "", "pill");
  const where = make("small");
  const bar = make("progress");
  bar.hidden = true;
  bar.setAttribute("aria-label", `Progress of run ${run.id}`);
  named("where", status, where, bar);
  named("drift");
  named("took");
  named("stop");
  return row;
}

function showRun(row, run, now) {
  const open = run.status === "queued" || run.status === "running";
  setText(part("asked", row).firstChild, ago(run.asked_at, now));
  const [pill, where, bar] = part("where", row).children;
  showPill(pill, { done: "good", failed: "bad" }[run.status] || "", open && (run.cancelling || cancelled.has(run.id)) ? "stopping" : run.status);
  setText(where, open ? whereWords(run) : run.detail);
  bar.hidden = run.status !== "running" || !run.progress.expected;
  if (!bar.hidden) showBar(bar, run.progress.read, run.progress.expected);
  showFound(part("drift", row), run);
  setText(part("took", row), run.started_at ? span(seconds(run.started_at, run.finished_at || now)) : "");
  showStop(part("stop", row), run, open);
  if (open) openBefore.add(run.id);
  else if (openBefore.delete(run.id)) announce(run);
}

function whereWords(run) {
  const { counter, phase, read, expected, eta_seconds: eta } = run.progress;
  if (run.status === "queued") return "waiting for the keeper";
  const words = [`${titleOf(counter)}: ${PHASES[phase] || phase}`];
  if (run.counters.length > 1 && counter) words[0] = `${run.counters.indexOf(counter) + 1} of ${run.counters.length}, ${words[0]}`;
  if (expected) words.push(progressWords(read, expected));
  if (eta !== null && eta >= 1) words.push(`${span(eta)} left`);
  if (run.detail) words.push(run.detail);
  return words.join(" · ");
}

// The drift so far, for each counter; members unfold. Built again only when it changes, so that an unfolded one stays open.
function showFound(cell, run) {
  const found = Object.entries(run.drift).filter(([, drift]) => drift.verified_at || drift.missing || drift.extra);
  const key = JSON.stringify(found);
  if (cell.dataset.key === key) return;
  cell.dataset.key = key;
  const shown = found.length > SHOWN_FOUND ? found.filter(([, drift]) => drift.missing || drift.extra) : found;
  const others = found.length - shown.length;
  cell.replaceChildren(...shown.map(([name, drift]) => {
    const words = `${titleOf(name)}: ${foundWords(drift, run.mode === "repair")}`;
    if (!drift.missing_sample.length && !drift.extra_sample.length) return make("div", words);
    const details = make("details");
    const box = make("div", "", "samples");
    showSamples(box, name, drift, run.mode === "repair");
    details.append(make("summary", words), box);
    return details;
  }), ...(others ? [make("div", `${others === found.length ? "all" : "the other"} ${others} counters: no drift`)] : []));
}

function showStop(cell, run, open) {
  const button = cell.firstChild;
  if (open && !button) {
    const made = make("button", "Cancel");
    made.type = "button";
    made.setAttribute("aria-label", `Cancel run ${run.id}`);
    made.addEventListener("click", () => act(made, async () => {
      await ask(`/v1/runs/${encodeURIComponent(run.id)}/cancel`, "POST");
      cancelled.add(run.id);
    }));
    cell.append(made);
  } else if (!open && button) {
    if (document.activeElement === button) part("runs-title").focus();
    button.remove();
    cancelled.delete(run.id);
  }
}

// For screen readers.
function announce(run) {
  const found = Object.entries(run.drift)
    .filter(([, drift], at, all) => all.length <= SHOWN_FOUND || drift.missing || drift.extra)
    .map(([name, drift]) => `${titleOf(name)}: ${foundWords(drift, run.mode === "repair")}`);
  setText(part("announcement"), `The ${run.mode} of ${titlesOf(run.counters)} is ${run.status}. ${found.join("; ")} ${run.detail}`.trim());
}

// -- doing

async function act(button, action) {
  if (button.getAttribute("aria-busy") === "true") return;
  button.setAttribute("aria-busy", "true");
  try {
    await action();
    setText(part("refusal"), "");
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status === 401) showLogin("This token is not valid any more.");
    else setText(part("refusal"), `Not done: ${error.message}.`);
  } finally {
    button.removeAttribute("aria-busy");
  }
  if (!part("console").hidden) look();
}

function askForRun(button) {
  const [item, section] = [button.closest("[data-grouping]"), button.closest("[data-counter]")];
  const names = item ? [item.dataset.grouping] : section ? [section.dataset.counter] : [...counters.keys()];
  return ask("/v1/runs", "POST", { counters: names, mode: button.dataset.mode });
}

for (const button of document.querySelectorAll("button[data-mode]")) {
  button.addEventListener("click", () => act(button, () => askForRun(button)));
}
part("login").addEventListener("submit", logIn);
part("forget").addEventListener("click", () => showLogin(""));
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && !part("console").hidden) look();
});
if (asksToken && !token) showLogin("");
else openConsole();
