/**
 * Builds a Go program from a module in `tools/`. Its `go.sum` is complete, so every
 * source is checked by hashes in this repository, even if Go's checksum database is
 * unreachable.
 */
import { ToolsmithError } from "../../lib/errors.ts";
import { runProcess } from "../../lib/system/process.ts";

export interface GoProgram {
  /** Name or path of the go command. */
  go: string;
  /** The module's directory, absolute. */
  module: string;
  /** The package of the program. */
  package: string;
  /** The program's output path. */
  output: string;
}

/**
 * Runs `go build`.
 *
 * Needs `--allow-run=go`, `--allow-read`.
 *
 * @throws {ToolsmithError} `failed` with Go's error.
 */
export async function buildGoProgram(program: GoProgram): Promise<void> {
  const built = await runProcess(program.go, {
    cwd: program.module,
    args: ["build", "-o", program.output, program.package],
    env: {
      CGO_ENABLED: "0",
      GOFLAGS: "-mod=readonly -trimpath -buildvcs=false -ldflags=-w",
      // A go.work file in a parent directory must not change the pins.
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
 * Tells whether a Go exists and is new enough for a module.
 *
 * Needs `--allow-run` for it, `--allow-read`.
 *
 * @param go Name or path of the go command.
 * @param module The module's directory, absolute.
 */
export async function canGoBuild(go: string, module: string): Promise<boolean> {
  const needs = parseGoVersion(await Deno.readTextFile(`${module}/go.mod`));
  try {
    const { stdout } = await runProcess(go, {
      args: ["env", "GOVERSION"],
      env: { GOTOOLCHAIN: "local" },
      timeoutMs: 30_000,
    });
    const has = parseGoVersion(stdout.replace(/^go/, "go "));
    return has[0] > needs[0] || (has[0] === needs[0] && has[1] >= needs[1]);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

/** Returns major and minor version of a line such as `go 1.25.0`. */
function parseGoVersion(text: string): number[] {
  const found = text.match(/^go (\d+)\.(\d+)/m);
  return found ? [Number(found[1]), Number(found[2])] : [0, 0];
}
