/**
 * What the end-to-end tests share: a workspace in a directory of its own, QCOW2s
 * to publish, and the program run in it as a user does.
 *
 * @module
 */
import { dirname, join } from "@std/path";
import { fileChunks, sha256 } from "../../lib/system/digest.ts";
import { type Output, run, type RunOptions } from "../../lib/system/process.ts";
import { denoArgs, ROOT } from "../../scripts/deno.ts";
import { needs, parts } from "./parts.ts";
import { type Registry, startRegistry } from "./registry.ts";

/** Media type of the guide. */
export const TYPE = "application/vnd.fountain.toolsmith.qcow2";

/** A directory with a manifest. */
export interface Workspace extends AsyncDisposable {
  /** Its path. */
  dir: string;
  /** Writes the manifest; fields given override the usual ones. */
  manifest(image: Record<string, unknown>): Promise<void>;
  /** Runs the program here, with the permissions of the `hydrate` set. */
  toolsmith(args: string[], options?: CliOptions): Promise<Output>;
  /** Every file below the cache, but for locks. */
  cached(): Promise<string[]>;
}

/** How the program is run. */
export interface CliOptions extends RunOptions {
  /** Permissions. @default {["-P=hydrate"]} */
  permissions?: string[];
}

/** Makes a workspace. */
export async function workspace(): Promise<Workspace> {
  const dir = await Deno.realPath(
    await Deno.makeTempDir({ prefix: "toolsmith-test-" }),
  );
  await Deno.mkdir(join(dir, ".toolsmith"));
  return {
    dir,
    async manifest(image) {
      const whole = { name: "demo", tarball: "", sha256: "", ...image };
      const text = JSON.stringify({ image: whole, tools: {}, operations: [] });
      await Deno.writeTextFile(join(dir, ".toolsmith", "tools.json"), text);
    },
    toolsmith: (args, options = {}) =>
      toolsmith(args, { cwd: dir, ...options }),
    cached: () => files(join(dir, ".toolsmith", "cache")),
    async [Symbol.asyncDispose]() {
      await Deno.remove(dir, { recursive: true });
    },
  };
}

/** Runs the program as a user does: a process of its own. */
export async function toolsmith(
  args: string[],
  options: CliOptions = {},
): Promise<Output> {
  const { permissions = ["-P=hydrate"], env, ...rest } = options;
  const command = await cliCommand(args, permissions);
  return await run(Deno.execPath(), {
    args: command,
    timeoutMs: 120_000,
    ...rest,
    env: { ...cleanEnvironment(), ...env },
  });
}

/** The arguments that make Deno run the program. */
export function cliCommand(args: string[], permissions: string[]) {
  const config = `--config=${ROOT}/deno.json`;
  return denoArgs(
    ["run", "--quiet", config, ...permissions, `${ROOT}/cli.ts`, ...args],
  );
}

/** The program with the permissions of the `run` set, as it is typed. */
export async function commandLine(args: string[]): Promise<string> {
  return [Deno.execPath(), ...await cliCommand(args, ["-P=run"])].join(" ");
}

/**
 * The environment of a host: oras is on PATH, and nothing that the developer
 * has set for Toolsmith gets in the way.
 */
export function cleanEnvironment(): Record<string, string> {
  const { oras } = parts;
  const path = Deno.env.get("PATH") ?? "";
  return {
    PATH: oras ? `${dirname(oras)}:${path}` : path,
    NO_COLOR: "1",
    LC_ALL: "C.UTF-8",
    // Else Deno itself asks the network, once a day.
    DENO_NO_UPDATE_CHECK: "1",
    TOOLSMITH_ORAS: "",
    TOOLSMITH_CACHE: "",
    TOOLSMITH_MANIFEST: "",
    TOOLSMITH_DIGEST: "",
    GHCR_TOKEN: "",
    GHCR_USERNAME: "",
    GITHUB_ACTOR: "",
    GITHUB_TOKEN: "",
    DOCKER_CONFIG: "/nonexistent",
  };
}

/** The last line of `--json`, and the events before it. */
export function jsonLines(stdout: string) {
  const lines = stdout.trimEnd().split("\n").map((line) => JSON.parse(line));
  return { events: lines.slice(0, -1), last: lines[lines.length - 1] };
}

/** Makes a QCOW2 with data that no compression makes smaller. */
export async function makeQcow2(path: string, bytes = 1024 * 1024) {
  await Deno.mkdir(dirname(path), { recursive: true });
  const raw = `${path}.raw`;
  using file = await Deno.open(raw, { write: true, create: true });
  const chunk = new Uint8Array(65536);
  for (let written = 0; written < bytes; written += chunk.length) {
    await file.write(crypto.getRandomValues(chunk));
  }
  const args = ["convert", "-f", "raw", "-O", "qcow2", raw, path];
  const { code, stderr } = await run("qemu-img", { args });
  if (code !== 0) throw new Error(stderr);
  await Deno.remove(raw);
  return { path, sha256: await sha256(fileChunks(path)) };
}

/** Pushes files with oras itself, as the guide's step 3 does. */
export async function orasPush(
  reference: string,
  layers: string[],
  options: { cwd: string; args?: string[]; env?: Record<string, string> },
) {
  const { code, stderr } = await run(parts.oras!, {
    args: ["push", ...options.args ?? ["--plain-http"]].concat(
      ["--artifact-type", TYPE, reference],
      layers,
    ),
    cwd: options.cwd,
    env: options.env,
  });
  if (code !== 0) throw new Error(stderr);
}

/** What {@linkcode publishImage} publishes, and where. */
export interface PublishImageOptions {
  /** The image's path in the workspace. @default {"image.qcow2"} */
  file?: string;
  /** Bytes of data in it. @default {1 MiB} */
  bytes?: number;
  /** Repository and tag. @default {"owner/image:1.0"} */
  name?: string;
  /** The host that the manifest names. @default {the registry's} */
  host?: string;
  /** What oras finds in its environment. */
  env?: Record<string, string>;
}

/** Makes an image, pushes it as the guide says, and writes a manifest for it. */
export async function publishImage(
  registry: Registry,
  work: Workspace,
  options: PublishImageOptions = {},
): Promise<{ sha256: string; reference: string }> {
  const { file = "image.qcow2", name = "owner/image:1.0", env } = options;
  const { dir } = work;
  const { sha256 } = await makeQcow2(join(dir, file), options.bytes);
  await orasPush(`${registry.host}/${name}`, [`${file}:${TYPE}`], {
    cwd: dir,
    args: registry.orasFlags,
    env,
  });
  const reference = `${options.host ?? registry.host}/${name}`;
  await work.manifest({ qcow2: `oci://${reference}`, qcow2_sha256: sha256 });
  return { sha256, reference };
}

/** What {@linkcode testWithImage} gives a test. */
export interface ImageBench {
  /** A workspace, as yet without a manifest. */
  work: Workspace;
  /** Its directory. */
  dir: string;
  /** The path of `dist/image.qcow2` in it. */
  image: string;
  /** That image's digest. */
  sha256: string;
  /** An empty registry. */
  registry: Registry;
  /** Its address and port. */
  host: string;
}

/** Runs one test with an image and a registry of its own. */
export function testWithImage(
  name: string,
  body: (bench: ImageBench) => Promise<void>,
): void {
  Deno.test({
    name,
    ...needs("oras", "registry", "qemuImg"),
    async fn() {
      await using work = await workspace();
      await using registry = await startRegistry();
      const { dir } = work;
      const image = join(dir, "dist", "image.qcow2");
      const { sha256 } = await makeQcow2(image);
      const { host } = registry;
      await body({ work, dir, image, sha256, registry, host });
    },
  });
}

async function files(dir: string): Promise<string[]> {
  const found: string[] = [];
  try {
    for await (const { name, isDirectory } of Deno.readDir(dir)) {
      const path = join(dir, name);
      if (isDirectory) found.push(...await files(path));
      else if (!name.endsWith(".lock")) found.push(path);
    }
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
  return found.sort();
}
