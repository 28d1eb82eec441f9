import { assert, assertEquals } from "@std/assert";
import {
  completionCandidates,
  type PlaceholderValues,
} from "../../lib/cli/completion_candidates.ts";
import { COMMANDS } from "../../lib/cli/commands.ts";

const values: PlaceholderValues = {
  TOOL: [["fmt", "/opt/fmt/bin/fmt"], ["lint", "/usr/bin/lint"]],
  REF: [["ghcr.io/owner/image:1.0"]],
};

/** Completes the last, unfinished word of a line. */
function after(line: string) {
  const found = completionCandidates(line.split(" "), COMMANDS, values);
  return typeof found === "string" ? found : found.map(([word]) => word);
}

Deno.test("completionCandidates() offers every command with its help line", () => {
  const words = completionCandidates([""], COMMANDS, values);
  assert(typeof words !== "string");
  for (const { name, summary } of COMMANDS) {
    assert(words.some((it) => it[0] === name && it[1] === summary), name);
  }
  assertEquals(after("hyd"), ["hydrate"]);
  assertEquals(after("--v"), ["--version"]);
  assertEquals(after("help ru"), ["run"]);
  assertEquals(after("no-such-command "), []);
});

Deno.test("completionCandidates() offers a command's flags, except those already given", () => {
  for (const { name, flags } of COMMANDS) {
    const offered = after(`${name} --`);
    for (const flag of Object.values(flags)) {
      assert(offered.includes(`--${flag.name}`));
    }
  }
  assertEquals(after("run --mem"), ["--memory"]);
  assertEquals(after("run --memory 1G --mem"), []);
  assertEquals(after("run --memory=1G --mem"), []);
  assertEquals(after("run --export a --exp"), ["--export"]);
});

Deno.test("completionCandidates() offers the known values of flags and arguments", () => {
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
    "publish image.qcow2 a --previous ": "file",
    "hydrate --manifest ": "file",
    "hydrate --ca-file=": "file",
    "hydrate --cache ": "directory",
    "run --export ": "directory",
    "run --timeout ": [],
    "run ls --cache=": "file",
    "completions ": ["bash", "zsh", "fish"],
    "boot --arch ": ["amd64", "arm64"],
    "publish image.qcow2 a --arch=ar": ["--arch=arm64"],
  };
  for (const [line, expected] of Object.entries(values)) {
    assertEquals(after(line), expected, line);
  }
});

Deno.test("completionCandidates() offers flags when no more arguments are accepted", () => {
  assertEquals(after("cache ls --dry"), ["--dry-run"]);
  for (const line of ["cache ls ", "completions bash ", "publish a REF "]) {
    assert(after(line).includes("--help"), line);
  }
});

Deno.test("completionCandidates() offers the manifest's tools as run's command, then files as its arguments", () => {
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
