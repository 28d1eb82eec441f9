import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { planTar } from "../../lib/guest/_tar_writer.ts";
import { copyFromGuest, copyIntoGuest } from "../../lib/guest/share_copy.ts";
import { type Monitor, sharedMonitor } from "../../lib/qemu/monitor.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import {
  type FakeCommand,
  fakeMachine,
  readFrames,
  readLine,
  say,
} from "../support/fake_machine.ts";
import { requires } from "../support/parts.ts";
import { makeTar } from "../support/tar.ts";
import { mountTmpfs } from "../support/tmpfs.ts";
import { changeTimerDelays } from "../support/timers.ts";

/** A fake guest with this command, and a host directory. */
function test(
  name: string,
  fn: (bench: {
    dir: string;
    guest: <T>(
      command: (command: FakeCommand) => Promise<void>,
      work: (monitor: Monitor) => Promise<T>,
    ) => Promise<T>;
  }) => Promise<void>,
) {
  Deno.test({
    name,
    ignore: Deno.build.os === "windows",
    async fn() {
      await using dir = await temporaryDir();
      await fn({
        dir: dir.path,
        async guest(command, work) {
          await using machine = await fakeMachine({ command });
          await using monitor = sharedMonitor(machine.dir);
          return await work(monitor);
        },
      });
    },
  });
}

/** Ends a command with a status and stderr output. */
async function end({ marker, out, err }: FakeCommand, code: number, said = "") {
  await say(out, `${marker}${code}\n`);
  await say(err, `${said}${marker}\n`);
}

test("copyIntoGuest() sends a directory as a tar archive and mounts it read-only or writable", async ({ dir, guest }) => {
  await Deno.writeTextFile(join(dir, "a.txt"), "text");
  const cache = join(dir, ".toolsmith", "cache");
  await Deno.mkdir(cache, { recursive: true });
  const plan = await planTar(dir, { exclude: [cache] });
  const expected = await new Response(ReadableStream.from(plan.archiveChunks()))
    .bytes();
  for (const writable of [true, false]) {
    let words: string[] = [];
    let content = new Uint8Array();
    const copied = await guest(
      async (command) => {
        words = command.words;
        await say(command.err, "ready\n");
        content = await readFrames(command.in!) as Uint8Array<ArrayBuffer>;
        await end(command, 0);
      },
      (monitor) => copyIntoGuest(monitor, { path: dir, tag: "out", writable }),
    );
    assertEquals([copied.entryCount, copied.archiveBytes], [
      2,
      expected.length,
    ]);
    assertEquals(content, expected);
    const [input, , cwd, otherwise, variables, program, ...args] = words;
    assertEquals([input, cwd, otherwise, variables, program], [
      ...["yes", "/", "/", "0", "/bin/sh"],
    ]);
    assertEquals([args[0], ...args.slice(2)], [
      ...["-c", "sh", "/mnt/out", writable ? "rw" : "ro"],
    ]);
  }
});

test("copyIntoGuest() enforces copyLimit, 128 MiB by default", async ({ dir, guest }) => {
  const share = { path: dir, tag: "work", writable: false };
  const taking = async (command: FakeCommand) => {
    await say(command.err, "ready\n");
    await readFrames(command.in!);
    await end(command, 0);
  };
  // File, header and end of archive are 1 MiB in total.
  const file = join(dir, "file");
  await Deno.writeFile(file, new Uint8Array(2 ** 20 - 3 * 512));
  const one = { copyLimit: 1 };
  const { archiveBytes } = await guest(
    taking,
    (monitor) => copyIntoGuest(monitor, share, one),
  );
  assertEquals(archiveBytes, 2 ** 20);
  const refusal = async (size: number, options = {}) => {
    await Deno.truncate(file, size);
    const { message, hint } = await expectFailure(
      "usage",
      () => copyIntoGuest({} as Monitor, share, options),
    );
    assertEquals(
      hint,
      "raise the limits: --copy-limit SIZE and --memory SIZE",
    );
    return message;
  };
  const words = (limit: number) =>
    `Cannot copy ${dir} into the guest: larger than the copy limit of ${limit} MiB`;
  assertEquals(await refusal(2 ** 20 - 2 * 512, one), words(1));
  assertEquals(await refusal(128 * 2 ** 20), words(128));
  // At exactly the limit the guest is asked.
  await Deno.truncate(file, 128 * 2 ** 20 - 3 * 512);
  const asked = await copyIntoGuest({} as Monitor, share).catch((error) =>
    error
  );
  assert(asked instanceof TypeError, `${asked}`);
});

test("copyIntoGuest() reports in one line why the guest cannot unpack the copy", async ({ dir, guest }) => {
  const share = { path: dir, tag: "work", writable: false };
  const cases = [["tar: no space\nleft", "tar: no space left"], [
    "",
    "status 3",
  ]];
  for (const [said, why] of cases) {
    const error = await guest(
      async (command) => {
        await say(command.err, "ready\n");
        await end(command, 3, said);
      },
      (monitor) =>
        expectFailure("guest_failed", () => copyIntoGuest(monitor, share)),
    );
    assertEquals(
      error.message,
      `Cannot copy ${dir} into the guest: ${why}`,
    );
    assertEquals(
      error.hint,
      "use an image with tar, or add guest memory: --memory SIZE",
    );
  }
});

test("copyIntoGuest() times out after 120 s plus 1 s for each MB", async ({ dir, guest }) => {
  const share = { path: dir, tag: "work", writable: false };
  // 999,424 bytes with header and end of archive.
  await Deno.writeFile(join(dir, "file"), new Uint8Array(1949 * 512));
  // Shorten the kill timeouts as well.
  using _timers = changeTimerDelays((ms) =>
    ms > 100_000 ? 50 : [2000, 4000].includes(ms) ? 10 : ms
  );
  const error = await guest(
    ({ err }) => say(err, "ready\n"),
    (monitor) => expectFailure("timeout", () => copyIntoGuest(monitor, share)),
  );
  assertEquals(
    error.message,
    `Copying ${dir} into the guest did not end within 121 s`,
  );
});

/** An export, as arguments of `copyFromGuest`. */
function out(dir: string, signal?: AbortSignal) {
  const path = join(dir, "out");
  Deno.mkdirSync(path, { recursive: true });
  const share = { path, tag: "out", writable: true };
  return [share, signal] as const;
}

const left = (dir: string) =>
  Array.from(Deno.readDirSync(dir), ({ name }) => name);
const ARCHIVE = makeTar([{ name: "result", content: "done" }, {
  name: "../evil",
  content: "x",
}]);

/** Sends bytes as an export's archive and ends with this status. */
const sending =
  (bytes: Uint8Array, code = 0, said = "") => async (command: FakeCommand) => {
    await say(command.err, "ready\n");
    await say(command.out, bytes);
    await end(command, code, said);
  };

test("copyFromGuest() syncs the guest's copy to the host and reports refused entries", async ({ dir, guest }) => {
  let words: string[] = [];
  const back = await guest((command) => {
    words = command.words;
    return sending(ARCHIVE)(command);
  }, async (monitor) => {
    const copied = await copyFromGuest(monitor, ...out(dir));
    const archives = left(monitor.dir).filter((name) => name.endsWith(".tar"));
    assertEquals(archives, []);
    return copied;
  });
  assertEquals(back, { refused: ["../evil"], changeMessage: "" });
  assertEquals(await Deno.readTextFile(join(dir, "out", "result")), "done");
  assertEquals(left(dir), ["out"]);
  assertEquals([words[0], ...words.slice(2)], [
    ...["no", "/", "/", "0", "tar", "-cf", "-", "-C", "/mnt/out", "."],
  ]);
});

test("copyFromGuest() reports a file that changes during the transfer and does not fail", async ({ dir, guest }) => {
  const said = "tar: log: file changed as we read it\n";
  const back = await guest(
    sending(ARCHIVE, 1, said),
    (monitor) => copyFromGuest(monitor, ...out(dir)),
  );
  assertEquals(back.changeMessage, said.trim());
  assertEquals(await Deno.readTextFile(join(dir, "out", "result")), "done");
});

test("copyFromGuest() rejects an incomplete archive and leaves the host directory unchanged", async ({ dir, guest }) => {
  const cut = ARCHIVE.subarray(0, 700);
  const sent = `Cannot sync ${join(dir, "out")} from the guest: `;
  const cases: [(command: FakeCommand) => Promise<void>, RegExp | string][] = [
    [sending(ARCHIVE, 2, "tar: gone\n"), `${sent}tar: gone`],
    [sending(ARCHIVE, 2), `${sent}status 2`],
    [sending(cut, 1, "tar: cut\n"), `${sent}tar: cut`],
    [sending(cut), /Malformed tar archive from the guest: truncated$/],
    [
      ({ err }) => say(err, "ready\n").then(() => err.close()),
      /Lost the connection to the VM$/,
    ],
  ];
  for (const [command, expected] of cases) {
    const { message } = await guest(command, (monitor) =>
      expectFailure(
        "guest_failed",
        () => copyFromGuest(monitor, ...out(dir)),
      ));
    if (typeof expected === "string") assertEquals(message, expected);
    else assertMatch(message, expected);
    assertEquals([left(dir), left(join(dir, "out"))], [["out"], []]);
  }
});

test("copyFromGuest() rejects a malformed archive and leaves the host directory unchanged", async ({ dir, guest }) => {
  const bytes = joinBytes(
    ARCHIVE.subarray(0, -1024),
    new Uint8Array(512).fill(1),
  );
  const error = await guest(
    sending(bytes),
    (monitor) =>
      expectFailure("guest_failed", () => copyFromGuest(monitor, ...out(dir))),
  );
  assertMatch(error.message, /wrong header checksum$/);
  assertEquals([left(dir), left(join(dir, "out"))], [["out"], []]);
});

function joinBytes(...parts: Uint8Array[]): Uint8Array {
  return new Uint8Array(parts.flatMap((part) => [...part]));
}

test("copyFromGuest() leaves the host directory unchanged when aborted", async ({ dir, guest }) => {
  const stop = new AbortController();
  const { signal } = stop;
  const stopped = await guest(
    async (command) => {
      await say(command.err, "ready\n");
      await say(command.out, ARCHIVE.subarray(0, 512));
      stop.abort(new Error("enough"));
      await readLine(command.err);
      await end(command, 143);
    },
    (monitor) =>
      copyFromGuest(monitor, ...out(dir, signal)).catch((error) => error),
  );
  assertEquals(stopped.message, "enough");
  assertEquals([left(dir), left(join(dir, "out"))], [["out"], []]);
});

Deno.test({
  name:
    "copyFromGuest() throws disk_full before it changes a directory without space for all files",
  ...requires("root"),
  async fn() {
    await using dir = await temporaryDir();
    const [share, options] = out(dir.path);
    await using _ = await mountTmpfs(share.path, "4m");
    await using machine = await fakeMachine({ command: sending(ARCHIVE) });
    await using monitor = sharedMonitor(machine.dir);
    const { hint } = await expectFailure(
      "disk_full",
      () => copyFromGuest(monitor, share, options),
    );
    assertEquals(hint, "free disk space for the export");
    assertEquals(left(share.path), []);
  },
});
