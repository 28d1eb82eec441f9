/**
 * Draws the pictures of the README into `docs/pictures/`: what goes where, and a
 * recording of a real terminal. The chart is drawn by `deno task bench`.
 *
 *     deno task pictures            # both
 *     deno task pictures overview   # one
 *
 * @module
 */
import { ROOT } from "./deno.ts";
import { setup } from "./setup.ts";

const PICTURES: Record<string, () => Promise<string>> = {
  overview: async () => (await import("./pictures/overview.ts")).overview(),
  async terminal() {
    await setup(["oras", "registry", "qemuImg", "qemu", "guest", "tmux"]);
    // Not before the set-up: it looks for the programs when it is loaded.
    return await (await import("./pictures/recording.ts")).recording();
  },
};

const asked = Deno.args.length > 0 ? Deno.args : Object.keys(PICTURES);
for (const name of asked) {
  if (!PICTURES[name]) throw new Error(`no picture "${name}"`);
  const path = `${ROOT}/docs/pictures/${name}.svg`;
  await Deno.writeTextFile(path, await PICTURES[name]());
  console.error(`wrote ${path}`);
}
