/**
 * The types of what this project uses of JSR's standard library. The npm packages have
 * no types, so the modules in std/ declare these, to get the same type errors as with
 * JSR. `compare.ts` checks them against the real ones.
 *
 * Functions are properties and not methods, whose parameters TypeScript would
 * compare less strictly.
 */

/** The versions that the signatures were copied from. */
export const VERSIONS = {
  "@std/assert": "1.0.19",
  "@std/cli": "1.0.32",
  "@std/crypto": "1.1.0",
  "@std/fs": "1.0.24",
  "@std/path": "1.1.6",
  "@std/toml": "1.0.11",
  "@std/yaml": "1.2.0",
};

// deno-lint-ignore no-explicit-any
type ErrorClass<E extends Error> = abstract new (...args: any[]) => E;

/** Of `@std/assert`. */
export interface StdAssert {
  assert: (expr: unknown, msg?: string) => asserts expr;
  assertEquals: <T>(actual: T, expected: T, msg?: string) => void;
  assertMatch: (actual: string, expected: RegExp, msg?: string) => void;
  assertRejects: {
    (fn: () => PromiseLike<unknown>, msg?: string): Promise<unknown>;
    <E extends Error = Error>(
      fn: () => PromiseLike<unknown>,
      ErrorClass: ErrorClass<E>,
      ...[msgIncludes, msg]: [msgIncludes?: string, msg?: string]
    ): Promise<E>;
  };
  assertStringIncludes: (
    actual: string,
    expected: string,
    msg?: string,
  ) => void;
  assertThrows: {
    (fn: () => unknown, msg?: string): unknown;
    <E extends Error = Error>(
      fn: () => unknown,
      ErrorClass: ErrorClass<E>,
      ...[msgIncludes, msg]: [msgIncludes?: string, msg?: string]
    ): E;
  };
}

type OnUnknown = (arg: string, key?: string, value?: unknown) => unknown;

/** Of `@std/cli/parse-args`, with the options that the code passes. */
export interface StdParseArgs {
  parseArgs: ParseFlags;
}

export type ParseFlags = (
  args: readonly string[],
  options: { string: string[]; collect?: string[]; unknown: OnUnknown },
) => { [name: string]: unknown; _: (string | number)[] };

/** Of `@std/crypto`. */
export interface StdCrypto {
  crypto: {
    readonly subtle: {
      digest: (
        algorithm: "SHA-256",
        data: BufferSource | AsyncIterable<BufferSource>,
      ) => Promise<ArrayBuffer>;
    };
  };
}

/** Of `@std/fs`. */
export interface StdFs {
  copy: (
    src: string | URL,
    dest: string | URL,
    options?: { overwrite?: boolean },
  ) => Promise<void>;
  walk: (
    root: string | URL,
    options?: { includeDirs?: boolean; followSymlinks?: boolean },
  ) => AsyncIterableIterator<
    {
      path: string;
      name: string;
      isFile: boolean;
      isDirectory: boolean;
      isSymlink: boolean;
    }
  >;
}

/** Of `@std/path`. */
export interface StdPath {
  SEPARATOR: "/" | "\\";
  basename: (path: string | URL, suffix?: string) => string;
  dirname: (path: string | URL) => string;
  fromFileUrl: (url: string | URL) => string;
  isAbsolute: (path: string) => boolean;
  join: (path: string | URL, ...paths: string[]) => string;
  relative: (from: string, to: string) => string;
  resolve: (...pathSegments: string[]) => string;
}

/** Of `@std/yaml`. */
export interface StdYaml {
  parse: (content: string) => unknown;
}

/** Of `@std/toml`. */
export interface StdToml {
  parse: (tomlString: string) => Record<string, unknown>;
}
