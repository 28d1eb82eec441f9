import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { basename, join } from "@std/path";
import { TITLE } from "../../lib/oci/artifact.ts";
import { type ErrorCode, ToolsmithError } from "../../lib/errors.ts";
import type { ToolsmithEvent } from "../../lib/events.ts";
import { hydrate } from "../../lib/hydrate/hydrate.ts";
import { parseManifest } from "../../lib/manifest/manifest.ts";
import { oras } from "../../lib/oci/oras.ts";
import { run } from "../../lib/system/process.ts";
import { publish, type PublishOptions } from "../../lib/publish/publish.ts";
import { parseExtra } from "../../lib/publish/layers.ts";
import { inspectImage } from "../../lib/image/inspect.ts";
import { pollDelayMs } from "../../lib/publish/verify.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import { needs, parts } from "../support/parts.ts";
import { makeEncrypted } from "../support/encrypted.ts";
import { startProxy } from "../support/proxy.ts";
import {
  makeQcow2,
  testWithImage as test,
  TYPE,
} from "../support/workspace.ts";

if (parts.oras) Deno.env.set("TOOLSMITH_ORAS", parts.oras);

/** Whoever asks for the tag 1. */
const TAG = /^(?!PUT ).*\/manifests\/1$/;

/** Publishes, patiently enough for a test, and collects the events. */
async function attempt(
  path: string,
  reference: string,
  options: PublishOptions = {},
) {
  const events: ToolsmithEvent[] = [];
  const quick = { intervalMs: 10, retryDelayMs: 10 };
  const outcome = await publish(path, reference, {
    ...quick,
    ...options,
    onEvent(event) {
      events.push(event);
      options.onEvent?.(event);
    },
  }).then((result) => ({ result }), (error) => ({ error }));
  const of = <T extends ToolsmithEvent["type"]>(type: T) =>
    events.filter((event) => event.type === type) as Extract<
      ToolsmithEvent,
      { type: T }
    >[];
  return { events, of, ...outcome } as {
    events: ToolsmithEvent[];
    of: typeof of;
    result: Awaited<ReturnType<typeof publish>>;
    error: unknown;
  };
}

function assertCode(error: unknown, code: ErrorCode): ToolsmithError {
  if (!(error instanceof ToolsmithError)) {
    throw new Error(`no ${code}`, { cause: error });
  }
  assertEquals(error.code, code, error.message);
  return error;
}

/** The manifest that a registry serves, as it is. */
async function served(host: string, path: string) {
  const response = await fetch(`http://${host}/v2/${path}`, {
    headers: { accept: "application/vnd.oci.image.manifest.v1+json" },
  });
  assertEquals(response.status, 200);
  return await response.json();
}

/** Hydrates in a fresh directory from what a consumer was told to paste. */
async function consume(dir: string, manifest: unknown) {
  const path = join(dir, "fresh", ".toolsmith", "tools.json");
  return await hydrate(parseManifest(JSON.stringify(manifest), path));
}

test("an image is published as the guide says, and a consumer gets it", async (bench) => {
  const { dir, image, sha256, host } = bench;
  const { result, events, of } = await attempt(image, `${host}/owner/vm:1.0`, {
    annotations: { "com.example.note": "a=b c\nd" },
  });
  const { size } = await Deno.stat(image);
  assertEquals(result, {
    reference: `${host}/owner/vm:1.0`,
    digest: result.digest,
    layerDigest: `sha256:${sha256}`,
    sha256,
    bytes: size,
    file: "image.qcow2",
    verified: "manifest",
    attempts: 1,
    manifest: {
      image: {
        name: "vm",
        tarball: "",
        sha256: "",
        qcow2: `oci://${host}/owner/vm:1.0`,
        qcow2_sha256: sha256,
      },
      tools: {},
      operations: [],
    },
  });
  const manifest = await served(host, "owner/vm/manifests/1.0");
  assertEquals(manifest.artifactType, TYPE);
  assertEquals(manifest.layers, [{
    mediaType: TYPE,
    digest: `sha256:${sha256}`,
    size,
    annotations: { [TITLE]: "image.qcow2" },
  }]);
  assertEquals(manifest.annotations[TITLE], "image.qcow2");
  assertEquals(manifest.annotations["com.example.note"], "a=b c\nd");
  assertEquals(
    [...new Set(events.map(({ type }) => type))],
    [
      "image_inspected",
      "checksum_progress",
      "publish_start",
      "push_end",
      "publish_poll",
      "publish_verified",
    ],
  );
  assertEquals(of("checksum_progress").at(-1)!.bytes, size);

  const consumed = await consume(dir, result.manifest);
  assertEquals(consumed.outcome, "pulled");
  assertEquals(consumed.digest, `sha256:${sha256}`);
  assertEquals(basename(consumed.path), "image.qcow2");
});

test("the same bytes published twice give the same manifest", async (bench) => {
  const { dir, image, host } = bench;
  const first = (await attempt(image, `${host}/owner/vm:1`)).result;
  const again = (await attempt(image, `${host}/owner/vm:1`)).result;
  const elsewhere = (await attempt(image, `${host}/other/vm:2`)).result;
  assertEquals(again.digest, first.digest);
  assertEquals(elsewhere.digest, first.digest);

  const copy = join(dir, "copy", "image.qcow2");
  await Deno.mkdir(join(dir, "copy"));
  await Deno.copyFile(image, copy);
  await Deno.utime(copy, new Date(0), new Date(1_000_000_000_000));
  const older = (await attempt(copy, `${host}/owner/vm:3`)).result;
  assert(older.digest !== first.digest);

  const epoch = (path: string, seconds: string) => {
    const found = { ...Deno.env.toObject(), SOURCE_DATE_EPOCH: seconds };
    const env = new Map<string, string>(Object.entries(found));
    return attempt(path, `${host}/owner/vm:4`, { env });
  };
  const pinned = (await epoch(image, "1700000000")).result;
  assertEquals((await epoch(copy, "1700000000")).result.digest, pinned.digest);
  const created = new Date(1_700_000_000_000);
  const given = await attempt(copy, `${host}/owner/vm:5`, { created });
  assertEquals(given.result.digest, pinned.digest);
  const { annotations } = await served(host, "owner/vm/manifests/4");
  const key = "org.opencontainers.image.created";
  assertEquals(annotations[key], "2023-11-14T22:13:20Z");
  assertCode((await epoch(image, "today")).error, "usage");
});

test("spaces, colons, a leading dash and another directory do no harm", async (bench) => {
  const { dir, image, sha256, host } = bench;
  const odd = join(dir, "a b: c", "-my image: v1, 100%.qcow2");
  await Deno.mkdir(join(dir, "a b: c"));
  await Deno.rename(image, odd);
  const { result } = await attempt(odd, `${host}/owner/vm:1`);
  assertEquals(result.file, basename(odd));
  assertEquals(result.sha256, sha256);
  const consumed = await consume(dir, result.manifest);
  assertEquals(consumed.digest, `sha256:${sha256}`);
  assertEquals(basename(consumed.path), basename(odd));
});

test("a name that consumers would not find is mended, and that is said", async (bench) => {
  const { dir, image, sha256, host } = bench;
  for (
    const [name, title] of [["disk.img", "disk.img.qcow2"], [
      "c:d",
      "c-d.qcow2",
    ]]
  ) {
    const path = join(dir, name);
    await Deno.copyFile(image, path);
    const { result, of } = await attempt(path, `${host}/owner/vm:1`);
    assertEquals(result.file, title);
    assertStringIncludes(of("warning")[0].message, title);
    const manifest = await served(host, "owner/vm/manifests/1");
    assertEquals(manifest.layers[0].annotations[TITLE], title);
    assertEquals(manifest.layers[0].digest, `sha256:${sha256}`);
  }
});

test("extra files from other directories go along under their bare names", async (bench) => {
  const { dir, image, sha256, host } = bench;
  const notes = join(dir, "other", "no tes.json");
  await Deno.mkdir(join(dir, "other"));
  await Deno.writeTextFile(notes, "{}");
  const extras = [
    parseExtra(`${notes}:application/json`),
    parseExtra(`${dir}/other/../other/more:text/plain`),
  ];
  const missing = await attempt(image, `${host}/owner/vm:1`, { extras });
  assertStringIncludes(
    assertCode(missing.error, "source_not_found").message,
    "more",
  );
  assertEquals(missing.of("publish_start"), []);
  await Deno.writeTextFile(join(dir, "other", "more"), "x");
  const { result } = await attempt(image, `${host}/owner/vm:1`, {
    extras,
    verify: "pull",
  });
  const { layers } = await served(host, "owner/vm/manifests/1");
  assertEquals(
    layers.map((layer: Record<string, Record<string, string>>) => [
      layer.annotations[TITLE],
      layer.mediaType,
    ]),
    [
      ["image.qcow2", TYPE],
      ["no tes.json", "application/json"],
      ["more", "text/plain"],
    ],
  );
  const consumed = await consume(dir, result.manifest);
  assertEquals(consumed.digest, `sha256:${sha256}`);
  const twice = [{ path: join(dir, "IMAGE.qcow2"), mediaType: "a/b" }];
  const same = await attempt(image, `${host}/owner/vm:1`, { extras: twice });
  assertCode(same.error, "usage");
});

test("repositories are lowered with a note, tags keep their case", async (bench) => {
  const { result, of } = await attempt(
    bench.image,
    `oci://${bench.host}/Owner/VM:V1`,
  );
  assertEquals(result.reference, `${bench.host}/owner/vm:V1`);
  assertEquals(result.manifest.image.name, "vm");
  assertStringIncludes(of("warning")[0].message, "lower case");
});

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

test("a push that the registry refuses is not tried again", async (bench) => {
  const cases: [number, ErrorCode][] = [
    [401, "unauthorized"],
    [403, "forbidden"],
  ];
  for (const [status, code] of cases) {
    await using strict = startProxy(bench.host, [{ match: /^POST /, status }]);
    const { error, of } = await attempt(
      bench.image,
      `${strict.host}/owner/vm:1`,
    );
    const { hint } = assertCode(error, code);
    assertStringIncludes(hint!, `oras login ${strict.host}`);
    assertEquals(of("retry"), []);
    assertEquals(of("push_end"), []);
  }
});

test("a push that fails in passing is tried again, and that is said", async (bench) => {
  const match = new RegExp(`^PUT .*[?&]digest=sha256%3A${bench.sha256}`);
  await using shaky = startProxy(bench.host, [
    { match, status: 503, times: 1 },
    { match, status: 502, times: 1 },
  ]);
  const { result, of } = await attempt(bench.image, `${shaky.host}/owner/vm:1`);
  assertEquals(result.sha256, bench.sha256);
  assertEquals(
    of("retry").map(({ code, attempt }) => [code, attempt]),
    [["registry_unavailable", 2], ["registry_unavailable", 3]],
  );
});

test("a push that does not move any more ends", async (bench) => {
  await using hung = startProxy(bench.host, [{ match: /^PUT /, hang: true }]);
  const { error, of } = await attempt(
    bench.image,
    `${hung.host}/owner/vm:1`,
    { stallTimeoutMs: 1500, retries: 0 },
  );
  const { message } = assertCode(error, "transfer_stalled");
  assertStringIncludes(message, `push ${hung.host}/owner/vm:1`);
  assertEquals(of("push_end"), []);
});

test("what cannot be published is refused before anything is pushed", async (bench) => {
  const { dir, image, host } = bench;
  const reference = `${host}/owner/vm:1`;
  const raw = join(dir, "raw.qcow2");
  await Deno.writeFile(raw, new Uint8Array(100_000));
  const overlay = join(dir, "overlay.qcow2");
  await qemuImg("create", "-f", "qcow2", "-F", "qcow2", "-b", image, overlay);
  const split = join(dir, "split.qcow2");
  const dataFile = `data_file=${dir}/data`;
  await qemuImg("create", "-f", "qcow2", "-o", dataFile, split, "1M");
  const secret = join(dir, "secret.qcow2");
  await makeEncrypted(secret);
  const cases: [string, string, ErrorCode, string][] = [
    [join(dir, "no.qcow2"), reference, "source_not_found", "no such file"],
    [dir, reference, "file_unreadable", "it is a directory"],
    [raw, reference, "image_invalid", "is not a QCOW2 image"],
    [overlay, reference, "image_unsafe", "backing file"],
    [split, reference, "image_unsafe", "external data file"],
    [secret, reference, "image_invalid", "encrypted"],
    [
      image,
      `${host}/owner/vm@sha256:${"a".repeat(64)}`,
      "reference_invalid",
      "digest",
    ],
    [image, "just-a-name", "reference_invalid", "just-a-name"],
    [image, `${host}/owner/vm:a b`, "reference_invalid", "not a tag"],
  ];
  for (const [path, to, code, words] of cases) {
    const { error, of } = await attempt(path, to);
    assertStringIncludes(assertCode(error, code).message, words);
    assertEquals(of("publish_start"), []);
  }
  const badName = await attempt(image, reference, { name: "../x" });
  assertCode(badName.error, "usage");
});

Deno.test({
  name: "a file that may not be read is told",
  // To root every file is readable.
  ignore: Deno.build.os === "windows" || Deno.uid() === 0,
  async fn() {
    const path = await Deno.makeTempFile({ suffix: ".qcow2" });
    await Deno.chmod(path, 0);
    const error = await assertRejects(() => inspectImage(path), ToolsmithError);
    assertEquals(error.code, "file_unreadable");
    assertStringIncludes(error.message, "permission denied");
    await Deno.remove(path);
  },
});

test("an image that compression would shrink is told with the command", async (bench) => {
  const { dir, image, host } = bench;
  const text = join(dir, "text");
  const line = "All work and no play makes a dull image.\n";
  await Deno.writeTextFile(text, line.repeat(100_000));
  const large = join(dir, "it's large.qcow2");
  await qemuImg("convert", "-f", "raw", "-O", "qcow2", text, large);
  const { of } = await attempt(large, `${host}/owner/vm:1`);
  const [{ message }] = of("warning");
  const command = /qemu-img convert -c .*/.exec(message)![0];
  const { code, stderr } = await run("sh", { args: ["-c", command] });
  assertEquals(code, 0, stderr);
  const small = join(dir, "it's large.compressed.qcow2");
  const promised = of("image_inspected")[0].savings;
  const before = (await Deno.stat(large)).size;
  const saved = 1 - (await Deno.stat(small)).size / before;
  assert(Math.abs(promised - saved) < 0.1, `${promised}, in truth ${saved}`);

  assertEquals((await inspectImage(small)).warnings, []);
  assertEquals((await inspectImage(small)).compressed, true);
  assertEquals((await inspectImage(image)).warnings, []);
  assertEquals((await inspectImage(image)).compressed, false);
});

test("an image of more than 10 GB is warned of", async ({ image }) => {
  await Deno.truncate(image, 10_000_000_001);
  const { warnings } = await inspectImage(image);
  assert(warnings.some((warning) => warning.includes("10 GB a layer")));
});

Deno.test({
  name: "the token of a GitHub job serves for ghcr.io, by stdin alone",
  ignore: Deno.build.os === "windows" || needs("qemuImg").ignore,
  async fn() {
    const dir = await Deno.makeTempDir();
    try {
      const { path } = await makeQcow2(join(dir, "image.qcow2"));
      // Stands in for oras, as ghcr.io must not be asked: tells what it got.
      const standIn = join(dir, "oras");
      const script =
        '#!/bin/sh\n{ echo "$@"; env; } > "$0.args"\ncat > "$0.stdin"\necho "Error: denied: $(cat "$0.stdin")" >&2\nexit 1\n';
      await Deno.writeTextFile(standIn, script, { mode: 0o755 });
      const env = new Map([
        ["TOOLSMITH_ORAS", standIn],
        ["GITHUB_ACTIONS", "true"],
        ["GITHUB_ACTOR", "octo"],
        ["GITHUB_TOKEN", "s3cret-token"],
      ]);
      const { error } = await attempt(path, "ghcr.io/o/r:1", { env });
      const { message } = assertCode(error, "forbidden");
      assert(!message.includes("s3cret"), message);
      assertEquals(await Deno.readTextFile(`${standIn}.stdin`), "s3cret-token");
      const seen = await Deno.readTextFile(`${standIn}.args`);
      assertStringIncludes(seen, "-u octo --password-stdin");
      assert(!seen.includes("s3cret"), seen);
    } finally {
      await Deno.remove(dir, { recursive: true });
    }
  },
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

Deno.test("a pair of path and media type is read from its last colon", () => {
  assertEquals(parseExtra("a b:c/d.json:application/vnd.x+json"), {
    path: "a b:c/d.json",
    mediaType: "application/vnd.x+json",
  });
  for (const text of ["", "a", "a:", ":text/plain", "a:text", "a:b c/d"]) {
    const error = assertThrows(() => parseExtra(text), ToolsmithError);
    assertEquals(error.code, "usage");
    assertStringIncludes(error.message, `"${text}"`);
  }
});

Deno.test("the pause between two polls grows by half, up to five times", () => {
  const pauses = [1, 2, 3, 4, 5, 6, 20].map((n) => pollDelayMs(n, 6000));
  assertEquals(pauses, [6000, 9000, 13500, 20250, 30000, 30000, 30000]);
});

async function qemuImg(...args: string[]) {
  const [command, ...rest] = args;
  const { code, stderr } = await run("qemu-img", {
    args: [command, "-q", ...rest],
  });
  assertEquals(code, 0, stderr);
}
