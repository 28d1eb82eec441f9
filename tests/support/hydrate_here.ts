/**
 * Hydrates in this process as the program would, with exit status and error code.
 */
import { toToolsmithError } from "../../lib/errors.ts";
import { hydrate, type HydrateOptions } from "../../lib/hydrate/hydrate.ts";
import { loadManifest } from "../../lib/manifest/manifest.ts";
import { cleanEnvironment, type Workspace } from "./workspace.ts";

/** The outcome of a hydrate. */
export interface HydrateOutcome {
  /** The program's exit status for this outcome. */
  status: number;
  /** The result's outcome, if it succeeded. */
  outcome?: string;
  /** The error's code, if it failed. */
  code?: string;
  /** The error's message, or empty. */
  message: string;
}

/** What {@linkcode hydrateInProcess} takes. */
export interface HydrateHereOptions extends HydrateOptions {
  /** Variables besides those of {@linkcode cleanEnvironment}. @default {{}} */
  variables?: Record<string, string>;
}

/**
 * Hydrates a workspace's image with the working directory and environment of a user.
 *
 * @param work The workspace.
 * @param options Variables, and options of `hydrate()`.
 */
export async function hydrateInProcess(
  work: Workspace,
  { variables = {}, ...options }: HydrateHereOptions = {},
): Promise<HydrateOutcome> {
  using undo = new DisposableStack();
  const here = Deno.cwd();
  undo.defer(() => Deno.chdir(here));
  Deno.chdir(work.dir);
  for (
    const [name, value] of Object.entries({
      ...cleanEnvironment(),
      ...variables,
    })
  ) {
    const before = Deno.env.get(name);
    undo.defer(() =>
      before === undefined ? Deno.env.delete(name) : Deno.env.set(name, before)
    );
    Deno.env.set(name, value);
  }
  try {
    const manifest = await loadManifest();
    const { outcome } = await hydrate(manifest, { retries: 0, ...options });
    return { status: 0, outcome, message: "" };
  } catch (thrown) {
    const { code, message, exitStatus } = toToolsmithError(thrown);
    return { status: exitStatus, code, message };
  }
}
