import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { boot } from "../../lib/vm/boot.ts";
import type { ToolsmithEvent } from "../../lib/events.ts";
import { run } from "../../lib/system/process.ts";
import { failure } from "../support/failure.ts";
import { temporaryDir } from "../support/directory.ts";
import { collect, env, guest, needsGuest } from "../support/guest.ts";
import { needs } from "../support/parts.ts";

Deno.test({
  name: "a guest that panics is told at once, with its last words",
  ...needsGuest,
  async fn() {
    const image = await guest("panics");
    const error = await failure("guest_panicked", () => boot({ image, env }));
    assert(error.message.includes("Attempted to kill init"), error.message);
    assert(error.message.includes("  | "), error.message);
  },
});

Deno.test({
  name: "a guest without an agent is given up, with the end of its console",
  ...needsGuest,
  async fn() {
    const image = await guest("noAgent");
    const error = await failure(
      "guest_not_ready",
      () => boot({ image, env, bootTimeoutMs: 3_000 }),
    );
    assert(error.message.includes("did not start within 3 s"));
    assert(error.message.includes("take the one that Toolsmith offers"));
    assert(error.hint?.includes("cloud-init"));
    assert(error.message.includes("\n  | SeaBIOS"), error.message);
    assert(error.hint?.includes("qemu-guest-agent"));
  },
});

Deno.test({
  name: "a guest without an agent still has a console, where that is enough",
  ...needsGuest,
  async fn() {
    const image = await guest("noAgent");
    const input = new TransformStream<Uint8Array, Uint8Array>();
    const writer = input.writable.getWriter();
    const type = (text: string) => writer.write(new TextEncoder().encode(text));
    const decoder = new TextDecoder();
    let seen = "";
    let typed = false;
    const answered = Promise.withResolvers<void>();
    const warnings = collect("warning");
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
    await failure("guest_not_ready", () => vm.exec("true"));
  },
});

Deno.test({
  name: "a guest whose agent says nothing is told from one without an agent",
  ...needsGuest,
  async fn() {
    const image = await guest("silent");
    let message = "";
    // How long a boot takes depends on what else this host does.
    for (let seconds = 10; seconds <= 80; seconds *= 2) {
      const bootTimeoutMs = seconds * 1000;
      ({ message } = await failure(
        "guest_not_ready",
        () => boot({ image, env, bootTimeoutMs }),
      ));
      if (!message.includes("did not start")) break;
    }
    assert(message.includes("agent is there"), message);
  },
});

Deno.test({
  name: "an image that holds nothing to boot is told before its deadline",
  ...needs("qemu", "qemuImg"),
  async fn() {
    await using dir = await temporaryDir();
    const image = join(dir.path, "empty.qcow2");
    await run("qemu-img", {
      args: ["create", "-q", "-f", "qcow2", image, "8M"],
    });
    const error = await failure("boot_failed", () => boot({ image, env }));
    assert(error.message.includes("No bootable device"), error.message);
    assert(error.message.includes("Booting from Hard Disk"), error.message);
  },
});

Deno.test({
  name: "without QEMU there is no boot, and a hint",
  ...needs("qemuImg"),
  async fn() {
    await using dir = await temporaryDir();
    const image = join(dir.path, "a.qcow2");
    await run("qemu-img", {
      args: ["create", "-q", "-f", "qcow2", image, "8M"],
    });
    const missing = new Map([
      ["TOOLSMITH_QEMU", "/nowhere/qemu-system-x86_64"],
      ["TMPDIR", dir.path],
    ]);
    const error = await failure(
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
  name: "what QEMU refuses is told in its own words",
  ...needsGuest,
  async fn() {
    const image = await guest();
    const error = await failure(
      "boot_failed",
      () => boot({ image, env, qemuArgs: ["-device", "no-such-device"] }),
    );
    assert(error.message.includes("no-such-device"), error.message);
    await failure("usage", () => boot({ image, env, memory: 0 }));
    await failure("usage", () => boot({ image, env, cpus: 1.5 }));
  },
});

Deno.test({
  name:
    "an accelerator that does not work is replaced, unless it was asked for",
  ...needs("qemu", "qemuImg"),
  ignore: Deno.build.os !== "linux" || needs("qemu", "qemuImg").ignore,
  async fn() {
    await using dir = await temporaryDir();
    const image = join(dir.path, "empty.qcow2");
    await run("qemu-img", {
      args: ["create", "-q", "-f", "qcow2", image, "8M"],
    });
    // Stands for a QEMU whose KVM is there and of no use.
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
    const asked = await failure(
      "boot_failed",
      () => boot({ image, env: own, accelerator: "kvm" }),
    );
    assert(asked.message.includes("KVM is broken"), asked.message);
    const warnings = collect("warning");
    const started = collect("vm_boot");
    const onEvent = (event: ToolsmithEvent) => {
      warnings.onEvent(event);
      started.onEvent(event);
    };
    for (const kvm of [broken, "exec sleep 600"]) {
      await write(kvm);
      for (let time = 0; time < 2; time++) {
        const error = await failure(
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
          "KVM does not work here: KVM is broken; emulating instead",
          "KVM is offered but slower than emulation here; emulating instead",
        ]
        : [],
    );
  },
});
