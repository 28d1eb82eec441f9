/**
 * Tests CliIo with the process's streams replaced.
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  type CliIo,
  createProcessIo,
  type OutputFlagValues,
} from "../../lib/cli/io.ts";
import { main } from "../../cli.ts";
import { COMMANDS } from "../../lib/cli/commands.ts";
import { defineSubcommand } from "../../lib/cli/subcommand.ts";
import type { ToolsmithEvent } from "../../lib/events.ts";
import { ToolsmithError } from "../../lib/errors.ts";
import { expectFailure } from "../support/expect_failure.ts";

/** Replaces streams, terminal and environment. */
interface FakeProcess {
  /** Output flags. @default none */
  flags?: OutputFlagValues;
  /** Streams that are terminals. @default none */
  terminals?: ("stdin" | "stderr")[];
  /** Environment variables. */
  variables?: Record<string, string>;
  /** Width of the terminal; absent if it cannot be queried. */
  columns?: number;
  /** Replaces writes to standard output. */
  write?: (bytes: Uint8Array) => Promise<number>;
  /** Aborted by Ctrl-C. */
  signal?: AbortSignal;
}

/** Runs code with the process's CliIo, and returns its output. */
async function outputOf(fake: FakeProcess, work: (io: CliIo) => unknown) {
  const said = { stdout: "", stderr: "" };
  const decoder = new TextDecoder();
  const undo: (() => void)[] = [];
  const put = (object: object, name: string, value: unknown) => {
    Object.defineProperty(object, name, { value, configurable: true });
    undo.push(() => Reflect.deleteProperty(object, name));
  };
  for (const name of ["stdout", "stderr"] as const) {
    put(Deno[name], "write", (bytes: Uint8Array) => {
      if (name === "stdout" && fake.write) return fake.write(bytes);
      said[name] += decoder.decode(bytes);
      return Promise.resolve(bytes.length);
    });
  }
  for (const name of ["stdin", "stderr"] as const) {
    const is = fake.terminals?.includes(name) ?? false;
    put(Deno[name], "isTerminal", () => is);
  }
  const { consoleSize } = Deno;
  Deno.consoleSize = () => {
    if (fake.columns === undefined) throw new Error("it does not say");
    return { columns: fake.columns, rows: 30 };
  };
  undo.push(() => Deno.consoleSize = consoleSize);
  try {
    const { signal = new AbortController().signal, variables = {} } = fake;
    const env = new Map(Object.entries(variables));
    const io = createProcessIo(signal, env, fake.flags ?? {});
    await work(io);
    if (!fake.write) await io.flush();
  } finally {
    undo.forEach((step) => step());
  }
  return said;
}

const timestamp = "2026-01-31T12:00:00.000Z";
const WARNING: ToolsmithEvent = { type: "warning", timestamp, message: "odd" };
const bytes = new TextEncoder().encode("out\n");

Deno.test("CliIo.printResult() prints text, or a JSON line with --json, and nothing for an empty text", async () => {
  const text = await outputOf({}, (io) => {
    io.printResult({ a: 1 }, "said");
    io.printResult({ a: 2 }, "");
    io.printLine("line");
    io.printNote("to a person");
  });
  assertEquals(text, { stdout: "said\nline\n", stderr: "to a person\n" });
  const flags = { quiet: true };
  const quiet = await outputOf({ flags }, (io) => {
    io.printResult({ a: 1 }, "said");
    io.printNote("to a person");
  });
  assertEquals(quiet, { stdout: "said\n", stderr: "" });
  const { stdout, stderr } = await outputOf({ flags: { json: true } }, (io) => {
    io.printResult({ a: 1 }, "said");
    io.printNote("to a person");
  });
  assertEquals(stderr, "");
  const { type, a } = JSON.parse(stdout);
  assertEquals([type, a], ["result", 1]);
});

Deno.test("CliIo.printError() colours errors and warnings only on a terminal that shows colours", async () => {
  const worlds: [FakeProcess, boolean][] = [
    [{ terminals: ["stderr"] }, true],
    [{ terminals: ["stderr"], variables: { TERM: "xterm" } }, true],
    [{ terminals: ["stderr"], variables: { TERM: "dumb" } }, false],
    [{ terminals: ["stderr"], variables: { NO_COLOR: "1" } }, false],
    [{ terminals: ["stderr"], variables: { NO_COLOR: "" } }, true],
    [{}, false],
  ];
  for (const [fake, coloured] of worlds) {
    const { stderr } = await outputOf(fake, (io) => {
      io.printError(new ToolsmithError("failed", "No"));
      io.onEvent(WARNING);
    });
    const plain = "error: No [failed]\nwarning: odd\n";
    // deno-lint-ignore no-control-regex
    assertEquals(stderr.replace(/\x1b\[[\d;]*m/g, ""), plain);
    assertEquals(stderr !== plain, coloured, JSON.stringify(fake));
  }
});

Deno.test("CliIo.onEvent() prints events as text on stderr, as --json lines, or not at all with --quiet", async () => {
  const shown = (flags: OutputFlagValues) =>
    outputOf({ flags }, (io) => io.onEvent(WARNING));
  assertEquals(await shown({}), { stdout: "", stderr: "warning: odd\n" });
  assertEquals(await shown({ quiet: true }), { stdout: "", stderr: "" });
  const json = await shown({ json: true, quiet: true });
  assertEquals([JSON.parse(json.stdout), json.stderr], [WARNING, ""]);
});

const READ: ToolsmithEvent = {
  type: "checksum_progress",
  timestamp,
  image: "demo",
  bytes: 32 * 2 ** 30,
  total: 64 * 2 ** 30,
};

Deno.test("CliIo.onEvent() draws a bar of the terminal's width only on a terminal with progress on", async () => {
  const { now } = Date;
  const read = async (fake: FakeProcess, progress = true) => {
    let time = 1e12;
    Date.now = () => time;
    try {
      const shown = { ...fake, flags: progress ? {} : { progress } };
      const { stderr } = await outputOf(shown, (io) => {
        io.onEvent(READ);
        time += 5000;
        io.onEvent(READ);
        io.endEvents();
      });
      return stderr;
    } finally {
      Date.now = now;
    }
  };
  const terminals: FakeProcess["terminals"] = ["stderr"];
  // The bar leaves the last column free.
  const widths: [number | undefined, number][] = [[30, 30], [undefined, 79]];
  for (const [columns, width] of widths) {
    const [, drawn, rest] = (await read({ terminals, columns }))
      .split("\r\x1b[K");
    assertEquals([drawn.length, rest], [width, ""], drawn);
  }
  for (const fake of [{ columns: 30 }, { terminals, columns: 30 }]) {
    const plain = await read(fake, !("terminals" in fake));
    assertEquals([plain.length, plain.at(-1)], [80, "\n"], plain);
  }
});

Deno.test("CliIo erases the bar before a result, and before a guest uses the terminal", async () => {
  const uses: ((io: CliIo) => unknown)[] = [
    (io) => io.printResult({}, ""),
    (io) => io.attachToGuestConsole()[Symbol.dispose](),
    (io) => io.attachToGuestCommand()[Symbol.asyncDispose](),
    (io) => io.endEvents(),
  ];
  for (const use of uses) {
    const { stderr } = await outputOf({ terminals: ["stderr"] }, async (io) => {
      io.onEvent(READ);
      io.onEvent(READ);
      await use(io);
    });
    assert(stderr.includes("32.0 GiB") && stderr.endsWith("\r\x1b[K"), stderr);
  }
});

Deno.test("main() ends a command's events after a failure too, before it prints the error", async () => {
  const permitted: ToolsmithEvent = {
    ...{ type: "egress", timestamp, allowed: true },
    ...{ host: "a.test", port: 443, reason: "rule a.test" },
  };
  COMMANDS.push(defineSubcommand({
    ...{ name: "fails-in-this-test", usage: "", summary: "", flags: {} },
    run(_, io) {
      io.onEvent(READ);
      io.onEvent(READ);
      io.onEvent(permitted);
      throw new ToolsmithError("failed", "No");
    },
  }));
  try {
    const { stderr } = await outputOf({ terminals: ["stderr"] }, async () => {
      const status = await main(["fails-in-this-test", "--verbose"]);
      assertEquals(status, 1);
    });
    // deno-lint-ignore no-control-regex
    const lines = stderr.replace(/\x1b\[[\d;]*m/g, "").split("\r\x1b[K").at(-1);
    assertEquals(
      lines,
      "network: allowed a.test:443 (1 times)\nerror: No [failed]\n",
    );
  } finally {
    COMMANDS.pop();
  }
});

Deno.test("CliIo.guestCommandStreams() passes a command's output on unchanged or as --json lines", async () => {
  const send = (json: boolean, chunk: Uint8Array = bytes) =>
    outputOf({ flags: { json } }, async (io) => {
      const { stdout, stderr } = io.guestCommandStreams();
      await stdout(chunk);
      await stderr(chunk);
    });
  assertEquals(await send(false), { stdout: "out\n", stderr: "out\n" });
  const json = await send(true, new Uint8Array([0, 255, 10]));
  const lines = json.stdout.trimEnd().split("\n").map((it) => JSON.parse(it));
  assertEquals(
    lines.map(({ type, stream, base64 }) => [type, stream, base64]),
    [["output", "stdout", "AP8K"], ["output", "stderr", "AP8K"]],
  );
  assertEquals(json.stderr, "");
});

Deno.test("CliIo.hostCommandStreams() inherits the streams unless --json captures the output", async () => {
  const fail = (error: Error) => {
    throw error;
  };
  await outputOf({}, (io) => {
    const { stdin, stdout, stderr } = io.hostCommandStreams(fail);
    assertEquals([stdin, stdout, stderr], Array(3).fill("inherit"));
  });
  const flags = { json: true };
  const all = await outputOf({ flags }, async (io) => {
    const json = io.hostCommandStreams(fail);
    assertEquals(json.stdin, "inherit");
    assert(typeof json.stdout === "function");
    assert(typeof json.stderr === "function");
    await json.stdout(bytes);
    await json.stderr(bytes);
  });
  const streams = all.stdout.trimEnd().split("\n")
    .map((line) => JSON.parse(line).stream);
  assertEquals(streams, ["stdout", "stderr"]);
});

Deno.test("CliIo.hostCommandStreams() reports a failed write, and stops waiting for a blocked reader after Ctrl-C", async () => {
  const failed: string[] = [];
  const gone = Object.assign(new Error("it is gone"), { code: "EIO" });
  const write = () => Promise.reject(gone);
  const flags = { json: true };
  await outputOf({ write, flags }, async (io) => {
    const { stdout } = io.hostCommandStreams((it) => failed.push(it.message));
    if (typeof stdout === "function") await stdout(bytes);
  });
  assertEquals(failed, ["Cannot write to standard output: it is gone"]);
  const stop = new AbortController();
  const stuck = () => new Promise<number>(() => {});
  for (const before of [false, true]) {
    if (before) stop.abort(new Error("enough"));
    const { signal } = stop;
    await outputOf({ write: stuck, signal, flags }, async (io) => {
      const { stdout } = io.hostCommandStreams(() => {});
      assert(typeof stdout === "function");
      const sent = stdout(bytes);
      stop.abort(new Error("enough"));
      await sent;
    });
  }
});

Deno.test("CliIo.flush() waits for pending output, but not for a blocked reader after Ctrl-C", async () => {
  let taken = 0;
  const slow = async (data: Uint8Array) => {
    await new Promise((done) => setTimeout(done, 20));
    return taken = data.length;
  };
  await outputOf({ write: slow }, async (io) => {
    io.printLine("line");
    await io.flush();
  });
  assertEquals(taken, 5);
  const signal = AbortSignal.abort(new Error("enough"));
  // Even then flush() waits for a write that ends soon.
  await outputOf({ write: slow, signal }, async (io) => {
    io.printLine("longer");
    await io.flush();
  });
  assertEquals(taken, 7);
  const stuck = () => new Promise<number>(() => {});
  await outputOf({ write: stuck, signal }, async (io) => {
    io.printLine("");
    await assertRejects(() => io.flush(), Error, "enough");
  });
});

Deno.test("CliIo.flush() ignores a closed pipe and rejects with disk_full on a full disk", async () => {
  const broken = () => Promise.reject(new Deno.errors.BrokenPipe("gone"));
  await outputOf({ write: broken }, async (io) => {
    io.printLine("line");
    await io.flush();
  });
  for (const code of ["ENOSPC", "EDQUOT"]) {
    const full = () => Promise.reject(Object.assign(new Error("no"), { code }));
    await outputOf({ write: full }, async (io) => {
      io.printLine("line");
      const error = await expectFailure("disk_full", () => io.flush());
      assertEquals(error.message, "Cannot write to standard output: no");
    });
  }
});

Deno.test("CliIo.attachToGuestConsole() writes the guest's console to stdout, with --json to stderr", async () => {
  for (const json of [false, true]) {
    const said = await outputOf({ flags: { json } }, (io) => {
      using terminal = io.attachToGuestConsole();
      terminal.output(bytes);
    });
    const [stdout, stderr] = json ? ["", "out\n"] : ["out\n", ""];
    assertEquals(said, { stdout, stderr });
  }
});
