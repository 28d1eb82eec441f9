import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { type QemuPlan, startQemu } from "../../lib/qemu/qemu_process.ts";
import { connectToQmp } from "../../lib/qemu/qmp.ts";
import type { ErrorCode, ToolsmithError } from "../../lib/errors.ts";
import type { Accelerator } from "../../lib/qemu/accelerator.ts";
import { AcceleratorError } from "../../lib/qemu/errors.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { bootFailureError } from "../../lib/vm/_readiness.ts";
import { runProcess } from "../../lib/system/process.ts";
import { sleep } from "../../lib/system/time.ts";
import {
  namesIn,
  type TemporaryDir,
  temporaryDir,
} from "../support/directory.ts";
import { foundTools, requires } from "../support/parts.ts";
import { assertEnded } from "../support/processes.ts";

/** A plan with an empty disk and a script that execs QEMU. */
async function emptyMachine(
  dir: TemporaryDir,
  before: string,
): Promise<QemuPlan> {
  const disk = join(dir.path, "empty.qcow2");
  await runProcess("qemu-img", {
    args: ["create", "-q", "-f", "qcow2", disk, "8M"],
  });
  const program = join(dir.path, "qemu");
  const script = `#!/bin/sh\n${before}\nexec '${foundTools.qemu}' "$@"\n`;
  await Deno.writeTextFile(program, script, { mode: 0o755 });
  const env = new Map([["TMPDIR", dir.path], ["SECRET", "token"]]);
  return {
    ...{ program, disk, env, ephemeral: true, accelerator: "tcg" },
    ...{ memory: 64, cpus: 1 },
    ...{ shares: [], extra: [] },
  };
}

Deno.test({
  name: "startQemu() gives QEMU its own directory and only PATH and TMPDIR",
  ...requires("qemu", "qemuImg"),
  async fn() {
    await using dir = await temporaryDir();
    const note = join(dir.path, "note");
    const options = await emptyMachine(dir, `{ env; pwd; } >'${note}'`);
    Deno.env.set("TOOLSMITH_TEST_SECRET", "token");
    let own = "";
    try {
      await using machine = await startQemu(options);
      own = machine.dir;
    } finally {
      Deno.env.delete("TOOLSMITH_TEST_SECRET");
    }
    const lines = (await Deno.readTextFile(note)).trim().split("\n");
    assertEquals(lines.pop(), own);
    assertEquals(await exists(own), false);
    const names = lines.map((line) => line.split("=")[0])
      // The shell sets these.
      .filter((name) => !["PWD", "OLDPWD", "SHLVL", "_"].includes(name));
    assertEquals(names.sort(), ["PATH", "TMPDIR"]);
    assert(lines.includes(`TMPDIR=${dir.path}`));
    // An empty variable counts as unset, not as the current directory.
    const empty = { ...options, env: new Map([["TMPDIR", ""]]) };
    await using _machine = await startQemu(empty);
    const said = await Deno.readTextFile(note);
    assert(!said.includes(`TMPDIR=${Deno.cwd()}\n`), said);
  },
});

Deno.test({
  name: "startQemu() survives endless QEMU warnings without filling a file",
  ...requires("qemu", "qemuImg"),
  async fn() {
    await using dir = await temporaryDir();
    const note = (name: string) => join(dir.path, name);
    const noted = async (name: string) => {
      while (!await exists(note(name))) await sleep(10);
    };
    const warnings = `{ yes it warns | head -c 4000000 >&2; : >'${
      note("much")
    }'; yes it warns >&2; : >'${note("unread")}'; } &`;
    const options = await emptyMachine(dir, warnings);
    const machine = await startQemu(options);
    await noted("much");
    assert(machine.stderrTail().length < 1000);
    const sizes = Array.from(Deno.readDirSync(machine.dir))
      .map(({ name }) => Deno.statSync(join(machine.dir, name)).size);
    assertEquals(sizes.filter((size) => size > 0), []);
    // Nobody reads stderr any more: QEMU continues.
    await machine.leaveRunning();
    await noted("unread");
    await using qmp = await connectToQmp(join(machine.dir, "qmp"));
    await qmp.execute(["quit"]).catch(() => {});
    await assertEnded(machine.pid);
    // A detached process does not keep the event loop alive: the timer does.
    const alive = setInterval(() => {}, 1000);
    await machine.ended.finally(() => clearInterval(alive));
  },
});

Deno.test({
  name: "startQemu() limits QEMU's memory in proportion to the guest's",
  ...requires("qemu", "qemuImg"),
  ignore: Deno.build.os !== "linux" || requires("qemu", "qemuImg").ignore,
  async fn() {
    await using dir = await temporaryDir();
    const options = await emptyMachine(dir, ":");
    await using machine = await startQemu(options);
    const limits = await Deno.readTextFile(`/proc/${machine.pid}/limits`);
    const [, soft, hard] = /^Max data size +(\d+) +(\d+)/m.exec(limits) ?? [];
    const expected = `${(options.memory + 2560) * 1024 * 1024}`;
    assertEquals([soft, hard], [expected, expected]);
  },
});

Deno.test({
  name:
    "startQemu(): QEMU ends at its memory limit, and bootFailureError() reports the limit",
  ignore: Deno.build.os !== "linux" || requires("qemu", "qemuImg").ignore,
  async fn() {
    await using dir = await temporaryDir();
    const options = await emptyMachine(dir, "");
    await using machine = await startQemu(options);
    // A quick way to use as much memory as a guest could by 9p.
    const data = { size: 4 * 1024 ** 3 };
    const backend = { type: "ringbuf", data };
    machine.qmp.execute(["chardev-add", { id: "r", backend }]).catch(() => {});
    const { code } = await machine.ended;
    assert(code >= 128, `${code}`);
    const error = await bootFailureError(machine) as ToolsmithError;
    assertEquals(error.code, "guest_failed");
    assert(/exceed its memory limit/.test(error.message), error.message);
  },
});

/** Starts a script in place of QEMU. */
async function startScript(
  script: string,
  more: Partial<QemuPlan> = {},
) {
  await using dir = await temporaryDir();
  const program = join(dir.path, "qemu");
  await Deno.writeTextFile(program, `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  const env = new Map([["TMPDIR", dir.path], ["PATH", "/usr/bin:/bin"]]);
  try {
    const machine = await startQemu({
      ...{ program, env, disk: "/none.qcow2", ephemeral: true, memory: 64 },
      ...{ accelerator: "tcg", cpus: 1, shares: [], extra: [] },
      ...more,
    });
    await machine[Symbol.asyncDispose]();
  } finally {
    const names = await namesIn(dir.path);
    const left = names.filter((name) => name.startsWith("toolsmith-"));
    assertEquals(left, [], "the VM directory is left");
  }
}

function exists(path: string): Promise<boolean> {
  return Deno.stat(path).then(() => true, () => false);
}

const noWindows = Deno.build.os === "windows";

Deno.test({
  name: "startQemu() reports QEMU's exit status and last lines of stderr",
  ignore: noWindows,
  async fn() {
    const cases: [script: string, code: ErrorCode, message: RegExp][] = [
      ["exit 3", "boot_failed", /^QEMU exited with status 3: no error output$/],
      ["exit 0", "boot_failed", /^QEMU exited with status 0: no error output$/],
      ["exit 126", "qemu_not_found", /^QEMU not found: /],
      ["exit 127", "qemu_not_found", /^QEMU not found: /],
      ["exit 128", "boot_failed", /^QEMU exited with status 128: /],
      [
        "printf '1\\n2\\n3\\n4\\n5\\n6\\n' >&2; exit 1",
        "boot_failed",
        /^QEMU exited with status 1: 2; 3; 4; 5; 6$/,
      ],
      ["echo no kvm >&2; exit 1", "boot_failed", /: no kvm$/],
    ];
    for (const [script, code, message] of cases) {
      const error = await expectFailure(code, () => startScript(script));
      assert(message.test(error.message), error.message);
    }
  },
});

Deno.test({
  name:
    "startQemu() throws AcceleratorError after a crash, or when QEMU names the accelerator",
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
  name:
    "startQemu() kills QEMU when aborted, and never starts with an aborted signal",
  ignore: noWindows,
  async fn() {
    await using dir = await temporaryDir();
    const note = join(dir.path, "started");
    const stop = new AbortController();
    const script = `: >'${note}'; exec sleep 60`;
    const starting = startScript(script, { signal: stop.signal })
      .catch((error) => error);
    while (!await exists(note)) await sleep(10);
    stop.abort(new Error("enough"));
    const error = await starting;
    assertEquals(error.message, "enough");
    const signal = AbortSignal.abort(new Error("never"));
    const never = await startScript("exit 0", { signal }).catch((it) => it);
    assertEquals(never.message, "never");
  },
});

Deno.test({
  name:
    "QEMU process: reports console output, stderr and whether the guest is stopped",
  ...requires("qemu", "qemuImg"),
  async fn() {
    await using dir = await temporaryDir();
    const options = await emptyMachine(dir, "echo a warning >&2");
    const seen: string[] = [];
    await using machine = await startQemu({
      ...options,
      onConsole: (chunk) => seen.push(new TextDecoder().decode(chunk)),
    });
    assertEquals([machine.agentHasConnected(), machine.isGuestStopped()], [
      false,
      false,
    ]);
    assertEquals(machine.stderrTail(), "a warning");
    await machine.qmp.execute(["cont"]);
    while (!machine.consoleFailure()) await sleep(20);
    assertEquals(machine.consoleFailure()?.code, "boot_failed");
    assert(
      machine.consoleTail().includes("No bootable device"),
      machine.consoleTail(),
    );
    assert(seen.join("").includes("No bootable device"));
    await machine.qmp.execute(["stop"]);
    assertEquals(machine.isGuestStopped(), true);
    await machine.qmp.execute(["cont"]);
    assertEquals(machine.isGuestStopped(), false);
  },
});
