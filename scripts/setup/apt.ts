/**
 * Debian packages: root installs them, anybody may download them.
 *
 * @module
 */
import { ToolsmithError } from "../../lib/errors.ts";
import { type Output, run } from "../../lib/system/process.ts";

const LOCK_PATIENCE_MS = 300_000;
/** Package lists of a user who cannot update the system's. */
const LISTS = `${import.meta.dirname}/../../.cache/tools/apt`;

/** Options of apt-get from the first update on, and what that complained of. */
let updated: { options: string[]; stderr: string } | undefined;

/**
 * Tells whether packages can be had here: on Debian and its kin.
 *
 * Needs `--allow-read`, `--allow-env=PATH`.
 */
export function hasApt(): boolean {
  const dirs = (Deno.env.get("PATH") ?? "").split(":");
  return ["apt-get", "dpkg-deb"].every((program) =>
    dirs.some((dir) => dir && isFile(`${dir}/${program}`))
  );
}

/**
 * Tells whether packages can be installed as well.
 *
 * Needs `--allow-read`, `--allow-env=PATH`, `--allow-sys=uid`.
 */
export function canInstall(): boolean {
  return hasApt() && Deno.uid() === 0;
}

/**
 * Names the packages that are not installed. Where there is no dpkg: all.
 *
 * Needs `--allow-run=dpkg-query`, `--allow-read`, `--allow-env=PATH`.
 *
 * @param packages Names of Debian packages.
 */
export async function missingPackages(packages: string[]): Promise<string[]> {
  if (!hasApt()) return packages;
  const { stdout } = await run("dpkg-query", {
    args: ["-W", "-f", "${Package} ${db:Status-Status}\n", ...packages],
  });
  const lines = new Set(stdout.split("\n"));
  return packages.filter((name) => !lines.has(`${name} installed`));
}

/**
 * Runs apt-get without questions; waits for whoever else uses it. When it
 * fails, the package lists are brought up to date and it runs once more: the
 * system's lists by root, lists in `.cache/` by anybody else.
 *
 * Needs `--allow-run=apt-get`, `--allow-read`, `--allow-write`.
 *
 * @param args For instance `["install", "qemu-utils"]`.
 * @param cwd Where `download` puts its files.
 * @returns What it printed.
 * @throws {ToolsmithError} `failed` with what apt-get said.
 */
export async function aptGet(args: string[], cwd?: string): Promise<string> {
  let output = await patiently(args, cwd);
  if (output.code !== 0 && !updated) {
    const options = Deno.uid() === 0 ? [] : await privateLists();
    updated = { options, stderr: "" };
    // Without a network it warns, and ends well.
    updated.stderr = (await patiently(["update"])).stderr;
    output = await patiently(args, cwd);
  }
  if (output.code === 0) return output.stdout;
  const reasons = [output.stderr, updated!.stderr].flatMap((text) =>
    text.match(/^[EW]: (.*)$/m)?.[1] ?? []
  );
  throw new ToolsmithError(
    "failed",
    `apt-get ${args[0]} failed: ${reasons.join("; ")}`,
  );
}

async function privateLists(): Promise<string[]> {
  for (const name of ["lists/partial", "archives/partial"]) {
    await Deno.mkdir(`${LISTS}/${name}`, { recursive: true });
  }
  return [`-oDir::State::Lists=${LISTS}/lists`, `-oDir::Cache=${LISTS}`];
}

/** The lists and archives have locks of their own, which apt does not await. */
async function patiently(args: string[], cwd?: string): Promise<Output> {
  const deadline = Date.now() + LOCK_PATIENCE_MS;
  while (true) {
    const output = await run("apt-get", {
      cwd,
      args: [
        "-qq",
        "-y",
        "--no-install-recommends",
        `-oDPkg::Lock::Timeout=${LOCK_PATIENCE_MS / 1000}`,
        ...updated?.options ?? [],
        ...args,
      ],
      env: { DEBIAN_FRONTEND: "noninteractive", LC_ALL: "C.UTF-8" },
      timeoutMs: 20 * 60_000,
    });
    const locked = /Could not get lock|Unable to (acquire|lock)/.test(
      output.stderr,
    );
    if (output.code === 0 || !locked || Date.now() > deadline) return output;
    await new Promise((done) => setTimeout(done, 500));
  }
}

function isFile(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}
