/**
 * Bytes that cross the wire: of transfers that are cut, and of many hosts.
 *
 * @module
 */
import { spawn } from "../../lib/system/process.ts";
import { startNginx } from "../../tests/support/nginx.ts";
import { parts } from "../../tests/support/parts.ts";
import { startRegistry } from "../../tests/support/registry.ts";
import { cleanEnvironment } from "../../tests/support/workspace.ts";
import { compare, record } from "./measure.ts";
import { remove, type Site } from "./site.ts";
import { RATE, startWire, type Wire } from "./wire.ts";

/** Bytes that cross the wire when a transfer is cut, and when it is killed. */
export async function cutRows(site: Site) {
  await using wire = startWire(site.host, { rate: RATE });
  await site.name(wire.host);
  const hydrate = site.hydrate();
  const measured = async (work: () => Promise<void>) => {
    await site.forget();
    const before = wire.received();
    await work();
    await site.must(Deno.execPath(), hydrate);
    return (wire.received() - before) / site.bytes;
  };
  await compare(`bytes on the wire, ${site.mib} MiB`, [
    { name: "nothing happens", once: () => measured(async () => {}) },
    {
      name: "cut at 60 %",
      once: () =>
        measured(() => {
          wire.cutAt(0.6 * site.bytes);
          return Promise.resolve();
        }),
    },
    {
      name: "killed at 60 %, and run again",
      once: () => measured(() => kill(site, wire, 0.6 * site.bytes)),
    },
    {
      name: "killed ten times, and run again",
      once: () =>
        measured(async () => {
          for (let count = 0; count < 10; count++) {
            await kill(site, wire, Math.random() * 0.09 * site.bytes);
          }
        }),
    },
  ], "× the image");
  await site.name(site.host);
}

/** Starts a hydrate, and kills it when so many bytes have come. */
async function kill(site: Site, wire: Wire, bytes: number) {
  const until = wire.received() + bytes;
  const child = spawn(Deno.execPath(), {
    args: site.hydrate(),
    cwd: site.dir,
    env: cleanEnvironment(),
  });
  while (wire.received() < until) {
    await new Promise((done) => setTimeout(done, 5));
  }
  Deno.kill(child.pid, "SIGKILL");
  await child.ended;
}

/** Bytes that a registry sends for eight hosts behind two tiers of caches. */
export async function fleetRows(site: Site) {
  const rows = [
    { name: "cold caches", values: [await fleetBytes(site, {})] },
  ];
  if (parts.nginx) {
    const values = [await fleetBytes(site, { joined: true })];
    rows.push({ name: "cold caches, nginx before them", values });
  }
  const values = [await fleetBytes(site, { warm: true })];
  rows.push({ name: "warm caches", values });
  const title = "bytes from the registry, eight hosts behind two caches";
  record(title, rows, "× the image");
}

async function fleetBytes(
  site: Site,
  { warm = false, joined = false },
): Promise<number> {
  await using undo = new AsyncDisposableStack();
  const wire = undo.use(startWire(site.host));
  const far = undo.use(
    await startRegistry({ upstream: `http://${wire.host}` }),
  );
  const near = undo.use(await startRegistry({ upstream: far.url }));
  const mirror = joined ? undo.use(await startNginx(near.url)) : near;
  const env = {
    ...cleanEnvironment(),
    TOOLSMITH_MIRRORS: `${site.host}=${mirror.url}`,
  };
  const hosts = Array.from({ length: 8 }, (_, at) => `${site.dir}/host-${at}`);
  const all = async () => {
    await Promise.all(hosts.map(remove));
    await Promise.all(
      hosts.map((host) =>
        site.must(Deno.execPath(), site.hydrate(), {
          env: { ...env, TOOLSMITH_CACHE: host },
        })
      ),
    );
  };
  if (warm) await all();
  const before = wire.received();
  await all();
  return (wire.received() - before) / site.bytes;
}
