/**
 * Measures the guest's network, compared with QEMU's user networking and with the guest's
 * standard streams.
 */
import { boot } from "../../lib/vm/boot.ts";
import type { BootOptions } from "../../lib/vm/boot_options.ts";
import type { ExecOptions } from "../../lib/guest/exec.ts";
import type { BootedVm } from "../../lib/vm/vm.ts";
import { temporaryDir } from "../../tests/support/directory.ts";
import { addReportSection, type Contender, measureInTurns } from "./measure.ts";

const MIB = 2 ** 20;
const UPLOAD_SHARE = 4;
const PARALLEL_GUESTS = 8;
const CONNECTIONS = 50;

type Network = BootOptions["network"];

/**
 * Measures downloads, uploads, restored starts and memory.
 *
 * @param name The guest's name in the report.
 * @param image Its QCOW2; it has busybox.
 * @param mib Size of the download, in MiB.
 */
export async function measureEgress(name: string, image: string, mib: number) {
  await using dir = await temporaryDir();
  await Deno.chmod(dir.path, 0o700);
  await using server = startServer(mib * MIB);
  using uploads = startUploadServer();
  const { port } = server.addr;
  const ruled: Network = {
    allow: [
      `bench.test:80=127.0.0.1:${port}`,
      `bench.test:9=127.0.0.1:${uploads.port}`,
    ],
  };
  const snapshots = { dir: dir.path, digest: `sha256:${"b".repeat(64)}` };
  const start = (network?: Network) => boot({ image, network, snapshots });
  {
    // Saves the snapshot that all others restore.
    await using _vm = await start();
  }
  await measureRates(name, mib, {
    ...{ ruled, port, start, uploads },
  });
  await measureInTurns(`a command in ${name}, restored with it`, [
    { name: "with --allow-net", runOnce: () => runTrue(start, ruled) },
    { name: "without a network", runOnce: () => runTrue(start, undefined) },
  ]);
  await measureInTurns(
    `${mib} MiB downloaded by ${PARALLEL_GUESTS} of ${name} at once, in parts`,
    [{
      name: "with --allow-net",
      async runOnce() {
        const guests = Array.from({ length: PARALLEL_GUESTS }, async () => {
          await using vm = await start(ruled);
          await sh(vm, `wget -qO /dev/null http://bench.test/part`);
        });
        await Promise.all(guests);
      },
    }],
  );
  await measureMemory(name, () => start(ruled));
}

async function runTrue(
  start: (network?: Network) => Promise<BootedVm>,
  network: Network,
) {
  await using vm = await start(network);
  await sh(vm, "true");
}

interface RateBench {
  ruled: Network;
  port: number;
  uploads: UploadServer;
  start: (network?: Network) => Promise<BootedVm>;
}

async function measureRates(name: string, mib: number, site: RateBench) {
  const { ruled, port, uploads, start } = site;
  await using own = await start(ruled);
  await using user = await start("host-loopback");
  const rate = (
    contender: string,
    size: number,
    run: () => Promise<number>,
  ): Contender => ({
    name: contender,
    runOnce: async () => size / await run(),
  });
  const download = (vm: BootedVm, host: string) =>
    timed(vm, `wget -qO /dev/null http://${host}/`);
  await measureInTurns(`${mib} MiB from a server into ${name}`, [
    rate("--allow-net", mib, () => download(own, "bench.test")),
    rate(
      "QEMU's user networking",
      mib,
      () => download(user, `10.0.2.2:${port}`),
    ),
    rate(
      "the guest's standard error",
      mib,
      () =>
        timed(own, `dd if=/dev/zero bs=64k count=${mib * MIB / 65536} >&2`, {
          stderr() {},
        }),
    ),
  ], "MiB/s");
  const size = Math.ceil(mib / UPLOAD_SHARE);
  // Busybox's `nc` itself handles fewer bytes than a network does.
  const file = "/tmp/upload";
  const upload = async (vm: BootedVm, to: string) => {
    const all = [uploads.next(), sh(vm, `nc ${to} -e cat ${file}`)] as const;
    return (await Promise.all(all))[0];
  };
  const receive = "nc -l -p 7 -e dd of=/dev/null bs=64k";
  for (const vm of [own, user]) {
    await sh(
      vm,
      `dd if=/dev/zero of=${file} bs=64k count=${size * MIB / 65536}`,
    );
  }
  await sh(own, "ip link set lo up");
  await measureInTurns(`${size} MiB from ${name} to a server`, [
    rate("--allow-net", size, () => upload(own, "bench.test 9")),
    rate(
      "QEMU's user networking",
      size,
      () => upload(user, `10.0.2.2 ${uploads.port}`),
    ),
    rate(
      "the bound: to another process of the guest",
      size,
      () =>
        timed(
          own,
          `${receive} & until nc 127.0.0.1 7 -e cat ${file}; do :; done; wait`,
        ),
    ),
  ], "MiB/s");
}

/** What connections without traffic add to this process. */
async function measureMemory(name: string, start: () => Promise<BootedVm>) {
  await using vm = await start();
  const { rss: before } = Deno.memoryUsage();
  let rss = before;
  const connect = "sleep 20 | nc bench.test 80 >/dev/null &";
  const all = `for i in $(seq ${CONNECTIONS}); do ${connect} done`;
  await vm.exec("sh", {
    // The connections end with the script.
    args: ["-c", `${all}; sleep 5; echo connected; sleep 1`],
    stdout: () => void (rss = Deno.memoryUsage().rss),
  });
  addReportSection(
    `memory of Toolsmith for ${CONNECTIONS} connections of ${name}`,
    // There is no ratio to 0.
    [{ name: "--allow-net", values: [Math.max((rss - before) / MIB, 0.1)] }],
    "MiB",
  );
}

async function sh(vm: BootedVm, script: string, options: ExecOptions = {}) {
  const args = ["-e", "-c", script];
  const result = await vm.exec("sh", { ...options, args });
  if (result.code !== 0) throw new Error(`${script}: ${result.stderr}`);
  return result;
}

/** The seconds that a script takes by the guest's clock, without the command's start. */
async function timed(
  vm: BootedVm,
  script: string,
  options: ExecOptions = {},
): Promise<number> {
  const look = "read now _ </proc/uptime; echo $now";
  const { stdout } = await sh(vm, `${look}; ${script}; ${look}`, options);
  const [from, to] = stdout.split("\n").map(Number);
  return to - from;
}

function startServer(bytes: number) {
  const chunk = new Uint8Array(65536);
  return Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen() {} },
    (request) => {
      const isPart = new URL(request.url).pathname === "/part";
      const size = isPart ? Math.ceil(bytes / PARALLEL_GUESTS) : bytes;
      let left = size;
      const body = new ReadableStream<Uint8Array>({
        pull(controller) {
          controller.enqueue(chunk.subarray(0, left));
          left -= Math.min(left, chunk.length);
          if (left === 0) controller.close();
        },
      });
      return new Response(body, { headers: { "content-length": `${size}` } });
    },
  );
}

type UploadServer = ReturnType<typeof startUploadServer>;

function startUploadServer() {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = listener.addr as Deno.NetAddr;
  return {
    port,
    /** Reads the next connection to its end. Returns the seconds that this takes. */
    async next() {
      using peer = await listener.accept();
      const startedAt = performance.now();
      const buffer = new Uint8Array(MIB);
      while (await peer.read(buffer) !== null);
      return (performance.now() - startedAt) / 1000;
    },
    [Symbol.dispose]: () => listener.close(),
  };
}
