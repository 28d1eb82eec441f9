import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { type Snapshot, snapshotStore } from "../../lib/cache/snapshots.ts";
import { startMachine } from "../../lib/qemu/machine.ts";
import { makeMachineDir } from "../../lib/qemu/machine_dir.ts";
import { run, spawn } from "../../lib/system/process.ts";
import { sleep } from "../../lib/system/time.ts";
import { boot } from "../../lib/vm/boot.ts";
import { denoArgs, ROOT } from "../../scripts/deno.ts";
import { temporaryDir } from "../support/directory.ts";
import { env, guest, needsGuest } from "../support/guest.ts";
import { needs, parts } from "../support/parts.ts";
import { killUnlessEnded, processesOf } from "../support/processes.ts";
import { asRoot } from "../support/users.ts";

const KILLS = 50;
const KEY = "a".repeat(64);

/** Uniform numbers from 0 to 1, the same for the same seed (mulberry32). */
function randomNumbers(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** The machine that is saved: its disk is empty, its memory is not. */
async function machineIn(dir: string) {
  return {
    ...{ program: parts.qemu!, disk: join(dir, "disk.qcow2") },
    ...{ ephemeral: true, accelerator: "tcg" as const, memory: 64, cpus: 1 },
    ...{ shares: [], extra: [], env: new Map([["TMPDIR", dir]]) },
    dir: await makeMachineDir(new Map([["TMPDIR", dir]])),
  };
}

Deno.test({
  name: "SIGKILL at any moment of a save leaves a whole snapshot or none",
  ...needs("qemu", "qemuImg"),
  async fn() {
    const seed = Number(Deno.env.get("TOOLSMITH_SEED") ?? Date.now() % 1e6);
    console.log(`TOOLSMITH_SEED=${seed}`);
    const random = randomNumbers(seed);
    await using dir = await temporaryDir();
    const snapshots = join(dir.path, "snapshots");
    const store = snapshotStore(snapshots);
    const plan = await machineIn(dir.path);
    const create = ["create", "-q", "-f", "qcow2", plan.disk, "8M"];
    assertEquals((await run("qemu-img", { args: create })).code, 0);
    const script = join(dir.path, "save.ts");
    await Deno.writeTextFile(script, saver(snapshots, plan));

    let longest = 0;
    const found = { whole: 0, none: 0 };
    // The first is not killed: it says how long a save takes.
    for (let kill = 0; kill <= KILLS; kill++) {
      await store.remove({ key: KEY, saved: await savedTime() });
      let saving = 0;
      const child = spawn(Deno.execPath(), {
        args: await denoArgs(["run", "-A", script]),
        env: { TMPDIR: dir.path },
        stdout: () => {
          if (saving) longest ||= performance.now() - saving;
          saving ||= performance.now();
        },
      });
      let over = false;
      child.ended.then(() => over = true);
      while (!saving) await sleep(1);
      if (kill > 0) {
        await sleep(random() * longest * 1.1);
        if (!over) killUnlessEnded(child.pid);
      }
      await child.ended;
      const snapshot = await store.find(KEY);
      assert(snapshot !== "damaged", `kill ${kill}`);
      if (snapshot) await restores(snapshot);
      found[snapshot ? "whole" : "none"]++;
    }
    assert(found.whole > 0 && found.none > 0, JSON.stringify(found));

    // The next save finds nothing in its way, and leaves nothing else.
    await store.remove({ key: KEY, saved: await savedTime() });
    const args = await denoArgs(["run", "-A", script]);
    const { code, stderr } = await run(Deno.execPath(), { args });
    assertEquals(code, 0, stderr);
    const left = Array.from(Deno.readDirSync(snapshots), ({ name }) => name);
    assertEquals(
      left.sort(),
      [
        `.${KEY}.lock`,
        ...["json", "memory", "qcow2", "state"].map((it) => `${KEY}.${it}`),
      ],
    );
    for (let tries = 0; (await processesOf(dir.path)).length > 0; tries++) {
      assert(tries < 100, "a QEMU was left");
      await sleep(50);
    }

    async function savedTime() {
      const there = await store.find(KEY);
      return typeof there === "object" ? there.saved : undefined;
    }

    async function restores({ path: incoming, memory }: Snapshot) {
      const options = {
        ...await machineIn(dir.path),
        memoryFile: { path: memory!, shared: false },
      };
      await using machine = await startMachine({ ...options, incoming });
      await machine.load();
      const [answer] = await machine.qmp.send(["query-status"]);
      // A save happens while the machine stands still.
      assertEquals((answer as { status: string }).status, "paused");
    }
  },
});

/** A program that saves a machine: it says a word before and after. */
function saver(
  snapshots: string,
  plan: { disk: string; env: unknown },
): string {
  const { env: _env, ...machine } = plan;
  return `
    import { type Snapshot, snapshotStore } from "${ROOT}/lib/cache/snapshots.ts";
    import { startMachine } from "${ROOT}/lib/qemu/machine.ts";
    import { makeMachineDir } from "${ROOT}/lib/qemu/machine_dir.ts";
    import { writeOverlay } from "${ROOT}/lib/image/overlay.ts";
    import { saveMachine } from "${ROOT}/lib/vm/_migrate.ts";
    const dir = await makeMachineDir();
    const store = snapshotStore(${JSON.stringify(snapshots)});
    console.log("now");
    await using staging = await store.stage("${KEY}");
    const memoryFile = { path: staging.memory, shared: true };
    await Deno.writeFile(memoryFile.path, new Uint8Array(), { mode: 0o600 });
    await writeOverlay(staging.disk, ${JSON.stringify(plan.disk)});
    {
      await using machine = await startMachine({
        ...${JSON.stringify(machine)}, dir, memoryFile,
        unfinished: staging.dir,
      });
      await machine.qmp.send(["cont"]);
      await saveMachine(machine.qmp, { dir, state: staging.state });
    }
    await staging.place();
    console.log("placed");
    await Deno.remove(dir, { recursive: true });
  `;
}

/** Runs a test with a small tmpfs, where one can be mounted. */
function onSmallDisk(
  name: string,
  megabytes: number,
  body: (dir: string) => Promise<void>,
) {
  asRoot(name, async () => {
    if (needsGuest.ignore) return;
    await using dir = await temporaryDir();
    const mount = [
      "-t",
      "tmpfs",
      "-o",
      `size=${megabytes}m`,
      "tmpfs",
      dir.path,
    ];
    assertEquals((await run("mount", { args: mount })).code, 0);
    try {
      await body(dir.path);
    } finally {
      await run("umount", { args: [dir.path] });
    }
  });
}

/** Boots with snapshots in a directory, and says what was reported. */
async function bootIn(dir: string, onBoot?: () => void) {
  const said: string[] = [];
  await using vm = await boot({
    ...{ image: await guest(), env, accelerator: "tcg" },
    snapshots: { dir: join(dir, "machines"), digest: "sha256:1" },
    onEvent(event) {
      if (event.type === "vm_boot") onBoot?.();
      if (event.type === "warning") said.push(event.message);
    },
  });
  const { stdout } = await vm.exec("echo", { args: ["here"] });
  assertEquals(stdout, "here\n");
  await vm.stop();
  const left = Array.from(
    Deno.readDirSync(join(dir, "machines")),
    ({ name }) => name.replace(/^[0-9a-f]{64}/, ""),
  ).filter((name) => !name.endsWith(".lock"));
  return { said, left: left.sort() };
}

onSmallDisk(
  "a disk without room for all of the memory gets a snapshot that is read",
  400,
  async (dir) => {
    const { said, left } = await bootIn(dir);
    assertEquals([said, left], [[], [".json", ".qcow2", ".state"]]);
  },
);

onSmallDisk(
  "a disk that fills up while a guest boots costs its snapshot, not the run",
  540,
  async (dir) => {
    const { said, left } = await bootIn(dir, () => {
      // Whatever is left now, as another process would take it.
      try {
        Deno.writeFileSync(join(dir, "full"), new Uint8Array(520 * 2 ** 20));
      } catch {
        // There is no space left.
      }
    });
    assertEquals(
      said,
      ["The machine is not saved: there is no space left"],
    );
    assertEquals(left, []);
  },
);
