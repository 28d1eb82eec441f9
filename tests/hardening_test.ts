import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { pruneCache } from "../lib/cache/prune.ts";
import { ghcrCredentials } from "../lib/oci/credentials.ts";
import { run } from "../lib/system/process.ts";
import { parseImageSource } from "../lib/manifest/source.ts";
import { parseReference } from "../lib/oci/reference.ts";
import { failure } from "./support/failure.ts";
import { needs } from "./support/parts.ts";
import {
  cliCommand,
  jsonLines,
  testWithImage,
  workspace,
} from "./support/workspace.ts";

Deno.test("no message shows the password or the signature of a source", async () => {
  for (
    const source of [
      "oci://user:sekrit@ghcr.io/owner/repo:1",
      "http://user:sekrit@host/image.qcow2",
      "https://user:sekrit@[bad/image.qcow2",
      "http://host/image.qcow2?signature=sekrit",
      "user:sekrit@ghcr.io/owner/repo:1",
    ]
  ) {
    const parse = source.includes("://") ? parseImageSource : parseReference;
    const error = await failure("reference_invalid", () => parse(source, "/"));
    assert(!`${error.message} ${error.hint}`.includes("sekrit"), error.message);
  }
  const digest = "ghcr.io/Owner/repo@sha256:abc";
  const { message } = await failure(
    "reference_invalid",
    () => parseReference(digest),
  );
  assert(message.includes(digest), message);
});

Deno.test("a token that ends in a line end is used without it", () => {
  const env = new Map([["GHCR_TOKEN", "t0ken\n"], ["GHCR_USERNAME", "me"]]);
  assertEquals(ghcrCredentials("ghcr.io", env)?.token, "t0ken");
});

testWithImage("whatever stands in an image's place is replaced", async (it) => {
  const { work, dir, image: qcow2, sha256: qcow2_sha256 } = it;
  await work.manifest({ qcow2, qcow2_sha256 });
  const entry = join(dir, ".toolsmith/cache/demo", qcow2_sha256);
  const image = join(entry, "image.qcow2");
  const record = join(entry, "verified.json");
  const hydrate = async () => {
    const { code, stdout, stderr } = await work.toolsmith(["hydrate"], {
      timeoutMs: 30_000,
    });
    assertEquals([code, stdout], [0, `${image}\n`], stderr);
    assert((await Deno.lstat(image)).isFile);
    assertEquals(await Deno.readFile(image), await Deno.readFile(qcow2));
  };
  const spoils: (() => Promise<unknown>)[] = [
    () => Deno.remove(entry, { recursive: true }),
    () => Deno.mkdir(image),
    () => Deno.symlink(qcow2, image),
    () => run("mkfifo", { args: [image] }),
    async () => {
      const text = await Deno.readTextFile(record);
      const up = text.replace('"image.qcow2"', '".."');
      await Deno.writeTextFile(record, up);
    },
  ];
  for (const spoil of spoils) {
    await hydrate();
    await Deno.remove(image);
    await spoil();
    await hydrate();
  }
  await Deno.remove(entry, { recursive: true });
  await Deno.writeTextFile(entry, "a file");
  await hydrate();
});

testWithImage(
  "a cache that cannot be written serves what is good",
  async (it) => {
    const { work, dir, image: qcow2, sha256: qcow2_sha256 } = it;
    await work.manifest({ qcow2, qcow2_sha256 });
    const cache = join(dir, ".toolsmith/cache/demo");
    const { stdout: path } = await work.toolsmith(["hydrate"]);
    // No lock can be had, for root neither; and the stamp is of another file.
    const lock = join(cache, `.${qcow2_sha256}.lock`);
    await Deno.remove(lock);
    await Deno.symlink(join(qcow2, "none"), lock);
    await Deno.utime(path.trimEnd(), 1, 1);

    const again = await work.toolsmith(["hydrate", "--json"]);
    assertEquals(again.code, 0, again.stdout);
    assertEquals(jsonLines(again.stdout).last.outcome, "cached");
    assertMatch(again.stdout, /"checksum_verified"/);

    await Deno.chmod(path.trimEnd(), 0o644);
    await Deno.writeTextFile(path.trimEnd(), "x", { append: true });
    const spoiled = await work.toolsmith(["hydrate"]);
    assertEquals([spoiled.code, spoiled.stdout], [51, ""], spoiled.stderr);
  },
);

testWithImage(
  "a file where the cache's directory should be is told",
  async (it) => {
    const { work, dir, image: qcow2, sha256: qcow2_sha256 } = it;
    await work.manifest({ qcow2, qcow2_sha256 });
    await Deno.writeTextFile(join(dir, ".toolsmith/cache"), "");
    const { code, stderr } = await work.toolsmith(["hydrate"]);
    assertEquals(code, 51);
    assertMatch(stderr, /\[cache_unwritable\]/);
  },
);

testWithImage(
  "two that prune at once do not get in each other's way",
  async (it) => {
    const { work, dir, image: qcow2, sha256: qcow2_sha256 } = it;
    const cache = join(dir, ".toolsmith/cache");
    const names = Array.from({ length: 12 }, (_, at) => `demo${at}`);
    for (const name of names) {
      await work.manifest({ name, qcow2, qcow2_sha256 });
      await work.toolsmith(["hydrate"]);
    }
    const pruned = await Promise.all(
      [1, 2, 3].map(() => pruneCache(cache, { keep: 0 })),
    );
    const removed = pruned.flatMap(({ removed }) => removed);
    assertEquals(removed.map(({ image }) => image).sort(), names.toSorted());
    assertEquals(
      (await work.cached()).filter((path) => path.endsWith(".qcow2")),
      [],
    );
  },
);

Deno.test({
  name: "doctor shows no control characters of a registry",
  ...needs("oras"),
  async fn() {
    const message = "\u001b]0;pwned\u0007\u009b31m";
    await using server = Deno.serve(
      { hostname: "127.0.0.1", port: 0, onListen() {} },
      () =>
        Response.json({ errors: [{ code: "DENIED", message }] }, {
          status: 403,
        }),
    );
    await using work = await workspace();
    await work.manifest({
      qcow2: `oci://127.0.0.1:${server.addr.port}/owner/image:1`,
      qcow2_sha256: "0".repeat(64),
    });
    const { code, stdout } = await work.toolsmith(["doctor"]);
    assertEquals(code, 1);
    assertMatch(stdout, /pwned/);
    // deno-lint-ignore no-control-regex
    assertEquals(stdout.match(/[\x00-\x09\x0b-\x1f\x7f-\x9f]/g), null);
  },
});

testWithImage(
  "doctor leaves a directory that it made and others use",
  async (it) => {
    const { work, dir, image: qcow2, sha256: qcow2_sha256 } = it;
    await work.manifest({ qcow2, qcow2_sha256 });
    const cache = join(dir, "a/b/cache");
    await work.toolsmith(["doctor", "--cache", cache]);
    assertEquals(await exists(join(dir, "a")), false);
    await work.toolsmith(["hydrate", "--cache", cache]);
    await work.toolsmith(["doctor", "--cache", join(cache, "deeper/one")]);
    assertEquals(await exists(join(cache, "demo", qcow2_sha256)), true);
    assertEquals(await exists(join(cache, "deeper")), false);
  },
);

testWithImage(
  "standard output that is full is told on standard error",
  async (it) => {
    const full = "/dev/full";
    if (!await exists(full)) return;
    const { work, dir, image: qcow2, sha256: qcow2_sha256 } = it;
    await work.manifest({ qcow2, qcow2_sha256 });
    const args = await cliCommand(["hydrate", "--json"], ["-A"]);
    const { code, stderr } = await run("sh", {
      args: ["-c", 'exec "$@" > /dev/full', "sh", Deno.execPath(), ...args],
      cwd: dir,
    });
    assertEquals(code, 50, stderr);
    assertMatch(stderr, /^error: No space left .*\[disk_full\]$/m);
  },
);

async function exists(path: string): Promise<boolean> {
  return await Deno.lstat(path).then(() => true, () => false);
}
