/** Options for the connection to a registry. */
import type { Environment } from "../environment.ts";
import { isLoopbackHost } from "../system/ip_address.ts";

/** Options for the connection to a registry. */
export interface RegistryOptions {
  /** Use plain HTTP. @default {undefined} for loopback registries only */
  plainHttp?: boolean;
  /** A PEM file with the certificate authority to trust. @default {undefined} */
  caFile?: string;
  /**
   * Read for `TOOLSMITH_ORAS`, `TOOLSMITH_DIGEST`, `GHCR_TOKEN`, `GHCR_USERNAME`,
   * `GITHUB_ACTOR`.
   *
   * @default {processEnvironment}
   */
  env?: Environment;
  /** Cancels running operations when aborted. @default {undefined} */
  signal?: AbortSignal;
  /**
   * Time after which a transfer without progress, or a request without a response,
   * is aborted, in milliseconds.
   *
   * @default {60_000}
   */
  stallTimeoutMs?: number;
}

export function usesPlainHttp(
  registry: string,
  { plainHttp, caFile }: RegistryOptions,
): boolean {
  return plainHttp ?? (!caFile && isLoopbackHost(registry));
}

export const CONNECTIONS_RANGE_TEXT = "a number from 1 to 99";

export function parseConnectionCount(text: string): number | undefined {
  return /^[1-9]\d?$/.test(text) ? Number(text) : undefined;
}
