/**
 * A program that stands in for `oras`: where the real one, or a registry, is too
 * well-behaved.
 *
 * @module
 */
import { join } from "@std/path";
import { temporaryDir } from "./directory.ts";

/** Where a stand-in can be run: it is a shell script. */
export const shell = { ignore: Deno.build.os === "windows" };

/** A stand-in; disposing removes it. */
export interface FakeOras extends AsyncDisposable {
  /** Its path. */
  path: string;
  /** A directory for whatever a test wants to keep with it. */
  dir: string;
  /** The environment that names it. */
  env: Map<string, string>;
  /** The arguments that it was last called with; `undefined` if it was not. */
  args(): Promise<string[] | undefined>;
  /** What it then got on standard input. */
  input(): Promise<string>;
}

/**
 * Makes a stand-in.
 *
 * @param script What it does, in shell; `$out` is what follows `--output`.
 */
export async function fakeOras(script: string): Promise<FakeOras> {
  const made = await temporaryDir();
  const path = join(made.path, "oras");
  const text = `#!/bin/sh
cat > "$0.input"
printf '%s\\0' "$@" > "$0.args"
out=
for arg do
  [ "$out" = next ] && out=$arg
  [ "$arg" = --output ] && out=next
done
true
${script}
`;
  await Deno.writeTextFile(path, text, { mode: 0o755 });
  return {
    path,
    dir: made.path,
    env: new Map([["TOOLSMITH_ORAS", path]]),
    async args() {
      const text = await Deno.readTextFile(`${path}.args`).catch(() => "");
      return text === "" ? undefined : text.split("\0").slice(0, -1);
    },
    input: () => Deno.readTextFile(`${path}.input`),
    [Symbol.asyncDispose]: () => made[Symbol.asyncDispose](),
  };
}
