/**
 * Permissions for the network and for configuration files, without a prompt.
 */
import { orIfNotFound } from "../system/files.ts";
import { isPermissionGranted } from "../environment.ts";

/** Any other protocol is that of a SOCKS proxy. */
const DEFAULT_URL_PORTS: Record<string, number> = {
  "https:": 443,
  "http:": 80,
};

export function hasNetPermission(url: URL): boolean {
  const port = url.port || DEFAULT_URL_PORTS[url.protocol] || 1080;
  return isPermissionGranted({ name: "net", host: `${url.hostname}:${port}` });
}

/** Reads a text file; returns `undefined` if it is missing or not permitted. */
export async function readTextIfPermitted(
  path: string,
): Promise<string | undefined> {
  return isPermissionGranted({ name: "read", path })
    ? await orIfNotFound(Deno.readTextFile(path))
    : undefined;
}
