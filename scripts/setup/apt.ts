/**
 * Installs Debian packages where that is allowed.
 *
 * @module
 */
import { ToolsmithError } from "../../lib/errors.ts";
import { type Output, run } from "../../lib/system/process.ts";

const LOCK_PATIENCE_MS = 300_000;

/**
 * Tells whether packages can be installed: on Debian and its kin, by root, or
 * on a build farm whose user may become root without being asked.
 *
 * Needs `--allow-read`, `--allow-sys=uid`, `--allow-env=CI`.
 */
export function canInstall(): boolean {
  return isDebian() && (Deno.uid() === 0 || Deno.env.get("CI") === "true");
}

/**
 * Names the packages that are not installed. Where there is no dpkg: all.
 *
 * Needs `--allow-run=dpkg-query`.
 *
 * @param packages Names of Debian packages.
 */
export async function missingPackages(packages: string[]): Promise<string[]> {
  if (!isDebian()) return packages;
  const { stdout } = await run("dpkg-query", {
    args: ["-W", "-f", "${Package} ${db:Status-Status}\n", ...packages],
  });
  const lines = new Set(stdout.split("\n"));
  return packages.filter((name) => !lines.has(`${name} installed`));
}

/**
 * Runs apt-get without questions; waits for whoever else uses it. When it
 * fails, the package lists are brought up to date and it runs once more.
 *
 * Needs `--allow-run`.
 *
 * @param args For instance `["install", "qemu-utils"]`.
 * @param cwd Where `download` puts its files.
 * @throws {ToolsmithError} `failed` with what apt-get said.
 */
export async function aptGet(args: string[], cwd?: string): Promise<void> {
  if ((await patiently(args, cwd)).code === 0) return;
  const updated = await patiently(["update"]);
  const again = updated.code === 0 ? await patiently(args, cwd) : updated;
  if (again.code === 0) return;
  throw new ToolsmithError(
    "failed",
    `apt-get ${args[0]} failed: ${again.stderr.trim().split("\n")[0]}`,
  );
}

/** The lists and archives have locks of their own, which apt does not await. */
async function patiently(args: string[], cwd?: string): Promise<Output> {
  const command = Deno.uid() === 0 ? ["apt-get"] : [
    "sudo",
    "-n",
    "DEBIAN_FRONTEND=noninteractive",
    "apt-get",
  ];
  const deadline = Date.now() + LOCK_PATIENCE_MS;
  while (true) {
    const output = await run(command[0], {
      cwd,
      args: [
        ...command.slice(1),
        "-qq",
        "-y",
        "--no-install-recommends",
        `-oDPkg::Lock::Timeout=${LOCK_PATIENCE_MS / 1000}`,
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

function isDebian(): boolean {
  try {
    return Deno.statSync("/usr/bin/apt-get").isFile;
  } catch {
    return false;
  }
}
