import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { boot } from "../../lib/vm/boot.ts";
import type { ToolsmithEvent } from "../../lib/events.ts";
import { runProcess } from "../../lib/system/process.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { temporaryDir } from "../support/directory.ts";
import {
  buildTestGuest,
  collectEvents,
  env,
  needsGuest,
} from "../support/guest.ts";
import { requires } from "../support/parts.ts";
import { changeTimerDelays, installMovingClock } from "../support/timers.ts";

/** Boots a guest whose boot timeout expires when its console shows a text. */
async function expires(image: string, text: string) {
  using clock = installMovingClock();
  using _timers = changeTimerDelays((ms) => ms === 5000 ? 50 : ms);
  const decoder = new TextDecoder();
  let seen = "";
  const output = (chunk: Uint8Array) => {
    seen += decoder.decode(chunk, { stream: true });
    if (seen.includes(text)) clock.pass(600_000);
  };
  const options = { image, env, bootTimeoutMs: 600_000, console: { output } };
  return await expectFailure("guest_not_ready", () => boot(options));
}

Deno.test({
  name: "boot() throws guest_panicked with the end of the console output",
  ...needsGuest,
  async fn() {
    const image = await buildTestGuest("panics");
    const error = await expectFailure(
      "guest_panicked",
      () => boot({ image, env }),
    );
    assert(error.message.includes("Attempted to kill init"), error.message);
    assert(error.message.includes("  | "), error.message);
  },
});

Deno.test({
  name:
    "boot() throws guest_not_ready with the end of the console output if the guest has no agent",
  ...needsGuest,
  async fn() {
    const image = await buildTestGuest("noAgent");
    const error = await expires(image, "/ #");
    assert(error.message.includes("did not start within 600 s"));
    assert(error.message.includes("neither did Toolsmith's own agent"));
    assert(error.hint?.includes("cloud-init"));
    assert(error.message.includes("\n  | SeaBIOS"), error.message);
    assert(error.hint?.includes("qemu-guest-agent"));
  },
});

Deno.test({
  name: "boot() with agentOptional runs a guest without an agent",
  ...needsGuest,
  async fn() {
    const image = await buildTestGuest("noAgent");
    const input = new TransformStream<Uint8Array, Uint8Array>();
    const writer = input.writable.getWriter();
    const type = (text: string) => writer.write(new TextEncoder().encode(text));
    const decoder = new TextDecoder();
    let seen = "";
    let typed = false;
    const answered = Promise.withResolvers<void>();
    const warnings = collectEvents("warning");
    await using vm = await boot({
      ...{ image, env, bootTimeoutMs: 3_000, agentOptional: true },
      onEvent: warnings.onEvent,
      console: {
        input: input.readable,
        output(chunk) {
          seen += decoder.decode(chunk, { stream: true });
          if (!typed && seen.includes("/ #")) {
            typed = true;
            type("echo $((6 * 7))-typed\n");
          }
          if (seen.includes("42-typed")) answered.resolve();
        },
      },
    });
    await answered.promise;
    assert(warnings.events.some(({ message }) => message.includes("console")));
    await expectFailure("guest_not_ready", () => vm.exec("true"));
  },
});

Deno.test({
  name: "boot() reports a guest agent that started but does not answer",
  ...needsGuest,
  async fn() {
    const image = await buildTestGuest("silent");
    const { message } = await expires(image, "agent-is-silent");
    assert(message.includes("agent started"), message);
  },
});

Deno.test({
  name: "boot() reports an unbootable image before the boot timeout",
  ...requires("qemu", "qemuImg"),
  async fn() {
    await using dir = await temporaryDir();
    const image = join(dir.path, "empty.qcow2");
    await runProcess("qemu-img", {
      args: ["create", "-q", "-f", "qcow2", image, "8M"],
    });
    const error = await expectFailure(
      "boot_failed",
      () => boot({ image, env }),
    );
    assert(error.message.includes("No bootable device"), error.message);
    assert(error.message.includes("Booting from Hard Disk"), error.message);
  },
});

Deno.test({
  name: "boot() throws qemu_not_found with a hint when QEMU is missing",
  ...requires("qemuImg"),
  async fn() {
    await using dir = await temporaryDir();
    const image = join(dir.path, "a.qcow2");
    await runProcess("qemu-img", {
      args: ["create", "-q", "-f", "qcow2", image, "8M"],
    });
    const missing = new Map([
      ["TOOLSMITH_QEMU", "/nowhere/qemu-system-x86_64"],
      ["TMPDIR", dir.path],
    ]);
    const error = await expectFailure(
      "qemu_not_found",
      () => boot({ image, env: missing }),
    );
    assert(error.message.includes("/nowhere/qemu-system-x86_64"));
    assert(error.hint?.includes("TOOLSMITH_QEMU"));
    const names = Array.from(Deno.readDirSync(dir.path), (it) => it.name);
    assertEquals(names, ["a.qcow2"]);
  },
});

Deno.test({
  name:
    "boot() reports QEMU's error message, and rejects invalid memory and cpus",
  ...needsGuest,
  async fn() {
    const image = await buildTestGuest();
    const error = await expectFailure(
      "boot_failed",
      () => boot({ image, env, qemuArgs: ["-device", "no-such-device"] }),
    );
    assert(error.message.includes("no-such-device"), error.message);
    await expectFailure("usage", () => boot({ image, env, memory: 0 }));
    await expectFailure("usage", () => boot({ image, env, cpus: 1.5 }));
  },
});

Deno.test({
  name:
    "boot() falls back to emulation when KVM fails, unless KVM was requested",
  ...requires("qemu", "qemuImg"),
  ignore: Deno.build.os !== "linux" || requires("qemu", "qemuImg").ignore,
  async fn() {
    await using dir = await temporaryDir();
    const image = join(dir.path, "empty.qcow2");
    await runProcess("qemu-img", {
      args: ["create", "-q", "-f", "qcow2", image, "8M"],
    });
    // A QEMU whose KVM is present but does not work.
    const program = join(dir.path, "qemu");
    const write = (kvm: string) =>
      Deno.writeTextFile(
        program,
        `#!/bin/sh\ncase $* in *accel=kvm*) ${kvm} ;; esac\n` +
          `exec '${env.get("TOOLSMITH_QEMU")}' "$@"\n`,
        { mode: 0o755 },
      );
    const broken = "echo KVM is broken >&2; exit 134";
    await write(broken);
    const own = new Map([
      ["TOOLSMITH_QEMU", program],
      ["TMPDIR", dir.path],
    ]);
    const asked = await expectFailure(
      "boot_failed",
      () => boot({ image, env: own, accelerator: "kvm" }),
    );
    assert(asked.message.includes("KVM is broken"), asked.message);
    const warnings = collectEvents("warning");
    const started = collectEvents("vm_boot");
    const onEvent = (event: ToolsmithEvent) => {
      warnings.onEvent(event);
      started.onEvent(event);
    };
    for (const kvm of [broken, "exec sleep 600"]) {
      await write(kvm);
      for (let time = 0; time < 2; time++) {
        const error = await expectFailure(
          "boot_failed",
          () => boot({ image, env: own, onEvent }),
        );
        assert(error.message.includes("No bootable device"), error.message);
      }
    }
    const emulated = ["tcg", "tcg", "tcg", "tcg"];
    assertEquals(started.events.map((it) => it.accelerator), emulated);
    const offered = await Deno.stat("/dev/kvm").then(() => true, () => false);
    assertEquals(
      warnings.events.map(({ message }) => message),
      offered
        ? [
          "KVM does not work on this host: KVM is broken; falling back to emulation",
          "KVM is available but slower than emulation on this host; falling back to emulation",
        ]
        : [],
    );
  },
});
