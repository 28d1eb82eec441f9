/**
 * Passes the tests: brings what they need, then runs them.
 *
 *     deno task test                      # all
 *     deno task test tests/cache_test.ts  # some
 *
 * @module
 */
import { deno, ROOT } from "./deno.ts";
import { setup, USUAL } from "./setup.ts";

/** Tests that boot guests for minutes: `deno task test:images` runs them. */
const IMAGES = "tests/images/";

const images = Deno.args.some((arg) => arg.includes(IMAGES));
const { oras, registry, actionlint, qemu } = await setup(
  images ? undefined : USUAL,
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
// What takes minutes is asked for by name: deno task test:images, test:faults.
const slow = [IMAGES, "tests/faults/"].map((dir) => `${ROOT}/${dir}`);
const all = [`--ignore=${slow}`, `${ROOT}/tests/`];
const asked = Deno.args.length > 0 ? Deno.args : all;
Deno.exitCode = (await deno("test", "-A", ...asked)).code;
