import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import {
  startMachine,
  type StartMachineOptions,
} from "../../lib/qemu/machine.ts";
import { openQmp } from "../../lib/qemu/qmp.ts";
import { makeMachineDir } from "../../lib/qemu/machine_dir.ts";
import type { ToolsmithError } from "../../lib/errors.ts";
import { bootFailure } from "../../lib/vm/_readiness.ts";
import { run } from "../../lib/system/process.ts";
import { settlesWithin, sleep } from "../../lib/system/time.ts";
import { type Dir, temporaryDir } from "../support/directory.ts";
import { needs, parts } from "../support/parts.ts";
import { assertEnded } from "../support/processes.ts";

/** A machine with an empty disk, run by a script that becomes QEMU. */
async function emptyMachine(
  dir: Dir,
  before: string,
): Promise<StartMachineOptions> {
  const disk = join(dir.path, "empty.qcow2");
  await run("qemu-img", { args: ["create", "-q", "-f", "qcow2", disk, "8M"] });
  const program = join(dir.path, "qemu");
  const script = `#!/bin/sh\n${before}\nexec '${parts.qemu}' "$@"\n`;
  await Deno.writeTextFile(program, script, { mode: 0o755 });
  const env = new Map([["TMPDIR", dir.path], ["SECRET", "token"]]);
  return {
    ...{ program, disk, env, ephemeral: true, accelerator: "tcg" },
    ...{ dir: await makeMachineDir(env), memory: 64, cpus: 1 },
    ...{ shares: [], extra: [] },
  };
}

Deno.test({
  name:
    "QEMU gets a directory of its own, and of the variables PATH and TMPDIR",
  ...needs("qemu", "qemuImg"),
  async fn() {
    await using dir = await temporaryDir();
    const note = join(dir.path, "note");
    const options = await emptyMachine(dir, `{ env; pwd; } >'${note}'`);
    Deno.env.set("TOOLSMITH_TEST_SECRET", "token");
    try {
      await using _machine = await startMachine(options);
    } finally {
      Deno.env.delete("TOOLSMITH_TEST_SECRET");
    }
    const lines = (await Deno.readTextFile(note)).trim().split("\n");
    assertEquals(lines.pop(), options.dir);
    const names = lines.map((line) => line.split("=")[0])
      // A shell sets these by itself.
      .filter((name) => !["PWD", "OLDPWD", "SHLVL", "_"].includes(name));
    assertEquals(names.sort(), ["PATH", "TMPDIR"]);
    assert(lines.includes(`TMPDIR=${dir.path}`));
  },
});

Deno.test({
  name: "errors that QEMU writes without end fill no file and end no machine",
  ...needs("qemu", "qemuImg"),
  async fn() {
    await using dir = await temporaryDir();
    const options = await emptyMachine(dir, "yes it warns >&2 &");
    const machine = await startMachine(options);
    await sleep(300);
    assert(machine.stderrTail().length < 1000);
    const sizes = Array.from(Deno.readDirSync(options.dir))
      .map(({ name }) => Deno.statSync(join(options.dir, name)).size);
    assertEquals(sizes.filter((size) => size > 0), []);
    // Nobody reads the errors any more: QEMU goes on all the same.
    await machine.release();
    await sleep(300);
    using qmp = await openQmp(join(options.dir, "qmp"));
    await qmp.send(["quit"]).catch(() => {});
    await assertEnded(machine.pid);
    // A released process keeps no event loop alive: the timer does.
    assert(await settlesWithin(machine.ended, 10_000));
  },
});

Deno.test({
  name:
    "the memory that QEMU may take is limited, in proportion to the guest's",
  ...needs("qemu", "qemuImg"),
  ignore: Deno.build.os !== "linux" || needs("qemu", "qemuImg").ignore,
  async fn() {
    await using dir = await temporaryDir();
    const options = await emptyMachine(dir, ":");
    await using machine = await startMachine(options);
    const limits = await Deno.readTextFile(`/proc/${machine.pid}/limits`);
    const [, soft, hard] = /^Max data size +(\d+) +(\d+)/m.exec(limits) ?? [];
    const expected = `${(options.memory + 2560) * 1024 * 1024}`;
    assertEquals([soft, hard], [expected, expected]);
  },
});

Deno.test({
  name: "a QEMU that wants more memory than it may have ends, and that is said",
  ignore: Deno.build.os !== "linux" || needs("qemu", "qemuImg").ignore,
  async fn() {
    await using dir = await temporaryDir();
    const options = await emptyMachine(dir, "");
    await using machine = await startMachine(options);
    // More than a guest could fill by 9p in the time of a test, at once.
    const data = { size: 4 * 1024 ** 3 };
    const backend = { type: "ringbuf", data };
    machine.qmp.send(["chardev-add", { id: "r", backend }]).catch(() => {});
    const { code } = await machine.ended;
    assert(code >= 128, `${code}`);
    const error = await bootFailure(machine) as ToolsmithError;
    assertEquals(error.code, "guest_failed");
    assert(/more memory than it may have/.test(error.message), error.message);
  },
});
