import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { join } from "@std/path";
import { cacheEntryHandle } from "../../lib/cache/entry.ts";
import { spawnProcess } from "../../lib/system/process.ts";
import { connectMcp, errorOf, testWithClient } from "../support/mcp.ts";
import { waitUntil } from "../support/wait_until.ts";
import {
  cleanEnvironment,
  cliCommand,
  type Workspace,
  workspace,
} from "../support/workspace.ts";

/** A workspace whose image does not exist: these tests start no VM. */
async function mcpWorkspace(rules: Record<string, unknown> = {}) {
  const work = await workspace();
  const image = {
    name: "demo",
    qcow2: "gone.qcow2",
    qcow2_sha256: "0".repeat(64),
  };
  const path = join(work.dir, ".toolsmith/tools.json");
  await Deno.writeTextFile(path, JSON.stringify({ image, ...rules }));
  return work;
}

/** Keeps every VM of a workspace from starting until it is disposed. */
const holdStart = ({ dir }: Workspace) =>
  cacheEntryHandle({
    cache: join(dir, ".toolsmith/cache"),
    image: "demo",
    sha256: "0".repeat(64),
  }).lock();

const INITIALIZE = {
  jsonrpc: "2.0",
  id: 0,
  method: "initialize",
  params: {
    protocolVersion: "2025-06-18",
    capabilities: {},
    clientInfo: { name: "test", version: "1.0.0" },
  },
};

/** A server whose input a test writes by itself. */
async function rawServer({ dir }: Workspace, flags: string[] = []) {
  const input = new TransformStream<Uint8Array, Uint8Array>();
  const writer = input.writable.getWriter();
  const answers: Record<string, unknown>[] = [];
  let [text, stderr] = ["", ""];
  let arrived = Promise.withResolvers<void>();
  const child = spawnProcess(Deno.execPath(), {
    args: await cliCommand(["mcp", ...flags], ["-A"]),
    cwd: dir,
    env: cleanEnvironment(),
    input: { stream: input.readable },
    stdout(chunk) {
      const lines = (text + new TextDecoder().decode(chunk)).split("\n");
      text = lines.pop()!;
      answers.push(...lines.map((line) => JSON.parse(line)));
      arrived.resolve();
      arrived = Promise.withResolvers();
    },
    stderr: (chunk) => stderr += new TextDecoder().decode(chunk),
  });
  return {
    child,
    answers,
    stderrText: () => stderr,
    /** Writes, unless the server has ended. */
    write: (text: string) =>
      Promise.race([writer.write(new TextEncoder().encode(text)), child.ended]),
    end: () => writer.close(),
    /** Waits for an answer. */
    async answer(id: unknown) {
      while (true) {
        const found = answers.find((it) => it.id === id);
        if (found) return found;
        const exit = await Promise.race([arrived.promise, child.ended]);
        if (exit) throw new Error(`ended without answer ${id}: ${stderr}`);
      }
    },
    [Symbol.asyncDispose]: () => child[Symbol.asyncDispose](),
  };
}

testWithClient(
  "toolsmith mcp lists run, read_output, reset and the manifest's tools",
  async () => {
    await using work = await mcpWorkspace({
      tools: {
        fmt: "/opt/fmt",
        "python3.11": "/usr/bin/python3.11",
        run: "/bin/run",
      },
    });
    await using server = await connectMcp(work.dir);
    const { tools } = await server.client.listTools();
    assertEquals(tools.map(({ name }) => name), [
      "run",
      "read_output",
      "reset",
      "fmt",
      "python3_11",
      "run_",
    ]);
    const described = Object.fromEntries(
      tools.map(({ name, description }) => [name, description]),
    );
    assertStringIncludes(described.python3_11!, "/usr/bin/python3.11");
    assertEquals(tools[0].inputSchema.required, ["command"]);
    assertEquals(Object.keys(tools[3].inputSchema.properties!), [
      "args",
      "stdin",
      "cwd",
      "env",
      "timeout",
    ]);
  },
);

testWithClient(
  "toolsmith mcp offers only the tools that operations allows",
  async () => {
    await using work = await mcpWorkspace({
      tools: { fmt: "/opt/fmt", lint: "/opt/lint" },
      operations: ["fmt", "make"],
    });
    await using server = await connectMcp(work.dir, {
      flags: ["--fresh-each"],
    });
    const { tools } = await server.client.listTools();
    assertEquals(tools.map(({ name }) => name), ["read_output", "fmt", "make"]);
    // Another PATH or LD_PRELOAD would run another program.
    const env = { PATH: "/mnt/work" };
    const { isError, content } = await server.call("make", { env });
    assertEquals(isError, true);
    assertMatch(JSON.stringify(content), /Unrecognized key.*env/);
    for (const name of ["run", "lint", "reset"]) {
      const args = name === "run" ? { command: "lint" } : {};
      await assertRejects(
        () => server.call(name, args),
        Error,
        `${name} not found`,
      );
    }
  },
);

testWithClient(
  "toolsmith mcp: the annotations tell what the flags grant",
  async () => {
    await using work = await mcpWorkspace();
    const hints = async (...flags: string[]) => {
      await using server = await connectMcp(work.dir, { flags });
      const { tools } = await server.client.listTools();
      const { readOnlyHint, destructiveHint, openWorldHint } = tools[0]
        .annotations!;
      return [readOnlyHint, destructiveHint, openWorldHint];
    };
    assertEquals(await hints(), [true, false, false]);
    assertEquals(await hints("--export", "out"), [false, true, false]);
    assertEquals(await hints("--overlay", "disk"), [false, true, false]);
    assertEquals(await hints("--network"), [false, true, true]);
  },
);

testWithClient(
  "toolsmith mcp: the instructions name the directories that outlast the VM",
  async () => {
    await using work = await mcpWorkspace();
    await Deno.mkdir(`${work.dir}/build-5`);
    await Deno.symlink("build-5", `${work.dir}/latest`);
    const flags = ["build/.", "logs:all-logs", "latest"]
      .flatMap((dir) => ["--export", dir]);
    await using server = await connectMcp(work.dir, { flags });
    assertStringIncludes(
      server.client.getInstructions()!,
      "except in: /mnt/build, /mnt/all-logs, /mnt/build-5.",
    );
  },
);

testWithClient(
  "toolsmith mcp speaks the protocol with and without a handshake",
  async () => {
    await using work = await mcpWorkspace();
    const modes = [
      ["legacy", "2025-11-25"],
      ["auto", "2026-07-28"],
      [{ pin: "2026-07-28" }, "2026-07-28"],
    ] as const;
    for (const [mode, version] of modes) {
      await using server = await connectMcp(work.dir, { mode });
      const { client } = server;
      assertEquals(client.getNegotiatedProtocolVersion(), version);
      assertEquals(client.getServerVersion()?.name, "toolsmith");
      assertStringIncludes(client.getInstructions()!, "/mnt/work");
      assertEquals((await client.listTools()).tools.length, 3);
    }
  },
);

testWithClient(
  "toolsmith mcp returns Toolsmith's failures as errors with code and hint",
  async () => {
    await using work = await mcpWorkspace();
    await using server = await connectMcp(work.dir);
    for (const name of ["run", "run"]) {
      const { error, message, hint } = errorOf(
        await server.call(name, { command: "true" }),
      );
      assertEquals(error, "source_not_found");
      assertStringIncludes(message, "gone.qcow2");
      assert(hint);
    }
    const unknown = errorOf(
      await server.call("read_output", { id: "x", stream: "stdout" }),
    );
    assertStringIncludes(unknown.message, "Output x is not kept");
  },
);

testWithClient(
  "toolsmith mcp names the argument that is wrong",
  async () => {
    await using work = await mcpWorkspace();
    await using server = await connectMcp(work.dir);
    const wrong: [Record<string, unknown>, RegExp][] = [
      [{}, /command/],
      [{ command: "a", args: "b" }, /args/],
      [{ command: "a", timeout: 0 }, /timeout/],
      [{ command: "a", timout: 1 }, /timout/],
      [{ command: "a", env: { A: 1 } }, /env/],
    ];
    for (const [args, pattern] of wrong) {
      const { isError, content } = await server.call("run", args);
      assertEquals(isError, true);
      assertMatch(JSON.stringify(content), pattern);
    }
  },
);

testWithClient(
  "toolsmith mcp: a cancelled call does not end the start that others wait for",
  async () => {
    await using work = await mcpWorkspace();
    const held = await holdStart(work);
    await using server = await connectMcp(work.dir);
    const cancel = new AbortController();
    const waits = Promise.withResolvers<string | undefined>();
    const first = server.call("run", { command: "true" }, {
      signal: cancel.signal,
      onprogress: ({ message }) => waits.resolve(message),
    });
    const second = server.call("run", { command: "true" });
    assertMatch(`${await waits.promise}`, /^waiting: another process/);
    cancel.abort("test");
    await assertRejects(() => first);
    // Answered when the cancellation has been read.
    await server.client.listTools();
    held[Symbol.dispose]();
    assertEquals(errorOf(await second).error, "source_not_found");
  },
);

testWithClient(
  "toolsmith mcp --fresh-each reports a VM's start to its own call alone",
  async () => {
    await using work = await mcpWorkspace();
    const held = await holdStart(work);
    await using server = await connectMcp(work.dir, {
      flags: ["--fresh-each"],
    });
    const start = () => {
      const messages: string[] = [];
      const waits = Promise.withResolvers<void>();
      const onprogress = ({ message }: { message?: string }) => {
        messages.push(message!);
        waits.resolve();
      };
      const call = server.call("run", { command: "true" }, { onprogress });
      return { messages, waits: waits.promise, call };
    };
    const [first, second] = [start(), start()];
    await Promise.all([first.waits, second.waits]);
    held[Symbol.dispose]();
    for (const result of await Promise.all([first.call, second.call])) {
      assertEquals(errorOf(result).error, "source_not_found");
    }
    for (const { messages } of [first, second]) {
      assertEquals(messages.length, 1, messages.join("\n"));
      assertMatch(messages[0], /^waiting: another process/);
    }
  },
);

testWithClient(
  "toolsmith mcp ends when its client stops reading",
  async () => {
    await using work = await mcpWorkspace();
    const child = await spawnMcp(work.dir, "inherit");
    await child.stdout.cancel();
    // Its input stays open.
    const writer = child.stdin.getWriter();
    const request = new TextEncoder().encode(`${JSON.stringify(INITIALIZE)}\n`);
    await writer.write(request);
    let code: number | undefined;
    child.status.then((status) => code = status.code);
    await waitUntil("the server has ended", () => code !== undefined);
    assertEquals(code, 0);
    await writer.abort();
  },
);

testWithClient(
  "toolsmith mcp refuses a call while 32 others run",
  async () => {
    await using work = await mcpWorkspace();
    const held = await holdStart(work);
    await using server = await connectMcp(work.dir);
    const call = async () =>
      errorOf(await server.call("run", { command: "true" }));
    const running = Array.from({ length: 32 }, call);
    const refused = call();
    await server.client.listTools();
    held[Symbol.dispose]();
    assertStringIncludes((await refused).message, "More than 32 calls at once");
    for (const { error } of [...await Promise.all(running), await call()]) {
      assertEquals(error, "source_not_found");
    }
  },
);

testWithClient(
  "toolsmith mcp answers the next request after malformed and overlong lines",
  async () => {
    await using work = await mcpWorkspace();
    await using server = await rawServer(work);
    await server.write(`${JSON.stringify(INITIALIZE)}\n`);
    await server.answer(0);
    const ping = (id: number) =>
      `${JSON.stringify({ jsonrpc: "2.0", id, method: "ping" })}\n`;
    for (
      const [at, line] of [
        "garbage",
        "[]",
        "{}",
        '{"jsonrpc":"2.0"',
        "\0\xff",
        "",
      ].entries()
    ) {
      await server.write(`${line}\n${ping(at + 1)}`);
      assertEquals(await server.answer(at + 1), {
        jsonrpc: "2.0",
        id: at + 1,
        result: {},
      });
    }
    // Far more than the server may hold.
    await server.write(
      '{"jsonrpc":"2.0","id":50,"method":"ping","params":{"x":"',
    );
    for (let mib = 0; mib < 64; mib++) {
      await server.write("x".repeat(1024 * 1024));
    }
    await server.write(`"}}\n${ping(51)}`);
    await server.answer(51);
    const refused = server.answers.filter(({ id }) => id === null);
    assertEquals(refused.length, 1);
    assertMatch(JSON.stringify(refused), /longer than 4 MiB/);
    assert(!server.answers.some(({ id }) => id === 50));
    await server.end();
    assertEquals((await server.child.ended).code, 0);
  },
);

testWithClient(
  "toolsmith mcp disconnects a client that does not read its answers",
  async () => {
    await using work = await mcpWorkspace();
    const child = await spawnMcp(work.dir, "piped");
    const writer = child.stdin.getWriter();
    const send = (...messages: unknown[]) =>
      writer.write(new TextEncoder().encode(
        messages.map((it) => `${JSON.stringify(it)}\n`).join(""),
      ));
    const requests = Array.from({ length: 500 }, (_, id) => ({
      jsonrpc: "2.0",
      id: `${id}-${"x".repeat(4096)}`,
      method: "ping",
    }));
    const sendAll = async () => {
      await send(INITIALIZE);
      for (let mib = 0; mib < 64; mib += 2) await send(...requests);
      return "64 MiB of answers were kept";
    };
    const readError = async () => {
      const lines = child.stderr.pipeThrough(new TextDecoderStream());
      for await (const text of lines) if (/^error: /m.test(text)) return text;
    };
    const first = await Promise.race([sendAll(), readError()]);
    assertStringIncludes(`${first}`, "does not read");
    child.kill("SIGKILL");
    await child.stdout.cancel();
    await child.status;
  },
);

testWithClient(
  "toolsmith mcp ends at the end of its input, and at SIGTERM and SIGINT",
  async () => {
    await using work = await mcpWorkspace();
    const ways = [[undefined, 0], ["SIGTERM", 143], ["SIGINT", 130]] as const;
    for (const [signal, code] of ways) {
      await using server = await rawServer(work);
      await server.write(`${JSON.stringify(INITIALIZE)}\n`);
      await server.answer(0);
      if (signal) Deno.kill(server.child.pid, signal);
      else await server.end();
      assertEquals((await server.child.ended).code, code);
      assertEquals(server.answers.length, 1);
    }
  },
);

testWithClient(
  "toolsmith mcp reports a missing manifest on standard error alone",
  async () => {
    await using work = await workspace();
    const { code, stdout, stderr } = await work.toolsmith(["mcp"]);
    assertEquals([code, stdout], [10, ""]);
    assertStringIncludes(stderr, "manifest_not_found");
  },
);

testWithClient(
  "toolsmith mcp --log appends events to a file instead of standard error",
  async () => {
    await using work = await mcpWorkspace();
    const log = join(work.dir, "events.jsonl");
    await Deno.writeTextFile(log, '{"type":"before"}\n');
    const path = join(work.dir, "image.qcow2");
    await Deno.writeTextFile(path, "no image");
    await work.manifest({ qcow2: path, qcow2_sha256: "0".repeat(64) });
    await using server = await connectMcp(work.dir, { flags: ["--log", log] });
    await server.call("run", { command: "true" });
    await server[Symbol.asyncDispose]();
    const types = (await Deno.readTextFile(log)).trimEnd().split("\n")
      .map((line) => JSON.parse(line).type);
    assertEquals(types.slice(0, 2), ["before", "download_start"]);
    assertEquals(server.stderrText(), "");
  },
);

async function spawnMcp(cwd: string, stderr: "inherit" | "piped") {
  const args = await cliCommand(["mcp"], ["-A"]);
  const how = { args, cwd, env: cleanEnvironment(), stderr };
  const streams = { stdin: "piped", stdout: "piped" } as const;
  return new Deno.Command(Deno.execPath(), { ...how, ...streams }).spawn();
}
