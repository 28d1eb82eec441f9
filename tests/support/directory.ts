/**
 * A directory for one test, and what is in it.
 *
 * @module
 */

/** A directory that goes when the test ends. */
export interface Dir extends AsyncDisposable {
  /** Its absolute path, without symbolic links. */
  path: string;
}

/** Makes a directory in the system's place for such. */
export async function temporaryDir(): Promise<Dir> {
  const made = await Deno.makeTempDir({ prefix: "toolsmith-test-" });
  const path = await Deno.realPath(made);
  return {
    path,
    [Symbol.asyncDispose]: () => Deno.remove(path, { recursive: true }),
  };
}

/** The names of all that is in a directory, in order. */
export async function namesIn(dir: string): Promise<string[]> {
  const found = await Array.fromAsync(Deno.readDir(dir));
  return found.map(({ name }) => name).sort();
}
