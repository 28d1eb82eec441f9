/** Measures bytes on the wire: of interrupted transfers, and of a fleet. */
import { spawnProcess } from "../../lib/system/process.ts";
import { startNginx } from "../../tests/support/nginx.ts";
import { foundTools } from "../../tests/support/parts.ts";
import { startRegistry } from "../../tests/support/registry.ts";
import { cleanEnvironment } from "../../tests/support/workspace.ts";
import { addReportSection, measureInTurns } from "./measure.ts";
import { removeIfExists, type TransferBench } from "./transfer_bench.ts";
import {
  startThrottledNetwork,
  THROTTLED_BYTES_PER_S,
  type ThrottledNetwork,
} from "./throttled_network.ts";

/** Measures bytes on the wire when a connection is cut or hydrate is killed. */
export async function measureCutTransfer(site: TransferBench) {
  await using wire = startThrottledNetwork(site.host, {
    rate: THROTTLED_BYTES_PER_S,
  });
  await site.name(wire.host);
  const hydrate = site.hydrate();
  const measured = async (work: () => Promise<void>) => {
    await site.forget();
    const before = wire.received();
    await work();
    await site.must(Deno.execPath(), hydrate);
    return (wire.received() - before) / site.bytes;
  };
  await measureInTurns(`bytes on the wire, ${site.mib} MiB`, [
    { name: "nothing happens", runOnce: () => measured(async () => {}) },
    {
      name: "cut at 60 %",
      runOnce: () =>
        measured(() => {
          wire.cutAt(0.6 * site.bytes);
          return Promise.resolve();
        }),
    },
    {
      name: "killed at 60 %, and run again",
      runOnce: () =>
        measured(() => killDownloadAt(site, wire, 0.6 * site.bytes)),
    },
    {
      name: "killed ten times, and run again",
      runOnce: () =>
        measured(async () => {
          for (let count = 0; count < 10; count++) {
            await killDownloadAt(site, wire, Math.random() * 0.09 * site.bytes);
          }
        }),
    },
  ], "× the image");
  await site.name(site.host);
}

/** Measures the bytes of `oras pull`, which starts over after a kill. */
export async function measureKilledPull(site: TransferBench) {
  await using wire = startThrottledNetwork(site.host, {
    rate: THROTTLED_BYTES_PER_S,
  });
  const pull = ["pull", "--plain-http", "--no-tty", "-o", "pulled"];
  const args = [...pull, `${wire.host}/o/i:1`];
  await measureInTurns(`bytes on the wire, ${site.mib} MiB, by hand`, [{
    name: "oras pull, killed at 60 %, and run again",
    prepare: () => removeIfExists(`${site.dir}/pulled`),
    async runOnce() {
      const before = wire.received();
      await killDownloadAt(site, wire, 0.6 * site.bytes, [
        foundTools.oras!,
        ...args,
      ]);
      await site.must(foundTools.oras!, args);
      return (wire.received() - before) / site.bytes;
    },
  }], "× the image");
  await removeIfExists(`${site.dir}/pulled`);
}

/** Starts a download and kills it after so many bytes. */
async function killDownloadAt(
  site: TransferBench,
  wire: ThrottledNetwork,
  bytes: number,
  [program, ...args] = [Deno.execPath(), ...site.hydrate()],
) {
  const until = wire.received() + bytes;
  const child = spawnProcess(program, {
    args,
    cwd: site.dir,
    env: cleanEnvironment(),
  });
  while (wire.received() < until) {
    await new Promise((done) => setTimeout(done, 5));
  }
  Deno.kill(child.pid, "SIGKILL");
  await child.ended;
}

/** Measures what a registry sends for eight hosts behind two pull-through caches. */
export async function measureFleet(site: TransferBench) {
  const rows = [
    { name: "cold caches", values: [await measureFleetBytes(site, {})] },
  ];
  if (foundTools.nginx) {
    const values = [await measureFleetBytes(site, { joined: true })];
    rows.push({ name: "cold caches, nginx before them", values });
  }
  const values = [await measureFleetBytes(site, { warm: true })];
  rows.push({ name: "warm caches", values });
  const title = "bytes from the registry, eight hosts behind two caches";
  addReportSection(title, rows, "× the image");
}

async function measureFleetBytes(
  site: TransferBench,
  { warm = false, joined = false },
): Promise<number> {
  await using undo = new AsyncDisposableStack();
  const wire = undo.use(startThrottledNetwork(site.host));
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
    await Promise.all(hosts.map(removeIfExists));
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
