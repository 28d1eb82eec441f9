/** Working directory and environment of a command in the guest. */
import type { ExecInGuestOptions, ExecOptions } from "../guest/exec.ts";
import type { GuestShare } from "../qemu/args.ts";
import { join, relative } from "../path.ts";
import { containsPath, WORKSPACE_TAG } from "./shares.ts";

/** Maps the caller's directory and environment to the guest's. */
export async function guestCwdAndEnv(
  shares: GuestShare[],
  { cwd = "", hostCwd, env = {} }: Pick<
    ExecOptions,
    "cwd" | "hostCwd" | "env"
  >,
): Promise<Pick<ExecInGuestOptions, "cwd" | "fallbackCwd" | "env">> {
  const all = { env: withGitSafeDirectory(env) };
  if (cwd.startsWith("/")) return { ...all, cwd };
  const hasWorkspace = shares.some(({ tag }) => tag === WORKSPACE_TAG);
  const root = hasWorkspace ? mountPoint(WORKSPACE_TAG) : "/";
  const here = hostCwd && await guestPathOf(shares, hostCwd) || root;
  // A copied workspace may be older than the directory: fall back to its root.
  return cwd === ""
    ? { ...all, cwd: here, fallbackCwd: root }
    : { ...all, cwd: join(here, cwd) };
}

/** Returns the guest's path of a host directory, if it is shared. */
async function guestPathOf(shares: GuestShare[], dir: string) {
  const path = await Deno.realPath(dir).catch(() => dir);
  const [nearest] = shares.filter((share) => containsPath(share.path, path))
    .sort((a, b) => b.path.length - a.path.length);
  return nearest && join(mountPoint(nearest.tag), relative(nearest.path, path));
}

function mountPoint(tag: string): string {
  return `/mnt/${tag}`;
}

/**
 * Lets git trust all repositories (git-config(1), `safe.directory`; git 2.38 or newer).
 * It rejects those of other users, which the host's are to the guest's root, and
 * workspaces nest repositories. The guest isolates the host from them.
 */
function withGitSafeDirectory(env: Record<string, string>) {
  const count = env.GIT_CONFIG_COUNT ?? "0";
  // git itself reports a malformed count.
  if (!/^\d{1,6}$/.test(count)) return env;
  const at = Number(count);
  return {
    ...env,
    GIT_CONFIG_COUNT: `${at + 1}`,
    [`GIT_CONFIG_KEY_${at}`]: "safe.directory",
    [`GIT_CONFIG_VALUE_${at}`]: "*",
  };
}
