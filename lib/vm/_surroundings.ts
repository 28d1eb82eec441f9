/**
 * What a command in the guest finds around it: its directory, and variables that
 * make the host's files usable there.
 *
 * @module
 */
import type { ExecInGuestOptions, ExecOptions } from "../guest/exec.ts";
import type { GuestShare } from "../qemu/args.ts";
import { join, relative } from "../path.ts";
import { holds, WORKSPACE_TAG } from "./shares.ts";

/**
 * Makes a command's directory and environment of what its caller chose.
 *
 * Needs `--allow-read` for `hostCwd`.
 *
 * @param shares Directories of the host that the guest has.
 * @param options What the caller chose.
 */
export async function surroundings(
  shares: GuestShare[],
  { cwd = "", hostCwd, env = {} }: Pick<
    ExecOptions,
    "cwd" | "hostCwd" | "env"
  >,
): Promise<Pick<ExecInGuestOptions, "cwd" | "otherwise" | "env">> {
  const all = { env: trustRepositories(env) };
  if (cwd.startsWith("/")) return { ...all, cwd };
  const workspace = shares.some(({ tag }) => tag === WORKSPACE_TAG);
  const root = workspace ? mountOf(WORKSPACE_TAG) : "/";
  const here = hostCwd && await mountedAt(shares, hostCwd) || root;
  // A guest without 9p has a copy, which may be older than the directory.
  return cwd === ""
    ? { ...all, cwd: here, otherwise: root }
    : { ...all, cwd: join(here, cwd) };
}

/** Where the guest has a directory of the host, if it has it. */
async function mountedAt(shares: GuestShare[], dir: string) {
  const path = await Deno.realPath(dir).catch(() => dir);
  const [nearest] = shares.filter((share) => holds(share.path, path))
    .sort((a, b) => b.path.length - a.path.length);
  return nearest && join(mountOf(nearest.tag), relative(nearest.path, path));
}

function mountOf(tag: string): string {
  return `/mnt/${tag}`;
}

/**
 * git uses no repository of another user, which those of the host are to the
 * guest's root (git-config(1), `safe.directory`; git 2.38 or newer). All are
 * trusted, as workspaces hold repositories in repositories; the guest is what
 * protects the host from them.
 */
function trustRepositories(env: Record<string, string>) {
  const count = env.GIT_CONFIG_COUNT ?? "0";
  // Of one that is malformed, git says so itself.
  if (!/^\d{1,6}$/.test(count)) return env;
  const at = Number(count);
  return {
    ...env,
    GIT_CONFIG_COUNT: `${at + 1}`,
    [`GIT_CONFIG_KEY_${at}`]: "safe.directory",
    [`GIT_CONFIG_VALUE_${at}`]: "*",
  };
}
