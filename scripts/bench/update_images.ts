/**
 * Makes raw disks of a Debian system and of its updates, for the benchmark of
 * updates. Needs root on Debian, `mmdebstrap`, `mke2fs` and `debugfs`.
 */
import { join, relative } from "@std/path";
import { walk } from "@std/fs/walk";
import { runOrThrow } from "../guest/_programs.ts";
import { makeDebianTree } from "../guest/_tree.ts";

const SYSTEM = ["systemd-sysv", "udev", "dbus", "python3", "git"];
const ONE_PACKAGE = ["jq"];
const MANY_PACKAGES = [
  ..."bc curl ed file gawk htop jq less lsof make mc nano patch".split(" "),
  ..."rsync screen socat strace tcpdump tmux tree unzip vim-tiny".split(" "),
  ..."wget whois zip".split(" "),
];
const KERNEL = "linux-image-cloud-amd64";
const DISK_SIZE = "2G";

/** Raw disks; all but the first are updates of it. */
export interface UpdateDisks {
  base: string;
  /** By what differs from the base. */
  updates: Record<
    | "a package in place"
    | "25 packages in place"
    | "a kernel in place"
    | "rebuilt",
    string
  >;
}

/** Makes the disks in a directory, which takes some minutes. */
export async function makeUpdateDisks(dir: string): Promise<UpdateDisks> {
  const tree = join(dir, "tree");
  await makeDebianTree({ dir: tree, packages: SYSTEM });
  const base = await makeDisk(tree, join(dir, "base.raw"));
  const inPlace = async (name: string, packages: string[]) => {
    const disk = join(dir, `${name}.raw`);
    await runOrThrow("cp", { args: ["--sparse=always", base, disk] });
    await addFiles(disk, await unpackPackages(join(dir, name), packages));
    return disk;
  };
  const { stdout } = await runOrThrow("apt-cache", {
    args: ["depends", "--important", KERNEL],
  });
  const kernel = /Depends: (linux-image-\S+)/.exec(stdout)![1];
  const updates = {
    "a package in place": await inPlace("one", ONE_PACKAGE),
    "25 packages in place": await inPlace("many", MANY_PACKAGES),
    "a kernel in place": await inPlace("kernel", [kernel]),
    rebuilt: join(dir, "rebuilt.raw"),
  };
  const added = ["-a", `${join(dir, "one")}/.`, tree];
  await runOrThrow("cp", { args: added });
  await makeDisk(tree, updates.rebuilt);
  return { base, updates };
}

async function makeDisk(tree: string, disk: string): Promise<string> {
  await runOrThrow("mke2fs", {
    args: ["-q", "-t", "ext4", "-d", tree, disk, DISK_SIZE],
  });
  return disk;
}

/** Unpacks packages of apt without their dependencies. */
async function unpackPackages(
  dir: string,
  packages: string[],
): Promise<string> {
  const archives = `${dir}.debs`;
  await Deno.mkdir(archives);
  await runOrThrow("apt-get", {
    args: ["-q", "download", "-o", "APT::Sandbox::User=root", ...packages],
    cwd: archives,
  });
  for await (const { name } of Deno.readDir(archives)) {
    await runOrThrow("dpkg-deb", { args: ["-x", join(archives, name), dir] });
  }
  return dir;
}

/** Writes files into an unmounted file system, as an installation would. */
async function addFiles(disk: string, files: string): Promise<void> {
  const commands: string[] = [];
  for await (const entry of walk(files, { followSymlinks: false })) {
    const path = `/${relative(files, entry.path)}`;
    if (path === "/" || /\s/.test(path)) continue;
    if (entry.isDirectory) commands.push(`mkdir ${path}`);
    else if (entry.isSymlink) {
      commands.push(`symlink ${path} ${await Deno.readLink(entry.path)}`);
    } else commands.push(`rm ${path}`, `write ${entry.path} ${path}`);
  }
  // Not fatal: a directory exists, or a file does not yet.
  const input = `${commands.join("\n")}\n`;
  await runOrThrow("debugfs", { args: ["-w", "-f", "-", disk], input });
}
