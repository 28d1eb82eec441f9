import { assert, assertEquals } from "@std/assert";
import {
  ERROR_CODES,
  type ErrorCode,
  systemError,
  ToolsmithError,
  toToolsmithError,
} from "../lib/errors.ts";
import { PROJECT_ROOT } from "../scripts/deno.ts";

const PAGE = await Deno.readTextFile(`${PROJECT_ROOT}/docs/troubleshooting.md`);

Deno.test("toToolsmithError() returns the error of a clean-up that hides another", () => {
  const cleanUp = new ToolsmithError("guest_failed", "Cannot clear the bits");
  const error = new SuppressedError(cleanUp, new Error("late"));
  assertEquals(toToolsmithError(error), cleanUp);
});

Deno.test("docs/troubleshooting.md lists every code, exit status and meaning in order", () => {
  const rows = [...PAGE.matchAll(
    /^\| `(\w+)` +\| (\d+) +\| (.+?) +\| (.+?) +\|$/gm,
  )];
  assertEquals(
    rows.map(([, code, status, meaning]) => [code, Number(status), meaning]),
    Object.entries(ERROR_CODES).map(([code, row]) => [code, ...row]),
  );
});

Deno.test("docs/troubleshooting.md lists oras not found, Unauthorized/Forbidden and No .qcow2 payload found", () => {
  const page = PAGE.replace(/\n {2}/g, " ");
  const cases = [
    "- `oras not found`: install ORAS or set `TOOLSMITH_ORAS` to its path.",
    "- `Unauthorized`/`Forbidden`: verify `GHCR_TOKEN` scope (`read:packages`) and username/actor.",
    "- `No .qcow2 payload found`: ensure you pushed the QCOW2 file as a layer and used a `.qcow2` filename.",
  ];
  assert(page.includes(cases.join("\n")));
});

Deno.test("ERROR_CODES gives every code a unique exit status and a meaning", () => {
  const rows = Object.values(ERROR_CODES);
  assertEquals(new Set(rows.map(([status]) => status)).size, rows.length);
  for (const [status, meaning] of rows) {
    assert(Number.isInteger(status) && status > 0 && status < 256);
    assert(/^\S.*[^.]$/.test(meaning), meaning);
  }
});

Deno.test("ToolsmithError has code, exit status, hint and cause", () => {
  const cause = new Error("inner");
  const error = new ToolsmithError("oras_not_found", "oras not found", {
    hint: "install it",
    cause,
  });
  assertEquals(error.exitStatus, 20);
  assertEquals([error.name, error.message], [
    "ToolsmithError",
    "oras not found",
  ]);
  assertEquals([error.hint, error.cause], ["install it", cause]);
});

const CAUGHT: [string, unknown, ErrorCode][] = [
  [
    "a missing permission",
    new Deno.errors.NotCapable("x"),
    "permission_missing",
  ],
  [
    "a refusing system",
    new Deno.errors.PermissionDenied("x"),
    "file_unreadable",
  ],
  ["an abort", AbortSignal.abort().reason, "cancelled"],
  ["a deadline", new DOMException("x", "TimeoutError"), "timeout"],
  ["any error", new Error("x"), "failed"],
  ["a string", "x", "failed"],
  ["null", null, "failed"],
  ["undefined", undefined, "failed"],
];

for (const [name, thrown, code] of CAUGHT) {
  Deno.test(`toToolsmithError() maps ${name} to ${code} and keeps its cause`, () => {
    const error = toToolsmithError(thrown);
    assertEquals(error.code, code);
    assertEquals(error.cause, thrown);
    assertEquals(toToolsmithError(error), error);
  });
}

Deno.test("toToolsmithError() maps the deadline of AbortSignal.timeout() to timeout", async () => {
  const signal = AbortSignal.timeout(1);
  await new Promise((done) => signal.addEventListener("abort", done));
  assertEquals(toToolsmithError(signal.reason).code, "timeout");
});

Deno.test({
  name: "toToolsmithError() maps a full disk to disk_full",
  ignore: Deno.build.os !== "linux",
  async fn() {
    const thrown = await Deno.writeTextFile("/dev/full", "x").catch((e) => e);
    const error = toToolsmithError(thrown);
    assertEquals(error.code, "disk_full");
    assert(error.hint?.includes("TOOLSMITH_CACHE"));
  },
});

/** System errors: the failing call, code, message and hint. */
const SYSTEM: [() => unknown, ErrorCode, string, string][] = [
  [
    () => Deno.stat("/none/a"),
    "file_unreadable",
    "Cannot access /none/a: no such file or directory",
    "check that the path exists, or that the program is in PATH",
  ],
  [
    () => Deno.readTextFile("/etc/passwd/a"),
    "file_unreadable",
    "Cannot access /etc/passwd/a: not a directory",
    "check the path: a part of it is a file, not a directory",
  ],
  [
    () => Deno.readTextFile("/etc"),
    "file_unreadable",
    "Cannot access /etc: is a directory",
    "name a file, not a directory",
  ],
  [
    () => Deno.stat(`/${"a".repeat(300)}`),
    "file_unreadable",
    `Cannot access /${"a".repeat(300)}: file name too long`,
    "choose a shorter name",
  ],
  [
    () => Deno.rename("/none/a", "/none/b"),
    "file_unreadable",
    "Cannot access /none/a -> /none/b: no such file or directory",
    "check that the path exists, or that the program is in PATH",
  ],
  [
    () => new Deno.Command("no-such-program").output(),
    "file_unreadable",
    "Cannot run no-such-program: no such program",
    "check that the path exists, or that the program is in PATH",
  ],
  [
    () => new Deno.Command("/etc/passwd/a").output(),
    "file_unreadable",
    "Cannot run /etc/passwd/a: not a directory",
    "check the path: a part of it is a file, not a directory",
  ],
  [
    () => new Deno.Command("/bin/sh", { args: ["a".repeat(3e6)] }).output(),
    "file_unreadable",
    "Cannot run /bin/sh: argument list too long",
    "pass fewer or shorter arguments",
  ],
  [
    async () => {
      using memory = await Deno.open("/proc/self/mem");
      await memory.read(new Uint8Array(1));
    },
    "file_unreadable",
    "The system reports an error: input/output error",
    "check the disk, and the system's log",
  ],
  [
    () => Deno.writeTextFile("/dev/full", "a"),
    "disk_full",
    "Cannot access /dev/full: no space left on device",
    "free disk space, or move the cache elsewhere: TOOLSMITH_CACHE=DIR",
  ],
];

Deno.test({
  name: "toToolsmithError() names the path and the next step of system errors",
  ignore: Deno.build.os !== "linux",
  async fn() {
    for (const [work, code, message, hint] of SYSTEM) {
      const thrown = await (async () => await work())().catch((it) => it);
      const error = toToolsmithError(thrown);
      assertEquals([error.code, error.message], [code, message]);
      assertEquals([error.hint, error.cause], [hint, thrown]);
    }
  },
});

Deno.test("systemError() prefixes the failed action and returns other errors unchanged", () => {
  const what = "Cannot use TMPDIR=/none";
  const hint = "set TMPDIR";
  const of = (code: string) => Object.assign(new Error("No"), { code });
  const typed = systemError(of("EBUSY"), {
    messagePrefix: what,
    hint,
    code: "usage",
  });
  assert(typed instanceof ToolsmithError);
  assertEquals(
    [typed.code, typed.message, typed.hint],
    ["usage", `${what}: no`, hint],
  );
  const others = [
    ...[new Error("No"), "x", null, undefined, typed],
    new TypeError("tcp connect error: Connection refused (os error 111)"),
    ...[of("ERR_INVALID_ARG_TYPE"), of("ECONNREFUSED"), of("EPIPE")],
    new Deno.errors.NotCapable("Requires read access"),
  ];
  for (const thrown of others) {
    assertEquals(systemError(thrown, { messagePrefix: what }), thrown);
  }
});

Deno.test("toToolsmithError() gives a hint for every system error, even without an entry in HINTS_BY_ERRNO", () => {
  for (const code of ["EBUSY", "ESTALE", "ENODEV", "EXDEV"]) {
    const thrown = Object.assign(new Error("No"), { code });
    assert(toToolsmithError(thrown).hint, code);
  }
  // Deno has names for some of them only.
  const error = toToolsmithError(new Error("File too large (os error 27)"));
  assertEquals(error.code, "file_unreadable");
  assertEquals(error.message, "The system reports an error: file too large");
  assert(error.hint?.includes("ulimit -f"));
});

Deno.test("systemError() returns a ToolsmithError unchanged, even if its message quotes a system error", () => {
  const typed = new ToolsmithError(
    "connection_failed",
    "refused (os error 111)",
  );
  assertEquals(systemError(typed, { fallbackPath: "/a" }), typed);
});

Deno.test("systemError() uses the given path when the system names none", () => {
  const [none, own] = ["No (os error 5)", "No (os error 5): stat '/own'"]
    .map((words) =>
      systemError(new Error(words), { fallbackPath: "/given" }) as Error
    );
  assertEquals(none.message, "Cannot access /given: no");
  assertEquals(own.message, "Cannot access /own: no");
});

Deno.test("toToolsmithError() reports a file name that is not UTF-8", () => {
  const said = 'File name or path "/a\\xFF" is not valid UTF-8';
  const error = toToolsmithError(new Deno.errors.InvalidData(said));
  assertEquals(error.code, "file_unreadable");
  assertEquals(error.hint, "rename the file: only UTF-8 names are supported");
});
