import { assert, assertEquals, assertMatch } from "@std/assert";
import { basename, dirname, join } from "@std/path";
import type { HydrateOptions } from "../../lib/hydrate/hydrate.ts";
import { runProcess, spawnProcess } from "../../lib/system/process.ts";
import {
  DURABLE_EXTENTS_FILE,
  PART_FILE_NAME,
  readPartRecord,
} from "../../lib/system/part_record.ts";
import {
  hydrateWorkspace,
  publishedImageOfFile,
} from "../support/registry_hydrate.ts";
import { requires } from "../support/parts.ts";
import { type ProxyFault, startProxy } from "../support/proxy.ts";
import {
  PASSWORD,
  type RegistryOptions,
  startRegistry,
  USERNAME,
} from "../support/registry.ts";
import { scaleClock } from "../support/timers.ts";
import {
  cleanEnvironment,
  cliCommand,
  jsonLines,
  orasPush,
  TYPE,
} from "../support/workspace.ts";

const REAL = requires("oras", "registry", "qemuImg");
const MIB = 1024 * 1024;
/** Large enough for several connections. */
const LARGE = 64 * MIB;
const IMAGE = /^GET \S+\/blobs\//;
/** The requests that probe where oras would be redirected to. */
const PROBE = /^HEAD \S+\/blobs\//;

const image = publishedImageOfFile(LARGE, REAL.ignore);

/** A registry behind a proxy with a large image, and a workspace for it. */
async function largeImage(options?: RegistryOptions) {
  await using undo = new AsyncDisposableStack();
  const { path, size, ...published } = image();
  const registry = options
    ? undo.use(await startRegistry(options))
    : published.registry;
  const proxy = undo.use(startProxy(registry.host));
  const work = undo.use(await published.workspace(proxy.host));
  const docker = join(work.dir, "docker");
  await Deno.mkdir(docker);
  const auth = btoa(`${USERNAME}:${PASSWORD}`);
  const hosts = [registry.host, proxy.host].map((host) => [host, { auth }]);
  await Deno.writeTextFile(
    join(docker, "config.json"),
    JSON.stringify({ auths: Object.fromEntries(hosts) }),
  );
  const env = { DOCKER_CONFIG: docker };
  if (options) {
    const layers = [`${basename(path)}:${TYPE}`];
    const reference = `${registry.host}/owner/image:1.0`;
    await orasPush(reference, layers, {
      ...{ cwd: dirname(path), args: registry.orasFlags, env },
    });
  }
  Deno.env.set("DOCKER_CONFIG", docker);
  undo.defer(() => Deno.env.set("DOCKER_CONFIG", "/nonexistent"));
  const all = undo.move();
  /** Bytes of the image that were sent. */
  const sent = () =>
    proxy.seen
      .filter(({ request, status }) => IMAGE.test(request) && status < 300)
      .reduce((sum, { bytes }) => sum + bytes, 0);
  return {
    proxy,
    work,
    size,
    sent,
    hydrate(faults: ProxyFault[], options?: HydrateOptions) {
      proxy.faults.splice(0, Infinity, ...faults);
      proxy.seen.length = 0;
      return hydrateWorkspace(work.dir, options);
    },
    /** Runs hydrate in a process with these permissions. */
    async permitted(permissions: string[], args: string[] = []) {
      proxy.faults.length = 0;
      const command = ["hydrate", "--json", ...args];
      const output = await work.toolsmith(command, { env, permissions });
      const { last, events } = jsonLines(output.stdout);
      const of = (type: string) =>
        events.filter((event) => event.type === type);
      return { ...output, last, of };
    },
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  };
}

Deno.test({
  name: "hydrate downloads a large image over four connections, each byte once",
  ...REAL,
  async fn() {
    await using site = await largeImage();
    // Otherwise a slow connection's range is requested again, and its bytes are lost.
    using _clock = scaleClock(0.001);
    const { result, error, of } = await site.hydrate([]);
    assertEquals(result?.outcome, "pulled", error?.message);
    assertEquals(of("download_start")[0].connections, 4);
    assertEquals(of("ranges_unavailable"), []);
    assertEquals(site.sent(), site.size);
    assert(site.proxy.seen.filter(({ status }) => status === 206).length >= 4);
    const [path] = await site.work.cached();
    assertMatch(path, /image\.qcow2$/);
    assertEquals((await Deno.stat(result!.path)).mode! & 0o777, 0o444);
  },
});

Deno.test({
  name:
    "hydrate retries an interrupted range and a 503 without downloading bytes twice",
  ...REAL,
  async fn() {
    await using site = await largeImage();
    using _clock = scaleClock(0.001);
    const { result, error, of } = await site.hydrate([
      { match: IMAGE, after: 2, times: 1, cutAfter: MIB },
      { match: IMAGE, after: 4, times: 1, status: 503 },
    ], { retryDelayMs: 0 });
    assertEquals(result?.outcome, "pulled", error?.message);
    assert(of("retry").length > 0);
    // Bytes in flight are lost with a connection.
    const cut = site.sent() - site.size;
    assert(cut >= 0 && cut <= MIB, `${cut} bytes came twice`);
  },
});

Deno.test({
  name: "hydrate requests only the missing bytes after SIGKILL",
  ...REAL,
  ignore: REAL.ignore || Deno.build.os === "windows",
  async fn() {
    await using site = await largeImage();
    // The server stalls after some pieces; then the process is killed.
    const whole = 6;
    site.proxy.faults.push({ match: IMAGE, after: whole, stallAfter: 0 });
    const child = spawnProcess(Deno.execPath(), {
      args: await cliCommand(["hydrate"], ["-P=hydrate"]),
      cwd: site.work.dir,
      env: cleanEnvironment(),
    });
    // A connection requests the next piece after writing the one before.
    const asked = () =>
      site.proxy.seen.filter(({ request }) => IMAGE.test(request)).length;
    while (asked() < whole + 4) await new Promise((go) => setTimeout(go, 20));
    Deno.kill(child.pid, "SIGKILL");
    await child.ended;
    using _clock = scaleClock(0.001);
    const { result, error, of } = await site.hydrate([]);
    assertEquals(result?.outcome, "pulled", error?.message);
    const [{ resumed }] = of("download_start");
    assert(resumed >= 4 * MIB, `resumed at ${resumed}`);
    assertEquals(site.sent(), site.size - resumed);
  },
});

Deno.test({
  name:
    "hydrate discards a partial download with wrong bytes and downloads again",
  ...REAL,
  async fn() {
    await using site = await largeImage();
    // Four are under way at first; the fifth follows a piece that is written.
    const cut = await site.hydrate(
      [{ match: IMAGE, after: 4, status: 503 }],
      { retries: 0 },
    );
    assertEquals(cut.error?.code, "registry_unavailable");
    const listed = await site.work.toolsmith(["cache", "ls", "--json"]);
    const [{ path, bytes, total }] = jsonLines(listed.stdout).last.partials;
    assertEquals(total, site.size);
    assert(bytes > 0);
    {
      using file = await Deno.open(join(path, PART_FILE_NAME), { write: true });
      const [[from]] = (await readPartRecord(path))!.extents;
      await file.seek(from, Deno.SeekMode.Start);
      await file.write(new Uint8Array(10));
    }
    // From here on, a killed run must not leave wrong bytes to resume.
    const kept: boolean[] = [];
    const { result, error, of } = await site.hydrate([], {
      onEvent({ type }) {
        if (type !== "download_start") return;
        const dirs = Array.from(Deno.readDirSync(dirname(path)))
          .filter(({ isDirectory }) => isDirectory)
          .map(({ name }) => join(dirname(path), name));
        const names = dirs.flatMap((dir) => Array.from(Deno.readDirSync(dir)));
        kept.push(names.some(({ name }) => name === DURABLE_EXTENTS_FILE));
      },
    });
    assertEquals(result?.outcome, "pulled", error?.message);
    assertEquals(kept, [true, false]);
    assertMatch(
      of("ranges_unavailable")[0].reason,
      /the downloaded bytes have the digest/,
    );
    const again = await site.hydrate([], { verify: true });
    assertEquals(again.result?.outcome, "cached");
  },
});

Deno.test({
  name:
    "hydrate reports a full disk and resumes the partial download once space is free",
  ...requires("oras", "registry", "qemuImg", "root"),
  async fn() {
    await using site = await largeImage();
    const small = join(site.work.dir, "small");
    await Deno.mkdir(small);
    const mount = (...options: string[]) =>
      runProcess("mount", { args: [...options, "tmpfs", small] });
    const { code } = await mount("-t", "tmpfs", "-o", "size=40m");
    // A container may not mount: there is no small disk to try this on.
    if (code !== 0) return console.error("skipped: mount is not allowed");
    const cache = `${small}/cache`;
    try {
      // Without --allow-sys=statfs, free space is not checked in advance.
      const full = await site.permitted([
        ...["--allow-read", "--allow-write", "--allow-run", "--allow-env"],
        ...["--allow-net", "--allow-sys=uid,osUptime", "--no-prompt"],
      ], ["--cache", cache]);
      assertEquals([full.code, full.last.code], [50, "disk_full"]);
      await mount("-o", "remount,size=300m");
      const { result, error, of } = await site.hydrate([], { cache });
      assertEquals(result?.outcome, "pulled", error?.message);
      const [{ resumed }] = of("download_start");
      assert(resumed > 16 * MIB, `resumed at ${resumed}`);
    } finally {
      // A thread that hashed there may still be ending.
      await runProcess("umount", { args: ["--lazy", small] });
    }
  },
});

Deno.test({
  name:
    "hydrate falls back to `oras pull` without range support or --allow-net",
  ...REAL,
  async fn(t) {
    await using site = await largeImage();
    const probes = () =>
      site.proxy.seen.filter(({ request }) => PROBE.test(request)).length;
    await t.step(
      "hydrate falls back to `oras pull` after 416 Range Not Satisfiable",
      async () => {
        const { result, error, of } = await site.hydrate(
          [{ match: IMAGE, status: 416, times: 1 }],
          { force: true },
        );
        assertEquals(result?.outcome, "pulled", error?.message);
        assertMatch(of("ranges_unavailable")[0].reason, /answered 416$/);
      },
    );
    await t.step(
      "hydrate falls back to `oras pull` without --allow-net",
      async () => {
        const { last, of, stderr } = await site.permitted([
          "--allow-read",
          "--allow-write",
          "--allow-run",
          "--allow-env",
          "--allow-sys",
        ], ["--force"]);
        assertEquals([last.outcome, stderr], ["pulled", ""], last.message);
        const reasons = of("ranges_unavailable").map(({ reason }) => reason);
        assertEquals(reasons, ["--allow-net is not granted"]);
      },
    );
    await t.step("hydrate uses `oras pull` for one connection", async () => {
      using _clock = scaleClock(0.001);
      const { result, error, of } = await site.hydrate(
        [{ match: IMAGE, times: 1, cutAfter: 40 * MIB }],
        { force: true, connections: 1, retryDelayMs: 0 },
      );
      assertEquals(result?.outcome, "pulled", error?.message);
      assertEquals(of("ranges_unavailable"), []);
      const resumed = of("download_start").map((event) => event.resumed);
      assertEquals(resumed.length, 2);
      assert(resumed[1] > 30 * MIB, `resumed at ${resumed[1]}`);
      assertEquals(site.sent(), 40 * MIB + site.size - resumed[1]);
      assertEquals(probes(), 1);
    });
  },
});

for (const auth of ["basic", "token"] as const) {
  Deno.test({
    name:
      `hydrate downloads a private image with range requests and Docker's credentials (${auth})`,
    ...requires("oras", "registry", "qemuImg", "openssl"),
    async fn() {
      // Tokens expire during the download.
      await using site = await largeImage({ auth, tokenSeconds: 1 });
      const { result, error, of, events } = await site.hydrate([]);
      assertEquals(result?.outcome, "pulled", error?.message);
      assertEquals(of("ranges_unavailable"), []);
      assert(site.sent() >= site.size);
      assert(!JSON.stringify(events).includes(PASSWORD));
    },
  });
}
