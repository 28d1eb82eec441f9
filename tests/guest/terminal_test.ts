import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import {
  execOnTerminal,
  type HostTerminal,
  type TerminalOptions,
} from "../../lib/guest/terminal.ts";
import { sharedMonitor } from "../../lib/qemu/monitor.ts";
import { acquireFileLock } from "../../lib/system/lock.ts";
import { expectFailure } from "../support/expect_failure.ts";
import {
  type FakeCommand,
  type FakeMachine,
  fakeMachine,
  readLine,
  say,
} from "../support/fake_machine.ts";
import { changeTimerDelays } from "../support/timers.ts";

/** The guest side of a VM's terminal. */
function terminal({ dir }: FakeMachine, index: number) {
  const path = join(dir, `terminal${index}`);
  const listener = Deno.listen({ transport: "unix", path });
  const line = listener.accept();
  line.catch(() => {});
  return {
    line,
    async [Symbol.asyncDispose]() {
      listener.close();
      await line.then((it) => it.close(), () => {}).catch(() => {});
    },
  };
}

/** A fake host terminal with its output and input. */
function fakeHostTerminal() {
  const shown: string[] = [];
  const size = { rows: 24, columns: 80 };
  let changed = () => {};
  let over = new AbortController().signal;
  let typing!: ReadableStreamDefaultController<Uint8Array>;
  let cancelled = false;
  const input = new ReadableStream<Uint8Array>({
    start: (controller) => void (typing = controller),
    cancel: () => void (cancelled = true),
  });
  const screen: HostTerminal = {
    keystrokes: () => Promise.resolve(input),
    output: (chunk) => void shown.push(new TextDecoder().decode(chunk)),
    size: () => ({ ...size }),
    onResize(call, signal) {
      changed = call;
      over = signal;
    },
  };
  return {
    screen,
    shown,
    type: (text: string) => typing.enqueue(new TextEncoder().encode(text)),
    resize(rows: number) {
      size.rows = rows;
      changed();
    },
    left: () => [over.aborted, cancelled, input.locked],
  };
}

function test(name: string, fn: () => Promise<void>) {
  Deno.test({ name, ignore: Deno.build.os === "windows", fn });
}

/** Runs a command on a guest terminal. */
async function exec(
  machine: FakeMachine,
  options: TerminalOptions & { onWait?: () => void },
) {
  await using monitor = sharedMonitor(machine.dir);
  return await execOnTerminal(monitor, "top", options);
}

test("execOnTerminal() forwards window size, keystrokes and output", async () => {
  const host = fakeHostTerminal();
  const told: string[] = [];
  let words: string[] = [];
  await using machine: FakeMachine = await fakeMachine({
    async command(command: FakeCommand) {
      const { marker, out, err } = command;
      words = command.words;
      await say(err, "ready\n");
      told.push(await readLine(err));
      host.resize(30);
      told.push(await readLine(err));
      const line = await own.line;
      host.type("q");
      told.push(await readLine(line, 1));
      await say(line, `hello${marker}\n`);
      told.push(await readLine(err));
      await say(out, `${marker}3\n`);
      await say(err, `${marker}\n`);
    },
  });
  await using own = terminal(machine, 0);
  const { screen } = host;
  assertEquals(
    await exec(machine, { hostTerminal: screen, args: ["-d", "1"] }),
    {
      ...{ code: 3, signal: null, stdoutBytes: 5, stderrBytes: 0 },
    },
  );
  assertEquals(told, ["size 24 80", "size 30 80", "q", "KILL"]);
  assertEquals(host.shown, ["hello"]);
  // The host terminal is released.
  assertEquals(host.left(), [true, true, false]);
  assertEquals([words[0], ...words.slice(2, 4)], ["/dev/ttyS1", "24", "80"]);
  assertEquals(words.slice(5), ["/", "/", "0", "top", "-d", "1"]);
});

/** Ends a command on a terminal at once. */
const quickly = (index: number, words: string[][] = []) => ({
  async start() {
    const machine: FakeMachine = await fakeMachine({
      async command(command) {
        const { marker, out, err } = command;
        words.push(command.words);
        await say(err, "ready\n");
        await say(await own.line, `${marker}\n`);
        await say(out, `${marker}0\n`);
        await say(err, `${marker}\n`);
      },
    });
    const own = terminal(machine, index);
    return { machine, own };
  },
});

test("execOnTerminal() takes the next free terminal and fails when all three are in use", async () => {
  const words: string[][] = [];
  const { machine, own } = await quickly(2, words).start();
  await using _machine = machine;
  await using _own = own;
  const locks = [0, 1].map((index) =>
    acquireFileLock(join(machine.dir, `terminal${index}.lock`))
  );
  using _first = await locks[0];
  using _second = await locks[1];
  const { screen } = fakeHostTerminal();
  assertEquals((await exec(machine, { hostTerminal: screen })).code, 0);
  assertEquals(words[0][0], "/dev/ttyS3");
  // The lock has been released.
  using _third = await acquireFileLock(join(machine.dir, "terminal2.lock"));
  const error = await expectFailure(
    "guest_failed",
    () => exec(machine, { hostTerminal: screen }),
  );
  assertEquals(error.message, "All 3 terminals of the VM are in use");
  assertEquals(
    error.hint,
    "exit another toolsmith shell, or use toolsmith run",
  );
});

test("execOnTerminal() reports a VM without terminals and releases its lock", async () => {
  await using machine = await fakeMachine();
  const { screen } = fakeHostTerminal();
  for (let tries = 0; tries < 4; tries++) {
    const { message } = await expectFailure(
      "guest_failed",
      () => exec(machine, { hostTerminal: screen }),
    );
    assertEquals(message, "Cannot open a terminal: the VM has none");
  }
});

test("execOnTerminal() sends TERM when aborted and does not start when already aborted", async () => {
  const told: string[] = [];
  await using machine: FakeMachine = await fakeMachine({
    async command({ marker, out, err }) {
      await say(err, "ready\n");
      await say(await own.line, "it runs");
      while (told.at(-1) !== "TERM") told.push(await readLine(err));
      await say(await own.line, `${marker}\n`);
      await say(out, `${marker}143\n`);
      await say(err, `${marker}\n`);
    },
  });
  await using own = terminal(machine, 0);
  const stop = new AbortController();
  const { screen } = fakeHostTerminal();
  const shown = {
    ...screen,
    output: () => stop.abort(new Error("enough")),
  };
  const { signal } = stop;
  const error = await exec(machine, { hostTerminal: shown, signal })
    .catch((error) => error);
  assertEquals([error.message, told.at(-1)], ["enough", "TERM"]);
  const never = await exec(machine, { hostTerminal: screen, signal }).catch((
    error,
  ) => error);
  assertEquals(never.message, "enough");
});

test("execOnTerminal() waits for free ports until it is aborted", async () => {
  await using machine = await fakeMachine({ ports: 0 });
  await using _own = terminal(machine, 0);
  using _timers = changeTimerDelays((ms) => ms === 100 ? 0 : ms);
  const stop = new AbortController();
  const error = await exec(machine, {
    hostTerminal: fakeHostTerminal().screen,
    signal: stop.signal,
    onWait: () => stop.abort(new Error("enough")),
  }).catch((error) => error);
  assertEquals(error.message, "enough");
});

test("execOnTerminal() fails when writing to the host terminal fails", async () => {
  await using machine: FakeMachine = await fakeMachine({
    async command({ err }) {
      await say(err, "ready\n");
      await say(await own.line, "hello");
    },
  });
  await using own = terminal(machine, 0);
  const host = fakeHostTerminal();
  const screen = {
    ...host.screen,
    output() {
      throw new Error("the screen is gone");
    },
  };
  const error = await exec(machine, { hostTerminal: screen }).catch((error) =>
    error
  );
  assertEquals(error.message, "the screen is gone");
  assertEquals(host.left(), [true, true, false]);
});
