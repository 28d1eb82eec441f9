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
 * not read, counts as not set.
 *
 * Needs `--allow-env` for the variables that are to be seen.
 */
export const processEnvironment: Environment = {
  get(name) {
    try {
      return Deno.env.get(name) || undefined;
    } catch (error) {
      if (error instanceof Deno.errors.NotCapable) return undefined;
      throw error;
    }
  },
};
