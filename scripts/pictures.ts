/**
 * Draws the README's pictures into `docs/pictures/`: an overview and a recording of a
 * real terminal. `deno task bench` draws the chart.
 *
 *     deno task pictures            # both
 *     deno task pictures overview   # one
 */
import { PROJECT_ROOT } from "./deno.ts";
import { setUpTools } from "./setup.ts";

const PICTURE_RENDERERS: Record<string, () => Promise<string>> = {
  overview: async () => (await import("./pictures/overview.ts")).overviewSvg(),
  async terminal() {
    await setUpTools(["oras", "registry", "qemuImg", "qemu", "guest", "tmux"]);
    // Import after the setup: the module looks for programs when loaded.
    return await (await import("./pictures/recording.ts")).recordTerminalSvg();
  },
};

const requestedPictures = Deno.args.length > 0
  ? Deno.args
  : Object.keys(PICTURE_RENDERERS);
for (const name of requestedPictures) {
  if (!PICTURE_RENDERERS[name]) throw new Error(`no picture "${name}"`);
  const path = `${PROJECT_ROOT}/docs/pictures/${name}.svg`;
  await Deno.writeTextFile(path, await PICTURE_RENDERERS[name]());
  console.error(`wrote ${path}`);
}
