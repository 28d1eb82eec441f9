/**
 * A folder for one test.
 *
 * @module
 */

/** A folder that goes when the test ends. */
export interface Folder extends AsyncDisposable {
  /** Its absolute path, without symbolic links. */
  path: string;
}

/** Makes a folder in the system's place for such. */
export async function temporaryFolder(): Promise<Folder> {
  const made = await Deno.makeTempDir({ prefix: "toolsmith-test-" });
  const path = await Deno.realPath(made);
  return {
    path,
    [Symbol.asyncDispose]: () => Deno.remove(path, { recursive: true }),
  };
}
