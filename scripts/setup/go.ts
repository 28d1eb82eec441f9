/**
 * Builds a Go program from a module kept in `tools/`. Its `go.sum` is whole, so
 * every source is checked by hashes in this repository, also where Go's
 * checksum database cannot be reached.
 *
 * @module
 */
import { ToolsmithError } from "../../lib/errors.ts";
import { run } from "../../lib/system/process.ts";

/** A program, and the module that pins it. */
export interface GoProgram {
  /** Go itself: its name, found on PATH, or its path. */
  go: string;
  /** The module's directory, absolute. */
  module: string;
  /** The package of the program. */
  package: string;
  /** Where the program is written. */
  output: string;
}

/**
 * Builds a program.
 *
 * Needs `--allow-run=go`, `--allow-read`.
 *
 * @param program What to build, and where to.
 * @throws {ToolsmithError} `failed` with what Go said.
 */
export async function goBuild(program: GoProgram): Promise<void> {
  const built = await run(program.go, {
    cwd: program.module,
    args: ["build", "-o", program.output, program.package],
    env: {
      CGO_ENABLED: "0",
      GOFLAGS: "-mod=readonly -trimpath -buildvcs=false -ldflags=-w",
      // A workspace of the directory's neighbourhood must not change the pins.
      GOWORK: "off",
      GOTOOLCHAIN: "local",
    },
    timeoutMs: 20 * 60_000,
  });
  if (built.code === 0) return;
  const last = built.stderr.trim().split("\n").at(-1);
  throw new ToolsmithError("failed", `go build failed: ${last}`);
}

/**
 * Tells whether a Go is there and new enough for a module.
 *
 * Needs `--allow-run` for it, `--allow-read`.
 *
 * @param go Its name, found on PATH, or its path.
 * @param module The module's directory, absolute.
 */
export async function canBuild(go: string, module: string): Promise<boolean> {
  const needs = goVersion(await Deno.readTextFile(`${module}/go.mod`));
  try {
    const { stdout } = await run(go, {
      args: ["env", "GOVERSION"],
      env: { GOTOOLCHAIN: "local" },
      timeoutMs: 30_000,
    });
    const has = goVersion(stdout.replace(/^go/, "go "));
    return has[0] > needs[0] || (has[0] === needs[0] && has[1] >= needs[1]);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

/** The first two numbers of a line such as `go 1.25.0`. */
function goVersion(text: string): number[] {
  const found = text.match(/^go (\d+)\.(\d+)/m);
  return found ? [Number(found[1]), Number(found[2])] : [0, 0];
}
