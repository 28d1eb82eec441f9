import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { orasClient } from "../../lib/oci/oras_client.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import { pollDelayMs } from "../../lib/publish/verify.ts";
import { startProxy } from "../support/proxy.ts";
import { assertErrorCode, attemptPublish } from "../support/publication.ts";
import { makeQcow2, testWithImage as test } from "../support/workspace.ts";

/** Matches requests for the manifest of tag 1. */
const TAG = /^(?!PUT ).*\/manifests\/1$/;

test("publish() waits for a tag that the registry serves late", async (bench) => {
  await using late = startProxy(bench.host, [
    { match: TAG, status: 404, times: 3 },
  ]);
  const { result, of } = await attemptPublish(
    bench.image,
    `${late.host}/owner/vm:1`,
  );
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

test("publish() fails with publish_timeout after `attempts` polls or at its deadline", async (bench) => {
  await using never = startProxy(bench.host, [{ match: TAG, status: 404 }]);
  const reference = `${never.host}/owner/vm:1`;
  const few = await attemptPublish(bench.image, reference, { attempts: 3 });
  assertEquals(few.of("publish_poll").length, 3);
  const error = assertErrorCode(few.error, "publish_timeout");
  assertStringIncludes(error.message, "3 attempts");
  assertStringIncludes(error.hint!, "--attempts");
  const short = await attemptPublish(bench.image, reference, {
    attempts: 1_000_000,
    deadlineMs: 500,
  });
  const { message } = assertErrorCode(short.error, "publish_timeout");
  assertStringIncludes(message, "0.5 s");
});

test("publish() fails at once when the registry serves another manifest", async (bench) => {
  const { dir, image, host } = bench;
  const other = join(dir, "other.qcow2");
  await makeQcow2(other);
  await attemptPublish(other, `${host}/owner/vm:other`);
  await using wrong = startProxy(host, [
    { match: TAG, askFor: "/v2/owner/vm/manifests/other" },
  ]);
  const { error, of } = await attemptPublish(image, `${wrong.host}/owner/vm:1`);
  const { message, hint } = assertErrorCode(error, "publish_mismatch");
  assertStringIncludes(message, of("push_end")[0].digest);
  assertStringIncludes(hint!, "another push");
  assertEquals(of("publish_poll"), []);
});

test("publish() with verify pull fails when the registry serves other bytes", async (bench) => {
  const { image, host, sha256 } = bench;
  await using wrong = startProxy(host, [{
    match: new RegExp(`^GET .*/blobs/sha256:${sha256}$`),
    replace: (body) => body.fill(0),
  }]);
  const reference = `${wrong.host}/owner/vm:1`;
  const { result } = await attemptPublish(image, reference);
  assertEquals(result.verified, "manifest");
  const pulled = await attemptPublish(image, reference, { verify: "pull" });
  assertErrorCode(pulled.error, "publish_mismatch");
  assertEquals(pulled.of("publish_poll"), []);
});

test("publish() with verify pull downloads the image and compares its digest", async (bench) => {
  const { result, of } = await attemptPublish(
    bench.image,
    `${bench.host}/owner/vm:1`,
    { verify: "pull" },
  );
  assertEquals(result.verified, "pull");
  assertEquals(of("download_end").length, 1);
  assertEquals(of("publish_verified")[0].verify, "pull");
});

test("publish() detects an image that changes while it is published", async (bench) => {
  const { error } = await attemptPublish(
    bench.image,
    `${bench.host}/owner/vm:1`,
    {
      onEvent(event) {
        if (event.type !== "publish_start") return;
        Deno.writeFileSync(bench.image, new Uint8Array(9), { append: true });
      },
    },
  );
  const { message } = assertErrorCode(error, "publish_mismatch");
  assertStringIncludes(message, "changed while it was published");
});

test("publish() rejects with cancelled when its signal is aborted", async (bench) => {
  const cancel = new AbortController();
  const { error, of } = await attemptPublish(
    bench.image,
    `${bench.host}/owner/vm:1`,
    {
      signal: cancel.signal,
      onEvent(event) {
        if (event.type === "push_end") cancel.abort(new Error("enough"));
      },
    },
  );
  assertEquals((error as Error).message, "enough");
  assertEquals(of("publish_verified"), []);
});

test("publish() returns a digest that the artifact can be fetched by", async (bench) => {
  const { result } = await attemptPublish(
    bench.image,
    `${bench.host}/owner/vm:1`,
  );
  const [name] = result.reference.split(":1");
  const reference = parseReference(`${name}@${result.digest}`);
  const artifact = await orasClient().fetchManifest(reference);
  assertEquals(artifact.layers[0].digest, result.layerDigest);
});

Deno.test("pollDelayMs() multiplies the pause by 1.5 a poll, up to five times the first", () => {
  const pauses = [1, 2, 3, 4, 5, 6, 20].map((n) => pollDelayMs(n, 6000));
  assertEquals(pauses, [6000, 9000, 13500, 20250, 30000, 30000, 30000]);
});
