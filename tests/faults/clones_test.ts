import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { boot } from "../../lib/vm/boot.ts";
import { temporaryDir } from "../support/directory.ts";
import { env, guest, needsGuest } from "../support/guest.ts";
import { processesOf } from "../support/processes.ts";

const CLONES = 30;
/** What a clone may have of its own; the guest has 512 MiB. */
const OWN_MIB = 150;

/** The memory that a process shares with no other, in MiB. */
async function ownMib(pid: number): Promise<number> {
  const text = await Deno.readTextFile(`/proc/${pid}/smaps_rollup`);
  const kib = text.matchAll(/^Private_(?:Clean|Dirty):\s+(\d+) kB/gm);
  return kib.reduce((sum, [, count]) => sum + Number(count), 0) / 1024;
}

Deno.test({
  name: `${CLONES} machines of one process start at once, run and end`,
  ...needsGuest,
  // What a process has of its own, Linux alone says.
  ignore: needsGuest.ignore || Deno.build.os !== "linux",
  async fn() {
    await using dir = await temporaryDir();
    const options = {
      image: await guest(),
      workspace: dir.path,
      snapshots: { dir: join(dir.path, "machines"), digest: "sha256:1" },
      accelerator: "tcg" as const,
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
        const own = await ownMib(facts.pid);
        assert(own < OWN_MIB, `${own} MiB`);
      }
    }
    assertEquals(await processesOf(dir.path), []);
    const left = Array.from(Deno.readDirSync(dir.path), ({ name }) => name);
    assertEquals(left, ["machines"]);
  },
});
