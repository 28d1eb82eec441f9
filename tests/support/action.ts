/**
 * Runs action.yml as GitHub's runner does: each step by bash, with a release and oras
 * served on loopback. The released program starts this checkout's.
 */
import { assertEquals } from "@std/assert";
import { dirname, join } from "@std/path";
import {
  readFileChunks,
  sha256OfChunks,
  sha256OfText,
} from "../../lib/system/digest.ts";
import { runProcess } from "../../lib/system/process.ts";
import { VERSION } from "../../lib/version.ts";
import { PROJECT_ROOT } from "../../scripts/deno.ts";
import { temporaryDir } from "./directory.ts";
import { buildTestGuest, needsGuest } from "./guest.ts";
import { foundTools, requires } from "./parts.ts";
import {
  type JobOptions,
  type JobResult,
  readAction,
  runJob,
} from "./workflow.ts";
import { cleanEnvironment, commandLine } from "./workspace.ts";
export const ACTION = readAction();

/** The fixture of an action test. */
export interface ActionBench {
  /** The checkout, whose manifest names the guest's image. */
  checkout: string;
  /** The image's digest. */
  digest: string;
  /** The commands run with sudo. */
  rootCalls(): Promise<string>;
  /** The files of the release's server by path. */
  files: Record<string, string | Uint8Array<ArrayBuffer>>;
  /** A directory at the front of PATH. */
  bin: string;
  /**
   * Runs the action on a new runner with these inputs and context values; only
   * actions/cache keeps files of earlier jobs.
   */
  use(
    context?: Record<string, string>,
    options?: Pick<JobOptions, "env" | "only">,
  ): Promise<JobResult>;
}

/** Runs a test with a new runner for each use of the action. */
export function testAction(
  name: string,
  body: (bench: ActionBench) => Promise<void>,
) {
  Deno.test({
    name,
    ignore: needsGuest.ignore || requires("oras").ignore ||
      Deno.build.os !== "linux",
    async fn() {
      await using dir = await temporaryDir();
      const [checkout, action, bin, temp] = [
        "checkout",
        "action",
        "bin",
        "temp",
      ]
        .map((name) => join(dir.path, name));
      await Promise.all([bin, temp].map((path) => Deno.mkdir(path)));
      const files: ActionBench["files"] = {};
      await using server = Deno.serve(
        { hostname: "127.0.0.1", port: 0, onListen() {} },
        ({ url }) => {
          const file = files[new URL(url).pathname];
          return new Response(file, { status: file === undefined ? 404 : 200 });
        },
      );
      const base = `http://127.0.0.1:${server.addr.port}`;
      await writeRelease(files);
      await writeAction(action, { base, files });
      const digest = await writeCheckout(checkout);
      const calls = join(dir.path, "calls");
      await Deno.writeTextFile(calls, "");
      // sudo only records its command; tee shows what would be written.
      await Deno.writeTextFile(
        join(bin, "sudo"),
        `#!/bin/sh\necho "$*" >>"${calls}"\n[ "$1" != tee ] || /bin/cat\n`,
        { mode: 0o755 },
      );
      const caching = fakeActionsCache(dir.path);
      await body({
        bin,
        checkout,
        digest,
        files,
        rootCalls: () => Deno.readTextFile(calls),
        async use(context = {}, { env, only } = {}) {
          await Deno.remove(temp, { recursive: true });
          await Deno.mkdir(temp);
          const done = await runJob({ steps: ACTION.runs.steps }, {
            uses: caching.restore,
            cwd: checkout,
            context: {
              "github.action_path": action,
              "github.action_repository": "",
              "github.repository": "owner/toolsmith",
              "github.server_url": base,
              "runner.temp": temp,
              ...actionInputDefaults(),
              ...context,
            },
            only,
            env: {
              ...hostEnvironment(),
              TOOLSMITH_QEMU: "",
              HOME: dir.path,
              PATH: [bin, dirname(foundTools.qemu!), "/usr/bin", "/bin"].join(
                ":",
              ),
              ...env,
            },
          });
          if (!done.failed) await caching.save();
          return done;
        },
      });
    },
  });
}

/** Saves and restores files with their times, as actions/cache does. */
function fakeActionsCache(dir: string) {
  const kept = new Map<string, string>();
  const used = new Map<string, string>();
  const tar = async (words: string) => {
    const args = ["-c", `tar --posix -P ${words}`];
    const { code, stderr } = await runProcess("bash", { args });
    assertEquals(code, 0, stderr);
  };
  return {
    async restore(_action: string, { key, path }: Record<string, string>) {
      const archive = kept.get(key);
      if (archive) await tar(`-xf "${archive}"`);
      else used.set(key, path);
    },
    async save() {
      for (const [key, path] of used) {
        const archive = join(dir, `${key}.tar`);
        const words = path.trim().replace(/^!/gm, "--exclude=").split("\n");
        await tar(`-cf "${archive}" ${words.reverse().join(" ")}`);
        kept.set(key, archive);
      }
      used.clear();
    },
  };
}

/** Without the host's variables, so that only the steps' own count. */
function hostEnvironment(): Record<string, string> {
  const own = new Set(
    ACTION.runs.steps.flatMap(({ env }) => Object.keys(env ?? {})),
  );
  return Object.fromEntries(
    Object.entries(cleanEnvironment()).filter(([name]) => !own.has(name)),
  );
}

function actionInputDefaults(): Record<string, string> {
  return Object.fromEntries(
    Object.entries(ACTION.inputs).map(([name, input]) => [
      `inputs.${name}`,
      input.default.startsWith("${{") ? "" : input.default,
    ]),
  );
}

/** Writes a release whose program starts this checkout's. */
async function writeRelease(files: ActionBench["files"]) {
  const program = `#!/bin/sh\nexec ${await commandLine([])} "$@"\n`;
  const path =
    `/owner/toolsmith/releases/download/v${VERSION}/toolsmith-${Deno.build.target}`;
  files[path] = program;
  files[`${path}.sha256`] = await sha256OfText(program);
}

/** Copies the action's files, with oras from loopback. */
async function writeAction(
  action: string,
  { base, files }: { base: string; files: ActionBench["files"] },
) {
  await Deno.mkdir(join(action, "tools", "oras"), { recursive: true });
  await Deno.copyFile(
    join(PROJECT_ROOT, "install.sh"),
    join(action, "install.sh"),
  );
  const archive = join(action, "oras.tar.gz");
  const args = [
    "-I",
    "gzip -1",
    "-cf",
    archive,
    "-C",
    dirname(foundTools.oras!),
  ];
  // Whatever its name here is, it is oras there.
  const name = foundTools.oras!.slice(dirname(foundTools.oras!).length + 1);
  const packed = await runProcess("tar", {
    args: [...args, `--transform=s/.*/oras/`, name],
  });
  assertEquals(packed.code, 0, packed.stderr);
  files["/oras.tar.gz"] = await Deno.readFile(archive);
  const system = `linux-${Deno.build.arch}`;
  const digest = await sha256OfChunks(readFileChunks(archive));
  const pinned = {
    base: `${base}/`,
    archives: { [system]: { name: "oras.tar.gz", sha256: digest } },
  };
  const release = join(action, "tools", "oras", "release.json");
  await Deno.writeTextFile(release, JSON.stringify(pinned));
}

async function writeCheckout(checkout: string): Promise<string> {
  const qcow2 = await buildTestGuest();
  const qcow2_sha256 = await sha256OfChunks(readFileChunks(qcow2));
  await Deno.mkdir(join(checkout, ".toolsmith"), { recursive: true });
  const image = { name: "demo", tarball: "", sha256: "", qcow2, qcow2_sha256 };
  await Deno.writeTextFile(
    join(checkout, ".toolsmith", "tools.json"),
    JSON.stringify({ image, tools: {}, operations: [] }),
  );
  return `sha256:${qcow2_sha256}`;
}

/** Installs a shell script at the front of PATH. */
export function installProgram(bin: string, name: string, script: string) {
  const text = `#!/bin/sh\n${script}\n`;
  return Deno.writeTextFile(join(bin, name), text, { mode: 0o755 });
}
