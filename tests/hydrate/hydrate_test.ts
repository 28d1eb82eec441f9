import { assert, assertEquals, assertMatch } from "@std/assert";
import { basename, join } from "@std/path";
import {
  readFileChunks,
  sha256OfChunks as sha256Of,
} from "../../lib/system/digest.ts";
import { requires } from "../support/parts.ts";
import { startRegistry } from "../support/registry.ts";
import {
  jsonLines,
  makeQcow2,
  orasPush,
  publishImage,
  TYPE,
  workspace,
} from "../support/workspace.ts";

const REAL = requires("oras", "registry", "qemuImg");

Deno.test({
  name: "hydrate prints only the path of the verified image",
  ...REAL,
  async fn() {
    await using registry = await startRegistry();
    await using work = await workspace();
    const file = "dist/image.qcow2";
    const { sha256 } = await publishImage(registry, work, { file });

    const pulled = await work.toolsmith(["hydrate"]);
    assertEquals(pulled.code, 0, pulled.stderr);
    const path = join(
      work.dir,
      `.toolsmith/cache/demo/${sha256}/image.qcow2`,
    );
    assertEquals(pulled.stdout, `${path}\n`);
    assertEquals(
      await Deno.readFile(path),
      await Deno.readFile(`${work.dir}/${file}`),
    );
    assertEquals((await Deno.stat(path)).mode! & 0o777, 0o444);
    assertEquals(
      (await work.cached()).map((file) => basename(file)),
      ["image.qcow2", "verified.json"],
    );

    await registry.stop();
    const cached = await work.toolsmith(["hydrate", "--json"]);
    const { events, last } = jsonLines(cached.stdout);
    assertEquals(events.map(({ type }) => type), ["cache_hit"]);
    const { timestamp, ...result } = last;
    assert(!isNaN(Date.parse(timestamp)));
    assertEquals(result, {
      type: "result",
      outcome: "cached",
      path,
      digest: `sha256:${sha256}`,
      bytes: (await Deno.stat(path)).size,
    });
  },
});

Deno.test({
  name: "hydrate --json prints one event per step, then the result",
  ...REAL,
  async fn() {
    await using registry = await startRegistry();
    await using work = await workspace();
    const { sha256 } = await publishImage(registry, work);

    const { stdout, stderr } = await work.toolsmith(["hydrate", "--json"]);
    assertEquals(stderr, "");
    const { events, last } = jsonLines(stdout);
    assertEquals(
      events.map(({ type }) => type).filter((type) =>
        type !== "download_progress"
      ),
      [
        "manifest_resolved",
        "download_start",
        "download_end",
        "checksum_verified",
        "cache_placed",
      ],
    );
    for (const event of events) {
      assertEquals(event.image, "demo");
      assert(!isNaN(Date.parse(event.timestamp)));
    }
    assertEquals(last.outcome, "pulled");
    assertEquals(events.at(-1).path, last.path);
    assertEquals(events.at(-1).digest, `sha256:${sha256}`);
  },
});

Deno.test({
  name: "hydrate selects the image among several files by its digest",
  ...REAL,
  async fn() {
    await using registry = await startRegistry();
    await using work = await workspace();
    const { dir } = work;
    await makeQcow2(`${dir}/other.qcow2`);
    const { sha256 } = await makeQcow2(`${dir}/dist/deep/image.qcow2`);
    await Deno.writeTextFile(`${dir}/notes.json`, "{}");
    const reference = `${registry.host}/owner/many:1.0`;
    const layers = [
      "notes.json:application/json",
      `other.qcow2:${TYPE}`,
      `dist/deep/image.qcow2:${TYPE}`,
    ];
    await orasPush(reference, layers, { cwd: dir });
    await work.manifest({ qcow2: `oci://${reference}`, qcow2_sha256: sha256 });

    const pulled = await work.toolsmith(["hydrate", "--quiet"]);
    assertEquals(pulled.stderr, "");
    assertEquals(
      pulled.stdout,
      `${dir}/.toolsmith/cache/demo/${sha256}/image.qcow2\n`,
    );

    const none = "0".repeat(64);
    await work.manifest({ qcow2: `oci://${reference}`, qcow2_sha256: none });
    const refused = await work.toolsmith(["hydrate"]);
    assertEquals(refused.code, 41);
    assertMatch(refused.stderr, /2 \.qcow2 files/);
    assert(refused.stderr.includes(`${sha256} (dist/deep/image.qcow2)`));
  },
});

Deno.test({
  name: "hydrate rejects an unusable artifact from its manifest, with a hint",
  ...REAL,
  async fn(t) {
    await using registry = await startRegistry();
    await using work = await workspace();
    const { dir } = work;
    const image = await makeQcow2(`${dir}/image.qcow2`);
    await Deno.writeTextFile(`${dir}/notes.txt`, "no image");
    const repository = `${registry.host}/owner/refused`;
    const push = (tag: string, layers: string[], args: string[] = []) =>
      orasPush(`${repository}:${tag}`, layers, {
        cwd: dir,
        args: ["--plain-http", ...args],
      });
    const refuse = async (tag: string, code: number, words: RegExp) => {
      const qcow2 = `oci://${repository}:${tag}`;
      await work.manifest({ qcow2, qcow2_sha256: image.sha256 });
      const { code: status, stdout, stderr } = await work.toolsmith([
        "hydrate",
      ]);
      assertMatch(stderr, words);
      assertMatch(stderr, /^hint: ./m);
      assertEquals([status, stdout], [code, ""]);
      assertEquals(await work.cached(), []);
    };

    await t.step(
      "hydrate rejects a missing tag",
      () => refuse("missing", 32, /Not found: .*:missing/),
    );
    await t.step(
      "hydrate rejects an artifact without a .qcow2 file",
      async () => {
        await push("none", ["notes.txt:text/plain"]);
        await refuse("none", 40, /No \.qcow2 payload found/);
      },
    );
    await t.step("hydrate rejects a layer that oras would unpack", async () => {
      const annotations = {
        "image.qcow2": { "io.deis.oras.content.unpack": "true" },
      };
      await Deno.writeTextFile(
        `${dir}/annotations.json`,
        JSON.stringify(annotations),
      );
      await push("unpack", [`image.qcow2:${TYPE}`], [
        "--annotation-file",
        "annotations.json",
      ]);
      await refuse("unpack", 42, /would be unpacked/);
    });
    await t.step(
      "hydrate rejects a file name that leads out of the directory",
      async () => {
        const title = "org.opencontainers.image.title";
        await Deno.writeTextFile(
          `${dir}/annotations.json`,
          JSON.stringify({ "image.qcow2": { [title]: "../../image.qcow2" } }),
        );
        await push("outside", [`image.qcow2:${TYPE}`], [
          "--annotation-file",
          "annotations.json",
        ]);
        await refuse("outside", 42, /\.\.\/\.\.\/image\.qcow2.*relative path/);
      },
    );
    await t.step("hydrate rejects an artifact with another image", async () => {
      await makeQcow2(`${dir}/other.qcow2`);
      await push("other", [`other.qcow2:${TYPE}`]);
      await refuse(
        "other",
        43,
        new RegExp(`expected ${image.sha256}, the registry`),
      );
    });
    await t.step("hydrate rejects an image that is not QCOW2", async () => {
      await Deno.writeTextFile(`${dir}/fake.qcow2`, "not an image at all");
      await push("fake", [`fake.qcow2:${TYPE}`]);
      await work.manifest({
        qcow2: `oci://${repository}:fake`,
        qcow2_sha256: await sha256Of(readFileChunks(`${dir}/fake.qcow2`)),
      });
      const { code, stderr } = await work.toolsmith(["hydrate"]);
      assertMatch(stderr, /not a QCOW2 image/);
      assertEquals(code, 44);
      assertEquals(await work.cached(), []);
    });
  },
});

Deno.test({
  name: "hydrate replaces a damaged cached image",
  ...REAL,
  async fn() {
    await using registry = await startRegistry();
    await using work = await workspace();
    await publishImage(registry, work);
    const path = (await work.toolsmith(["hydrate"])).stdout.trim();
    const good = await Deno.readFile(path);

    // A flipped bit under the same size and times: --verify finds it.
    const { mtime, atime } = await Deno.stat(path);
    const bad = good.slice();
    bad[good.length - 1] ^= 1;
    await Deno.chmod(path, 0o644);
    await Deno.writeFile(path, bad);
    await Deno.utime(path, atime!, mtime!);
    const healed = await work.toolsmith(["hydrate", "--verify"]);
    assertMatch(healed.stderr, /warning: .* is damaged/);
    assertEquals(healed.stdout, `${path}\n`);
    assertEquals(await Deno.readFile(path), good);

    // A truncated file is detected without --verify.
    await Deno.chmod(path, 0o644);
    await Deno.truncate(path, 100);
    const again = await work.toolsmith(["hydrate"]);
    assertMatch(again.stderr, /is damaged/);
    assertEquals(await Deno.readFile(path), good);

    // An image with changed times is rehashed and kept.
    await Deno.utime(path, new Date(), new Date());
    await registry.stop();
    const kept = await work.toolsmith(["hydrate", "--json"]);
    const { events, last } = jsonLines(kept.stdout);
    assertEquals(events.map(({ type }) => type), [
      "checksum_verified",
      "cache_hit",
    ]);
    assertEquals(last.outcome, "cached");

    // Offline, a damaged image is an error.
    await Deno.chmod(path, 0o644);
    await Deno.truncate(path, 100);
    const offline = await work.toolsmith(["hydrate", "--offline"]);
    assertEquals([offline.code, offline.stdout], [52, ""]);
  },
});

Deno.test({
  name: "hydrate --offline uses only the cache",
  ...REAL,
  async fn() {
    await using registry = await startRegistry();
    await using work = await workspace();
    await publishImage(registry, work);

    const missed = await work.toolsmith(["hydrate", "--offline", "--json"]);
    const { last } = jsonLines(missed.stdout);
    assertEquals([missed.code, last.code], [52, "offline_miss"]);
    assertEquals(missed.stderr, "");

    await work.toolsmith(["hydrate"]);
    const hit = await work.toolsmith(["hydrate", "--offline"]);
    assertEquals(hit.code, 0);
    assertEquals(
      await Deno.stat(hit.stdout.trim()).then((s) => s.isFile),
      true,
    );
  },
});

Deno.test({
  name: "hydrate copies a local image from a path relative to the manifest",
  ...requires("qemuImg"),
  async fn() {
    await using work = await workspace();
    const { dir } = work;
    const { path, sha256 } = await makeQcow2(`${dir}/images/a b.qcow2`);
    for (
      const qcow2 of [
        "../images/a b.qcow2",
        path,
        `file://${path.replace(" ", "%20")}`,
      ]
    ) {
      await work.manifest({ qcow2, qcow2_sha256: sha256 });
      const { stdout, stderr } = await work.toolsmith([
        "hydrate",
        "--force",
        "--json",
      ]);
      const { last } = jsonLines(stdout);
      assertEquals(last.outcome, "copied", stderr);
      assertEquals(await Deno.readFile(last.path), await Deno.readFile(path));
    }

    await work.manifest({ qcow2: path, qcow2_sha256: "0".repeat(64) });
    const wrong = await work.toolsmith(["hydrate"]);
    assertEquals(wrong.code, 43);
    assert(
      wrong.stderr.includes(`expected ${"0".repeat(64)}, actual ${sha256}`),
    );
    assertEquals(
      (await work.cached()).some((file) => file.includes("0".repeat(64))),
      false,
    );

    // The copy keeps holes.
    const sparse = `${dir}/images/sparse.qcow2`;
    await Deno.copyFile(path, sparse);
    await Deno.truncate(sparse, 64 * 1024 * 1024);
    const whole = await sha256Of(readFileChunks(sparse));
    await work.manifest({ qcow2: sparse, qcow2_sha256: whole });
    const copied = jsonLines(
      (await work.toolsmith(["hydrate", "--json"])).stdout,
    );
    const { size, blocks } = await Deno.stat(copied.last.path);
    assertEquals(size, 64 * 1024 * 1024);
    assert(blocks === null || blocks * 512 < size / 4, `${blocks} blocks`);

    await work.manifest({ qcow2: "no.qcow2", qcow2_sha256: sha256 });
    const missing = await work.toolsmith(["hydrate", "--force"]);
    assertEquals(missing.code, 13);
    assertMatch(missing.stderr, /no\.qcow2: no such file/);
  },
});

Deno.test({
  name: "hydrate downloads the image once when eight processes run at once",
  ...REAL,
  async fn() {
    await using registry = await startRegistry();
    await using work = await workspace();
    await publishImage(registry, work, { bytes: 32 * 1024 * 1024 });
    const all = await Promise.all(
      Array.from({ length: 8 }, () => work.toolsmith(["hydrate", "--json"])),
    );
    const outcomes = all.map(({ stdout }) => jsonLines(stdout).last.outcome);
    assertEquals(
      outcomes.toSorted(),
      [...Array(7).fill("cached"), "pulled"],
    );
    assertEquals((await work.cached()).length, 2);
  },
});
