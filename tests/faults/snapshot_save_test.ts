import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { type Snapshot, snapshotStore } from "../../lib/cache/snapshots.ts";
import { startQemu } from "../../lib/qemu/qemu_process.ts";
import { runProcess, spawnProcess } from "../../lib/system/process.ts";
import { sleep } from "../../lib/system/time.ts";
import { boot } from "../../lib/vm/boot.ts";
import { PROJECT_ROOT, withImportMap } from "../../scripts/deno.ts";
import { temporaryDir } from "../support/directory.ts";
import { buildTestGuest, env, GUEST_PARTS } from "../support/guest.ts";
import { foundTools, requires } from "../support/parts.ts";
import { assertAllEnded, killUnlessEnded } from "../support/processes.ts";
import { mountTmpfs } from "../support/tmpfs.ts";
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

/** A VM with an empty disk, to be saved. */
function qemuPlanIn(dir: string) {
  return {
    ...{ program: foundTools.qemu!, disk: join(dir, "disk.qcow2") },
    ...{ ephemeral: true, accelerator: "tcg" as const, memory: 64, cpus: 1 },
    ...{ shares: [], extra: [], env: new Map([["TMPDIR", dir]]) },
  };
}

Deno.test({
  name:
    "snapshot save, killed at any moment, leaves either a complete snapshot or none",
  ...requires("qemu", "qemuImg"),
  async fn() {
    const seed = Number(Deno.env.get("TOOLSMITH_SEED") ?? Date.now() % 1e6);
    console.log(`TOOLSMITH_SEED=${seed}`);
    const random = randomNumbers(seed);
    await using dir = await temporaryDir();
    const snapshots = join(dir.path, "snapshots");
    const store = snapshotStore(snapshots);
    const plan = qemuPlanIn(dir.path);
    const create = ["create", "-q", "-f", "qcow2", plan.disk, "8M"];
    assertEquals((await runProcess("qemu-img", { args: create })).code, 0);
    const script = join(dir.path, "save.ts");
    await Deno.writeTextFile(script, saveProgram(snapshots, plan));

    let duration = Infinity;
    const found = { whole: 0, none: 0 };
    // The first save is not killed: its duration is measured. Later ones may be faster.
    for (let kill = 0; kill <= KILLS; kill++) {
      await store.remove({ key: KEY, saved: await savedTime() });
      let saving = 0;
      const child = spawnProcess(Deno.execPath(), {
        args: await withImportMap(["run", "-A", script]),
        env: { TMPDIR: dir.path },
        stdout: () => {
          saving ||= performance.now();
        },
      });
      const over = new AbortController();
      child.ended.then(() => over.abort());
      while (!saving) await sleep(1);
      if (kill > 0) {
        await sleep(random() * duration * 1.1, over.signal).catch(() => {});
        killUnlessEnded(child.pid);
      }
      const { code } = await child.ended;
      if (code === 0) {
        duration = Math.min(duration, performance.now() - saving);
      }
      const snapshot = await store.find(KEY);
      assert(snapshot !== "damaged", `kill ${kill}`);
      if (snapshot) await assertRestores(snapshot);
      found[snapshot ? "whole" : "none"]++;
    }
    assert(found.whole > 0 && found.none > 0, JSON.stringify(found));

    // The next save succeeds, and leaves no other files.
    await store.remove({ key: KEY, saved: await savedTime() });
    const args = await withImportMap(["run", "-A", script]);
    const { code, stderr } = await runProcess(Deno.execPath(), { args });
    assertEquals(code, 0, stderr);
    const left = Array.from(Deno.readDirSync(snapshots), ({ name }) => name);
    assertEquals(
      left.sort(),
      [
        `.${KEY}.lock`,
        ...["json", "memory", "qcow2", "state"].map((it) => `${KEY}.${it}`),
      ],
    );
    // No QEMU is left.
    await assertAllEnded(dir.path);

    async function savedTime() {
      const there = await store.find(KEY);
      return typeof there === "object" ? there.saved : undefined;
    }

    async function assertRestores({ path: incoming, memory }: Snapshot) {
      const options = {
        ...qemuPlanIn(dir.path),
        memoryFile: { path: memory, keepsWrites: false },
      };
      await using qemu = await startQemu({ ...options, incoming });
      await qemu.loadSnapshot();
      const [answer] = await qemu.qmp.execute(["query-status"]);
      // The VM is paused while saved.
      assertEquals((answer as { status: string }).status, "paused");
    }
  },
});

/** A program that saves a snapshot, and prints a line before and after. */
function saveProgram(
  snapshots: string,
  plan: { disk: string; env: unknown },
): string {
  const { env: _env, ...qemuPlan } = plan;
  return `
    import { type Snapshot, snapshotStore } from "${PROJECT_ROOT}/lib/cache/snapshots.ts";
    import { startQemu } from "${PROJECT_ROOT}/lib/qemu/qemu_process.ts";
    import { writeOverlay } from "${PROJECT_ROOT}/lib/image/overlay.ts";
    import { pauseAndSaveVm } from "${PROJECT_ROOT}/lib/vm/_snapshot_qemu.ts";
    const store = snapshotStore(${JSON.stringify(snapshots)});
    console.log("saving");
    await using staging = await store.createStaging("${KEY}");
    const memoryFile = { path: staging.memory, keepsWrites: true };
    await Deno.writeFile(memoryFile.path, new Uint8Array(), { mode: 0o600 });
    await writeOverlay(staging.disk, ${JSON.stringify(plan.disk)});
    {
      await using qemu = await startQemu({
        ...${JSON.stringify(qemuPlan)}, memoryFile,
        unfinishedDir: staging.dir,
      });
      await qemu.qmp.execute(["cont"]);
      await pauseAndSaveVm(qemu, staging.state);
    }
    await staging.commit();
    console.log("committed");
  `;
}

/** Registers a test that runs on a small tmpfs, as root. */
function onSmallDisk(
  name: string,
  megabytes: number,
  body: (dir: string) => Promise<void>,
) {
  asRoot(name, async () => {
    await using dir = await temporaryDir();
    await using _ = await mountTmpfs(dir.path, `${megabytes}m`);
    await body(dir.path);
  }, GUEST_PARTS);
}

/** Boots with snapshots in a directory, and returns the warnings. */
async function bootIn(dir: string, onBoot?: () => void) {
  const said: string[] = [];
  await using vm = await boot({
    ...{ image: await buildTestGuest(), env, accelerator: "tcg" },
    // On a busy host a guest may print nothing for minutes.
    bootTimeoutMs: 86_400_000,
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
  "boot continues without saving a snapshot when the disk fills up",
  540,
  async (dir) => {
    const { said, left } = await bootIn(dir, () => {
      // Fills the disk, as another process might.
      try {
        Deno.writeFileSync(join(dir, "full"), new Uint8Array(520 * 2 ** 20));
      } catch {
        // There is no space left.
      }
    });
    assertEquals(
      said,
      ["The VM was not saved: no disk space left for the snapshot"],
    );
    assertEquals(left, []);
  },
);
