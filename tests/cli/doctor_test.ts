import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { parseCommandLine } from "../../lib/cli/command_line.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { performCommand, recordedIo } from "../support/recorded_io.ts";

/** Runs `toolsmith doctor` in a directory with this image and these programs. */
async function examine(
  dir: string,
  options: {
    qcow2?: string;
    variables?: Record<string, string>;
    json?: boolean;
  },
) {
  const { qcow2, variables = {}, json = false } = options;
  const manifest = join(dir, ".toolsmith", "tools.json");
  await Deno.mkdir(join(dir, ".toolsmith"), { recursive: true });
  const image = { name: "demo", qcow2, qcow2_sha256: "a".repeat(64) };
  if (qcow2) await Deno.writeTextFile(manifest, JSON.stringify({ image }));
  const env = new Map(
    Object.entries({ TOOLSMITH_ORAS: "/none", TMPDIR: dir, ...variables }),
  );
  const recorded = recordedIo({ env });
  const here = Deno.cwd();
  Deno.chdir(dir);
  const status = await performCommand(
    ["doctor", "--cache", "flagged", ...json ? ["--json"] : []],
    recorded,
  )
    .finally(() => Deno.chdir(here));
  const [{ text, fields, ...result }, ...more] = recorded.results;
  assertEquals([result.json, more.length, recorded.stderrText()], [
    json,
    0,
    "",
  ]);
  return { status, lines: text.split("\n"), fields };
}

Deno.test("doctor prints a line per finding with its hint below, and exits with 1 if one fails", async () => {
  await using dir = await temporaryDir();
  const qcow2 = "oci://127.0.0.1:1/owner/repo:1.0";
  const { status, lines, fields } = await examine(dir.path, {
    qcow2,
    json: true,
  });
  assertEquals([status, fields.ok], [1, false]);
  const findings = fields.findings as {
    check: string;
    level: string;
    found: string;
    hint?: string;
  }[];
  const cache = findings.find(({ check }) => check === "cache")?.found;
  assertEquals(cache, `${join(dir.path, "flagged")} is writable`);
  const width = Math.max(...findings.map(({ check }) => check.length));
  for (const { check, level, found, hint } of findings) {
    const head = `${level.padEnd(4)}  ${check.padEnd(width)}  `;
    const at = lines.findIndex((line) => line.startsWith(head));
    assertEquals(lines[at], head + found.replace(/\s*\n\s*/g, " "));
    const below = " ".repeat(head.length) + hint;
    assertEquals(lines[at + 1] === below, hint !== undefined, check);
  }
  assertEquals(
    lines.at(-1),
    "next: fix oras, then run toolsmith doctor again",
  );
});

Deno.test("doctor prints the next step: write a manifest, install QEMU or run a command", async () => {
  await using dir = await temporaryDir();
  const qemu = join(dir.path, "qemu-system-x86_64");
  const script = "#!/bin/sh\necho QEMU emulator version 9.9.9\n";
  await Deno.writeTextFile(qemu, script, { mode: 0o755 });
  const oras = join(dir.path, "oras");
  const version = "#!/bin/sh\necho Version: 1.3.3\n";
  await Deno.writeTextFile(oras, version, { mode: 0o755 });
  const none = await examine(dir.path, {
    variables: { TOOLSMITH_ORAS: oras, TOOLSMITH_QEMU: qemu },
  });
  assertEquals(
    [none.status, none.fields.ok, none.lines.at(-1)],
    [0, true, "next: write a manifest for an image: toolsmith init --ref REF"],
  );
  const qcow2 = "image.qcow2";
  const hydrate = await examine(dir.path, {
    qcow2,
    variables: { TOOLSMITH_QEMU: "/none" },
  });
  assertEquals(
    [hydrate.status, hydrate.lines.at(-1)],
    [0, "next: toolsmith hydrate, or install QEMU to run the image"],
  );
  const run = await examine(dir.path, {
    qcow2,
    variables: { TOOLSMITH_QEMU: qemu },
  });
  assertEquals([run.status, run.lines.at(-1)], [
    0,
    "next: toolsmith run COMMAND",
  ]);
  assert(run.lines.length > 5, run.lines.join("\n"));
});

Deno.test("doctor rejects arguments and accepts manifest, cache and registry flags", async () => {
  await expectFailure("usage", () => parseCommandLine(["doctor", "x"]));
  const flags = ["--manifest", "m", "--cache=c", "--plain-http", "--json"];
  flags.push("--trusted-root", "root.json");
  const read = parseCommandLine(["doctor", ...flags]);
  assertEquals(read.kind === "command" && read.given, {
    ...{ manifest: "m", cache: "c" },
    plainHttp: true,
    trustedRoot: "root.json",
    json: true,
  });
});
