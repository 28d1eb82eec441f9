import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { run, spawn } from "../../lib/system/process.ts";
import { PART, readPartRecord } from "../../lib/system/part_record.ts";
import { needs } from "../support/parts.ts";
import { type Fault, startProxy } from "../support/proxy.ts";
import {
  PASSWORD,
  type RegistryOptions,
  startRegistry,
  USERNAME,
} from "../support/registry.ts";
import {
  cleanEnvironment,
  cliCommand,
  jsonLines,
  publishImage,
  workspace,
} from "../support/workspace.ts";

const REAL = needs("oras", "registry", "qemuImg");
const MIB = 1024 * 1024;
/** Large enough to come over several connections. */
const LARGE = 96 * MIB;
const IMAGE = /^GET \S+\/blobs\//;
/** What asks where oras would be redirected to. */
const PROBE = /^HEAD \S+\/blobs\//;

/** A registry behind a proxy with a large image, and a workspace for it. */
async function largeImage(options: RegistryOptions = {}) {
  await using undo = new AsyncDisposableStack();
  const registry = undo.use(await startRegistry(options));
  const proxy = undo.use(startProxy(registry.host));
  const work = undo.use(await workspace());
  const docker = join(work.dir, "docker");
  await Deno.mkdir(docker);
  const auth = btoa(`${USERNAME}:${PASSWORD}`);
  const hosts = [registry.host, proxy.host].map((host) => [host, { auth }]);
  await Deno.writeTextFile(
    join(docker, "config.json"),
    JSON.stringify({ auths: Object.fromEntries(hosts) }),
  );
  const env = { DOCKER_CONFIG: docker };
  await publishImage(registry, work, { bytes: LARGE, host: proxy.host, env });
  const size = (await Deno.stat(join(work.dir, "image.qcow2"))).size;
  const all = undo.move();
  /** Bytes of the image that have crossed the wire. */
  const sent = () =>
    proxy.seen
      .filter(({ request, status }) => IMAGE.test(request) && status < 300)
      .reduce((sum, { bytes }) => sum + bytes, 0);
  return {
    proxy,
    work,
    size,
    sent,
    async hydrate(
      faults: Fault[],
      args: string[] = [],
      permissions?: string[],
    ) {
      proxy.faults.splice(0, Infinity, ...faults);
      const command = ["hydrate", "--json", ...args];
      const output = await work.toolsmith(command, { env, permissions });
      const lines = jsonLines(output.stdout);
      const first = (type: string) =>
        lines.events.find((event) => event.type === type);
      return { ...output, ...lines, first };
    },
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  };
}

Deno.test({
  name: "hydrate brings a large image over four connections, and no byte twice",
  ...REAL,
  async fn() {
    await using site = await largeImage();
    const { last, first } = await site.hydrate([]);
    assertEquals(last.outcome, "pulled", last.message);
    assertEquals(first("download_start").connections, 4);
    assertEquals(first("ranges_unavailable"), undefined);
    // On a busy host a connection may be overtaken, but hardly ever.
    assert(site.sent() <= site.size * 1.05, `${site.sent()} of ${site.size}`);
    assert(site.proxy.seen.filter(({ status }) => status === 206).length >= 4);
    const [path] = await site.work.cached();
    assertMatch(path, /image\.qcow2$/);
    assertEquals((await Deno.stat(last.path)).mode! & 0o777, 0o444);
  },
});

Deno.test({
  name: "a cut, a stall and an error in mid-image cost nothing but a retry",
  ...REAL,
  async fn() {
    await using site = await largeImage();
    const { last, events } = await site.hydrate([
      { match: IMAGE, after: 2, times: 1, cutAfter: MIB },
      { match: IMAGE, after: 4, times: 1, status: 503 },
      { match: IMAGE, after: 6, times: 1, stallAfter: MIB },
    ], ["--stall-timeout", "2"]);
    assertEquals(last.outcome, "pulled", last.message);
    assert(events.some(({ type }) => type === "retry"));
    assert(site.sent() <= site.size * 1.05, `${site.sent()} of ${site.size}`);
  },
});

Deno.test({
  name:
    "a hydrate that was killed is gone on with, and only the rest is asked for",
  ...REAL,
  ignore: REAL.ignore || Deno.build.os === "windows",
  async fn() {
    await using site = await largeImage();
    // Nothing comes any more after some pieces; the process is killed then.
    site.proxy.faults.push({ match: IMAGE, after: 8, stallAfter: 0 });
    const child = spawn(Deno.execPath(), {
      args: await cliCommand(["hydrate"], ["-P=hydrate"]),
      cwd: site.work.dir,
      env: cleanEnvironment(),
    });
    for (let before = -1; site.sent() > before || before <= 0;) {
      before = site.sent();
      await new Promise((done) => setTimeout(done, 1000));
    }
    Deno.kill(child.pid, "SIGKILL");
    await child.ended;
    const { last, first } = await site.hydrate([]);
    assertEquals(last.outcome, "pulled", last.message);
    const { resumed } = first("download_start");
    assert(resumed >= 0.2 * site.size, `resumed at ${resumed}`);
    // What was on the way, and not yet on the disk, comes again.
    assert(site.sent() <= site.size * 1.1, `${site.sent()} of ${site.size}`);
  },
});

Deno.test({
  name:
    "kept bytes that are wrong are dropped, and the image is fetched once more",
  ...REAL,
  async fn() {
    await using site = await largeImage();
    const cut = await site.hydrate(
      [{ match: IMAGE, after: 3, status: 503 }],
      ["--retries", "0"],
    );
    assertEquals(cut.last.code, "registry_unavailable");
    const listed = await site.work.toolsmith(["cache", "ls", "--json"]);
    const [{ path, bytes, total }] = jsonLines(listed.stdout).last.partials;
    assertEquals(total, site.size);
    assert(bytes > 0);
    {
      using file = await Deno.open(join(path, PART), { write: true });
      const [[from]] = (await readPartRecord(path))!.extents;
      await file.seek(from, Deno.SeekMode.Start);
      await file.write(new Uint8Array(10));
    }
    const { last, first } = await site.hydrate([]);
    assertEquals(last.outcome, "pulled", last.message);
    assertMatch(
      first("ranges_unavailable").reason,
      /the bytes have the digest/,
    );
    const again = await site.hydrate([], ["--verify"]);
    assertEquals(again.last.outcome, "cached");
  },
});

Deno.test({
  name:
    "a disk that is full in mid-image is said so, and what fits is gone on with",
  ...REAL,
  ignore: REAL.ignore || Deno.build.os !== "linux" || Deno.uid() !== 0,
  async fn() {
    await using site = await largeImage();
    const small = join(site.work.dir, "small");
    await Deno.mkdir(small);
    const mount = (...options: string[]) =>
      run("mount", { args: [...options, "tmpfs", small] });
    const { code } = await mount("-t", "tmpfs", "-o", "size=60m");
    // A container may not mount: there is no small disk to try this on.
    if (code !== 0) return console.error("skipped: mount is not allowed");
    const cache = ["--cache", `${small}/cache`];
    try {
      // Nobody can ask for the free space before.
      const full = await site.hydrate([], cache, [
        ...["--allow-read", "--allow-write", "--allow-run", "--allow-env"],
        ...["--allow-net", "--allow-sys=uid,osUptime", "--no-prompt"],
      ]);
      assertEquals([full.code, full.last.code], [50, "disk_full"]);
      await mount("-o", "remount,size=300m");
      const { last, first } = await site.hydrate([], cache);
      assertEquals(last.outcome, "pulled", last.message);
      const { resumed } = first("download_start");
      assert(resumed > 30 * MIB, `resumed at ${resumed}`);
    } finally {
      await run("umount", { args: [small] });
    }
  },
});

Deno.test({
  name: "without ranges or the permission for them an image comes by oras pull",
  ...REAL,
  async fn(t) {
    await using site = await largeImage();
    const probes = () =>
      site.proxy.seen.filter(({ request }) => PROBE.test(request)).length;
    await t.step("416", async () => {
      const { last, first } = await site.hydrate(
        [{ match: IMAGE, status: 416, times: 1 }],
        ["--force"],
      );
      assertEquals(last.outcome, "pulled", last.message);
      assertMatch(first("ranges_unavailable").reason, /answers 416$/);
      // Where it redirects to is known by then.
      assertEquals(probes(), 0);
    });
    await t.step("no --allow-net", async () => {
      const { last, first, stderr } = await site.hydrate([], ["--force"], [
        "--allow-read",
        "--allow-write",
        "--allow-run",
        "--allow-env",
        "--allow-sys",
      ]);
      assertEquals([last.outcome, stderr], ["pulled", ""], last.message);
      const { reason } = first("ranges_unavailable");
      assertEquals(reason, "--allow-net is not granted");
    });
    await t.step("one connection", async () => {
      site.proxy.seen.length = 0;
      const { last, first, events } = await site.hydrate(
        [{ match: IMAGE, times: 1, cutAfter: 40 * MIB }],
        ["--force", "--connections", "1"],
      );
      assertEquals(last.outcome, "pulled", last.message);
      assertEquals(first("ranges_unavailable"), undefined);
      const resumed = events.filter(({ type }) => type === "download_start")
        .map((event) => event.resumed);
      assertEquals(resumed.length, 2);
      assert(resumed[1] > 30 * MIB, `resumed at ${resumed[1]}`);
      assert(site.sent() <= site.size * 1.02, `${site.sent()} bytes`);
      assertEquals(probes(), 1);
    });
  },
});

for (const auth of ["basic", "token"] as const) {
  Deno.test({
    name: `a private image comes by ranges with Docker's credentials (${auth})`,
    ...needs("oras", "registry", "qemuImg", "openssl"),
    async fn() {
      // Tokens end while the image arrives.
      await using site = await largeImage({ auth, tokenSeconds: 1 });
      const { last, first, stdout } = await site.hydrate([]);
      assertEquals(last.outcome, "pulled", last.message);
      assertEquals(first("ranges_unavailable"), undefined);
      assert(site.sent() >= site.size);
      assert(!stdout.includes(PASSWORD));
    },
  });
}
