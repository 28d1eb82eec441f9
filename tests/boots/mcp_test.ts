import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { join } from "@std/path";
import { runProcess } from "../../lib/system/process.ts";
import { readFileChunks, sha256OfChunks } from "../../lib/system/digest.ts";
import { temporaryDir } from "../support/directory.ts";
import { buildTestGuest, needsGuest } from "../support/guest.ts";
import {
  connectMcp,
  errorOf,
  fieldsOf,
  testWithClient,
} from "../support/mcp.ts";
import { foundTools } from "../support/parts.ts";
import { assertEnded, findProcesses } from "../support/processes.ts";
import { startScript } from "../support/script.ts";
import { waitUntil } from "../support/wait_until.ts";
import {
  cleanEnvironment,
  cliCommand,
  type Workspace,
  workspace,
} from "../support/workspace.ts";

/** The first boot saves a snapshot, which the others restore. */
const cache = await temporaryDir();
Deno.test.afterAll(async () => await cache[Symbol.asyncDispose]());

/** The permission set names QEMU's program, not its path. */
function guestEnvironment(): Record<string, string> {
  const dir = foundTools.qemu!.replace(/\/[^/]*$/, "");
  const PATH = `${dir}:${Deno.env.get("PATH")}`;
  return { PATH, TOOLSMITH_QEMU: "", TOOLSMITH_CACHE: cache.path };
}

/** A workspace whose manifest names the test guest. */
async function guestWorkspace(): Promise<Workspace> {
  const work = await workspace();
  const qcow2 = await buildTestGuest();
  const digest = await sha256OfChunks(readFileChunks(qcow2));
  const image = { name: "guest", qcow2, qcow2_sha256: digest };
  await Deno.writeTextFile(
    join(work.dir, ".toolsmith/tools.json"),
    JSON.stringify({ image, tools: { lister: "/bin/ls" } }),
  );
  return work;
}

const connect = (work: Workspace, ...flags: string[]) =>
  connectMcp(work.dir, { flags, env: guestEnvironment() });

/** Runs a script of the guest's shell. */
const sh = (script: string, more: Record<string, unknown> = {}) => ({
  command: "sh",
  args: ["-c", script],
  ...more,
});

/** The process ids of the VMs that a workspace's servers run. */
async function vmPids({ dir }: Workspace): Promise<number[]> {
  const found = await findProcesses("qemu-system");
  // QEMU's arguments name the workspace, and so do those of the shell around it.
  return found.filter(({ line }) =>
    /^\S*qemu-system/.test(line) && line.includes(`path=${dir}`)
  ).map(({ pid }) => pid);
}

/** While a snapshot is saved, there are two. */
const untilOneVm = (work: Workspace) =>
  waitUntil("one VM", async () => (await vmPids(work)).length === 1);

/** Waits until a file on the host has this text. */
const untilWritten = (path: string, text: string) =>
  waitUntil(
    `${text} in ${path}`,
    async () => (await Deno.readTextFile(path).catch(() => "")) === text,
  );

testWithClient("toolsmith mcp runs commands in one VM", async (t) => {
  await using work = await guestWorkspace();
  await Deno.writeTextFile(join(work.dir, "here.txt"), "workspace\n");
  const out = join(work.dir, "out");
  await using server = await connect(
    work,
    ...["--export", "out", "--timeout", "3000"],
    ...["--env", "GREETING=hello", "--log", "events.jsonl"],
  );
  const call = server.call;

  await t.step(
    "concurrent first calls share one start, and report it",
    async () => {
      const told: string[] = [];
      const onprogress = ({ message }: { message?: string }) => {
        told.push(message!);
      };
      const all = await Promise.all(
        ["1", "2", "3"].map((word) =>
          call("run", sh(`echo ${word}; echo >>/tmp/all`), { onprogress })
        ),
      );
      assertEquals(all.map((it) => fieldsOf(it).stdout), ["1\n", "2\n", "3\n"]);
      assert(all.every((it) => fieldsOf(it).notice === undefined));
      const counted = await call("run", sh("wc -l </tmp/all"));
      assertEquals(fieldsOf(counted).stdout, "3\n");
      assertEquals(told.filter((it) => /^booted in/.test(it)).length, 3);
      assert(told.some((it) => /^downloaded/.test(it)), told.join("\n"));
    },
  );
  await t.step("a result has status, signal and both streams", async () => {
    const failed = await call("run", sh("echo out; echo err >&2; exit 3"));
    assertEquals(failed.isError, undefined);
    const { durationMs, ...fields } = fieldsOf(failed);
    assert(durationMs > 0);
    assertEquals(fields, {
      code: 3,
      signal: null,
      stdout: "out\n",
      stderr: "err\n",
      truncated: false,
    });
    const [{ text }] = failed.content as { text: string }[];
    assertEquals(JSON.parse(text), failed.structuredContent);
    const killed = fieldsOf(await call("run", sh("kill -9 $$")));
    assertEquals([killed.code, killed.signal], [137, "SIGKILL"]);
  });
  await t.step(
    "a command gets arguments, input, directory and variables",
    async () => {
      const script = 'printf "%s|" "$PWD" "$GREETING" "$A" "$@"; cat';
      const { stdout } = fieldsOf(
        await call("run", {
          command: "sh",
          args: ["-c", script, "sh", "a b", "$x", ""],
          stdin: "ünï\n",
          cwd: "/tmp",
          env: { A: "b" },
        }),
      );
      assertEquals(stdout, "/tmp|hello|b|a b|$x||ünï\n");
      const here = await call("lister", { args: ["here.txt"] });
      assertEquals(fieldsOf(here).stdout, "here.txt\n");
      const write = fieldsOf(await call("run", sh("echo x >new")));
      assertMatch(write.stderr, /Read-only/);
    },
  );
  await t.step(
    "files stay in the VM between calls, and exports on the host",
    async () => {
      await call("run", sh("echo kept >/tmp/file; echo out >/mnt/out/file"));
      assertEquals(
        fieldsOf(await call("run", sh("cat /tmp/file"))).stdout,
        "kept\n",
      );
      assertEquals(await Deno.readTextFile(join(out, "file")), "out\n");
    },
  );
  await t.step("read_output returns the middle of a long output", async () => {
    const { stdout, truncated } = fieldsOf(
      await call("run", { command: "seq", args: ["1", "60000"] }),
    );
    const expected = Array.from({ length: 60_000 }, (_, at) => `${at + 1}\n`)
      .join("");
    assert(truncated);
    const [note, position] = /\n\[.*read_output (.*)\]\n/.exec(stdout)!;
    const [start, end] = stdout.split(note);
    assertEquals([start.length, end.length], [32 * 1024, 32 * 1024]);
    let whole = start;
    for (let next = JSON.parse(position); next.offset !== null;) {
      const { structuredContent } = await call("read_output", next);
      const { data, nextOffset } = structuredContent as {
        data: string;
        nextOffset: number | null;
      };
      whole += data;
      next = { ...next, offset: nextOffset };
    }
    assertEquals(whole, expected);
    assert(whole.endsWith(end));
  });
  await t.step("read_output returns binary output as base64", async () => {
    const { stdout } = fieldsOf(
      await call("run", sh("printf '\\377\\000\\200'")),
    );
    const [, position] = /^\[3 bytes, not UTF-8: read_output (.*)\]$/.exec(
      stdout,
    )!;
    const { structuredContent } = await call(
      "read_output",
      JSON.parse(position),
    );
    const { encoding, data } = structuredContent as Record<string, string>;
    assertEquals([encoding, Uint8Array.fromBase64(data)], [
      "base64",
      new Uint8Array([0xff, 0, 0x80]),
    ]);
  });
  await t.step("read_output has the last eight shortened outputs", async () => {
    const positions: Record<string, unknown>[] = [];
    for (let count = 0; count < 9; count++) {
      const { stdout } = fieldsOf(await call("run", sh("printf '\\377'")));
      positions.push(JSON.parse(/read_output (.*)\]$/.exec(stdout)![1]));
      // Not shortened: replaces none.
      await call("run", { command: "true" });
    }
    const [oldest, ...kept] = await Promise.all(
      positions.map((position) => call("read_output", position)),
    );
    assertStringIncludes(errorOf(oldest).message, "is not kept");
    assert(kept.every(({ isError }) => !isError));
  });
  await t.step(
    "an unknown command is an error with code and hint",
    async () => {
      const { error, hint } = errorOf(
        await call("run", { command: "nonesuch" }),
      );
      assertEquals(error, "command_not_found");
      assert(hint);
    },
  );
  /** The command cannot report its end: a slow guest may get KILL together with TERM. */
  const untilNoneSleeps = async () => {
    const look =
      "while ps -o args | grep -v grep | grep -q 'sleep 4242'; do sleep 0.1; done";
    assertEquals(fieldsOf(await call("run", sh(look))).code, 0);
  };
  await t.step(
    "a timeout ends the command, and returns what it printed",
    async () => {
      const script = "echo begun; sleep 4242 & wait";
      // Longer and longer, as a busy host may not have started the command.
      for (let timeout = 1, printed = ""; printed === ""; timeout *= 2) {
        const { error, message, stdout } = errorOf(
          await call("run", sh(script, { timeout })),
        );
        assertEquals(error, "timeout");
        assertStringIncludes(message, `within ${timeout} s`);
        printed = stdout;
      }
      await untilNoneSleeps();
    },
  );
  await t.step("a cancelled call ends its command in the guest", async () => {
    const cancel = new AbortController();
    const running = call(
      "run",
      sh("echo begun >/mnt/out/cancelled; sleep 4242 & wait"),
      { signal: cancel.signal },
    );
    await untilWritten(join(out, "cancelled"), "begun\n");
    cancel.abort("test");
    await assertRejects(() => running);
    await untilNoneSleeps();
  });
  await t.step(
    "a VM that has ended is replaced, and the result says so",
    async () => {
      await untilOneVm(work);
      const [pid] = await vmPids(work);
      Deno.kill(pid, "SIGKILL");
      await assertEnded(pid);
      const next = async () => {
        const result = await call("run", sh("cat /tmp/file; true"));
        // The end may be noticed only by this call.
        return result.isError
          ? await call("run", sh("cat /tmp/file; true"))
          : result;
      };
      const { notice, stdout } = fieldsOf(await next());
      assertEquals(stdout, "");
      assertStringIncludes(notice!, "The VM had ended");
      assertEquals(
        fieldsOf(await call("run", { command: "true" })).notice,
        undefined,
      );
    },
  );
  await t.step("reset gives a fresh VM", async () => {
    await call("run", sh("echo kept >/tmp/file"));
    const before = await vmPids(work);
    await call("reset");
    assertEquals(await vmPids(work), []);
    const { code, notice } = fieldsOf(
      await call("run", sh("test -e /tmp/file")),
    );
    assertEquals([code, notice], [1, undefined]);
    const after = await vmPids(work);
    assert(before.length === 1 && after.length === 1 && before[0] !== after[0]);
  });
  await t.step("the VM ends with the connection", async () => {
    await server[Symbol.asyncDispose]();
    await assertEnded(server.pid);
    assertEquals(await vmPids(work), []);
    // The server has stopped it: QEMU would also end without the server.
    const log = await Deno.readTextFile(join(work.dir, "events.jsonl"));
    const last = log.trimEnd().split("\n").at(-1)!;
    assertEquals(JSON.parse(last).type, "shutdown");
  });
}, needsGuest);

testWithClient(
  "toolsmith mcp --timeout is the most that a call can ask for",
  async () => {
    await using work = await guestWorkspace();
    await using server = await connect(work, "--timeout", "0.001");
    for (const timeout of [undefined, 3000]) {
      const { error } = errorOf(
        await server.call("run", sh("sleep 1", { timeout })),
      );
      assertEquals(error, "timeout");
    }
  },
  needsGuest,
);

testWithClient(
  "toolsmith mcp --fresh-each runs each call in a VM of its own",
  async () => {
    await using work = await guestWorkspace();
    await using server = await connect(work, "--fresh-each", "--export", "out");
    const meet = (own: string, other: string) =>
      sh(
        `echo >/tmp/${own}; echo >/mnt/out/${own}; until [ -e /mnt/out/${other} ]; do sleep 0.1; done; ls /tmp`,
      );
    const told: string[][] = [[], []];
    const callAt = (at: number, args: Record<string, unknown>) =>
      server.call("run", args, {
        onprogress: ({ message }) => told[at].push(message!),
      });
    const both = await Promise.all([
      callAt(0, meet("a", "b")),
      callAt(1, meet("b", "a")),
    ]);
    assertEquals(both.map((it) => fieldsOf(it).stdout), ["a\n", "b\n"]);
    for (const messages of told) {
      const starts = messages.filter((it) => /^(booted|restored) in/.test(it));
      assertEquals(starts.length, 1, messages.join("\n"));
    }
    assertEquals(fieldsOf(await server.call("run", sh("ls /tmp"))).stdout, "");
    assertEquals(await vmPids(work), []);
  },
  needsGuest,
);

/** A client whose process a test can kill. */
const VANISHING_CLIENT = `
const [dir, ...args] = Deno.args;
const child = new Deno.Command(Deno.execPath(), {
  args, cwd: dir, stdin: "piped", stdout: "piped", stderr: "null",
}).spawn();
const writer = child.stdin.getWriter();
const send = (message) => writer.write(new TextEncoder().encode(
  JSON.stringify({ jsonrpc: "2.0", ...message }) + "\\n",
));
console.log(child.pid);
await send({ id: 0, method: "initialize", params: {
  protocolVersion: "2025-06-18", capabilities: {},
  clientInfo: { name: "test", version: "1.0.0" },
} });
await send({ method: "notifications/initialized" });
await send({ id: 1, method: "tools/call", params: {
  name: "run",
  arguments: { command: "sh", args: ["-c", "echo begun >/mnt/out/begun; sleep 4242"] },
} });
for await (const _ of child.stdout);
`;

for (const victim of ["client", "server"] as const) {
  testWithClient(
    `toolsmith mcp: no VM outlives a killed ${victim}`,
    async () => {
      await using work = await guestWorkspace();
      await using dir = await temporaryDir();
      const command = await cliCommand(["mcp", "--export", "out"], ["-A"]);
      const env = { ...cleanEnvironment(), ...guestEnvironment() };
      for (const [name, value] of Object.entries(env)) {
        Deno.env.set(name, value);
      }
      const script = await startScript(
        join(dir.path, "client.ts"),
        VANISHING_CLIENT,
        {
          args: [work.dir, ...command],
        },
      );
      await untilWritten(join(work.dir, "out/begun"), "begun\n");
      const server = Number(script.printedText());
      const [vm] = await vmPids(work);
      assert(server > 1 && vm > 1);
      Deno.kill(victim === "client" ? script.child.pid : server, "SIGKILL");
      await assertEnded(server);
      await assertEnded(vm);
      await script.child.ended;
    },
    needsGuest,
  );
}

testWithClient("toolsmith mcp works with the MCP Inspector", async () => {
  await using work = await guestWorkspace();
  // The Inspector takes flags such as --config for its own, and passes no variables.
  const start = join(work.dir, "start.sh");
  const words = [Deno.execPath(), ...await cliCommand(["mcp"], ["-A"])];
  const env = { ...cleanEnvironment(), ...guestEnvironment() };
  const exported = Object.entries(env).map(([name, value]) =>
    `export ${name}='${value}'\n`
  );
  const command = words.map((word) => `'${word}'`).join(" ");
  await Deno.writeTextFile(start, `${exported.join("")}exec ${command}\n`);
  const inspect = async (...method: string[]) => {
    const inspector = "@modelcontextprotocol/inspector@2.12.0";
    const { code, stdout, stderr } = await runProcess("npx", {
      args: ["-y", inspector, "--cli", "sh", start, ...method],
      cwd: work.dir,
    });
    assertEquals(code, 0, stderr);
    return JSON.parse(stdout);
  };
  const { tools } = await inspect("--method", "tools/list");
  assertEquals(tools.map(({ name }: { name: string }) => name), [
    "run",
    "read_output",
    "reset",
    "lister",
  ]);
  const { structuredContent } = await inspect(
    ...["--method", "tools/call", "--tool-name", "run"],
    ...["--tool-arg", "command=uname"],
  );
  assertEquals(structuredContent.stdout, "Linux\n");
}, needsGuest);
