import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { basename, join } from "@std/path";
import { TITLE_ANNOTATION } from "../../lib/oci/artifact.ts";
import type { ErrorCode } from "../../lib/errors.ts";
import { hydrate } from "../../lib/hydrate/hydrate.ts";
import { parseManifest } from "../../lib/manifest/manifest.ts";
import { parseExtraFile } from "../../lib/publish/artifact_files.ts";
import { runProcess } from "../../lib/system/process.ts";
import { makeEncryptedQcow2 } from "../support/encrypted.ts";
import { requires } from "../support/parts.ts";
import { startProxy } from "../support/proxy.ts";
import { assertErrorCode, attemptPublish } from "../support/publication.ts";
import {
  makeQcow2,
  testWithImage as test,
  TYPE,
} from "../support/workspace.ts";

/** Fetches the published manifest. */
async function served(host: string, path: string) {
  const response = await fetch(`http://${host}/v2/${path}`, {
    headers: { accept: "application/vnd.oci.image.manifest.v1+json" },
  });
  assertEquals(response.status, 200);
  return await response.json();
}

/** Hydrates in a new directory from the manifest for consumers. */
async function consume(dir: string, manifest: unknown) {
  const path = join(dir, "fresh", ".toolsmith", "tools.json");
  return await hydrate(parseManifest(JSON.stringify(manifest), path));
}

test("publish() pushes an image as the docs describe, and hydrate accepts it", async (bench) => {
  const { dir, image, sha256, host } = bench;
  const { result, events, of } = await attemptPublish(
    image,
    `${host}/owner/vm:1.0`,
    {
      annotations: { "com.example.note": "a=b c\nd" },
    },
  );
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
    annotations: { [TITLE_ANNOTATION]: "image.qcow2" },
  }]);
  assertEquals(manifest.annotations[TITLE_ANNOTATION], "image.qcow2");
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

test("publish() pushes the same manifest digest for the same bytes and file time or SOURCE_DATE_EPOCH", async (bench) => {
  const { dir, image, host } = bench;
  const first = (await attemptPublish(image, `${host}/owner/vm:1`)).result;
  const again = (await attemptPublish(image, `${host}/owner/vm:1`)).result;
  const elsewhere = (await attemptPublish(image, `${host}/other/vm:2`)).result;
  assertEquals(again.digest, first.digest);
  assertEquals(elsewhere.digest, first.digest);

  const copy = join(dir, "copy", "image.qcow2");
  await Deno.mkdir(join(dir, "copy"));
  await Deno.copyFile(image, copy);
  await Deno.utime(copy, new Date(0), new Date(1_000_000_000_000));
  const older = (await attemptPublish(copy, `${host}/owner/vm:3`)).result;
  assert(older.digest !== first.digest);

  const epoch = (path: string, seconds: string) => {
    const found = { ...Deno.env.toObject(), SOURCE_DATE_EPOCH: seconds };
    const env = new Map<string, string>(Object.entries(found));
    return attemptPublish(path, `${host}/owner/vm:4`, { env });
  };
  const pinned = (await epoch(image, "1700000000")).result;
  assertEquals((await epoch(copy, "1700000000")).result.digest, pinned.digest);
  const created = new Date(1_700_000_000_000);
  const given = await attemptPublish(copy, `${host}/owner/vm:5`, { created });
  assertEquals(given.result.digest, pinned.digest);
  const { annotations } = await served(host, "owner/vm/manifests/4");
  const key = "org.opencontainers.image.created";
  assertEquals(annotations[key], "2023-11-14T22:13:20Z");
  assertErrorCode((await epoch(image, "today")).error, "usage");
});

test("publish() accepts paths with spaces, colons, a leading dash or another directory", async (bench) => {
  const { dir, image, sha256, host } = bench;
  const odd = join(dir, "a b: c", "-my image: v1, 100%.qcow2");
  await Deno.mkdir(join(dir, "a b: c"));
  await Deno.rename(image, odd);
  const { result } = await attemptPublish(odd, `${host}/owner/vm:1`);
  const title = basename(odd).replace(":", "-");
  assertEquals(result.file, title);
  assertEquals(result.sha256, sha256);
  const consumed = await consume(dir, result.manifest);
  assertEquals(consumed.digest, `sha256:${sha256}`);
  assertEquals(basename(consumed.path), title);
});

test("publish() replaces a file name that consumers would reject, and warns", async (bench) => {
  const { dir, image, sha256, host } = bench;
  for (
    const [name, title] of [["disk.img", "disk.img.qcow2"], [
      "c:d",
      "c-d.qcow2",
    ]]
  ) {
    const path = join(dir, name);
    await Deno.copyFile(image, path);
    const { result, of } = await attemptPublish(path, `${host}/owner/vm:1`);
    assertEquals(result.file, title);
    assertStringIncludes(of("warning")[0].message, title);
    const manifest = await served(host, "owner/vm/manifests/1");
    assertEquals(manifest.layers[0].annotations[TITLE_ANNOTATION], title);
    assertEquals(manifest.layers[0].digest, `sha256:${sha256}`);
  }
});

test("publish() pushes extra files of other directories under their bare names", async (bench) => {
  const { dir, image, sha256, host } = bench;
  const notes = join(dir, "other", "no tes.json");
  await Deno.mkdir(join(dir, "other"));
  await Deno.writeTextFile(notes, "{}");
  const extras = [
    parseExtraFile(`${notes}:application/json`),
    parseExtraFile(`${dir}/other/../other/more:text/plain`),
  ];
  const missing = await attemptPublish(image, `${host}/owner/vm:1`, { extras });
  assertStringIncludes(
    assertErrorCode(missing.error, "source_not_found").message,
    "more",
  );
  assertEquals(missing.of("publish_start"), []);
  await Deno.writeTextFile(join(dir, "other", "more"), "x");
  const { result } = await attemptPublish(image, `${host}/owner/vm:1`, {
    extras,
    verify: "pull",
  });
  const { layers } = await served(host, "owner/vm/manifests/1");
  assertEquals(
    layers.map((layer: Record<string, Record<string, string>>) => [
      layer.annotations[TITLE_ANNOTATION],
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
  const same = await attemptPublish(image, `${host}/owner/vm:1`, {
    extras: twice,
  });
  assertErrorCode(same.error, "usage");
});

test("publish() lowercases the repository with a warning and keeps the tag's case", async (bench) => {
  const { result, of } = await attemptPublish(
    bench.image,
    `oci://${bench.host}/Owner/VM:V1`,
  );
  assertEquals(result.reference, `${bench.host}/owner/vm:V1`);
  assertEquals(result.manifest.image.name, "vm");
  assertStringIncludes(of("warning")[0].message, "lower case");
});

test("publish() does not retry a push that the registry denies", async (bench) => {
  const cases: [number, ErrorCode][] = [
    [401, "unauthorized"],
    [403, "forbidden"],
  ];
  for (const [status, code] of cases) {
    await using strict = startProxy(bench.host, [{ match: /^POST /, status }]);
    const { error, of } = await attemptPublish(
      bench.image,
      `${strict.host}/owner/vm:1`,
    );
    const { hint } = assertErrorCode(error, code);
    assertStringIncludes(hint!, `oras login ${strict.host}`);
    assertEquals(of("retry"), []);
    assertEquals(of("push_end"), []);
  }
});

test("publish() retries a push after a transient failure and emits a retry event", async (bench) => {
  const match = new RegExp(`^PUT .*[?&]digest=sha256%3A${bench.sha256}`);
  await using shaky = startProxy(bench.host, [
    { match, status: 503, times: 1 },
    { match, status: 502, times: 1 },
  ]);
  const { result, of } = await attemptPublish(
    bench.image,
    `${shaky.host}/owner/vm:1`,
  );
  assertEquals(result.sha256, bench.sha256);
  assertEquals(
    of("retry").map(({ code, attempt }) => [code, attempt]),
    [["registry_unavailable", 2], ["registry_unavailable", 3]],
  );
});

test("publish() aborts a stalled push", async (bench) => {
  await using hung = startProxy(bench.host, [{ match: /^PUT /, hang: true }]);
  const { error, of } = await attemptPublish(
    bench.image,
    `${hung.host}/owner/vm:1`,
    { stallTimeoutMs: 1500, retries: 0 },
  );
  const { message } = assertErrorCode(error, "transfer_stalled");
  assertStringIncludes(message, `push ${hung.host}/owner/vm:1`);
  assertEquals(of("push_end"), []);
});

test("publish() rejects invalid input before it pushes anything", async (bench) => {
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
  await makeEncryptedQcow2(secret);
  const named = await attemptPublish(image, reference, { name: "../vm" });
  assertErrorCode(named.error, "usage");
  assertEquals(named.events, []);
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
    const { error, of } = await attemptPublish(path, to);
    assertStringIncludes(assertErrorCode(error, code).message, words);
    assertEquals(of("publish_start"), []);
  }
  const badName = await attemptPublish(image, reference, { name: "../x" });
  assertErrorCode(badName.error, "usage");
});

Deno.test({
  name:
    "publish() passes a GitHub job's token to oras for ghcr.io on stdin only",
  ignore: Deno.build.os === "windows" || requires("qemuImg").ignore,
  async fn() {
    const dir = await Deno.makeTempDir();
    try {
      const { path } = await makeQcow2(join(dir, "image.qcow2"));
      // A fake oras that records its input, as tests must not contact ghcr.io.
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
      const { error } = await attemptPublish(path, "ghcr.io/o/r:1", { env });
      const { message } = assertErrorCode(error, "forbidden");
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

async function qemuImg(...args: string[]) {
  const [command, ...rest] = args;
  const { code, stderr } = await runProcess("qemu-img", {
    args: [command, "-q", ...rest],
  });
  assertEquals(code, 0, stderr);
}
