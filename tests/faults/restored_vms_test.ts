import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { boot } from "../../lib/vm/boot.ts";
import { temporaryDir } from "../support/directory.ts";
import { buildTestGuest, env, needsGuest } from "../support/guest.ts";
import { assertAllEnded } from "../support/processes.ts";

const CLONES = 30;
/** Limit of private memory per VM; the guest has 512 MiB. */
const MAX_PRIVATE_MIB = 150;

/** The private memory of a process, in MiB. */
async function privateMib(pid: number): Promise<number> {
  const text = await Deno.readTextFile(`/proc/${pid}/smaps_rollup`);
  const kib = text.matchAll(/^Private_(?:Clean|Dirty):\s+(\d+) kB/gm);
  return kib.reduce((sum, [, count]) => sum + Number(count), 0) / 1024;
}

Deno.test({
  name:
    `boot restores ${CLONES} VMs from one snapshot concurrently, and each runs and stops`,
  ...needsGuest,
  // Only Linux reports private memory.
  ignore: needsGuest.ignore || Deno.build.os !== "linux",
  async fn() {
    await using dir = await temporaryDir();
    const options = {
      image: await buildTestGuest(),
      workspace: dir.path,
      snapshots: { dir: join(dir.path, "machines"), digest: "sha256:1" },
      accelerator: "tcg" as const,
      // On a busy host a guest may print nothing for minutes.
      bootTimeoutMs: 86_400_000,
      env: new Map([...env, ["TMPDIR", dir.path]]),
    };
    await (await boot(options)).stop();
    {
      await using stack = new AsyncDisposableStack();
      const how: string[] = [];
      const vms = await Promise.all(Array.from({ length: CLONES }, async () => {
        const vm = await boot({
          ...options,
          onEvent: (event) => {
            if (event.type === "boot_ready") how.push(event.how);
          },
        });
        return stack.use(vm);
      }));
      assertEquals(how, Array(CLONES).fill("restored"));
      const said = await Promise.all(vms.map(async (vm, index) => {
        const write = `echo ${index} >/tmp/mine; sleep 1; cat /tmp/mine`;
        return (await vm.exec("sh", { args: ["-c", write] })).stdout;
      }));
      assertEquals(said, vms.map((_, index) => `${index}\n`));
      for (const { facts } of vms) {
        const mib = await privateMib(facts.pid);
        assert(mib < MAX_PRIVATE_MIB, `${mib} MiB`);
      }
    }
    await assertAllEnded(dir.path);
    const left = Array.from(Deno.readDirSync(dir.path), ({ name }) => name);
    assertEquals(left, ["machines"]);
  },
});
