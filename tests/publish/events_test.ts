import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { TITLE_ANNOTATION } from "../../lib/oci/artifact.ts";
import { orasClient } from "../../lib/oci/oras_client.ts";
import { ARCHITECTURE_ANNOTATION } from "../../lib/oci/platform.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import { startProxy } from "../support/proxy.ts";
import { assertErrorCode, attemptPublish } from "../support/publication.ts";
import { replaceMethod } from "../support/replace_method.ts";
import { testWithImage as test, TYPE } from "../support/workspace.ts";

const CREATED = "org.opencontainers.image.created";

/** Fetches the annotations of the published manifest. */
async function annotations(host: string, path: string) {
  const response = await fetch(`http://${host}/v2/${path}`, {
    headers: { accept: "application/vnd.oci.image.manifest.v1+json" },
  });
  return (await response.json()).annotations;
}

test("publish() emits an event for each step with the image's name", async (bench) => {
  const { dir, image, sha256, host } = bench;
  const odd = join(dir, "disk.img");
  await Deno.rename(image, odd);
  const notes = join(dir, "notes.txt");
  await Deno.writeTextFile(notes, "12345");
  const { size } = await Deno.stat(odd);
  // A stopped clock: all durations are 0.
  using _clock = replaceMethod(performance, { now: () => 5000 });
  const { events, of, result } = await attemptPublish(
    odd,
    `oci://${host}/Owner/VM:1`,
    {
      extras: [{ path: notes, mediaType: "text/plain" }],
    },
  );
  const reference = `${host}/owner/vm:1`;
  const file = "disk.img.qcow2";
  const digest = `sha256:${sha256}`;
  for (const event of events) {
    if (event.type === "warning") continue;
    assertEquals((event as { image?: string }).image, "vm", event.type);
  }
  assertEquals(of("warning").map(({ message }) => message), [
    `publishing to ${host}/owner/vm: repository names are lower case`,
    `publishing ${odd} as ${file}: consumers need a name that is valid on every system and ends in .qcow2`,
  ]);
  assertEquals(of("image_inspected").map(({ path }) => path), [odd]);
  const sums = of("checksum_progress");
  assertEquals(sums.map(({ total }) => total), sums.map(() => size));
  assertEquals(sums.at(-1)!.bytes, size);
  const [start] = of("publish_start");
  assertEquals([start.file, start.digest], [file, digest]);
  assertEquals([start.reference, start.bytes], [reference, size + 5]);
  const [end] = of("push_end");
  assertEquals([end.reference, end.digest], [reference, result.digest]);
  assertEquals([end.bytes, end.elapsedMs], [size + 5, 0]);
  const [verified] = of("publish_verified");
  assertEquals(verified.reference, reference);
  assertEquals([verified.digest, verified.verify], [result.digest, "manifest"]);
  assertEquals([result.file, result.bytes], [file, size]);
});

test("publish() annotates the manifest with title, time, given architecture and given annotations", async (bench) => {
  const { image, host } = bench;
  const created = new Date("2020-01-02T03:04:05Z");
  const plain = {
    [TITLE_ANNOTATION]: "image.qcow2",
    [CREATED]: "2020-01-02T03:04:05Z",
  };
  await attemptPublish(image, `${host}/owner/vm:1`, { created });
  assertEquals(await annotations(host, "owner/vm/manifests/1"), plain);
  await attemptPublish(image, `${host}/owner/vm:2`, {
    created,
    arch: "aarch64",
    annotations: { note: "x" },
  });
  assertEquals(await annotations(host, "owner/vm/manifests/2"), {
    ...plain,
    [ARCHITECTURE_ANNOTATION]: "arm64",
    note: "x",
  });
  const reference = parseReference(`${host}/owner/vm:2`);
  const { architecture, layers } = await orasClient().fetchManifest(reference);
  assertEquals([architecture, layers.length], ["arm64", 1]);
  assertEquals(layers[0].mediaType, TYPE);
});

test("publish() retries a push `retries` times and emits each retry before its pause", async (bench) => {
  // oras itself does not retry the upload of the image.
  const match = new RegExp(`^PUT .*[?&]digest=sha256%3A${bench.sha256}`);
  await using down = startProxy(bench.host, [{ match, status: 503 }]);
  const { error, of } = await attemptPublish(
    bench.image,
    `${down.host}/owner/vm:1`,
    { retries: 1, retryDelayMs: 8 },
  );
  const { code, message } = assertErrorCode(error, "registry_unavailable");
  const [{ delayMs, ...retry }, ...more] = of("retry");
  assertEquals(more, []);
  assert(delayMs >= 6 && delayMs <= 10, `${delayMs}`);
  const { timestamp: _, ...told } = retry;
  assertEquals(told, {
    type: "retry",
    image: "vm",
    code,
    message,
    attempt: 2,
    attempts: 2,
  });
  assertEquals(of("push_end"), []);
});

test("publish() pushes nothing when cancelled while it hashes the image", async (bench) => {
  const cancel = new AbortController();
  const { error, of } = await attemptPublish(
    bench.image,
    `${bench.host}/owner/vm:1`,
    {
      signal: cancel.signal,
      onEvent(event) {
        if (event.type === "image_inspected") cancel.abort(new Error("enough"));
      },
    },
  );
  assertEquals((error as Error).message, "enough");
  assertEquals(of("publish_start"), []);
});
