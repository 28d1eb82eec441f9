/**
 * Finds the mirrors and pull-through caches of a registry, in containerd's
 * configuration and in `TOOLSMITH_MIRRORS`.
 *
 * Format: containerd, "Registry Configuration" (`docs/hosts.md`):
 *
 *     <certs.d>/<host>/hosts.toml
 *     server = "https://registry.example"
 *     [host."https://cache.lan"]
 *       capabilities = ["pull", "resolve"]
 *       ca = "cache.pem"
 */
import { dirname, join, resolve } from "../path.ts";
import { type Environment, processEnvironment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import { orIfDenied, orIfMissing } from "../system/files.ts";
import { isJsonObject, jsonObjectOrEmpty } from "../system/json.ts";
import { readTextIfPermitted } from "./_permission_queries.ts";

/** A mirror of a registry. It needs no trust, because digests are verified. */
export interface Mirror {
  /** Base URL of the API, such as `https://cache.lan/v2`. */
  baseUrl: string;
  resolvesTags: boolean;
  /** A PEM file with the CA certificate to trust. */
  caFile?: string;
}

/** containerd's default. */
const DEFAULT_MIRROR_CONFIG_DIRS =
  "/etc/containerd/certs.d:/etc/docker/certs.d";

/**
 * Finds the mirrors of a registry, without the registry itself, in the order of their
 * use. A file that is not permitted counts as missing; a malformed one is an error.
 * `onWarning` is called for each unsupported mirror.
 */
export async function findMirrors(
  registry: string,
  env: Environment = processEnvironment,
  onWarning?: (message: string) => void,
): Promise<Mirror[]> {
  const simple = parseMirrorsVariable(registry, env);
  for (const dir of mirrorConfigDirs(env)) {
    for (const name of registryDirNames(registry)) {
      const path = join(dir, name, "hosts.toml");
      const text = await readHostsToml(path);
      if (text === undefined) continue;
      const hosts = await parseHostsToml(text, path, onWarning);
      const mirrors = hosts
        .filter(({ baseUrl }) => !isRegistryItself(baseUrl, registry));
      return [...simple, ...mirrors];
    }
  }
  return simple;
}

/**
 * Returns the directories that may have a subdirectory with `hosts.toml` for each
 * registry. They may not exist.
 */
export function mirrorConfigDirs(env: Environment): string[] {
  const dirs = env.get("TOOLSMITH_REGISTRY_CONFIG") ||
    DEFAULT_MIRROR_CONFIG_DIRS;
  const separator = Deno.build.os === "windows" ? ";" : ":";
  return dirs.split(separator).filter(Boolean);
}

/** Parses `ghcr.io=https://cache.lan,docker.io=http://10.0.0.1:5000`. */
function parseMirrorsVariable(registry: string, env: Environment): Mirror[] {
  const pairs = (env.get("TOOLSMITH_MIRRORS") ?? "").split(",")
    .map((pair) => pair.trim()).filter(Boolean);
  return pairs.flatMap((pair) => {
    const [, host, address] = /^([^=]+)=(.+)$/.exec(pair) ?? [];
    const url = URL.parse(address ?? "");
    if (!url || !/^https?:$/.test(url.protocol) || hasUserInfo(url)) {
      const shown = JSON.stringify(pair.replace(/\/\/.*@/, "//…@"));
      const message = `Cannot use the mirror ${shown} in TOOLSMITH_MIRRORS`;
      const hint =
        "write HOST=URL pairs without passwords, separated by commas, such as ghcr.io=https://cache.lan";
      throw new ToolsmithError("usage", message, { hint });
    }
    if (host !== registry) return [];
    return [{ baseUrl: toApiBaseUrl(url), resolvesTags: true }];
  });
}

/** Returns a registry's directory names, in containerd's order. */
function registryDirNames(registry: string): string[] {
  const port = /^(.*):(\d+)$/.exec(registry);
  const names = port ? [`${port[1]}_${port[2]}_`, registry] : [registry];
  return [...names, "_default"];
}

function readHostsToml(path: string): Promise<string | undefined> {
  return orIfDenied(orIfMissing(readTextIfPermitted(path))).catch((error) => {
    throw unreadableHostsTomlError(path, "not a regular file", error);
  });
}

async function parseHostsToml(
  text: string,
  path: string,
  onWarning?: (message: string) => void,
): Promise<Mirror[]> {
  // Few hosts have such a file, so the parser is not imported at every start.
  const { parse } = await import("@std/toml");
  let config: Record<string, unknown>;
  try {
    config = parse(text);
  } catch (cause) {
    // The rest of the parser's message quotes a line that may hold a secret.
    const at = /line \d+, column \d+/.exec((cause as Error).message);
    const why = `not TOML${at ? ` (${at})` : ""}`;
    throw unreadableHostsTomlError(path, why, cause);
  }
  const { server, host } = config;
  const tables = Object.entries(jsonObjectOrEmpty(host));
  // The server has the lowest precedence, and its settings are top-level keys.
  if (typeof server === "string") tables.push([server, config]);
  return tables.flatMap(([address, table]) => {
    const hasScheme = /^\w+:\/\//.test(address);
    const url = URL.parse(hasScheme ? address : `https://${address}`);
    if (!url || !isJsonObject(table)) return [];
    const { capabilities = ["pull", "resolve"], ca, override_path } = table;
    const has = (word: string) =>
      Array.isArray(capabilities) && capabilities.includes(word);
    if (!has("pull")) return [];
    const unsupported = hasUserInfo(url)
      ? "a password in the URL"
      : ["client", "header"].find((name) => name in table);
    if (unsupported) {
      const problem = `${unsupported} in ${path} is not supported`;
      onWarning?.(`Skipping mirror ${url.host}: ${problem}`);
      return [];
    }
    const baseUrl = override_path === true
      ? stripTrailingSlashes(url.href)
      : toApiBaseUrl(url);
    const [caFile] = [ca].flat().filter((file) => typeof file === "string")
      .map((file) => resolve(dirname(path), file));
    return [{ baseUrl, resolvesTags: has("resolve"), caFile }];
  });
}

/** fetch() would send the password, even over plain HTTP. */
function hasUserInfo({ username, password }: URL): boolean {
  return username !== "" || password !== "";
}

function unreadableHostsTomlError(path: string, why: string, cause: unknown) {
  return new ToolsmithError("file_unreadable", `Cannot read ${path}: ${why}`, {
    hint: "fix the file; containerd's docs/hosts.md describes the format",
    cause,
  });
}

function toApiBaseUrl(url: URL): string {
  return `${stripTrailingSlashes(url.href).replace(/\/v2$/, "")}/v2`;
}

function stripTrailingSlashes(address: string): string {
  return address.replace(/\/+$/, "");
}

function isRegistryItself(baseUrl: string, registry: string): boolean {
  const { host } = new URL(baseUrl);
  return host === registry ||
    registry === "docker.io" && host === "registry-1.docker.io";
}
