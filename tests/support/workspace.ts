/**
 * Helpers of end-to-end tests: a temporary workspace, QCOW2 images, and running the
 * program as a user does.
 */
import { dirname, join, resolve } from "@std/path";
import { readFileChunks, sha256OfChunks } from "../../lib/system/digest.ts";
import {
  type ProcessResult,
  runProcess,
  type RunProcessOptions,
} from "../../lib/system/process.ts";
import { PROJECT_ROOT, withImportMap } from "../../scripts/deno.ts";
import { foundTools, requires } from "./parts.ts";
import { type Registry, startRegistry } from "./registry.ts";

/** The media type of QCOW2 layers. */
export const TYPE = "application/vnd.fountain.toolsmith.qcow2";

/** A directory with a manifest. */
export interface Workspace extends AsyncDisposable {
  /** Its path. */
  dir: string;
  /** Writes the manifest; given fields override the defaults. */
  manifest(image: Record<string, unknown>): Promise<void>;
  /** Runs the program here, with the permissions of the `hydrate` set. */
  toolsmith(args: string[], options?: CliOptions): Promise<ProcessResult>;
  /** Every file in the cache except locks. */
  cached(): Promise<string[]>;
}

export interface CliOptions extends RunProcessOptions {
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

/** Runs the program in a separate process. */
export async function toolsmith(
  args: string[],
  options: CliOptions = {},
): Promise<ProcessResult> {
  const { permissions = ["-P=hydrate"], env, ...rest } = options;
  const command = await cliCommand(args, permissions);
  return await runProcess(Deno.execPath(), {
    args: command,
    timeoutMs: 1_200_000,
    ...rest,
    env: { ...cleanEnvironment(), ...env },
  });
}

/**
 * Returns Deno's arguments to run the program, from the bundle if the test runner made
 * one, which halves the start time.
 */
export async function cliCommand(args: string[], permissions: string[]) {
  const config = `--config=${PROJECT_ROOT}/deno.json`;
  const bundled = Deno.env.get("TOOLSMITH_TEST_PROGRAM");
  return bundled
    ? ["run", "--quiet", config, ...permissions, resolve(bundled), ...args]
    : await withImportMap(
      [
        "run",
        "--quiet",
        config,
        ...permissions,
        `${PROJECT_ROOT}/cli.ts`,
        ...args,
      ],
    );
}

/** Returns a shell command line that runs the program with permission set `run`. */
export async function commandLine(args: string[]): Promise<string> {
  return [Deno.execPath(), ...await cliCommand(args, ["-P=run"])].join(" ");
}

/**
 * Returns a clean environment: oras is on PATH, and the developer's own variables for
 * Toolsmith are unset.
 */
export function cleanEnvironment(): Record<string, string> {
  const { oras } = foundTools;
  const path = Deno.env.get("PATH") ?? "";
  return {
    PATH: oras ? `${dirname(oras)}:${path}` : path,
    NO_COLOR: "1",
    LC_ALL: "C.UTF-8",
    // Otherwise Deno checks for updates over the network once a day.
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

/** Parses the output of `--json`: the last line, and the events before it. */
export function jsonLines(stdout: string) {
  const lines = stdout.trimEnd().split("\n").map((line) => JSON.parse(line));
  return { events: lines.slice(0, -1), last: lines[lines.length - 1] };
}

/** Makes a QCOW2 with incompressible data. */
export async function makeQcow2(path: string, bytes = 1024 * 1024) {
  await Deno.mkdir(dirname(path), { recursive: true });
  const raw = `${path}.raw`;
  using file = await Deno.open(raw, { write: true, create: true });
  const chunk = new Uint8Array(65536);
  for (let written = 0; written < bytes; written += chunk.length) {
    await file.write(crypto.getRandomValues(chunk));
  }
  const args = ["convert", "-f", "raw", "-O", "qcow2", raw, path];
  const { code, stderr } = await runProcess("qemu-img", { args });
  if (code !== 0) throw new Error(stderr);
  await Deno.remove(raw);
  return { path, sha256: await sha256OfChunks(readFileChunks(path)) };
}

/** Pushes files with oras, as the docs describe. */
export async function orasPush(
  reference: string,
  layers: string[],
  options: { cwd: string; args?: string[]; env?: Record<string, string> },
) {
  const { code, stderr } = await runProcess(foundTools.oras!, {
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
  /** oras's environment. */
  env?: Record<string, string>;
}

/** Makes an image, pushes it with oras, and writes a manifest for it. */
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
  /** A workspace without a manifest. */
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

/** Runs a test with its own image and registry. */
export function testWithImage(
  name: string,
  body: (bench: ImageBench) => Promise<void>,
): void {
  Deno.test({
    name,
    ...requires("oras", "registry", "qemuImg"),
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
