/**
 * A fake `oras`, for faults that the real one, or a registry, does not have.
 */
import { join } from "@std/path";
import { temporaryDir } from "./directory.ts";

/** Skips tests where a shell script cannot run. */
export const shell = { ignore: Deno.build.os === "windows" };

/** A fake oras; disposing removes it. */
export interface FakeOras extends AsyncDisposable {
  /** Its path. */
  path: string;
  /** A directory for the test's files. */
  dir: string;
  /** The environment with TOOLSMITH_ORAS. */
  env: Map<string, string>;
  /** The arguments that it was last called with; `undefined` if it was not. */
  args(): Promise<string[] | undefined>;
  /** The standard input of that call. */
  input(): Promise<string>;
}

/**
 * Makes a fake oras.
 *
 * @param script Its shell script; `$out` is the value of `--output`.
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
