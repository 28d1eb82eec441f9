/**
 * Environment variables behind an interface: callers and tests may pass a `Map`,
 * the default is the process's own environment. And what Deno permits this process.
 */

/** A source of environment variables, such as `Deno.env` or a `Map`. */
export interface Environment {
  /** The value of a variable, or `undefined`. */
  get(name: string): string | undefined;
}

/**
 * The environment of this process. A variable that is empty, or that Deno may not
 * read, counts as unset; there is no permission prompt.
 */
export const processEnvironment: Environment = {
  get(name) {
    return isPermissionGranted({ name: "env", variable: name })
      ? Deno.env.get(name) || undefined
      : undefined;
  },
};

/** Never prompts. */
export function isPermissionGranted(descriptor: Deno.PermissionDescriptor) {
  return Deno.permissions.querySync(descriptor).state === "granted";
}
