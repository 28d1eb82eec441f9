import { assert, assertEquals } from "@std/assert";
import {
  ERROR_CODES,
  type ErrorCode,
  systemError,
  ToolsmithError,
  toToolsmithError,
} from "../lib/errors.ts";
import { ROOT } from "../scripts/deno.ts";

const PAGE = await Deno.readTextFile(`${ROOT}/docs/troubleshooting.md`);

Deno.test("docs/troubleshooting.md names every code, exit status and meaning, in order", () => {
  const rows = [...PAGE.matchAll(
    /^\| `(\w+)` +\| (\d+) +\| (.+?) +\| (.+?) +\|$/gm,
  )];
  assertEquals(
    rows.map(([, code, status, meaning]) => [code, Number(status), meaning]),
    Object.entries(ERROR_CODES).map(([code, row]) => [code, ...row]),
  );
});

Deno.test("docs/troubleshooting.md begins with the guide's three cases, in its words", () => {
  const page = PAGE.replace(/\n {2}/g, " ");
  const cases = [
    "- `oras not found`: install ORAS or set `TOOLSMITH_ORAS` to its path.",
    "- `Unauthorized`/`Forbidden`: verify `GHCR_TOKEN` scope (`read:packages`) and username/actor.",
    "- `No .qcow2 payload found`: ensure you pushed the QCOW2 file as a layer and used a `.qcow2` filename.",
  ];
  assert(page.includes(cases.join("\n")));
});

Deno.test("every code has an exit status of its own, and a meaning", () => {
  const rows = Object.values(ERROR_CODES);
  assertEquals(new Set(rows.map(([status]) => status)).size, rows.length);
  for (const [status, meaning] of rows) {
    assert(Number.isInteger(status) && status > 0 && status < 256);
    assert(/^\S.*[^.]$/.test(meaning), meaning);
  }
});

Deno.test("an error carries code, exit status, hint and cause", () => {
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
  Deno.test(`${name} becomes ${code}, with its cause`, () => {
    const error = toToolsmithError(thrown);
    assertEquals(error.code, code);
    assertEquals(error.cause, thrown);
    assertEquals(toToolsmithError(error), error);
  });
}

Deno.test("the deadline of AbortSignal.timeout() is a timeout", async () => {
  const signal = AbortSignal.timeout(1);
  await new Promise((done) => signal.addEventListener("abort", done));
  assertEquals(toToolsmithError(signal.reason).code, "timeout");
});

Deno.test({
  name: "a full disk is told from other failures",
  ignore: Deno.build.os !== "linux",
  async fn() {
    const thrown = await Deno.writeTextFile("/dev/full", "x").catch((e) => e);
    const error = toToolsmithError(thrown);
    assertEquals(error.code, "disk_full");
    assert(error.hint?.includes("TOOLSMITH_CACHE"));
  },
});

/** Errors of this system: what fails, and the message and hint that it becomes. */
const SYSTEM: [() => unknown, ErrorCode, string, string][] = [
  [
    () => Deno.stat("/none/a"),
    "file_unreadable",
    "Cannot access /none/a: no such file or directory",
    "check the path, and of a program PATH",
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
    "check the path, and of a program PATH",
  ],
  [
    () => new Deno.Command("no-such-program").output(),
    "file_unreadable",
    "Cannot run no-such-program: no such program",
    "check the path, and of a program PATH",
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
    "check the disk: the system's log has more",
  ],
  [
    () => Deno.writeTextFile("/dev/full", "a"),
    "disk_full",
    "Cannot access /dev/full: no space left on device",
    "free some space, or put the cache elsewhere: TOOLSMITH_CACHE=DIR",
  ],
];

Deno.test({
  name:
    "toToolsmithError() names the path and the next step for errors of the system",
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

Deno.test("systemError() says what could not be done, and leaves other errors as they are", () => {
  const what = "Cannot use TMPDIR=/none";
  const hint = "set TMPDIR";
  const of = (code: string) => Object.assign(new Error("No"), { code });
  const typed = systemError(of("EBUSY"), { what, hint, code: "usage" });
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
    assertEquals(systemError(thrown, { what }), thrown);
  }
});

Deno.test("every error of the system has a next step, also a rare one", () => {
  for (const code of ["EBUSY", "ESTALE", "ENODEV", "EXDEV"]) {
    const thrown = Object.assign(new Error("No"), { code });
    assert(toToolsmithError(thrown).hint, code);
  }
  // Deno has codes for some of them only.
  const error = toToolsmithError(new Error("File too large (os error 27)"));
  assertEquals(error.code, "file_unreadable");
  assertEquals(error.message, "The system reports an error: file too large");
  assert(error.hint?.includes("ulimit -f"));
});

Deno.test("systemError() leaves a typed error that quotes the system as it is", () => {
  const typed = new ToolsmithError(
    "connection_failed",
    "refused (os error 111)",
  );
  assertEquals(systemError(typed, { path: "/a" }), typed);
});

Deno.test("systemError() takes a path where the system names none", () => {
  const [none, own] = ["No (os error 5)", "No (os error 5): stat '/own'"]
    .map((words) => systemError(new Error(words), { path: "/given" }) as Error);
  assertEquals(none.message, "Cannot access /given: no");
  assertEquals(own.message, "Cannot access /own: no");
});

Deno.test("a name that is not UTF-8 is reported as such", () => {
  const said = 'File name or path "/a\\xFF" is not valid UTF-8';
  const error = toToolsmithError(new Deno.errors.InvalidData(said));
  assertEquals(error.code, "file_unreadable");
  assertEquals(error.hint, "rename it: only names in UTF-8 can be used");
});
