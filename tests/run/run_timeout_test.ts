/**
 * Timeouts of a command that expire during the download of its image.
 */
import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import type { ToolsmithEvent } from "../../lib/events.ts";
import { hydrate, type HydrateOptions } from "../../lib/hydrate/hydrate.ts";
import { parseManifest } from "../../lib/manifest/manifest.ts";
import { runInVm, runOnTerminal } from "../../lib/run/workspace_vm.ts";
import { issueCertificate } from "../support/certificates.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { foundTools, requires } from "../support/parts.ts";
import { startProxy } from "../support/proxy.ts";
import { startRegistry } from "../support/registry.ts";
import { holdTimers } from "../support/timers.ts";
import { rangeStart, startTlsServer } from "../support/tls_server.ts";
import { makeQcow2, publishImage, workspace } from "../support/workspace.ts";

const MIB = 1024 * 1024;
/** A unique timeout in milliseconds, to find its timer. */
const LIMIT_MS = 123_456;
const ENV = new Map([
  ["TOOLSMITH_ORAS", foundTools.oras ?? ""],
  ["DOCKER_CONFIG", "/nonexistent"],
]);

/**
 * Runs a command that times out during the download of its image, then hydrates:
 * the partial download is resumed.
 */
async function expireWhileDownloading(
  root: string,
  image: Record<string, string>,
  options: HydrateOptions,
  heal: () => void,
) {
  const text = JSON.stringify({ image: { name: "demo", ...image } });
  const path = join(root, ".toolsmith", "tools.json");
  const manifest = parseManifest(text, path);
  // The directory holds the secret that authenticates the partial download.
  const env = new Map([...ENV, ["XDG_CACHE_HOME", join(root, "home")]]);
  {
    using clocks = holdTimers(LIMIT_MS);
    const stop = new AbortController();
    const onEvent = (event: ToolsmithEvent) => {
      if (event.type !== "download_progress") return;
      if (clocks.count() === 0) stop.abort(new Error("no deadline runs"));
      clocks.expire();
    };
    const { message, exitStatus } = await expectFailure(
      "timeout",
      () =>
        runInVm(manifest, "true", {
          timeoutMs: LIMIT_MS,
          signal: stop.signal,
          vm: { env, onEvent, hydrate: options },
        }),
    );
    assertEquals(message, "The command did not end within 123.456 s");
    assertEquals([exitStatus, clocks.count()], [124, 0]);
  }
  heal();
  let resumed = 0;
  const { outcome } = await hydrate(manifest, {
    ...options,
    env,
    onEvent(event) {
      if (event.type === "download_start") resumed += event.resumed;
    },
  });
  assert(outcome !== "cached");
  assert(resumed > 0, "nothing was kept");
}

Deno.test({
  name:
    "runInVm() times out during a slow HTTPS download and keeps the partial download",
  ...requires("openssl", "qemuImg"),
  async fn() {
    await using dir = await temporaryDir();
    const { path, sha256 } = await makeQcow2(
      join(dir.path, "i.qcow2"),
      2 * MIB,
    );
    const bytes = await Deno.readFile(path);
    const certificate = await issueCertificate(dir.path);
    let healed = false;
    await using server = await startTlsServer(certificate, async (exchange) => {
      const from = rangeStart(exchange);
      const { length } = bytes;
      await exchange.head(from > 0 ? 206 : 200, {
        "content-length": length - from,
        ...from > 0
          ? { "content-range": `bytes ${from}-${length - 1}/${length}` }
          : {},
      });
      if (healed) return await exchange.body(bytes.subarray(from));
      await exchange.body(bytes.subarray(0, MIB));
      for (let at = MIB;; at++) {
        await exchange.body(bytes.subarray(at, at + 1));
        await new Promise((done) => setTimeout(done, 20));
      }
    });
    const { caFile } = certificate;
    await expireWhileDownloading(
      dir.path,
      { qcow2: `${server.url}/i.qcow2`, qcow2_sha256: sha256 },
      { caFile },
      () => healed = true,
    );
  },
});

for (
  const [how, size] of [["ranges", 80 * MIB], ["oras pull", 4 * MIB]] as const
) {
  Deno.test({
    name:
      `runInVm() times out during a download by ${how} and keeps the partial download`,
    ...requires("oras", "registry", "qemuImg"),
    async fn() {
      await using registry = await startRegistry();
      await using proxy = startProxy(registry.host);
      await using work = await workspace();
      const { sha256, reference } = await publishImage(registry, work, {
        bytes: size,
        host: proxy.host,
      });
      // Progress is reported at most ten times a second: it must go on.
      proxy.faults.push({ match: /^GET \S+\/blobs\//, dripAfter: MIB });
      await expireWhileDownloading(
        work.dir,
        { qcow2: `oci://${reference}`, qcow2_sha256: sha256 },
        {},
        () => proxy.faults.length = 0,
      );
    },
  });
}

Deno.test("runOnTerminal() times out while the registry does not answer", async () => {
  await using dir = await temporaryDir();
  const reached = Promise.withResolvers<void>();
  const over = Promise.withResolvers<void>();
  await using silent = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen() {} },
    async () => {
      reached.resolve();
      await over.promise;
      return new Response();
    },
  );
  const qcow2 = `oci://127.0.0.1:${silent.addr.port}/owner/image:1`;
  const image = { name: "demo", qcow2, qcow2_sha256: "0".repeat(64) };
  const path = join(dir.path, ".toolsmith", "tools.json");
  const manifest = parseManifest(JSON.stringify({ image }), path);
  using clocks = holdTimers(LIMIT_MS);
  const stop = new AbortController();
  reached.promise.then(() => {
    if (clocks.count() === 0) stop.abort(new Error("no deadline runs"));
    clocks.expire();
  });
  const screen = {
    keystrokes: () => Promise.reject(new Error("nobody types")),
    output: () => {},
    size: () => ({ rows: 24, columns: 80 }),
    onResize: () => {},
  };
  await expectFailure(
    "timeout",
    () =>
      runOnTerminal(manifest, "true", {
        ...{ hostTerminal: screen, timeoutMs: LIMIT_MS, signal: stop.signal },
        vm: { env: ENV },
      }),
  ).finally(over.resolve);
});
