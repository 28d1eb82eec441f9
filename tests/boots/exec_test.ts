import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { boot } from "../../lib/vm/boot.ts";
import type { SnapshotOptions } from "../../lib/vm/boot_options.ts";
import type { Vm } from "../../lib/vm/vm.ts";
import { readFileChunks, sha256OfChunks } from "../../lib/system/digest.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { temporaryDir } from "../support/directory.ts";
import {
  buildTestGuest,
  collectEvents,
  env,
  needsGuest,
} from "../support/guest.ts";
import { changeTimerDelays, holdTimers } from "../support/timers.ts";

const MB = 1_000_000;
const digestOf = async (path: string) =>
  `sha256:${await sha256OfChunks(readFileChunks(path))}`;

/** Runs a script of the guest's shell. */
const sh = (script: string, ...args: string[]) => ({
  args: ["-c", script, "sh", ...args],
});

/** Counts bytes of one letter, and throws if output is mixed. */
function counter(letter: string) {
  const expected = letter.charCodeAt(0);
  let bytes = 0;
  return {
    bytes: () => bytes,
    sink(chunk: Uint8Array) {
      for (const byte of chunk) {
        if (byte !== expected) throw new Error(`a foreign byte: ${byte}`);
      }
      bytes += chunk.length;
    },
  };
}

const TIMEOUT_MS = 313_131;

/**
 * Lets the time limit of a script pass once the script runs. Returns the error's
 * message, and then the guest's processes.
 */
async function timeOut(vm: Vm, script: string) {
  using limits = holdTimers(TIMEOUT_MS);
  using _timers = waitLongForKill();
  const { message } = await expectFailure("timeout", () =>
    vm.exec("sh", {
      ...sh(`echo up; ${script}`),
      stdout: limits.expire,
      timeoutMs: TIMEOUT_MS,
      killAfterMs: 300,
    }));
  const { stdout } = await vm.exec("ps", { args: ["-o", "args"] });
  return { message, processes: stdout };
}

/** Never gives up waiting for a killed command in a slow guest. */
function waitLongForKill(): Disposable {
  return changeTimerDelays((ms) => ms === 2_000 ? 600_000 : ms);
}

/** One VM for all steps: booting takes longer than the tests. */
Deno.test({
  name: "Vm.exec() works the same in a booted and in a restored VM",
  ...needsGuest,
  async fn(t) {
    await using dir = await temporaryDir();
    const image = await buildTestGuest();
    const snapshots = {
      dir: join(dir.path, "machines"),
      digest: await digestOf(image),
    };
    for (const how of ["booted", "restored"] as const) {
      const own = join(dir.path, how);
      await t.step(how, (t) => commands(t, { image, snapshots, how, own }));
    }
  },
});

interface Guest {
  image: string;
  snapshots: SnapshotOptions;
  how: "booted" | "restored";
  own: string;
}

async function commands(t: Deno.TestContext, guest: Guest) {
  const { image, snapshots, how, own } = guest;
  const workspace = join(own, "work, space");
  const exported = join(own, "out");
  await Deno.mkdir(workspace, { recursive: true });
  await Deno.mkdir(exported);
  await Deno.writeTextFile(join(workspace, "here.txt"), "from the host\n");
  const ready = collectEvents("boot_ready");
  const ended = collectEvents("command_end");
  await using vm = await boot({
    image,
    workspace,
    exports: [{ path: exported, tag: "results" }],
    snapshots,
    onEvent(event) {
      ready.onEvent(event);
      ended.onEvent(event);
    },
    env,
  });
  assertEquals(ready.events.map((it) => it.how), [how]);

  await t.step("exec() returns the command's exit status", async () => {
    assertEquals((await vm.exec("true")).code, 0);
    const three = await vm.exec("sh", sh("exit 3"));
    assertEquals([three.code, three.signal], [3, null]);
    const all = await vm.exec("sh", sh("exit 255"));
    assertEquals([all.code, all.signal], [255, null]);
  });

  await t.step("exec() reports the signal that ended the command", async () => {
    const killed = await vm.exec("sh", sh("kill -KILL $$"));
    assertEquals([killed.code, killed.signal], [137, "SIGKILL"]);
    assertEquals([killed.stdout, killed.stderr], ["", ""]);
    const ended = await vm.exec("sh", sh("kill -TERM $$"));
    assertEquals([ended.code, ended.signal], [143, "SIGTERM"]);
    const piped = await vm.exec("sh", sh("kill -PIPE $$"));
    assertEquals([piped.code, piped.signal], [141, "SIGPIPE"]);
  });

  await t.step("exec() tells an exit status of 137 from a signal", async () => {
    for (const status of [137, 143, 129]) {
      const ended = await vm.exec("sh", sh(`exit ${status}`));
      assertEquals([ended.code, ended.signal], [status, null]);
      assertEquals([ended.stdout, ended.stderr], ["", ""]);
    }
    // The shell in between exited normally.
    const inner = await vm.exec("sh", sh("sh -c 'kill -9 $$'; exit $?"));
    assertEquals([inner.code, inner.signal], [137, null]);
  });

  await t.step("exec() passes arguments byte for byte", async () => {
    const args = [
      "a  b",
      "",
      "'\"`$(id) $HOME \\ \\n",
      "two\nlines\n",
      "*?[",
      "-n",
      "--",
      "é ☃ \u{1F600}",
      "\x01\x1b\x7f",
      "; exit 9",
      "x".repeat(100_000),
      "",
    ];
    const { stdout } = await vm.exec(
      "sh",
      sh('printf "%s\\0" "$@"', ...args),
    );
    assertEquals(stdout.split("\0"), [...args, ""]);
  });

  await t.step("exec() sets variables without evaluating them", async () => {
    const { stdout } = await vm.exec("sh", {
      ...sh('printf "%s|%s|%s" "$ONE" "$TWO" "$HOME"'),
      env: { ONE: "a b\n'\"$x", TWO: "", HOME: "/tmp" },
    });
    assertEquals(stdout, "a b\n'\"$x||/tmp");
    const broken = await vm.exec("/bin/echo", {
      args: ["still here"],
      env: { PATH: "/nowhere", LD_PRELOAD: "" },
    });
    assertEquals(broken.stdout, "still here\n");
    await expectFailure(
      "usage",
      () => vm.exec("true", { env: { "A-B": "1" } }),
    );
    await expectFailure("usage", () => vm.exec("true", { env: { A: "\0" } }));
    await expectFailure("usage", () => vm.exec("true", { args: ["\0"] }));
    await expectFailure("usage", () => vm.exec(""));
    for (const half of ["\ud83d", "a\udc00b"]) {
      await expectFailure("usage", () => vm.exec("true", { args: [half] }));
      await expectFailure("usage", () => vm.exec("true", { env: { A: half } }));
      await expectFailure("usage", () => vm.exec(half));
    }
  });

  await t.step(
    "exec() runs in the workspace or in cwd",
    async () => {
      const folderOf = async (cwd?: string) =>
        (await vm.exec("pwd", { cwd })).stdout.trim();
      assertEquals(await folderOf(), "/mnt/work");
      assertEquals(await folderOf("/tmp"), "/tmp");
      assertEquals(await folderOf("../results"), "/mnt/results");
      const error = await expectFailure(
        "guest_failed",
        () => folderOf("/none"),
      );
      assert(error.message.includes("/none"));
    },
  );

  await t.step(
    "exec() tells a missing command from a failing one",
    async () => {
      for (const command of ["no-such-tool", "/no/such/tool", "./none"]) {
        const error = await expectFailure(
          "command_not_found",
          () => vm.exec(command),
        );
        assert(error.message.includes(command));
      }
      assertEquals((await vm.exec("sh", sh("exit 127"))).code, 127);
      for (
        const command of ["/etc", "/etc/inittab.none", "/mnt/work/here.txt"]
      ) {
        await expectFailure("command_not_found", () => vm.exec(command));
      }
    },
  );

  await t.step(
    "exec() passes stdin byte for byte up to its end",
    async () => {
      const text = await vm.exec("cat", { stdin: "no newline at the end" });
      assertEquals(text.stdout, "no newline at the end");
      assertEquals((await vm.exec("cat", { stdin: "" })).stdout, "");
      const none = await vm.exec("cat");
      assertEquals([none.code, none.stdout], [0, ""]);
      const bytes = new Uint8Array(3 * MB);
      for (let at = 0; at < bytes.length; at += 65536) {
        crypto.getRandomValues(bytes.subarray(at, at + 65536));
      }
      const chunks: Uint8Array[] = [];
      await vm.exec("cat", {
        stdin: bytes,
        stdout: (chunk) => void chunks.push(chunk),
      });
      assertEquals(await new Blob(chunks as BlobPart[]).bytes(), bytes);
    },
  );

  await t.step(
    "exec() succeeds when the command does not read stdin",
    async () => {
      const endless = new ReadableStream<Uint8Array>({
        pull(controller) {
          controller.enqueue(new Uint8Array(65536));
        },
      });
      const { stdout } = await vm.exec("head", {
        args: ["-c", "3"],
        stdin: endless,
      });
      assertEquals(stdout, "\0\0\0");
    },
  );

  await t.step(
    "exec() streams stdin to a waiting command",
    async () => {
      const input = new TransformStream<Uint8Array, Uint8Array>();
      const writer = input.writable.getWriter();
      const say = (text: string) =>
        writer.write(new TextEncoder().encode(text));
      const seen: string[] = [];
      const running = vm.exec("sh", {
        ...sh('while read -r line; do echo "got $line"; done'),
        stdin: input.readable,
        stdout(chunk) {
          const text = new TextDecoder().decode(chunk);
          seen.push(text);
          if (text === "got one\n") return say("two\n");
          if (text === "got two\n") return writer.close();
        },
      });
      await say("one\n");
      await running;
      assertEquals(seen, ["got one\n", "got two\n"]);
    },
  );

  await t.step(
    "exec() delivers 10 MB on stdout and stderr without loss or mixing",
    async () => {
      const script = `
        dd if=/dev/zero bs=100000 count=100 2>/dev/null | tr '\\0' o &
        dd if=/dev/zero bs=100000 count=100 2>/dev/null | tr '\\0' e >&2
        wait`;
      const [out, err] = [counter("o"), counter("e")];
      const { code } = await vm.exec("sh", {
        ...sh(script),
        stdout: out.sink,
        stderr: err.sink,
      });
      assertEquals([code, out.bytes(), err.bytes()], [0, 10 * MB, 10 * MB]);
    },
  );

  await t.step("exec() streams output while the command runs", async () => {
    const input = new TransformStream<Uint8Array, Uint8Array>();
    const writer = input.writable.getWriter();
    const seen: string[] = [];
    const look = (chunk: Uint8Array) => {
      seen.push(new TextDecoder().decode(chunk));
      // Only this lets the command end.
      if (seen.length === 2) return writer.close();
    };
    await vm.exec("sh", {
      ...sh("printf out; printf err >&2; cat; exit 0"),
      stdin: input.readable,
      stdout: look,
      stderr: look,
    });
    assertEquals(seen.sort(), ["err", "out"]);
  });

  await t.step(
    "exec() applies backpressure for a slow reader",
    async () => {
      let bytes = 0;
      await vm.exec("dd", {
        args: ["if=/dev/zero", "bs=1000", "count=1000"],
        async stdout(chunk) {
          bytes += chunk.length;
          await new Promise((done) => setTimeout(done, 5));
        },
      });
      assertEquals(bytes, MB);
    },
  );

  await t.step("exec() hides the end marker from the command", async () => {
    const { code, stdout } = await vm.exec("sh", {
      ...sh("cat /proc/*/cmdline /proc/*/environ; ps -o args; exit 5"),
    });
    assertEquals(code, 5);
    assert(stdout.includes("exit 5"));
  });

  await t.step("exec() lets a command reopen /dev/stdout", async () => {
    const { stdout, stderr } = await vm.exec("sh", {
      ...sh(
        "echo a >/dev/stderr; echo b >/dev/stdout; echo c >/proc/self/fd/1",
      ),
    });
    assertEquals([stdout, stderr], ["b\nc\n", "a\n"]);
  });

  await t.step(
    "exec() does not wait for background processes",
    async () => {
      const { code, stdout } = await vm.exec("sh", {
        ...sh("sleep 1000 & echo started; exit 0"),
        cwd: "/",
      });
      assertEquals([code, stdout], [0, "started\n"]);
    },
  );

  await t.step(
    "exec() queues commands when all ports are in use",
    async () => {
      const numbers = Array.from({ length: 24 }, (_, n) => `${n}`);
      const results = await Promise.all(
        numbers.map((n) =>
          vm.exec("sh", { ...sh('cat; echo "$1" >&2', n), stdin: n })
        ),
      );
      assertEquals(
        results.map(({ stdout }) => stdout),
        numbers,
      );
      assertEquals(
        results.map(({ stderr }) => stderr),
        numbers.map((n) => `${n}\n`),
      );
    },
  );

  await t.step(
    "exec() kills a command and its children at timeoutMs",
    async () => {
      const { message, processes } = await timeOut(
        vm,
        "sleep 3131 & sleep 3131",
      );
      assert(message.includes(`${TIMEOUT_MS / 1000} s`), message);
      assert(!processes.includes("3131"), processes);
    },
  );

  await t.step("exec() kills a command that ignores TERM", async () => {
    const ignoring = "while :; do sleep 3232; done";
    const { processes } = await timeOut(vm, `trap '' TERM; ${ignoring}`);
    assert(!processes.includes("3232"), processes);
  });

  await t.step("exec() ends the command when it is aborted", async () => {
    using _timers = waitLongForKill();
    const stop = new AbortController();
    const running = vm.exec("sh", {
      ...sh("echo up; exec sleep 3333"),
      stdout: () => stop.abort(new Error("enough")),
      signal: stop.signal,
    });
    await assertRejects(() => running, Error, "enough");
    const { stdout } = await vm.exec("ps", { args: ["-o", "args"] });
    assert(!stdout.includes("3333"), stdout);
  });

  await t.step("guest cannot write to the workspace", async () => {
    const read = await vm.exec("cat", { args: ["here.txt"] });
    assertEquals(read.stdout, "from the host\n");
    const script = `
        mount -o remount,rw /mnt/work
        for name in new.txt here.txt; do
          echo changed >/mnt/work/$name && exit 1
        done
        rm -f /mnt/work/here.txt && exit 1
        mkdir /tmp/again
        umount /mnt/work
        mount -t 9p -o trans=virtio,version=9p2000.L,rw work /tmp/again &&
          ! echo changed >/tmp/again/here.txt || exit 2
        umount /tmp/again
        mount -t 9p -o trans=virtio,version=9p2000.L,ro work /mnt/work
        exit 0`;
    const { code } = await vm.exec("sh", { ...sh(script), cwd: "/" });
    assertEquals(code, 0);
    const names = Array.from(Deno.readDirSync(workspace), (it) => it.name);
    assertEquals(names, ["here.txt"]);
    const text = await Deno.readTextFile(join(workspace, "here.txt"));
    assertEquals(text, "from the host\n");
  });

  await t.step("guest can write to an export on the host", async () => {
    const script = "echo result >/mnt/results/a.txt; cat /mnt/results/b.txt";
    await Deno.writeTextFile(join(exported, "b.txt"), "from the host\n");
    const { stdout } = await vm.exec("sh", sh(script));
    assertEquals(stdout, "from the host\n");
    const text = await Deno.readTextFile(join(exported, "a.txt"));
    assertEquals(text, "result\n");
  });

  await t.step("guest cannot follow a link out of an export", async () => {
    await Deno.writeTextFile(join(own, "secret"), "secret\n");
    await Deno.symlink(join(own, "secret"), join(exported, "link"));
    const { stdout } = await vm.exec("sh", {
      ...sh("cat /mnt/results/link; cat /mnt/results/../secret"),
    });
    assertEquals(stdout, "");
  });

  await t.step("guest has no network by default", async () => {
    const { stdout } = await vm.exec("ls", { args: ["/sys/class/net"] });
    assertEquals(stdout, "lo\n");
  });

  await t.step(
    "exec() emits command_end with byte counts",
    async () => {
      ended.events.length = 0;
      await vm.exec("sh", sh("printf four; printf six... >&2; exit 7"));
      const [{ code, stdoutBytes, stderrBytes }] = ended.events;
      assertEquals([code, stdoutBytes, stderrBytes], [7, 4, 6]);
    },
  );

  await t.step("exec() fails when the VM ends", async () => {
    // A slow host needs long to end QEMU.
    using _timers = changeTimerDelays((ms) => ms === 5_000 ? 600_000 : ms);
    const error = await expectFailure(
      "boot_failed",
      () => vm.exec("sh", sh("poweroff -f; sleep 100")),
    );
    assert(error.message.includes("powered off"), error.message);
    await vm.ended;
  });
}
