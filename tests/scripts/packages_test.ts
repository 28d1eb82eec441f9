/**
 * Tests unpacking Debian packages without root, with a fake apt-get, which needs no
 * network, and the real dpkg-deb.
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { copy } from "@std/fs/copy";
import { join } from "@std/path";
import { type ProcessResult, runProcess } from "../../lib/system/process.ts";
import { hasApt } from "../../scripts/setup/apt.ts";
import { PROJECT_ROOT } from "../../scripts/deno.ts";
import { temporaryDir } from "../support/directory.ts";

/** A user without other files; needs root to run as. */
const NOBODY = 54_323;
const PROGRAMS = [
  "sh",
  "cat",
  "cp",
  "tar",
  "setpriv",
  "dpkg-deb",
  "dpkg-query",
];

/** A fake apt-get that offers the packages of a directory. */
const APT = (dir: string, offers: "at once" | "after an update" | "nothing") =>
  `#!/bin/sh
echo "$@" >>'${dir}/apt.log'
case "$*" in
  *update*) echo 'W: Failed to fetch http://deb.test: no network' >&2
    exit;;
esac
[ '${offers}' = 'at once' ] || case "$*" in
  *Dir::State::Lists=*) [ '${offers}' != nothing ];;
  *) false;;
esac || { echo 'E: Unable to locate package unzip' >&2; exit 100; }
case "$*" in
  *--simulate*) echo 'Inst libgreeting (1.0 Debian:12 [all])';;
  *) cp '${dir}'/packages/*.deb .;;
esac
`;

/** A host with a non-root user and a fake apt-get. */
interface Host {
  /** Runs the setup for these parts. */
  setup(
    env: Record<string, string>,
    ...parts: string[]
  ): Promise<ProcessResult>;
  /** Runs a program by its path in the host's project. */
  run(path: string): Promise<ProcessResult>;
  /** Returns the only directory of a part in `.cache/tools`. */
  home(): string;
  /** The calls of apt-get. */
  apt(): string[];
}

function testHost(
  name: string,
  offers: Parameters<typeof APT>[1],
  body: (host: Host) => Promise<void>,
): void {
  Deno.test({
    name,
    ignore: !hasApt(),
    async fn() {
      await using dir = await temporaryDir();
      const at = (path: string) => join(dir.path, path);
      await Deno.mkdir(at("bin"));
      for (const program of PROGRAMS) {
        const found = await runProcess("sh", {
          args: ["-c", `command -v ${program}`],
        });
        await Deno.symlink(found.stdout.trim(), at(`bin/${program}`));
      }
      await Deno.writeTextFile(at("bin/apt-get"), APT(dir.path, offers), {
        mode: 0o755,
      });
      await buildPackages(at("packages"));
      for (const part of ["lib", "scripts", "tools"]) {
        await copy(`${PROJECT_ROOT}/${part}`, at(`project/${part}`));
      }
      const isRoot = Deno.uid() === 0;
      if (isRoot) {
        await runProcess("chown", { args: ["-R", `${NOBODY}`, dir.path] });
      }
      const asUser = (args: string[], env = {}) =>
        runProcess(isRoot ? "setpriv" : args[0], {
          args: isRoot
            ? [`--reuid=${NOBODY}`, "--clear-groups", "--", ...args]
            : args.slice(1),
          cwd: dir.path,
          env: {
            ...{ PATH: at("bin"), HOME: dir.path, DENO_DIR: at("deno") },
            ...{ NO_COLOR: "1", ...env },
          },
        });
      const home = () =>
        Array.from(Deno.readDirSync(at("project/.cache/tools")))
          .map(({ name }) => at(`project/.cache/tools/${name}`))
          .find((path) => path.includes("unzip-"))!;
      await body({
        setup: async (env, ...parts) => {
          const script = at("project/scripts/setup.ts");
          const flags = ["run", "-A", "--no-config", script, ...parts];
          const ended = await asUser([Deno.execPath(), ...flags], env);
          // A slow host prints a line every 30 seconds.
          const stderr = ended.stderr.replace(/^setup: still .*\n/gm, "");
          return { ...ended, stderr };
        },
        run: (path) => asUser([path]),
        home,
        apt: () => Deno.readTextFileSync(at("apt.log")).trim().split("\n"),
      });
    },
  });
}

/** Builds a package with a program, a link to it as kmod has, and a library. */
async function buildPackages(dir: string): Promise<void> {
  const files = {
    "unzip/usr/bin/tool": '#!/bin/sh\necho "$0"\ncat "$LD_LIBRARY_PATH/text"\n',
    "libgreeting/usr/lib/x86_64-linux-gnu/text": "hello\n",
  };
  await Deno.mkdir(dir);
  for (const [path, text] of Object.entries(files)) {
    const [name] = path.split("/");
    const tree = join(dir, name);
    await Deno.mkdir(join(dir, path, ".."), { recursive: true });
    await Deno.writeTextFile(join(dir, path), text, { mode: 0o755 });
    if (name === "unzip") {
      await Deno.symlink("/usr/bin/tool", join(tree, "usr/bin/unzip"));
    }
    await Deno.mkdir(join(tree, "DEBIAN"));
    await Deno.writeTextFile(
      join(tree, "DEBIAN/control"),
      `Package: ${name}\nVersion: 1.0\nArchitecture: all\nMaintainer: a\nDescription: b\n`,
    );
    const { code, stderr } = await runProcess("dpkg-deb", {
      args: ["--build", tree, join(dir, `${name}_1.0_all.deb`)],
    });
    assertEquals(code, 0, stderr);
  }
}

testHost(
  "setUpTools() unpacks a package with its libraries for a user who is not root",
  "at once",
  async ({ setup, run, home, apt }) => {
    // CI may have no sudo either.
    const { code, stderr } = await setup({ CI: "true" }, "unzip");
    assertEquals([code, stderr], [
      0,
      "setup: downloading unzip from Debian's packages\n",
    ]);
    assertEquals(apt().length, 2);
    assertMatch(apt()[1], /download unzip libgreeting$/);
    const packages = await Deno.readTextFile(`${home()}/packages`);
    assertEquals(packages, "libgreeting_1.0_all.deb\nunzip_1.0_all.deb\n");
    // The link points into the tree and survives moving the tree.
    const moved = `${home()} moved`;
    await Deno.rename(home(), moved);
    const { stdout } = await run(`${moved}/bin/unzip`);
    const [path, text] = stdout.split("\n");
    assertEquals(path, `${moved}/bin/../root/usr/bin/unzip`);
    assertEquals(text, "hello");
    assertEquals(
      (await setup({}, "unzip")).stderr.match(/downloading/g)?.length,
      1,
    );
  },
);

testHost(
  "setUpTools() downloads its own package lists when the system's lack a package",
  "after an update",
  async ({ setup, apt }) => {
    const { code, stderr } = await setup({}, "unzip");
    assertEquals(code, 0, stderr);
    const [, update, ...rest] = apt();
    assert(rest.every((args) => args.includes("-oDir::State::Lists=/")));
    assertMatch(update, /-oDir::State::Lists=\S+ .*update$/);
  },
);

testHost(
  "setUpTools() prints why a package is unavailable and the command to install it",
  "nothing",
  async ({ setup, apt }) => {
    const { code, stderr } = await setup({}, "unzip", "tmux");
    assertEquals(code, 1);
    const why = stderr.match(
      /: apt-get .* failed: Unable to locate package unzip; Failed to fetch http:\/\/deb\.test: no network$/gm,
    );
    assertEquals(why?.length, 2, stderr);
    assertEquals(stderr.trimEnd().split("\n").slice(-2), [
      "setup: unzip is missing: sudo apt-get install unzip",
      "setup: tmux is missing: sudo apt-get install tmux",
    ]);
    assertEquals(apt().filter((args) => args.includes("update")).length, 1);
  },
);
