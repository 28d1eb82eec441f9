import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import {
  execOnTerminal,
  type TerminalOptions,
  type TerminalScreen,
} from "../../lib/guest/terminal.ts";
import { sharedMonitor } from "../../lib/qemu/monitor.ts";
import { lock } from "../../lib/system/lock.ts";
import { failure } from "../support/failure.ts";
import {
  type FakeCommand,
  type FakeMachine,
  fakeMachine,
  readLine,
  say,
} from "../support/fake_machine.ts";

/** The guest's end of a terminal of the machine. */
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

/** A person's terminal: what it shows, and what may be done at it. */
function person() {
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
  const screen: TerminalScreen = {
    input: () => Promise.resolve(input),
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

/** Runs a command on a terminal of a machine. */
async function exec(machine: FakeMachine, options: TerminalOptions) {
  await using monitor = sharedMonitor(machine.dir);
  return await execOnTerminal(monitor, "top", options);
}

test("a command has a terminal of the guest, as large as the one here, and what is typed", async () => {
  const you = person();
  const told: string[] = [];
  let words: string[] = [];
  await using machine: FakeMachine = await fakeMachine({
    async command(command: FakeCommand) {
      const { marker, out, err } = command;
      words = command.words;
      await say(err, "ready\n");
      told.push(await readLine(err));
      you.resize(30);
      told.push(await readLine(err));
      const line = await own.line;
      you.type("q");
      told.push(await readLine(line, 1));
      await say(line, `hello${marker}\n`);
      told.push(await readLine(err));
      await say(out, `${marker}3\n`);
      await say(err, `${marker}\n`);
    },
  });
  await using own = terminal(machine, 0);
  const { screen } = you;
  assertEquals(await exec(machine, { screen, args: ["-d", "1"] }), {
    ...{ code: 3, signal: null, stdoutBytes: 5, stderrBytes: 0 },
  });
  assertEquals(told, ["size 24 80", "size 30 80", "q", "KILL"]);
  assertEquals(you.shown, ["hello"]);
  // The screen and what is typed are another's again.
  assertEquals(you.left(), [true, true, false]);
  assertEquals(words.slice(0, 3), ["/dev/ttyS1", "24", "80"]);
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

test("who comes next takes the next terminal, and there are three", async () => {
  const words: string[][] = [];
  const { machine, own } = await quickly(2, words).start();
  await using _machine = machine;
  await using _own = own;
  const locks = [0, 1].map((index) =>
    lock(join(machine.dir, `terminal${index}.lock`))
  );
  using _first = await locks[0];
  using _second = await locks[1];
  const { screen } = person();
  assertEquals((await exec(machine, { screen })).code, 0);
  assertEquals(words[0][0], "/dev/ttyS3");
  // It has been let go of.
  using _third = await lock(join(machine.dir, "terminal2.lock"));
  const error = await failure("guest_failed", () => exec(machine, { screen }));
  assertEquals(error.message, "All 3 terminals of the machine are in use");
  assertEquals(error.hint, "leave one of them, or use toolsmith run");
});

test("a machine without terminals says so, and keeps none locked", async () => {
  await using machine = await fakeMachine();
  const { screen } = person();
  for (let tries = 0; tries < 4; tries++) {
    const { message } = await failure(
      "guest_failed",
      () => exec(machine, { screen }),
    );
    assertEquals(message, "The machine has no terminals");
  }
});

test("a command on a terminal that has to end is ended, or does not begin", async () => {
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
  const { screen } = person();
  const shown = {
    ...screen,
    output: () => stop.abort(new Error("enough")),
  };
  const { signal } = stop;
  const error = await exec(machine, { screen: shown, signal })
    .catch((error) => error);
  assertEquals([error.message, told.at(-1)], ["enough", "TERM"]);
  const never = await exec(machine, { screen, signal }).catch((error) => error);
  assertEquals(never.message, "enough");
  const late = await failure(
    "timeout",
    () => exec(machine, { screen, timeoutMs: 1 }),
  );
  assertEquals(late.message, "The command did not end within 0.001 s");
});

test("a screen that can show no more ends the command", async () => {
  await using machine: FakeMachine = await fakeMachine({
    async command({ err }) {
      await say(err, "ready\n");
      await say(await own.line, "hello");
    },
  });
  await using own = terminal(machine, 0);
  const you = person();
  const screen = {
    ...you.screen,
    output() {
      throw new Error("the screen is gone");
    },
  };
  const error = await exec(machine, { screen }).catch((error) => error);
  assertEquals(error.message, "the screen is gone");
  assertEquals(you.left(), [true, true, false]);
});
