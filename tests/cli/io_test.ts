/**
 * What commands print with. The process's own streams are stood in for: what is
 * written there is a test's to see.
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { type Io, processIo } from "../../lib/cli/io.ts";
import type { ToolsmithEvent } from "../../lib/events.ts";
import { ToolsmithError } from "../../lib/errors.ts";
import { failure } from "../support/failure.ts";

/** What stands in for the streams. */
interface World {
  /** What the streams are. @default no terminals */
  terminals?: ("stdin" | "stderr")[];
  /** Environment variables. */
  variables?: Record<string, string>;
  /** Width of the terminal; none is one that does not tell. */
  columns?: number;
  /** What a write to standard output does instead. */
  write?: (bytes: Uint8Array) => Promise<number>;
  /** Aborted by Ctrl-C. */
  signal?: AbortSignal;
}

/** Works with the program's io, and returns what it wrote. */
async function written(world: World, work: (io: Io) => unknown) {
  const said = { stdout: "", stderr: "" };
  const decoder = new TextDecoder();
  const undo: (() => void)[] = [];
  const put = (object: object, name: string, value: unknown) => {
    Object.defineProperty(object, name, { value, configurable: true });
    undo.push(() => Reflect.deleteProperty(object, name));
  };
  for (const name of ["stdout", "stderr"] as const) {
    put(Deno[name], "write", (bytes: Uint8Array) => {
      if (name === "stdout" && world.write) return world.write(bytes);
      said[name] += decoder.decode(bytes);
      return Promise.resolve(bytes.length);
    });
  }
  for (const name of ["stdin", "stderr"] as const) {
    const is = world.terminals?.includes(name) ?? false;
    put(Deno[name], "isTerminal", () => is);
  }
  const { consoleSize } = Deno;
  Deno.consoleSize = () => {
    if (world.columns === undefined) throw new Error("it does not say");
    return { columns: world.columns, rows: 30 };
  };
  undo.push(() => Deno.consoleSize = consoleSize);
  try {
    const { signal = new AbortController().signal, variables = {} } = world;
    const io = processIo(signal, new Map(Object.entries(variables)));
    await work(io);
    if (!world.write) await io.flush();
  } finally {
    undo.forEach((step) => step());
  }
  return said;
}

const timestamp = "2026-01-31T12:00:00.000Z";
const WARNING: ToolsmithEvent = { type: "warning", timestamp, message: "odd" };
const bytes = new TextEncoder().encode("out\n");

Deno.test("a result is a line of text, or the last line of --json, and an empty text is none", async () => {
  const text = await written({}, (io) => {
    io.result(false, { a: 1 }, "said");
    io.result(false, { a: 2 }, "");
    io.print("line");
    io.say("to a person\n");
  });
  assertEquals(text, { stdout: "said\nline\n", stderr: "to a person\n" });
  const { stdout } = await written(
    {},
    (io) => io.result(true, { a: 1 }, "said"),
  );
  const { type, a } = JSON.parse(stdout);
  assertEquals([type, a], ["result", 1]);
});

Deno.test("errors and warnings are coloured on a terminal that shows colours, and nowhere else", async () => {
  const worlds: [World, boolean][] = [
    [{ terminals: ["stderr"] }, true],
    [{ terminals: ["stderr"], variables: { TERM: "xterm" } }, true],
    [{ terminals: ["stderr"], variables: { TERM: "dumb" } }, false],
    [{ terminals: ["stderr"], variables: { NO_COLOR: "1" } }, false],
    [{ terminals: ["stderr"], variables: { NO_COLOR: "" } }, true],
    [{}, false],
  ];
  const flags = { json: false, quiet: false, progress: true };
  for (const [world, coloured] of worlds) {
    const { stderr } = await written(world, (io) => {
      io.sayError(new ToolsmithError("failed", "No"));
      io.view(flags).onEvent(WARNING);
    });
    const plain = "error: No [failed]\nwarning: odd\n";
    // deno-lint-ignore no-control-regex
    assertEquals(stderr.replace(/\x1b\[[\d;]*m/g, ""), plain);
    assertEquals(stderr !== plain, coloured, JSON.stringify(world));
  }
});

Deno.test("events are words on standard error, lines of --json, or with --quiet nothing", async () => {
  const view = (flags: { json?: boolean; quiet?: boolean }) =>
    written({}, (io) => {
      const all = { json: false, quiet: false, progress: true, ...flags };
      const { onEvent, close } = io.view(all);
      onEvent(WARNING);
      close();
    });
  assertEquals(await view({}), { stdout: "", stderr: "warning: odd\n" });
  assertEquals(await view({ quiet: true }), { stdout: "", stderr: "" });
  const json = await view({ json: true, quiet: true });
  assertEquals([JSON.parse(json.stdout), json.stderr], [WARNING, ""]);
});

const READ: ToolsmithEvent = {
  type: "checksum_progress",
  timestamp,
  image: "demo",
  bytes: 32 * 2 ** 30,
  total: 64 * 2 ** 30,
};

Deno.test("progress is as wide as its terminal, else of 80 columns, and drawn only where it is wanted", async () => {
  const { now } = Date;
  const read = async (world: World, progress = true) => {
    let time = 1e12;
    Date.now = () => time;
    try {
      const { stderr } = await written(world, (io) => {
        const flags = { json: false, quiet: false, progress };
        const { onEvent, close } = io.view(flags);
        onEvent(READ);
        time += 5000;
        onEvent(READ);
        close();
      });
      return stderr;
    } finally {
      Date.now = now;
    }
  };
  const terminals: World["terminals"] = ["stderr"];
  // A bar leaves the last column free.
  const widths: [number | undefined, number][] = [[30, 30], [undefined, 79]];
  for (const [columns, width] of widths) {
    const [, drawn, rest] = (await read({ terminals, columns }))
      .split("\r\x1b[K");
    assertEquals([drawn.length, rest], [width, ""], drawn);
  }
  for (const world of [{ columns: 30 }, { terminals, columns: 30 }]) {
    const plain = await read(world, !("terminals" in world));
    assertEquals([plain.length, plain.at(-1)], [80, "\n"], plain);
  }
});

Deno.test("a command's output is passed on as it is, or as lines of --json", async () => {
  const send = (json: boolean) =>
    written({}, async (io) => {
      const { stdout, stderr } = io.streams(json);
      await stdout(bytes);
      await stderr(bytes);
    });
  assertEquals(await send(false), { stdout: "out\n", stderr: "out\n" });
  const json = await send(true);
  const lines = json.stdout.trimEnd().split("\n").map((it) => JSON.parse(it));
  assertEquals(
    lines.map(({ type, stream, base64 }) => [type, stream, base64]),
    [
      ["output", "stdout", "b3V0Cg=="],
      ["output", "stderr", "b3V0Cg=="],
    ],
  );
  assertEquals(json.stderr, "");
});

Deno.test("a command on the host has the streams as they are, unless --json wants its output", async () => {
  const fail = (error: Error) => {
    throw error;
  };
  const all = await written({}, async (io) => {
    const { stdin, stdout, stderr } = io.hostStreams(false, fail);
    assertEquals([stdin, stdout, stderr], Array(3).fill("inherit"));
    const json = io.hostStreams(true, fail);
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

Deno.test("a command on the host hears that its output cannot be written, and after Ctrl-C waits for nobody", async () => {
  const failed: string[] = [];
  const gone = Object.assign(new Error("it is gone"), { code: "EIO" });
  const write = () => Promise.reject(gone);
  await written({ write }, async (io) => {
    const { stdout } = io.hostStreams(true, (it) => failed.push(it.message));
    if (typeof stdout === "function") await stdout(bytes);
  });
  assertEquals(failed, ["Cannot write to standard output: it is gone"]);
  const stop = new AbortController();
  const stuck = () => new Promise<number>(() => {});
  for (const before of [false, true]) {
    if (before) stop.abort(new Error("enough"));
    await written({ write: stuck, signal: stop.signal }, async (io) => {
      const { stdout } = io.hostStreams(true, () => {});
      assert(typeof stdout === "function");
      const sent = stdout(bytes);
      stop.abort(new Error("enough"));
      await sent;
    });
  }
});

Deno.test("the program ends when all is written, and after Ctrl-C without who does not read", async () => {
  let taken = 0;
  const slow = async (data: Uint8Array) => {
    await new Promise((done) => setTimeout(done, 20));
    return taken = data.length;
  };
  await written({ write: slow }, async (io) => {
    io.print("line");
    await io.flush();
  });
  assertEquals(taken, 5);
  const signal = AbortSignal.abort(new Error("enough"));
  // What is taken soon is waited for, even then.
  await written({ write: slow, signal }, async (io) => {
    io.print("longer");
    await io.flush();
  });
  assertEquals(taken, 7);
  const stuck = () => new Promise<number>(() => {});
  await written({ write: stuck, signal }, async (io) => {
    io.print("");
    await assertRejects(() => io.flush(), Error, "enough");
  });
});

Deno.test("a reader that has gone is no failure at the end, a full disk is one", async () => {
  const broken = () => Promise.reject(new Deno.errors.BrokenPipe("gone"));
  await written({ write: broken }, async (io) => {
    io.print("line");
    await io.flush();
  });
  for (const code of ["ENOSPC", "EDQUOT"]) {
    const full = () => Promise.reject(Object.assign(new Error("no"), { code }));
    await written({ write: full }, async (io) => {
      io.print("line");
      const error = await failure("disk_full", () => io.flush());
      assertEquals(error.message, "Cannot write to standard output: no");
    });
  }
});

Deno.test("a guest's console is on standard output, and with --json out of its way", async () => {
  for (const json of [false, true]) {
    const said = await written({}, (io) => {
      using terminal = io.terminal(json);
      terminal.output(bytes);
    });
    const [stdout, stderr] = json ? ["", "out\n"] : ["out\n", ""];
    assertEquals(said, { stdout, stderr });
  }
});
