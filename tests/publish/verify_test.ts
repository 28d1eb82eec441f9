import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { oras } from "../../lib/oci/oras.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import { pollDelayMs } from "../../lib/publish/verify.ts";
import { startProxy } from "../support/proxy.ts";
import { assertCode, attempt } from "../support/publication.ts";
import { makeQcow2, testWithImage as test } from "../support/workspace.ts";

/** Whoever asks for the tag 1. */
const TAG = /^(?!PUT ).*\/manifests\/1$/;

test("a tag that the registry serves late is waited for", async (bench) => {
  await using late = startProxy(bench.host, [
    { match: TAG, status: 404, times: 3 },
  ]);
  const { result, of } = await attempt(bench.image, `${late.host}/owner/vm:1`);
  const polls = of("publish_poll");
  assert(polls.length > 1, "it was served at once");
  assertEquals(polls.length, result.attempts);
  assertEquals(polls.at(-1)!.outcome, "served");
  for (const [at, poll] of polls.slice(0, -1).entries()) {
    assertEquals([poll.attempt, poll.outcome], [at + 1, "waiting"]);
    assertStringIncludes(poll.message!, "Not found");
    assertEquals(poll.delayMs, pollDelayMs(at + 1, 10));
  }
});

test("a tag that never comes is given up, by attempts or by time", async (bench) => {
  await using never = startProxy(bench.host, [{ match: TAG, status: 404 }]);
  const reference = `${never.host}/owner/vm:1`;
  const few = await attempt(bench.image, reference, { attempts: 3 });
  assertEquals(few.of("publish_poll").length, 3);
  const error = assertCode(few.error, "publish_timeout");
  assertStringIncludes(error.message, "3 attempts");
  assertStringIncludes(error.hint!, "--attempts");
  const short = await attempt(bench.image, reference, {
    attempts: 1_000_000,
    deadlineMs: 500,
  });
  const { message } = assertCode(short.error, "publish_timeout");
  assertStringIncludes(message, "0.5 s");
});

test("a registry that serves another manifest fails at once", async (bench) => {
  const { dir, image, host } = bench;
  const other = join(dir, "other.qcow2");
  await makeQcow2(other);
  await attempt(other, `${host}/owner/vm:other`);
  await using wrong = startProxy(host, [
    { match: TAG, askFor: "/v2/owner/vm/manifests/other" },
  ]);
  const { error, of } = await attempt(image, `${wrong.host}/owner/vm:1`);
  const { message, hint } = assertCode(error, "publish_mismatch");
  assertStringIncludes(message, of("push_end")[0].digest);
  assertStringIncludes(hint!, "someone else");
  assertEquals(of("publish_poll"), []);
});

test("a registry that serves other bytes fails when they are pulled", async (bench) => {
  const { image, host, sha256 } = bench;
  await using wrong = startProxy(host, [{
    match: new RegExp(`^GET .*/blobs/sha256:${sha256}$`),
    replace: (body) => body.fill(0),
  }]);
  const reference = `${wrong.host}/owner/vm:1`;
  const { result } = await attempt(image, reference);
  assertEquals(result.verified, "manifest");
  const pulled = await attempt(image, reference, { verify: "pull" });
  assertCode(pulled.error, "publish_mismatch");
  assertEquals(pulled.of("publish_poll"), []);
});

test("an image can be pulled back and hashed", async (bench) => {
  const { result, of } = await attempt(
    bench.image,
    `${bench.host}/owner/vm:1`,
    { verify: "pull" },
  );
  assertEquals(result.verified, "pull");
  assertEquals(of("download_end").length, 1);
  assertEquals(of("publish_verified")[0].verify, "pull");
});

test("an image that changes while it is published is noticed", async (bench) => {
  const { error } = await attempt(bench.image, `${bench.host}/owner/vm:1`, {
    onEvent(event) {
      if (event.type !== "publish_start") return;
      Deno.writeFileSync(bench.image, new Uint8Array(9), { append: true });
    },
  });
  const { message } = assertCode(error, "publish_mismatch");
  assertStringIncludes(message, "changed while it was being published");
});

test("a publication that is cancelled ends, and says so", async (bench) => {
  const cancel = new AbortController();
  const { error, of } = await attempt(bench.image, `${bench.host}/owner/vm:1`, {
    signal: cancel.signal,
    onEvent(event) {
      if (event.type === "push_end") cancel.abort(new Error("enough"));
    },
  });
  assertEquals((error as Error).message, "enough");
  assertEquals(of("publish_verified"), []);
});

test("what was published can be asked for by its digest", async (bench) => {
  const { result } = await attempt(bench.image, `${bench.host}/owner/vm:1`);
  const [name] = result.reference.split(":1");
  const reference = parseReference(`${name}@${result.digest}`);
  const artifact = await oras().fetchManifest(reference);
  assertEquals(artifact.layers[0].digest, result.layerDigest);
});

Deno.test("the pause between two polls grows by half, up to five times", () => {
  const pauses = [1, 2, 3, 4, 5, 6, 20].map((n) => pollDelayMs(n, 6000));
  assertEquals(pauses, [6000, 9000, 13500, 20250, 30000, 30000, 30000]);
});
