import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { boot } from "../../lib/vm/boot.ts";
import type { SnapshotOptions } from "../../lib/vm/options.ts";
import { fileChunks, sha256 } from "../../lib/system/digest.ts";
import { failure } from "../support/failure.ts";
import { temporaryDir } from "../support/directory.ts";
import { collect, env, guest, needsGuest } from "../support/guest.ts";

const MB = 1_000_000;
const digestOf = async (path: string) =>
  `sha256:${await sha256(fileChunks(path))}`;

/** Runs a script of the guest's shell. */
const sh = (script: string, ...args: string[]) => ({
  args: ["-c", script, "sh", ...args],
});

/** Takes output apart from its own position, so that a lost byte is noticed. */
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

/** One machine serves all: to boot it takes longer than what is tested. */
Deno.test({
  name: "commands in a booted guest, and in one that was saved by that boot",
  ...needsGuest,
  async fn(t) {
    await using dir = await temporaryDir();
    const image = await guest();
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
  const ready = collect("boot_ready");
  const ended = collect("command_end");
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

  await t.step("the exit status is the command's", async () => {
    assertEquals((await vm.exec("true")).code, 0);
    const three = await vm.exec("sh", sh("exit 3"));
    assertEquals([three.code, three.signal], [3, null]);
    const all = await vm.exec("sh", sh("exit 255"));
    assertEquals([all.code, all.signal], [255, null]);
  });

  await t.step("death by a signal is reported, and nothing else", async () => {
    const killed = await vm.exec("sh", sh("kill -KILL $$"));
    assertEquals([killed.code, killed.signal], [137, "SIGKILL"]);
    assertEquals([killed.stdout, killed.stderr], ["", ""]);
    const ended = await vm.exec("sh", sh("kill -TERM $$"));
    assertEquals([ended.code, ended.signal], [143, "SIGTERM"]);
    const piped = await vm.exec("sh", sh("kill -PIPE $$"));
    assertEquals([piped.code, piped.signal], [141, "SIGPIPE"]);
  });

  await t.step("an exit status that looks like a signal is none", async () => {
    for (const status of [137, 143, 129]) {
      const ended = await vm.exec("sh", sh(`exit ${status}`));
      assertEquals([ended.code, ended.signal], [status, null]);
      assertEquals([ended.stdout, ended.stderr], ["", ""]);
    }
    // The shell in the middle has exited by itself.
    const inner = await vm.exec("sh", sh("sh -c 'kill -9 $$'; exit $?"));
    assertEquals([inner.code, inner.signal], [137, null]);
  });

  await t.step("arguments arrive byte for byte", async () => {
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

  await t.step("the environment is set, and not read as code", async () => {
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
    await failure("usage", () => vm.exec("true", { env: { "A-B": "1" } }));
    await failure("usage", () => vm.exec("true", { env: { A: "\0" } }));
    await failure("usage", () => vm.exec("true", { args: ["\0"] }));
    await failure("usage", () => vm.exec(""));
    for (const half of ["\ud83d", "a\udc00b"]) {
      await failure("usage", () => vm.exec("true", { args: [half] }));
      await failure("usage", () => vm.exec("true", { env: { A: half } }));
      await failure("usage", () => vm.exec(half));
    }
  });

  await t.step(
    "a command runs in the workspace, or where it is told",
    async () => {
      const folderOf = async (cwd?: string) =>
        (await vm.exec("pwd", { cwd })).stdout.trim();
      assertEquals(await folderOf(), "/mnt/work");
      assertEquals(await folderOf("/tmp"), "/tmp");
      assertEquals(await folderOf("../results"), "/mnt/results");
      const error = await failure("guest_failed", () => folderOf("/none"));
      assert(error.message.includes("/none"));
    },
  );

  await t.step(
    "a command that is missing is told from one that fails",
    async () => {
      for (const command of ["no-such-tool", "/no/such/tool", "./none"]) {
        const error = await failure(
          "command_not_found",
          () => vm.exec(command),
        );
        assert(error.message.includes(command));
      }
      assertEquals((await vm.exec("sh", sh("exit 127"))).code, 127);
      for (
        const command of ["/etc", "/etc/inittab.none", "/mnt/work/here.txt"]
      ) {
        await failure("command_not_found", () => vm.exec(command));
      }
    },
  );

  await t.step(
    "input is passed on, byte for byte, up to its end",
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
    "input that the command does not read is no trouble",
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
    "a command that waits for input gets it as it comes",
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
    "10 MB on each of both streams, none lost, none mixed",
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

  await t.step("output is seen before the command ends", async () => {
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
    "a slow reader slows the command and loses nothing",
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

  await t.step("the end of output cannot be forged or guessed", async () => {
    const { code, stdout } = await vm.exec("sh", {
      ...sh("cat /proc/*/cmdline /proc/*/environ; ps -o args; exit 5"),
    });
    assertEquals(code, 5);
    assert(stdout.includes("exit 5"));
  });

  await t.step("streams can be opened again by name", async () => {
    const { stdout, stderr } = await vm.exec("sh", {
      ...sh(
        "echo a >/dev/stderr; echo b >/dev/stdout; echo c >/proc/self/fd/1",
      ),
    });
    assertEquals([stdout, stderr], ["b\nc\n", "a\n"]);
  });

  await t.step(
    "a process that is left behind does not hold the command",
    async () => {
      const { code, stdout } = await vm.exec("sh", {
        ...sh("sleep 1000 & echo started; exit 0"),
        cwd: "/",
      });
      assertEquals([code, stdout], [0, "started\n"]);
    },
  );

  await t.step(
    "many commands at once, more than there are ports",
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
    "a command that takes too long is ended, with its child processes",
    async () => {
      const error = await failure("timeout", () =>
        vm.exec("sh", {
          ...sh("sleep 3131 & sleep 3131"),
          timeoutMs: 300,
          killAfterMs: 300,
        }));
      assert(error.message.includes("0.3 s"));
      const { stdout } = await vm.exec("ps", { args: ["-o", "args"] });
      assert(!stdout.includes("3131"), stdout);
    },
  );

  await t.step("one that ignores TERM is killed", async () => {
    await failure("timeout", () =>
      vm.exec("sh", {
        ...sh("trap '' TERM; while :; do sleep 3232; done"),
        timeoutMs: 300,
        killAfterMs: 300,
      }));
    const { stdout } = await vm.exec("ps", { args: ["-o", "args"] });
    assert(!stdout.includes("3232"), stdout);
  });

  await t.step("a caller can end a command", async () => {
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

  await t.step("the workspace is there, and cannot be written", async () => {
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

  await t.step("a write to an export arrives on the host", async () => {
    const script = "echo result >/mnt/results/a.txt; cat /mnt/results/b.txt";
    await Deno.writeTextFile(join(exported, "b.txt"), "from the host\n");
    const { stdout } = await vm.exec("sh", sh(script));
    assertEquals(stdout, "from the host\n");
    const text = await Deno.readTextFile(join(exported, "a.txt"));
    assertEquals(text, "result\n");
  });

  await t.step("a link in an export does not lead to the host", async () => {
    await Deno.writeTextFile(join(own, "secret"), "secret\n");
    await Deno.symlink(join(own, "secret"), join(exported, "link"));
    const { stdout } = await vm.exec("sh", {
      ...sh("cat /mnt/results/link; cat /mnt/results/../secret"),
    });
    assertEquals(stdout, "");
  });

  await t.step("there is no network", async () => {
    const { stdout } = await vm.exec("ls", { args: ["/sys/class/net"] });
    assertEquals(stdout, "lo\n");
  });

  await t.step(
    "each command's end is reported, with its count of bytes",
    async () => {
      ended.events.length = 0;
      await vm.exec("sh", sh("printf four; printf six... >&2; exit 7"));
      const [{ code, stdoutBytes, stderrBytes }] = ended.events;
      assertEquals([code, stdoutBytes, stderrBytes], [7, 4, 6]);
    },
  );

  await t.step("a machine that ends takes its commands along", async () => {
    const error = await failure(
      "boot_failed",
      () => vm.exec("sh", sh("poweroff -f; sleep 100")),
    );
    assert(error.message.includes("ended"), error.message);
    await vm.ended;
  });
}
