import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { planTar } from "../../lib/guest/_tar.ts";
import { copyFromGuest, copyIntoGuest } from "../../lib/guest/copy.ts";
import { type Monitor, sharedMonitor } from "../../lib/qemu/monitor.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";
import {
  type FakeCommand,
  fakeMachine,
  readFrames,
  readLine,
  say,
} from "../support/fake_machine.ts";
import { tar } from "../support/tar.ts";
import { hurriedTimers } from "../support/timers.ts";

/** A guest whose command does so, and a directory of the host. */
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

/** Ends a command with a status, and what it says. */
async function end({ marker, out, err }: FakeCommand, code: number, said = "") {
  await say(out, `${marker}${code}\n`);
  await say(err, `${said}${marker}\n`);
}

test("a directory goes into the guest as a tar, which is mounted as it is to be", async ({ dir, guest }) => {
  await Deno.writeTextFile(join(dir, "a.txt"), "text");
  await Deno.mkdir(join(dir, "cache"));
  const plan = await planTar(dir, { exclude: [join(dir, "cache")] });
  const expected = await new Response(ReadableStream.from(plan.chunks()))
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
      (monitor) =>
        copyIntoGuest(monitor, { path: dir, tag: "out", writable }, {
          exclude: [join(dir, "cache")],
        }),
    );
    assertEquals([copied.entries, copied.bytes], [1, expected.length]);
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

test("a copy may be as large as is allowed, 128 MiB where nothing is said", async ({ dir, guest }) => {
  const share = { path: dir, tag: "work", writable: false };
  const taking = async (command: FakeCommand) => {
    await say(command.err, "ready\n");
    await readFrames(command.in!);
    await end(command, 0);
  };
  // The file, its header, and the archive's end are a MiB together.
  const file = join(dir, "file");
  await Deno.writeFile(file, new Uint8Array(2 ** 20 - 3 * 512));
  const one = { copyLimit: 1 };
  const { bytes } = await guest(
    taking,
    (monitor) => copyIntoGuest(monitor, share, one),
  );
  assertEquals(bytes, 2 ** 20);
  const refusal = async (size: number, options = {}) => {
    await Deno.truncate(file, size);
    const { message, hint } = await failure(
      "usage",
      () => copyIntoGuest({} as Monitor, share, options),
    );
    assertEquals(
      hint,
      "allow more: --copy-limit SIZE, and --memory for the room",
    );
    return message;
  };
  const words = (limit: number) =>
    `${dir} has more than the ${limit} MiB that are copied into a guest without 9p`;
  assertEquals(await refusal(2 ** 20 - 2 * 512, one), words(1));
  assertEquals(await refusal(128 * 2 ** 20), words(128));
  // The limit is just not passed: so the guest is asked.
  await Deno.truncate(file, 128 * 2 ** 20 - 3 * 512);
  const asked = await copyIntoGuest({} as Monitor, share).catch((error) =>
    error
  );
  assert(asked instanceof TypeError, `${asked}`);
});

test("a guest that cannot take a copy says why, in a line", async ({ dir, guest }) => {
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
      (monitor) => failure("guest_failed", () => copyIntoGuest(monitor, share)),
    );
    assertEquals(
      error.message,
      `The guest cannot take a copy of ${dir}: ${why}`,
    );
    assertEquals(
      error.hint,
      "it needs tar, and room in its memory: --memory SIZE",
    );
  }
});

test("a copy has two minutes, and a second more for each MB", async ({ dir, guest }) => {
  const share = { path: dir, tag: "work", writable: false };
  // With its header and the archive's end these are 999,424 bytes.
  await Deno.writeFile(join(dir, "file"), new Uint8Array(1949 * 512));
  // As is the time in which the guest may end the command.
  using _timers = hurriedTimers((ms) =>
    ms > 100_000 ? 50 : [2000, 4000].includes(ms) ? 10 : ms
  );
  const error = await guest(
    ({ err }) => say(err, "ready\n"),
    (monitor) => failure("timeout", () => copyIntoGuest(monitor, share)),
  );
  assertEquals(error.message, `The copy of ${dir} did not end within 121 s`);
});

/** An export, with room to unpack beside it, as `copyFromGuest` takes them. */
function out(dir: string, signal?: AbortSignal) {
  const path = join(dir, "out");
  Deno.mkdirSync(path, { recursive: true });
  const share = { path, tag: "out", writable: true };
  return [share, { stagingDir: dir, signal }] as const;
}

const left = (dir: string) =>
  Array.from(Deno.readDirSync(dir), ({ name }) => name);
const ARCHIVE = tar([{ name: "result", content: "done" }, {
  name: "../evil",
  content: "x",
}]);

/** Sends bytes as an export, and ends so. */
const sending =
  (bytes: Uint8Array, code = 0, said = "") => async (command: FakeCommand) => {
    await say(command.err, "ready\n");
    await say(command.out, bytes);
    await end(command, code, said);
  };

test("what a guest has in its copy comes back, and what was not taken is told", async ({ dir, guest }) => {
  let words: string[] = [];
  const back = await guest((command) => {
    words = command.words;
    return sending(ARCHIVE)(command);
  }, (monitor) => copyFromGuest(monitor, ...out(dir)));
  assertEquals(back, {
    entries: 1,
    refused: { count: 1, names: ["../evil"] },
    changed: "",
  });
  assertEquals(await Deno.readTextFile(join(dir, "out", "result")), "done");
  assertEquals(left(dir), ["out"]);
  assertEquals([words[0], ...words.slice(2)], [
    ...["no", "/", "/", "0", "tar", "-cf", "-", "-C", "/mnt/out", "."],
  ]);
});

test("a file that changes while it is sent is no failure, and is told", async ({ dir, guest }) => {
  const said = "tar: log: file changed as we read it\n";
  const back = await guest(
    sending(ARCHIVE, 1, said),
    (monitor) => copyFromGuest(monitor, ...out(dir)),
  );
  assertEquals([back.entries, back.changed], [1, said.trim()]);
});

test("an export that is not whole is a failure, and whose it is is said", async ({ dir, guest }) => {
  const cut = ARCHIVE.subarray(0, 700);
  const sent = `The guest cannot send its copy of ${join(dir, "out")}: `;
  const cases: [(command: FakeCommand) => Promise<void>, RegExp | string][] = [
    [sending(ARCHIVE, 2, "tar: gone\n"), `${sent}tar: gone`],
    [sending(ARCHIVE, 2), `${sent}status 2`],
    [sending(cut, 1, "tar: cut\n"), `${sent}tar: cut`],
    [sending(cut), /no tar archive: it is cut off$/],
    [({ err }) => say(err, "ready\n").then(() => err.close()), /broke off$/],
  ];
  for (const [command, expected] of cases) {
    const { message } = await guest(command, (monitor) =>
      failure(
        "guest_failed",
        () => copyFromGuest(monitor, ...out(dir)),
      ));
    if (typeof expected === "string") assertEquals(message, expected);
    else assertMatch(message, expected);
    assertEquals([left(dir), left(join(dir, "out"))], [["out"], []]);
  }
});

test("a guest that sends no tar, or a cancel, ends the command", async ({ dir, guest }) => {
  const told: string[] = [];
  const sendingAtFirst =
    (bytes: Uint8Array) => async (command: FakeCommand) => {
      await say(command.err, "ready\n");
      await say(command.out, bytes);
      told.push(await readLine(command.err));
      await end(command, 143);
    };
  const error = await guest(
    sendingAtFirst(new Uint8Array(512).fill(1)),
    (monitor) =>
      failure("guest_failed", () => copyFromGuest(monitor, ...out(dir))),
  );
  assertMatch(error.message, /a checksum is wrong$/);
  const stop = new AbortController();
  const { signal } = stop;
  const stopped = await guest(
    async (command) => {
      const running = sendingAtFirst(ARCHIVE.subarray(0, 512))(command);
      setTimeout(() => stop.abort(new Error("enough")), 20);
      await running;
    },
    (monitor) =>
      copyFromGuest(monitor, ...out(dir, signal)).catch((error) => error),
  );
  assertEquals([stopped.message, told[0]], ["enough", "TERM"]);
});
