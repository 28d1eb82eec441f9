import { assert, assertEquals } from "@std/assert";
import {
  ERROR_CODES,
  type ErrorCode,
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
