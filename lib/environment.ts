/**
 * The environment variables that Toolsmith reads, behind a port: a caller or a
 * test passes a `Map`, everybody else gets the process's own.
 *
 * @module
 */

/** Where variables are read from; `Deno.env` and a `Map` both fit. */
export interface Environment {
  /** The value of a variable, or `undefined`. */
  get(name: string): string | undefined;
}

/**
 * The environment of this process. A variable that is empty, or that Deno may
 * not read, counts as not set; nobody is asked for the permission.
 *
 * Needs `--allow-env` for the variables that are to be seen.
 */
export const processEnvironment: Environment = {
  get(name) {
    const descriptor = { name: "env", variable: name } as const;
    const { state } = Deno.permissions.querySync(descriptor);
    return state === "granted" ? Deno.env.get(name) || undefined : undefined;
  },
};
