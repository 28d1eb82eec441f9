/**
 * Unpacks Debian packages into a directory, so that their programs run without root
 * and without installation.
 */
import { ToolsmithError } from "../../lib/errors.ts";
import { runProcess } from "../../lib/system/process.ts";
import { runAptGet } from "./apt.ts";

/** The kernel's package; its dependencies are only for hosts that boot it. */
export const KERNEL_PACKAGE = "linux-image-amd64";

/**
 * Downloads packages with the dependencies that this host lacks, unpacks them into
 * `root/`, and writes a wrapper script for each program to `bin/`. The file `packages`
 * lists the archives with their versions.
 *
 * Needs `--allow-run=apt-get,dpkg-deb`, `--allow-read`, `--allow-write`.
 *
 * @param dir An existing directory, absolute. It may be moved afterwards.
 * @throws {ToolsmithError} `failed` with the error of apt-get or dpkg-deb.
 */
export async function downloadAndUnpackPackages(
  packages: string[],
  dir: string,
): Promise<void> {
  const archives = `${dir}/archives`;
  await Deno.mkdir(archives);
  const programs = packages.filter((name) => name !== KERNEL_PACKAGE);
  const plan = await runAptGet(["install", "--simulate", ...programs]);
  const needed = [...plan.matchAll(/^Inst (\S+)/gm)].map(([, name]) => name);
  const wanted = new Set([...programs, ...needed]);
  if (packages.includes(KERNEL_PACKAGE)) {
    wanted.add(await offeredKernelPackage(archives));
  }
  await runAptGet(["download", ...wanted], archives);
  const names = directoryEntries(archives).sort();
  for (const name of names) {
    await runDpkgDeb("--extract", `${archives}/${name}`, `${dir}/root`);
  }
  await Deno.remove(archives, { recursive: true });
  await Deno.writeTextFile(`${dir}/packages`, `${names.join("\n")}\n`);
  await writeWrapperScripts(dir);
}

/** Returns the versioned kernel package that the metapackage depends on. */
async function offeredKernelPackage(archives: string): Promise<string> {
  await runAptGet(["download", KERNEL_PACKAGE], archives);
  const archive = directoryEntries(archives).find((name) =>
    name.startsWith(KERNEL_PACKAGE)
  );
  const depends = await runDpkgDeb(
    "--field",
    `${archives}/${archive}`,
    "Depends",
  );
  return depends.split(" ")[0];
}

async function runDpkgDeb(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await runProcess("dpkg-deb", { args });
  if (code === 0) return stdout;
  throw new ToolsmithError("failed", `dpkg-deb failed: ${stderr.trim()}`);
}

/**
 * Returns the library directories of unpacked packages, relative to the root, such as
 * `usr/lib/x86_64-linux-gnu`.
 *
 * Needs `--allow-read`.
 */
export function libraryDirs(root: string): string[] {
  return ["usr/lib", "lib"].flatMap((lib) =>
    directoryEntries(`${root}/${lib}`).filter((name) =>
      name.includes("-linux-gnu")
    )
      .map((name) => `${lib}/${name}`)
  );
}

/** The wrappers set LD_LIBRARY_PATH to the unpacked libraries. */
async function writeWrapperScripts(dir: string): Promise<void> {
  const root = `${dir}/root`;
  const libraries = libraryDirs(root).map((path) => `$root/${path}`).join(":");
  await Deno.mkdir(`${dir}/bin`);
  for (const place of ["usr/bin", "usr/sbin", "bin", "sbin"]) {
    for (const name of directoryEntries(`${root}/${place}`)) {
      const path = `${place}/${name}`;
      await makeLinkRelative(root, path);
      await Deno.writeTextFile(
        `${dir}/bin/${name}`,
        `#!/bin/sh\nroot=\${0%/*}/../root\n` +
          `export LD_LIBRARY_PATH="${libraries}"\n` +
          `exec "$root/${path}" "$@"\n`,
        { mode: 0o755 },
      );
    }
  }
}

/** Rewrites an absolute symbolic link, such as `depmod` to `/bin/kmod`, as a relative one. */
async function makeLinkRelative(root: string, path: string): Promise<void> {
  const target = await Deno.readLink(`${root}/${path}`).catch(() => "");
  if (!target.startsWith("/")) return;
  await Deno.remove(`${root}/${path}`);
  const up = "../".repeat(path.split("/").length - 1);
  await Deno.symlink(`${up}${target.slice(1)}`, `${root}/${path}`);
}

function directoryEntries(dir: string): string[] {
  try {
    return Array.from(Deno.readDirSync(dir), ({ name }) => name);
  } catch {
    return [];
  }
}
