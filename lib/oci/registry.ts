/**
 * How a registry is reached.
 *
 * @module
 */
import type { Environment } from "../environment.ts";
import { isLoopback } from "../system/address_network.ts";

/** How a registry is reached. */
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
  /** Ends whatever runs. @default {undefined} */
  signal?: AbortSignal;
  /**
   * Time after which a transfer that does not grow, or a request that gets no
   * answer, is aborted, in milliseconds.
   *
   * @default {60_000}
   */
  stallTimeoutMs?: number;
}

/**
 * Takes what a registry needs out of an operation's options.
 *
 * @param options The options of `hydrate()`, `publish()` and others.
 * @returns Those of the registry alone.
 */
export function registryOptions(options: RegistryOptions): RegistryOptions {
  const { plainHttp, caFile, env, signal, stallTimeoutMs } = options;
  return { plainHttp, caFile, env, signal, stallTimeoutMs };
}

/**
 * Tells whether a registry is reached by plain HTTP.
 *
 * @param registry Its host, and port if any.
 * @param options What was asked for; else loopback registries are.
 */
export function isPlainHttp(
  registry: string,
  { plainHttp, caFile }: RegistryOptions,
): boolean {
  return plainHttp ?? (!caFile && isLoopback(registry));
}
