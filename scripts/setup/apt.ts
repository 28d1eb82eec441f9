/** Debian packages: root installs them, other users download them. */
import { ToolsmithError } from "../../lib/errors.ts";
import { type ProcessResult, runProcess } from "../../lib/system/process.ts";

const MAX_LOCK_WAIT_MS = 300_000;
/** Package lists for users who cannot update the system's. */
const USER_LISTS_DIR = `${import.meta.dirname}/../../.cache/tools/apt`;

/** apt-get options after the first update, and that update's warnings. */
let lastUpdate: { options: string[]; stderr: string } | undefined;

/**
 * Tells whether this host has apt-get and dpkg-deb.
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
 * Tells whether this user can install packages.
 *
 * Needs `--allow-read`, `--allow-env=PATH`, `--allow-sys=uid`.
 */
export function canInstallWithApt(): boolean {
  return hasApt() && Deno.uid() === 0;
}

/**
 * Returns the packages that are not installed; all without dpkg.
 *
 * Needs `--allow-run=dpkg-query`, `--allow-read`, `--allow-env=PATH`.
 *
 * @param packages Names of Debian packages.
 */
export async function missingPackages(packages: string[]): Promise<string[]> {
  if (!hasApt()) return packages;
  const { stdout } = await runProcess("dpkg-query", {
    args: ["-W", "-f", "${Package} ${db:Status-Status}\n", ...packages],
  });
  const lines = new Set(stdout.split("\n"));
  return packages.filter((name) => !lines.has(`${name} installed`));
}

/**
 * Runs apt-get non-interactively and waits for its locks. If it fails, updates the
 * package lists and runs it again: root updates the system's lists, other users
 * lists in `.cache/`.
 *
 * Needs `--allow-run=apt-get`, `--allow-read`, `--allow-write`.
 *
 * @param args For instance `["install", "qemu-utils"]`.
 * @param cwd Where `download` puts its files.
 * @returns apt-get's output.
 * @throws {ToolsmithError} `failed` with apt-get's error.
 */
export async function runAptGet(args: string[], cwd?: string): Promise<string> {
  let output = await runAwaitingLocks(args, cwd);
  if (output.code !== 0 && !lastUpdate) {
    const options = Deno.uid() === 0 ? [] : await privateListOptions();
    lastUpdate = { options, stderr: "" };
    // Without a network it only warns and exits with 0.
    lastUpdate.stderr = (await runAwaitingLocks(["update"])).stderr;
    output = await runAwaitingLocks(args, cwd);
  }
  if (output.code === 0) return output.stdout;
  const reasons = [output.stderr, lastUpdate!.stderr].flatMap((text) =>
    text.match(/^[EW]: (.*)$/m)?.[1] ?? []
  );
  throw new ToolsmithError(
    "failed",
    `apt-get ${args[0]} failed: ${reasons.join("; ")}`,
  );
}

async function privateListOptions(): Promise<string[]> {
  for (const name of ["lists/partial", "archives/partial"]) {
    await Deno.mkdir(`${USER_LISTS_DIR}/${name}`, { recursive: true });
  }
  return [
    `-oDir::State::Lists=${USER_LISTS_DIR}/lists`,
    `-oDir::Cache=${USER_LISTS_DIR}`,
  ];
}

/** apt does not wait for the locks of lists and archives, so retry. */
async function runAwaitingLocks(
  args: string[],
  cwd?: string,
): Promise<ProcessResult> {
  const deadline = Date.now() + MAX_LOCK_WAIT_MS;
  while (true) {
    const output = await runProcess("apt-get", {
      cwd,
      args: [
        "-qq",
        "-y",
        "--no-install-recommends",
        `-oDPkg::Lock::Timeout=${MAX_LOCK_WAIT_MS / 1000}`,
        ...lastUpdate?.options ?? [],
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
