import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { run, spawn } from "../../lib/system/process.ts";
import { needs } from "../support/parts.ts";
import { processesOf } from "../support/processes.ts";
import { type Fault, startProxy } from "../support/proxy.ts";
import { startRegistry } from "../support/registry.ts";
import {
  cleanEnvironment,
  cliCommand,
  jsonLines,
  publishImage,
  type Workspace,
  workspace,
} from "../support/workspace.ts";

const REAL = needs("oras", "registry", "qemuImg");
const MIB = 1024 * 1024;
const IMAGE = /^GET \S+\/blobs\//;
const MANIFEST = /^GET \S+\/manifests\//;

/** A registry behind a proxy, and a workspace whose manifest names the proxy. */
async function behindProxy(bytes = 4 * MIB) {
  await using undo = new AsyncDisposableStack();
  const registry = undo.use(await startRegistry());
  const proxy = undo.use(startProxy(registry.host));
  const work = undo.use(await workspace());
  const { host } = proxy;
  const { sha256 } = await publishImage(registry, work, { bytes, host });
  const all = undo.move();
  return {
    proxy,
    work,
    sha256,
    async hydrate(faults: Fault[], ...args: string[]) {
      proxy.faults.splice(0, Infinity, ...faults);
      proxy.seen.length = 0;
      const output = await work.toolsmith(["hydrate", "--json", ...args]);
      return { ...output, ...jsonLines(output.stdout) };
    },
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  };
}

/** What lies in the image's directory of the cache, staging included. */
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
  name: "hydrate refuses an image whose digest differs before it downloads",
  ...REAL,
  async fn() {
    await using site = await behindProxy();
    await site.work.manifest({
      qcow2: `oci://${site.proxy.host}/owner/image:1.0`,
      qcow2_sha256: "0".repeat(64),
    });
    const { code, last } = await site.hydrate([]);
    assertEquals([code, last.code], [43, "checksum_mismatch"]);
    assert(last.message.includes(site.sha256));
    assertEquals(
      site.proxy.seen.filter(({ request }) => IMAGE.test(request)),
      [],
    );
  },
});

Deno.test({
  name: "hydrate tries again what may pass, says so, and succeeds",
  ...REAL,
  async fn(t) {
    await using site = await behindProxy();
    const retried = async (faults: Fault[], code: string) => {
      const { code: status, last, events } = await site.hydrate(
        faults,
        "--force",
        "--stall-timeout",
        "2",
      );
      assertEquals([status, last.outcome], [0, "pulled"], last.message);
      const retries = events.filter(({ type }) => type === "retry");
      assertEquals(retries.map((event) => event.code), [code]);
      assertEquals([retries[0].attempt, retries[0].attempts], [2, 4]);
      assertEquals(await leftovers(site.work), [site.sha256]);
    };
    await t.step("a cut transfer", () =>
      retried(
        [{ match: IMAGE, cutAfter: MIB, times: 1 }],
        "transfer_interrupted",
      ));
    await t.step("a transfer that stops growing", () =>
      retried(
        [{ match: IMAGE, stallAfter: MIB, times: 1 }],
        "transfer_stalled",
      ));
    await t.step(
      "a registry that does not answer",
      () =>
        retried(
          [{ match: MANIFEST, hang: true, times: 1 }],
          "transfer_stalled",
        ),
    );
  },
});

Deno.test({
  name: "hydrate gives each failure of a registry its own code and exit status",
  ...REAL,
  async fn(t) {
    await using site = await behindProxy();
    const fails = async (
      faults: Fault[],
      status: number,
      code: string,
      { stall = "2", kept = false } = {},
    ) => {
      const { code: exit, last, stderr } = await site.hydrate(
        faults,
        "--retries",
        "0",
        "--stall-timeout",
        stall,
      );
      assertEquals([last.type, last.code, exit], ["error", code, status]);
      assert(last.hint, "no hint");
      assertEquals(stderr, "");
      // Only what the next run can go on with is kept.
      assertEquals((await leftovers(site.work)).length, kept ? 1 : 0);
      const pruned = await site.work.toolsmith(["cache", "prune", "--json"], {
        permissions: ["-A"],
      });
      assertEquals(jsonLines(pruned.stdout).last.partials.length, kept ? 1 : 0);
      assertEquals(await leftovers(site.work), []);
    };
    const answers: [number, number, string][] = [
      [401, 30, "unauthorized"],
      [403, 31, "forbidden"],
      [404, 32, "not_found"],
    ];
    for (const [status, exit, code] of answers) {
      await t.step(
        `an answer ${status}`,
        () => fails([{ match: MANIFEST, status }], exit, code),
      );
    }
    await t.step(
      "a cut transfer",
      () =>
        fails([{ match: IMAGE, cutAfter: MIB }], 38, "transfer_interrupted", {
          kept: true,
        }),
    );
    await t.step(
      "a stalled transfer",
      () =>
        fails([{ match: IMAGE, stallAfter: MIB }], 39, "transfer_stalled", {
          kept: true,
        }),
    );
    await t.step("other bytes of the same length", () =>
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
      ));
    // oras itself tries these for a while before it gives up.
    await t.step(
      "an answer 429",
      () =>
        fails([{ match: MANIFEST, status: 429 }], 33, "rate_limited", {
          stall: "60",
        }),
    );
    await t.step(
      "an answer 503",
      () =>
        fails(
          [{ match: MANIFEST, status: 503 }],
          34,
          "registry_unavailable",
          { stall: "60" },
        ),
    );
    await t.step("nobody listens", async () => {
      await site.work.manifest({
        qcow2: "oci://127.0.0.1:1/owner/image:1.0",
        qcow2_sha256: site.sha256,
      });
      await fails([], 37, "connection_failed");
    });
    await t.step("no such host", async () => {
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
  const child = spawn(Deno.execPath(), {
    args: await cliCommand(["hydrate"], ["-P=hydrate"]),
    cwd: site.work.dir,
    env: cleanEnvironment(),
    stderr: (chunk) => stderr += new TextDecoder().decode(chunk),
  });
  while (!site.proxy.seen.some(({ bytes }) => bytes >= MIB)) {
    await new Promise((done) => setTimeout(done, 50));
  }
  return { child, stderr: () => stderr };
}

Deno.test({
  name:
    "Ctrl-C and TERM end oras, keep what is there, and say so by exit status",
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
      assertEquals(await processesOf(site.work.dir), []);
      site.proxy.seen.length = 0;
      site.proxy.faults.length = 0;
    }
  },
});

Deno.test({
  name: "hydrate goes on after one that was killed, and cleans up",
  ...REAL,
  ignore: REAL.ignore || Deno.build.os === "windows",
  async fn() {
    await using site = await behindProxy();
    const { child } = await hanging(site);
    Deno.kill(child.pid, "SIGKILL");
    await child.ended;
    const [staging] = await leftovers(site.work);
    assertMatch(staging, /^\.staging-/);

    const { code, last, events } = await site.hydrate([]);
    assertEquals([code, last.outcome], [0, "pulled"]);
    assertEquals(await leftovers(site.work), [site.sha256]);
    const start = events.find(({ type }) => type === "download_start");
    assert(start.resumed >= MIB / 2, `resumed at ${start.resumed}`);
    const asked = site.proxy.seen.filter(({ request }) => IMAGE.test(request));
    const sent = asked.reduce((sum, { bytes }) => sum + bytes, 0);
    assertEquals(sent, start.bytes - start.resumed);
  },
});

Deno.test({
  name: "hydrate says how much space is missing, before and during a transfer",
  ...REAL,
  ignore: REAL.ignore || Deno.build.os !== "linux" || Deno.uid() !== 0,
  async fn() {
    await using site = await behindProxy(24 * MIB);
    const small = join(site.work.dir, "small");
    await Deno.mkdir(small);
    const mount = await run("mount", {
      args: ["-t", "tmpfs", "-o", "size=12m", "tmpfs", small],
    });
    // A container may not mount: there is no small disk to try this on.
    if (mount.code !== 0) return console.error("skipped: mount is not allowed");
    try {
      const told = await site.hydrate([], "--cache", `${small}/cache`);
      assertEquals([told.code, told.last.code], [50, "disk_full"]);
      assertMatch(told.last.message, /\d+ bytes are needed, \d+ are free/);
      assertEquals(
        site.proxy.seen.filter(({ request }) => IMAGE.test(request)),
        [],
      );

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
      await run("umount", { args: [small] });
    }
  },
});
