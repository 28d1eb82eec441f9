/**
 * Passes the tests: brings what they need, then runs them.
 *
 *     deno task test               # the usual ones
 *     deno task test tests/cache/  # some
 *     deno task test:fleet         # a suite that takes minutes
 *
 * @module
 */
import { deno, ROOT } from "./deno.ts";
import { setup } from "./setup.ts";
import { SUITES, USUAL } from "./setup/parts.ts";

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
const left = suites.map((suite) => `${ROOT}/tests/${suite}/`).join(",");
const tests = Deno.args.length > 0
  ? Deno.args
  : [`--ignore=${left}`, `${ROOT}/tests/`];
Deno.exitCode = (await deno("test", "-A", ...tests)).code;
