/**
 * Unpacks Debian packages into a directory, where their programs run without
 * being installed, and without root.
 *
 * @module
 */
import { ToolsmithError } from "../../lib/errors.ts";
import { run } from "../../lib/system/process.ts";
import { aptGet } from "./apt.ts";

/** The kernel's package. What else it needs is for hosts that boot it. */
export const KERNEL = "linux-image-amd64";

/**
 * Downloads packages, and those that they need and this host lacks, and unpacks
 * them: into `root/` as they are, with a starter for each program in `bin/`.
 * The file `packages` names the archives, with their versions.
 *
 * Needs `--allow-run=apt-get,dpkg-deb`, `--allow-read`, `--allow-write`.
 *
 * @param packages Their names.
 * @param dir An existing directory, absolute. It may be moved afterwards.
 * @throws {ToolsmithError} `failed` with what apt-get or dpkg-deb said.
 */
export async function unpackPackages(
  packages: string[],
  dir: string,
): Promise<void> {
  const archives = `${dir}/archives`;
  await Deno.mkdir(archives);
  const programs = packages.filter((name) => name !== KERNEL);
  const plan = await aptGet(["install", "--simulate", ...programs]);
  const needed = [...plan.matchAll(/^Inst (\S+)/gm)].map(([, name]) => name);
  const wanted = new Set([...programs, ...needed]);
  if (packages.includes(KERNEL)) wanted.add(await kernelPackage(archives));
  await aptGet(["download", ...wanted], archives);
  const names = entries(archives).sort();
  for (const name of names) {
    await dpkgDeb("--extract", `${archives}/${name}`, `${dir}/root`);
  }
  await Deno.remove(archives, { recursive: true });
  await Deno.writeTextFile(`${dir}/packages`, `${names.join("\n")}\n`);
  await writeStarters(dir);
}

/** Names the kernel that Debian offers now, which its package depends on. */
async function kernelPackage(archives: string): Promise<string> {
  await aptGet(["download", KERNEL], archives);
  const archive = entries(archives).find((name) => name.startsWith(KERNEL));
  const depends = await dpkgDeb("--field", `${archives}/${archive}`, "Depends");
  return depends.split(" ")[0];
}

async function dpkgDeb(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await run("dpkg-deb", { args });
  if (code === 0) return stdout;
  throw new ToolsmithError("failed", `dpkg-deb failed: ${stderr.trim()}`);
}

/**
 * The directories with libraries of unpacked packages.
 *
 * Needs `--allow-read`.
 *
 * @param root Where they are unpacked.
 * @returns Paths in it, such as `usr/lib/x86_64-linux-gnu`.
 */
export function libraryDirs(root: string): string[] {
  return ["usr/lib", "lib"].flatMap((lib) =>
    entries(`${root}/${lib}`).filter((name) => name.includes("-linux-gnu"))
      .map((name) => `${lib}/${name}`)
  );
}

/** A starter says where the libraries are that this host lacks. */
async function writeStarters(dir: string): Promise<void> {
  const root = `${dir}/root`;
  const libraries = libraryDirs(root).map((path) => `$root/${path}`).join(":");
  await Deno.mkdir(`${dir}/bin`);
  for (const place of ["usr/bin", "usr/sbin", "bin", "sbin"]) {
    for (const name of entries(`${root}/${place}`)) {
      const path = `${place}/${name}`;
      await linkInside(root, path);
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

/** Makes an absolute link, such as that of `depmod` to `/bin/kmod`, a relative one. */
async function linkInside(root: string, path: string): Promise<void> {
  const target = await Deno.readLink(`${root}/${path}`).catch(() => "");
  if (!target.startsWith("/")) return;
  await Deno.remove(`${root}/${path}`);
  const up = "../".repeat(path.split("/").length - 1);
  await Deno.symlink(`${up}${target.slice(1)}`, `${root}/${path}`);
}

function entries(dir: string): string[] {
  try {
    return Array.from(Deno.readDirSync(dir), ({ name }) => name);
  } catch {
    return [];
  }
}
