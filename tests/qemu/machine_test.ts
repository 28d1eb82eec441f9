import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import {
  startMachine,
  type StartMachineOptions,
} from "../../lib/qemu/machine.ts";
import { openQmp } from "../../lib/qemu/qmp.ts";
import { makeMachineDir } from "../../lib/qemu/machine_dir.ts";
import type { ErrorCode, ToolsmithError } from "../../lib/errors.ts";
import type { Accelerator } from "../../lib/qemu/accelerator.ts";
import { AcceleratorError } from "../../lib/qemu/errors.ts";
import { failure } from "../support/failure.ts";
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

/** Starts a program that is no QEMU, but a script. */
async function startScript(
  script: string,
  more: Partial<StartMachineOptions> = {},
) {
  await using dir = await temporaryDir();
  const program = join(dir.path, "qemu");
  await Deno.writeTextFile(program, `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  const env = new Map([["TMPDIR", dir.path], ["PATH", "/usr/bin:/bin"]]);
  const machine = await startMachine({
    ...{ program, env, disk: "/none.qcow2", ephemeral: true, memory: 64 },
    ...{ accelerator: "tcg", cpus: 1, shares: [], extra: [] },
    ...{ dir: await makeMachineDir(env), ...more },
  });
  await machine[Symbol.asyncDispose]();
}

const noWindows = Deno.build.os === "windows";

Deno.test({
  name: "a QEMU that does not start is told by its status and its last words",
  ignore: noWindows,
  async fn() {
    const cases: [script: string, code: ErrorCode, message: RegExp][] = [
      ["exit 3", "boot_failed", /^QEMU ended with status 3: without a word$/],
      ["exit 0", "boot_failed", /^QEMU ended with status 0: without a word$/],
      ["exit 126", "qemu_not_found", /^QEMU not found: /],
      ["exit 127", "qemu_not_found", /^QEMU not found: /],
      ["exit 128", "boot_failed", /^QEMU ended with status 128: /],
      [
        "printf '1\\n2\\n3\\n4\\n5\\n6\\n' >&2; exit 1",
        "boot_failed",
        /^QEMU ended with status 1: 2; 3; 4; 5; 6$/,
      ],
      ["echo no kvm >&2; exit 1", "boot_failed", /: no kvm$/],
    ];
    for (const [script, code, message] of cases) {
      const error = await failure(code, () => startScript(script));
      assert(message.test(error.message), error.message);
    }
  },
});

Deno.test({
  name: "an accelerator is to blame for a crash, or where QEMU names it",
  ignore: noWindows,
  async fn() {
    const blamed = async (script: string, accelerator: Accelerator = "kvm") => {
      const error = await startScript(script, { accelerator })
        .catch((error) => error);
      return error instanceof AcceleratorError;
    };
    const scripts = {
      "exit 128": true,
      "exit 125": false,
      "echo failed to use KVM >&2; exit 1": true,
      "echo HVF error >&2; exit 1": true,
      "echo invalid accelerator >&2; exit 1": true,
      "echo no such disk >&2; exit 1": false,
    };
    for (const [script, expected] of Object.entries(scripts)) {
      assertEquals(await blamed(script), expected, script);
      assertEquals(await blamed(script, "tcg"), false, script);
    }
  },
});

Deno.test({
  name: "a start that is cancelled ends QEMU, and one that was never begins",
  ignore: noWindows,
  async fn() {
    const stop = new AbortController();
    const starting = startScript("exec sleep 60", { signal: stop.signal });
    setTimeout(() => stop.abort(new Error("enough")), 50);
    const error = await starting.catch((error) => error);
    assertEquals(error.message, "enough");
    const signal = AbortSignal.abort(new Error("never"));
    const never = await startScript("exit 0", { signal }).catch((it) => it);
    assertEquals(never.message, "never");
  },
});

Deno.test({
  name:
    "a machine says who runs it, what it shows, and when its guest stands still",
  ...needs("qemu", "qemuImg"),
  async fn() {
    await using dir = await temporaryDir();
    const options = await emptyMachine(dir, "echo a warning >&2");
    const seen: string[] = [];
    await using machine = await startMachine({
      ...options,
      onConsole: (chunk) => seen.push(new TextDecoder().decode(chunk)),
    });
    assertEquals(machine.accelerator, "tcg");
    assertEquals([machine.agentSeen(), machine.stopped()], [false, false]);
    assertEquals(machine.stderrTail(), "a warning");
    await machine.qmp.send(["cont"]);
    while (!machine.consoleFailure()) await sleep(20);
    assertEquals(machine.consoleFailure()?.kind, "not_bootable");
    assert(machine.tail().includes("No bootable device"), machine.tail());
    assert(seen.join("").includes("No bootable device"));
    await machine.qmp.send(["stop"]);
    assertEquals(machine.stopped(), true);
    await machine.qmp.send(["cont"]);
    assertEquals(machine.stopped(), false);
  },
});
