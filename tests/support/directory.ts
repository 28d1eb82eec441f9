/** A temporary directory for one test. */

/** A temporary directory; disposing it removes it. */
export interface TemporaryDir extends AsyncDisposable {
  /** Its absolute path, without symbolic links. */
  path: string;
}

export async function temporaryDir(): Promise<TemporaryDir> {
  const made = await Deno.makeTempDir({ prefix: "toolsmith-test-" });
  const path = await Deno.realPath(made);
  return {
    path,
    [Symbol.asyncDispose]: () => Deno.remove(path, { recursive: true }),
  };
}

/** Returns the sorted names in a directory. */
export async function namesIn(dir: string): Promise<string[]> {
  const found = await Array.fromAsync(Deno.readDir(dir));
  return found.map(({ name }) => name).sort();
}
