/**
 * Passes the tests: brings what they need, then runs them.
 *
 *     deno task test               # the usual ones
 *     deno task test tests/cache/  # some
 *     deno task test:fleet         # a suite that takes minutes
 *
 * @module
 */
import { run } from "../lib/system/process.ts";
import { deno, denoArgs, ROOT } from "./deno.ts";
import { setup } from "./setup.ts";
import { SUITES, USUAL } from "./setup/parts.ts";

/** Directories of tests that boot no guest. */
const WITHOUT_GUESTS = [
  ...["cache", "hydrate", "image", "manifest", "oci", "publish", "scripts"],
  "system",
];

const suites = Object.keys(SUITES);
const asked = suites.filter((suite) =>
  Deno.args.some((arg) => arg.includes(`tests/${suite}`))
);
const { oras, registry, actionlint, qemu } = await setup(
  [...USUAL, ...asked.flatMap((suite) => SUITES[suite])],
);
const found = {
  TOOLSMITH_ORAS: oras,
  TOOLSMITH_TEST_REGISTRY: registry,
  TOOLSMITH_TEST_ACTIONLINT: actionlint,
  TOOLSMITH_QEMU: qemu,
};
for (const [name, path] of Object.entries(found)) {
  if (path) Deno.env.set(name, path);
}
// Tests read sizes and times.
Deno.env.set("LC_ALL", "C.UTF-8");
Deno.exitCode = Deno.args.length > 0
  ? (await deno("test", "-A", ...Deno.args)).code
  : await usualTests();

/**
 * Passes the usual tests in two processes: one guest keeps one processor busy, and
 * what has none waits for most of its time.
 */
async function usualTests(): Promise<number> {
  const at = (names: string[]) => names.map((it) => `${ROOT}/tests/${it}/`);
  const stop = new AbortController();
  const quiet = run(Deno.execPath(), {
    args: await denoArgs(["test", "-A", ...at(WITHOUT_GUESTS)]),
    signal: stop.signal,
  });
  quiet.catch(() => {});
  const ignored = `--ignore=${at([...suites, ...WITHOUT_GUESTS]).join(",")}`;
  const { code, signal } = await deno("test", "-A", ignored, `${ROOT}/tests/`);
  if (signal) {
    stop.abort();
    return code;
  }
  const done = await quiet;
  console.log(done.stdout + done.stderr);
  return code || done.code;
}
