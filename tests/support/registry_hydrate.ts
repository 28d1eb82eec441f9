/** Hydrates from a real registry in this process. */
import { join } from "@std/path";
import type { ToolsmithError } from "../../lib/errors.ts";
import type { ToolsmithEvent } from "../../lib/events.ts";
import {
  hydrate,
  type HydrateOptions,
  type HydrateResult,
} from "../../lib/hydrate/hydrate.ts";
import { loadManifest } from "../../lib/manifest/manifest.ts";
import { foundTools } from "./parts.ts";
import { type Registry, startRegistry } from "./registry.ts";
import { publishImage, type Workspace, workspace } from "./workspace.ts";

if (foundTools.oras) Deno.env.set("TOOLSMITH_ORAS", foundTools.oras);
// The developer's own configuration must not affect tests.
Deno.env.set("DOCKER_CONFIG", "/nonexistent");

/** An image in a registry. */
export interface PublishedImage {
  registry: Registry;
  /** The image's path. */
  path: string;
  /** Its size, in bytes. */
  size: number;
  sha256: string;
  /** Makes a workspace whose manifest names the image at a host. */
  workspace(host: string): Promise<Workspace>;
}

/**
 * Publishes one image for all tests of a file, as `owner/image:1.0`.
 *
 * @param bytes Size of its data.
 * @param ignore Whether the tests are skipped.
 * @returns A function that returns it while the tests run.
 */
export function publishedImageOfFile(
  bytes: number,
  ignore: boolean,
): () => PublishedImage {
  let published: PublishedImage;
  let undo: AsyncDisposableStack;
  Deno.test.beforeAll(async () => {
    undo = new AsyncDisposableStack();
    if (ignore) return;
    const registry = undo.use(await startRegistry());
    const work = undo.use(await workspace());
    const { sha256 } = await publishImage(registry, work, { bytes });
    const path = join(work.dir, "image.qcow2");
    const { size } = await Deno.stat(path);
    published = {
      ...{ registry, path, size, sha256 },
      async workspace(host) {
        const made = await workspace();
        const qcow2 = `oci://${host}/owner/image:1.0`;
        await made.manifest({ qcow2, qcow2_sha256: sha256 });
        return made;
      },
    };
  });
  Deno.test.afterAll(() => undo.disposeAsync());
  return () => published;
}

/** The result and events of a hydrate. */
export interface HydrateRun {
  result?: HydrateResult;
  error?: ToolsmithError;
  events: ToolsmithEvent[];
  /** The events of a type. */
  of<T extends ToolsmithEvent["type"]>(
    type: T,
  ): Extract<ToolsmithEvent, { type: T }>[];
}

/**
 * Hydrates a workspace's image with short retry pauses.
 *
 * @param dir The workspace.
 * @param options Overrides.
 */
export async function hydrateWorkspace(
  dir: string,
  options: HydrateOptions = {},
): Promise<HydrateRun> {
  const events: ToolsmithEvent[] = [];
  const manifest = await loadManifest(join(dir, ".toolsmith", "tools.json"));
  const ended = await hydrate(manifest, {
    retryDelayMs: 1,
    ...options,
    onEvent(event) {
      events.push(event);
      options.onEvent?.(event);
    },
  }).then((result) => ({ result }), (error) => ({ error }));
  const of = (type: string) => events.filter((event) => event.type === type);
  return { events, of: of as HydrateRun["of"], ...ended };
}
