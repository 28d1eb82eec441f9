/**
 * Mirrors and pull-through caches of a registry: those of containerd, and those
 * of `TOOLSMITH_MIRRORS`.
 *
 * Format: containerd, "Registry Configuration" (`docs/hosts.md`):
 *
 *     <certs.d>/<host>/hosts.toml
 *     server = "https://registry.example"
 *     [host."https://cache.lan"]
 *       capabilities = ["pull", "resolve"]
 *       ca = "cache.pem"
 *
 * @module
 */
import { join, resolve } from "../path.ts";
import { type Environment, processEnvironment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import { isObject } from "../system/json.ts";

/** A place that serves what a registry has. It needs no trust. */
export interface Mirror {
  /** The address that paths of the API follow, such as `https://cache.lan/v2`. */
  base: string;
  /** Whether it may say which manifest a tag names. */
  resolves: boolean;
  /** A PEM file with the certificate authority to trust. */
  caFile?: string;
}

/** What {@linkcode findMirrors} takes. */
export interface MirrorOptions {
  /**
   * Read for `TOOLSMITH_MIRRORS` and `TOOLSMITH_REGISTRY_CONFIG`.
   *
   * @default {processEnvironment}
   */
  env?: Environment;
  /** Gets what is not supported, in a sentence. @default {undefined} */
  onWarning?: (message: string) => void;
}

/** containerd's own default. */
const CONFIG_DIRS = "/etc/containerd/certs.d:/etc/docker/certs.d";

/**
 * Finds the mirrors of a registry, in the order in which they are asked.
 *
 * Needs `--allow-read` for the directories; what may not be read is not there.
 *
 * @param registry Host, and port if any, as a reference names it.
 * @param options The environment.
 * @returns The mirrors; the registry itself is not among them.
 * @throws {ToolsmithError} `usage` for a malformed `TOOLSMITH_MIRRORS`,
 * `file_unreadable` for a malformed `hosts.toml`.
 */
export async function findMirrors(
  registry: string,
  options: MirrorOptions = {},
): Promise<Mirror[]> {
  const env = options.env ?? processEnvironment;
  const simple = readVariable(registry, env.get("TOOLSMITH_MIRRORS") ?? "");
  for (const dir of mirrorDirs(env)) {
    for (const name of hostNames(registry)) {
      const text = await readPermitted(join(dir, name, "hosts.toml"));
      if (text === undefined) continue;
      const hosts = await readHosts(text, join(dir, name), options);
      return [...simple, ...hosts.filter(({ base }) => !isOwn(base, registry))];
    }
  }
  return simple;
}

/**
 * Names the directories in which a directory for each registry may lie.
 *
 * @param env Read for `TOOLSMITH_REGISTRY_CONFIG`.
 * @returns The directories, which need not exist.
 */
export function mirrorDirs(env: Environment): string[] {
  const dirs = env.get("TOOLSMITH_REGISTRY_CONFIG") || CONFIG_DIRS;
  const separator = Deno.build.os === "windows" ? ";" : ":";
  return dirs.split(separator).filter(Boolean);
}

/** Reads `ghcr.io=https://cache.lan,docker.io=http://10.0.0.1:5000`. */
function readVariable(registry: string, text: string): Mirror[] {
  return text.split(",").map((pair) => pair.trim()).filter(Boolean)
    .flatMap((pair) => {
      const [, host, address] = /^([^=]+)=(.+)$/.exec(pair) ?? [];
      const url = URL.parse(address ?? "");
      if (!url || !/^https?:$/.test(url.protocol) || hasLogin(url)) {
        throw new ToolsmithError(
          "usage",
          `Cannot use the mirror ${
            JSON.stringify(pair.replace(/\/\/.*@/, "//…@"))
          } in TOOLSMITH_MIRRORS`,
          { hint: "write ghcr.io=https://cache.lan, several with commas" },
        );
      }
      return host === registry ? [{ base: apiBase(url), resolves: true }] : [];
    });
}

/** The directories for a registry, as containerd looks for them. */
function hostNames(registry: string): string[] {
  const port = /^(.*):(\d+)$/.exec(registry);
  const names = port ? [`${port[1]}_${port[2]}_`, registry] : [registry];
  return [...names, "_default"];
}

async function readPermitted(path: string): Promise<string | undefined> {
  const { state } = await Deno.permissions.query({ name: "read", path });
  if (state !== "granted") return undefined;
  try {
    return await Deno.readTextFile(path);
  } catch (error) {
    const none = error instanceof Deno.errors.NotFound ||
      error instanceof Deno.errors.NotADirectory ||
      error instanceof Deno.errors.PermissionDenied;
    if (none) return undefined;
    throw unreadable(path, "it is no plain file", error);
  }
}

async function readHosts(
  text: string,
  dir: string,
  { onWarning }: MirrorOptions,
): Promise<Mirror[]> {
  // Few hosts have such a file: not loaded at every start.
  const { parse } = await import("@std/toml");
  let config: Record<string, unknown>;
  try {
    config = parse(text);
  } catch (cause) {
    // The rest of the message quotes the line, which may hold a secret.
    const at = /line \d+, column \d+/.exec((cause as Error).message);
    const why = `it is not TOML${at ? ` (${at})` : ""}`;
    throw unreadable(join(dir, "hosts.toml"), why, cause);
  }
  const { server, host } = config;
  const tables = Object.entries(isObject(host) ? host : {});
  // The server comes last, and its settings stand outside of any table.
  if (typeof server === "string") tables.push([server, config]);
  return tables.flatMap(([address, table]) => {
    const url = URL.parse(
      /^\w+:\/\//.test(address) ? address : `https://${address}`,
    );
    if (!url || !isObject(table)) return [];
    const { capabilities = ["pull", "resolve"], ca, override_path } = table;
    const has = (word: string) =>
      Array.isArray(capabilities) && capabilities.includes(word);
    if (!has("pull")) return [];
    const unsupported = hasLogin(url)
      ? "a password in its address"
      : ["client", "header"].find((name) => name in table);
    if (unsupported) {
      onWarning?.(
        `The mirror ${url.host} is not used: ${unsupported} in ${dir}/hosts.toml is not supported`,
      );
      return [];
    }
    const [caFile] = [ca].flat().filter((path) => typeof path === "string");
    return [{
      base: override_path === true ? withoutSlash(url.href) : apiBase(url),
      resolves: has("resolve"),
      caFile: caFile === undefined ? undefined : resolve(dir, caFile),
    }];
  });
}

/** `fetch` would send it, over plain HTTP as well. */
function hasLogin({ username, password }: URL): boolean {
  return username !== "" || password !== "";
}

function unreadable(path: string, why: string, cause: unknown) {
  return new ToolsmithError("file_unreadable", `Cannot read ${path}: ${why}`, {
    hint: "fix it: containerd's docs/hosts.md describes the format",
    cause,
  });
}

function apiBase(url: URL): string {
  return `${withoutSlash(url.href).replace(/\/v2$/, "")}/v2`;
}

function withoutSlash(address: string): string {
  return address.replace(/\/+$/, "");
}

function isOwn(base: string, registry: string): boolean {
  const { host } = new URL(base);
  return host === registry ||
    registry === "docker.io" && host === "registry-1.docker.io";
}
