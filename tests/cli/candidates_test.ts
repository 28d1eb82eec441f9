import { assert, assertEquals } from "@std/assert";
import { candidates } from "../../lib/cli/candidates.ts";
import { COMMANDS } from "../../lib/cli/commands.ts";

const known = {
  commands: COMMANDS,
  tools: { fmt: "/opt/fmt/bin/fmt", lint: "/usr/bin/lint" },
  references: ["ghcr.io/owner/image:1.0"],
};

/** What follows a command line: its last word is unfinished. */
function after(line: string) {
  const { kind, words } = candidates(line.split(" "), known);
  return kind === "words" ? words.map(([word]) => word) : kind;
}

Deno.test("candidates are every command, each with the line of the help", () => {
  const { words } = candidates([""], known);
  for (const { name, summary } of COMMANDS) {
    assert(words.some((it) => it[0] === name && it[1] === summary), name);
  }
  assertEquals(after("hyd"), ["hydrate"]);
  assertEquals(after("--v"), ["--version"]);
  assertEquals(after("help ru"), ["run"]);
  assertEquals(after("no-such-command "), []);
});

Deno.test("candidates are every flag of a command, but for those that are given", () => {
  for (const { name, flags } of COMMANDS) {
    const offered = after(`${name} --`);
    for (const flag of flags) assert(offered.includes(`--${flag.name}`));
  }
  assertEquals(after("run --mem"), ["--memory"]);
  assertEquals(after("run --memory 1G --mem"), []);
  assertEquals(after("run --memory=1G --mem"), []);
  assertEquals(after("run --export a --exp"), ["--export"]);
});

Deno.test("candidates are values, where they are known", () => {
  const values: Record<string, string[] | string> = {
    "run --memory ": ["512M", "1G", "2G", "4G"],
    "run --memory=1": ["--memory=1G"],
    "run --execution ": ["vm", "host"],
    "cache ": ["ls", "path", "prune", "adopt"],
    "cache prune --older-than 3": ["30d"],
    "publish image.qcow2 a --verify=p": ["--verify=pull"],
    "publish image.qcow2 ": ["ghcr.io/owner/image:1.0"],
    "init --ref ghcr": ["ghcr.io/owner/image:1.0"],
    "publish ": "file",
    "hydrate --manifest ": "file",
    "hydrate --ca-file=": "file",
    "hydrate --cache ": "directory",
    "run --export ": "directory",
    "run --timeout ": [],
    "completions ": ["bash", "zsh", "fish"],
    "boot --arch ": ["amd64", "arm64"],
    "publish image.qcow2 a --arch=ar": ["--arch=arm64"],
  };
  for (const [line, expected] of Object.entries(values)) {
    assertEquals(after(line), expected, line);
  }
});

Deno.test("candidates are flags, where no more arguments are taken", () => {
  assertEquals(after("cache ls --dry"), ["--dry-run"]);
  for (const line of ["cache ls ", "completions bash ", "publish a REF "]) {
    assert(after(line).includes("--help"), line);
  }
});

Deno.test("candidates are tools first, then what the tool's own arguments may be", () => {
  assertEquals(after("run "), ["fmt", "lint"]);
  assertEquals(after("run --network l"), ["lint"]);
  assertEquals(after("run -- f"), ["fmt"]);
  for (const line of ["run fmt --ch", "run fmt a ", "run -- fmt a b "]) {
    assertEquals(after(line), "file", line);
  }
  assertEquals(after("shell -- "), ["fmt", "lint"]);
  assert(after("shell ").includes("--memory"));
  assertEquals(after("boot -- "), "file");
});
