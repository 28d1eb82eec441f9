/**
 * A directory for one test.
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
