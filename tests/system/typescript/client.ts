// A client of all three services. All that it knows of them stands in the types that openapi-typescript has generated; the
// test compiles it with them, and runs it. What it did is printed as JSON, so that the test can look whether it is true.

import createClient from "openapi-fetch";

import type { paths as IngestPaths } from "./ingest.ts";
import type { components as Manage, paths as ManagePaths } from "./manage.ts";
import type { components as Query, paths as QueryPaths } from "./query.ts";
import services from "./services.json" with { type: "json" };

const ingest = createClient<IngestPaths>(services.ingest);
const manage = createClient<ManagePaths>(services.manage);
const query = createClient<QueryPaths>(services.query);

type Count = Query["schemas"]["Count"];
type Run = Manage["schemas"]["RunReport"];

const username = `typed-${crypto.randomUUID()}`;
const row = { state: "NY", city: "Ithaca", username, message: "hello" };

function check(holds: boolean, what: string): asserts holds {
  if (!holds) throw new Error(what);
}

// Each state has its words: where one is added, this no longer compiles.
function words(count: Count): string {
  switch (count.state) {
    case "live":
    case "stale":
      return `${count.count} members, ${count.drift?.missing ?? 0} were missing, complete through ${count.complete_through}`;
    case "cold":
      return `${count.reason}, ${count.progress?.read ?? 0} members read`;
    case "unavailable":
      return "nothing is known";
    default:
      return count.state satisfies never;
  }
}

function hasEnded(run: Run): boolean {
  switch (run.status) {
    case "queued":
    case "running":
      return false;
    case "done":
    case "failed":
    case "cancelled":
      return true;
    default:
      return run.status satisfies never;
  }
}

async function storeRows(): Promise<number> {
  const request = { body: row, params: { header: { "Idempotency-Key": username } } };
  const first = await ingest.POST("/v1/messages", request);
  check(first.data?.counted === true, "the message is stored and counted");
  const again = await ingest.POST("/v1/messages", request);
  check(again.data?.id === first.data.id && again.response.headers.get("Idempotent-Replay") === "true", "a replay");

  const refused = await ingest.POST("/v1/messages", { body: { ...row, username: "" } });
  check(refused.error?.type === "urn:rollcall:invalid-row", "an empty name is refused");
  check(refused.error.errors[0]?.field === "username", "the wrong field is named");

  const rows = [row, { ...row, state: "" }];
  const batch = await ingest.POST("/v1/messages/batch", { body: rows, params: { query: { strict: "0" } } });
  check(batch.data?.accepted === 1 && batch.data.errors[0]?.line === 2, "one row is stored, and one is named");
  const strict = await ingest.POST("/v1/messages/batch", { body: rows, params: { query: { strict: "1" } } });
  check(strict.error?.type === "urn:rollcall:invalid-rows", "with strict=1 none is");
  const lines = await ingest.POST("/v1/messages/batch", {
    body: `${JSON.stringify(row)}\n`,
    bodySerializer: (body) => body as string,
    headers: { "Content-Type": "application/x-ndjson" },
  });
  check(lines.data?.accepted === 1, "NDJSON is taken");
  return first.data.id;
}

async function askForCounts(): Promise<number> {
  const fresh = { "Cache-Control": "no-cache" };
  const all = await query.GET("/v1/counts", { params: { query: { counters: "users" }, header: fresh } });
  const users = all.data?.counters["users"];
  check(users?.state === "live" && users.count !== null, "the counter is live");
  check(words(users).startsWith(`${users.count} members`), "the state has its words");

  const path = { counter: "users" } as const;
  const one = await query.GET("/v1/counts/{counter}", { params: { path } });
  const tag = one.response.headers.get("ETag");
  check(one.data !== undefined && tag !== null, "one count has an ETag");
  const unchanged = await query.GET("/v1/counts/{counter}", { params: { path, header: { "If-None-Match": tag } } });
  check(unchanged.response.status === 304, "an unchanged count is a 304");

  const flat = await query.GET("/stats/get/");
  check(flat.data?.result === "success" && flat.data.users === users.count, "the flat object has the count");
  const history = await query.GET("/v1/counts/{counter}/history", { params: { path } });
  check(history.data?.samples.every((sample) => sample.length === 2) === true, "a sample is a pair");
  return users.count;
}

async function askForMembers(): Promise<void> {
  const path = { counter: "users" } as const;
  const one = await query.GET("/v1/counts/{counter}/member", { params: { path, query: { username } } });
  check(one.data?.member === true, "the new user is counted");
  const members = [{ username }, { username: "nobody of this name" }];
  const many = await query.POST("/v1/counts/{counter}/members", { params: { path }, body: { members } });
  check(many.data?.members.join() === "true,false", "one of two is counted");
  const wrong = await query.GET("/v1/counts/{counter}/member", { params: { path, query: { city: "Ithaca" } } });
  check(wrong.error?.type === "urn:rollcall:wrong-member" && wrong.error.field === "username", "the missing field is named");
}

async function follow(): Promise<Query["schemas"]["Counts"]> {
  const made = await query.POST("/v1/stream/tickets");
  check(made.data !== undefined, "a ticket is made");
  const leaving = new AbortController();
  const { data: stream } = await query.GET("/v1/stream", {
    params: { query: { ticket: made.data.ticket } },
    headers: { Authorization: null },
    parseAs: "stream",
    signal: leaving.signal,
  });
  check(!!stream, "the ticket opens a stream");
  let text = "";
  for await (const piece of stream.pipeThrough(new TextDecoderStream() as ReadableWritablePair<string, BufferSource>)) {
    text += piece;
    const event = /^data: (.*)\n\n/m.exec(text)?.[1];
    if (event !== undefined) {
      leaving.abort();
      return JSON.parse(event) as Query["schemas"]["Counts"];
    }
  }
  throw new Error(`the stream ended: ${text}`);
}

async function reconcile(): Promise<Run> {
  const asked = await manage.POST("/v1/runs", { body: { counters: ["users"], mode: "check" } });
  check(asked.data !== undefined, "a run is accepted");
  const path = { run_id: asked.data.id };
  check(asked.response.headers.get("Location") === `/v1/runs/${path.run_id}`, "Location names the run");
  let run: Run = asked.data;
  while (!hasEnded(run)) {
    const { data } = await manage.GET("/v1/runs/{run_id}", { params: { path } });
    check(data !== undefined, "the run is found");
    run = data;
  }
  const cancelled = await manage.POST("/v1/runs/{run_id}/cancel", { params: { path } });
  check(cancelled.data?.status === run.status, "a run that has ended stays as it is");
  const listed = await manage.GET("/v1/runs", { params: { query: { limit: 500 } } });
  check(listed.data?.runs.some((each) => each.id === run.id) === true, "the run is listed");
  const drift = await manage.GET("/v1/drift");
  check(drift.data?.counters["users"]?.some((proof) => proof.run === run.id) === true, "what it found is kept");
  const status = await manage.GET("/v1/status");
  check(status.data?.counters["users"]?.last_run?.status === run.status, "the status names it");
  const unknown = await manage.GET("/v1/runs/{run_id}", { params: { path: { run_id: "none" } } });
  check(unknown.error?.type === "urn:rollcall:unknown-run", "there is no such run");
  return run;
}

// What no client can write by mistake: each line below fails to compile, or this file does.
export async function mistakes(): Promise<void> {
  // @ts-expect-error: a field is missing
  await ingest.POST("/v1/messages", { body: { state: "NY", city: "Ithaca", username } });
  // @ts-expect-error: strict is 0 or 1
  await ingest.POST("/v1/messages/batch", { body: [row], params: { query: { strict: "yes" } } });
  // @ts-expect-error: there is no such counter
  await query.GET("/v1/counts/{counter}", { params: { path: { counter: "nobody" } } });
  // @ts-expect-error: there is no such parameter
  await query.GET("/v1/counts", { params: { query: { country: "DE" } } });
  // @ts-expect-error: there is no such mode
  await manage.POST("/v1/runs", { body: { mode: "mend" } });
  const { data, error } = await query.GET("/v1/counts/{counter}", { params: { path: { counter: "users" } } });
  // @ts-expect-error: a count may be null
  data?.count.toFixed();
  // @ts-expect-error: no problem of this operation has this type
  check(error?.type === "urn:rollcall:unknown-run", "");
}

const ready = await Promise.all([ingest.GET("/readyz"), manage.GET("/readyz"), query.GET("/readyz")]);
check(ready.every(({ data }) => data?.ready === true), "all services are ready");
const id = await storeRows();
await askForMembers();
const count = await askForCounts();
const streamed = (await follow()).counters["users"]?.count;
const run = await reconcile();
console.log(JSON.stringify({ username, id, count, streamed, run: run.id, status: run.status }));
