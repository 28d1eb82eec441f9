import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import type { ToolsmithEvent } from "../../lib/events.ts";
import type { HydrateOptions } from "../../lib/hydrate/hydrate.ts";
import { runProcess, spawnProcess } from "../../lib/system/process.ts";
import {
  hydrateWorkspace,
  publishedImageOfFile,
} from "../support/registry_hydrate.ts";
import { requires } from "../support/parts.ts";
import { assertAllEnded } from "../support/processes.ts";
import { type ProxyFault, startProxy } from "../support/proxy.ts";
import { replaceMethod } from "../support/replace_method.ts";
import { holdTimers } from "../support/timers.ts";
import { waitUntil } from "../support/wait_until.ts";
import {
  cleanEnvironment,
  cliCommand,
  jsonLines,
  type Workspace,
} from "../support/workspace.ts";

const REAL = requires("oras", "registry", "qemuImg");
const MIB = 1024 * 1024;
/** A timeout that nothing else uses. */
const STALL_MS = 123_456;
const IMAGE = /^GET \S+\/blobs\//;
const MANIFEST = /^GET \S+\/manifests\//;

const image = publishedImageOfFile(8 * MIB, REAL.ignore);

/** A registry behind a proxy, and a workspace whose manifest names the proxy. */
async function behindProxy() {
  await using undo = new AsyncDisposableStack();
  const { registry, sha256, ...published } = image();
  const proxy = undo.use(startProxy(registry.host));
  const work = undo.use(await published.workspace(proxy.host));
  const all = undo.move();
  return {
    proxy,
    work,
    sha256,
    hydrate(faults: ProxyFault[], options?: HydrateOptions) {
      proxy.faults.splice(0, Infinity, ...faults);
      proxy.seen.length = 0;
      return hydrateWorkspace(work.dir, options);
    },
    /** Requests for the image's blob. */
    images: () => proxy.seen.filter(({ request }) => IMAGE.test(request)),
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  };
}

/** Size of what oras has written: less than the proxy has sent, for a while. */
function pulledBytes({ dir }: Workspace): number {
  const cache = `${dir}/.toolsmith/cache/demo`;
  try {
    const staging = [...Deno.readDirSync(cache)].find((it) => it.isDirectory);
    return Deno.statSync(`${cache}/${staging?.name}/pull-1/image.qcow2`).size;
  } catch {
    return 0;
  }
}

/** Names in the image's cache directory, including staging. */
async function leftovers({ dir }: Workspace): Promise<string[]> {
  const names: string[] = [];
  for await (
    const { name } of Deno.readDir(`${dir}/.toolsmith/cache/demo`)
  ) {
    if (!name.endsWith(".lock")) names.push(name);
  }
  return names;
}

Deno.test({
  name: "hydrate rejects an image with another digest before the download",
  ...REAL,
  async fn() {
    await using site = await behindProxy();
    await site.work.manifest({
      qcow2: `oci://${site.proxy.host}/owner/image:1.0`,
      qcow2_sha256: "0".repeat(64),
    });
    const error = (await site.hydrate([])).error!;
    assertEquals([error.exitStatus, error.code], [43, "checksum_mismatch"]);
    assert(error.message.includes(site.sha256));
    assertEquals(site.images(), []);
  },
});

/**
 * Advances the clock and expires timers while hydrate waits.
 *
 * @param waits Whether the transfer makes no progress.
 */
function hurryWhile(waits: () => boolean) {
  const now = performance.now.bind(performance);
  let ms = 0;
  const undo = new DisposableStack();
  undo.use(replaceMethod(performance, { now: () => now() + ms }));
  const timers = undo.use(holdTimers(STALL_MS));
  const hurrying = setInterval(() => {
    if (!waits()) return;
    ms += 2 * STALL_MS;
    timers.expire();
  }, 20);
  const stop = () => clearInterval(hurrying);
  undo.defer(stop);
  return {
    onEvent: ({ type }: ToolsmithEvent) => type === "retry" && stop(),
    [Symbol.dispose]: () => undo.dispose(),
  };
}

Deno.test({
  name:
    "hydrate retries an interrupted or stalled transfer and an unresponsive registry, with retry events",
  ...REAL,
  async fn(t) {
    await using site = await behindProxy();
    const retried = async (
      faults: ProxyFault[],
      code: string,
      stuckAt?: number,
    ) => {
      using hurry = hurryWhile(() =>
        site.proxy.seen.at(-1)?.bytes === stuckAt && stuckAt !== undefined
      );
      const { result, error, of } = await site.hydrate(faults, {
        ...{ force: true, stallTimeoutMs: STALL_MS },
        onEvent: hurry.onEvent,
      });
      assertEquals(result?.outcome, "pulled", error?.message);
      const retries = of("retry");
      assertEquals(retries.map((event) => event.code), [code]);
      assertEquals([retries[0].attempt, retries[0].attempts], [2, 4]);
      assertEquals(await leftovers(site.work), [site.sha256]);
    };
    await t.step("hydrate retries an interrupted transfer", () =>
      retried(
        [{ match: IMAGE, cutAfter: MIB, times: 1 }],
        "transfer_interrupted",
      ));
    await t.step("hydrate retries a stalled transfer", () =>
      retried(
        [{ match: IMAGE, stallAfter: MIB, times: 1 }],
        "transfer_stalled",
        MIB,
      ));
    await t.step(
      "hydrate retries when the registry does not respond",
      () =>
        retried(
          [{ match: MANIFEST, hang: true, times: 1 }],
          "transfer_stalled",
          0,
        ),
    );
  },
});

Deno.test({
  name:
    "hydrate maps each registry failure to its own error code and exit status",
  ...REAL,
  async fn(t) {
    await using site = await behindProxy();
    const fails = async (
      faults: ProxyFault[],
      status: number,
      code: string,
      { kept = false } = {},
    ) => {
      const options = { retries: 0, stallTimeoutMs: STALL_MS };
      const error = (await site.hydrate(faults, options)).error!;
      assertEquals([error.code, error.exitStatus], [code, status]);
      assert(error.hint, "no hint");
      // Only a partial download is kept.
      assertEquals((await leftovers(site.work)).length, kept ? 1 : 0);
      await Deno.remove(join(site.work.dir, ".toolsmith", "cache"), {
        recursive: true,
      });
    };
    const answers: [number, number, string][] = [
      [401, 30, "unauthorized"],
      [403, 31, "forbidden"],
      [404, 32, "not_found"],
    ];
    for (const [status, exit, code] of answers) {
      await t.step(
        `hydrate maps HTTP status ${status} to its error code`,
        () => fails([{ match: MANIFEST, status }], exit, code),
      );
    }
    await t.step(
      "hydrate maps an interrupted transfer to transfer_interrupted",
      () =>
        fails([{ match: IMAGE, cutAfter: MIB }], 38, "transfer_interrupted", {
          kept: true,
        }),
    );
    await t.step(
      "hydrate maps a stalled transfer to transfer_stalled",
      async () => {
        using _clock = hurryWhile(() => pulledBytes(site.work) === MIB);
        await fails(
          [{ match: IMAGE, stallAfter: MIB }],
          39,
          "transfer_stalled",
          {
            kept: true,
          },
        );
      },
    );
    await t.step(
      "hydrate maps wrong bytes of the right length to checksum_mismatch",
      () =>
        fails(
          [{
            match: IMAGE,
            replace: (body) => {
              body[body.length >> 1] ^= 1;
              return body;
            },
          }],
          43,
          "checksum_mismatch",
        ),
    );
    await t.step(
      "hydrate maps a refused connection to connection_failed",
      async () => {
        await site.work.manifest({
          qcow2: "oci://127.0.0.1:1/owner/image:1.0",
          qcow2_sha256: site.sha256,
        });
        await fails([], 37, "connection_failed");
      },
    );
    await t.step("hydrate maps an unknown host to dns_failed", async () => {
      await site.work.manifest({
        qcow2: "oci://registry.invalid/owner/image:1.0",
        qcow2_sha256: site.sha256,
      });
      await fails([], 36, "dns_failed");
    });
  },
});

/** Starts a hydrate that hangs in the middle of the transfer. */
async function hanging(site: Awaited<ReturnType<typeof behindProxy>>) {
  site.proxy.faults.push({ match: IMAGE, stallAfter: MIB, times: 1 });
  let stderr = "";
  const child = spawnProcess(Deno.execPath(), {
    args: await cliCommand(["hydrate"], ["-P=hydrate"]),
    cwd: site.work.dir,
    env: cleanEnvironment(),
    stderr: (chunk) => stderr += new TextDecoder().decode(chunk),
  });
  await waitUntil(
    "a transfer that hangs",
    () =>
      site.proxy.seen.some(({ bytes }) => bytes >= MIB) &&
      pulledBytes(site.work) >= MIB,
  );
  return { child, stderr: () => stderr };
}

Deno.test({
  name:
    "hydrate stops oras, keeps the partial download and exits 130 or 143 on SIGINT or SIGTERM",
  ...REAL,
  ignore: REAL.ignore || Deno.build.os === "windows",
  async fn() {
    await using site = await behindProxy();
    for (
      const [signal, status] of [["SIGINT", 130], ["SIGTERM", 143]] as const
    ) {
      const { child, stderr } = await hanging(site);
      assertEquals((await leftovers(site.work)).length, 1);
      Deno.kill(child.pid, signal);
      const { code } = await child.ended;
      assertEquals(code, status, stderr());
      assertMatch(stderr(), new RegExp(`Cancelled by ${signal}`));
      const listed = await site.work.toolsmith(["cache", "ls", "--json"]);
      const [partial] = jsonLines(listed.stdout).last.partials;
      assert(partial.bytes >= MIB / 2, `${partial.bytes} bytes are kept`);
      await assertAllEnded(site.work.dir);
      site.proxy.seen.length = 0;
      site.proxy.faults.length = 0;
      // Resumed, the next download would not use oras.
      await Deno.remove(partial.path, { recursive: true });
    }
  },
});

Deno.test({
  name:
    "hydrate resumes a partial download after SIGKILL and removes the staging directory",
  ...REAL,
  ignore: REAL.ignore || Deno.build.os === "windows",
  async fn() {
    await using site = await behindProxy();
    const { child } = await hanging(site);
    Deno.kill(child.pid, "SIGKILL");
    await child.ended;
    const [staging] = await leftovers(site.work);
    assertMatch(staging, /^\.staging-/);

    const { result, error, of } = await site.hydrate([]);
    assertEquals(result?.outcome, "pulled", error?.message);
    assertEquals(await leftovers(site.work), [site.sha256]);
    const [start] = of("download_start");
    assert(start.resumed >= MIB / 2, `resumed at ${start.resumed}`);
    const sent = site.images().reduce((sum, { bytes }) => sum + bytes, 0);
    assertEquals(sent, start.bytes! - start.resumed);
  },
});

Deno.test({
  name:
    "hydrate reports a full disk with needed and free bytes, before and during a transfer",
  ...requires("oras", "registry", "qemuImg", "root"),
  async fn() {
    await using site = await behindProxy();
    const small = join(site.work.dir, "small");
    await Deno.mkdir(small);
    const mount = await runProcess("mount", {
      args: ["-t", "tmpfs", "-o", "size=6m", "tmpfs", small],
    });
    // A container may not mount: there is no small disk to try this on.
    if (mount.code !== 0) return console.error("skipped: mount is not allowed");
    try {
      const before = await site.hydrate([], { cache: `${small}/cache` });
      const error = before.error!;
      assertEquals([error.exitStatus, error.code], [50, "disk_full"]);
      assertMatch(error.message, /\d+ bytes and 8 MiB spare needed, \d+ free/);
      assertEquals(site.images(), []);

      // Without the permission to ask for free space, oras finds out.
      const found = await site.work.toolsmith(
        ["hydrate", "--json", "--cache", `${small}/cache`],
        {
          permissions: [
            "--allow-read",
            "--allow-write",
            "--allow-run",
            "--allow-env",
            "--no-prompt",
          ],
        },
      );
      assertEquals(jsonLines(found.stdout).last.code, "disk_full");
      assertEquals(found.code, 50);
      const names = [...Deno.readDirSync(`${small}/cache/demo`)];
      assertEquals(names.filter(({ isDirectory }) => isDirectory), []);
    } finally {
      // A thread that hashed there may still be ending.
      await runProcess("umount", { args: ["--lazy", small] });
    }
  },
});
