/**
 * Makes raw disks of a Debian system and of its updates, for the benchmark of
 * updates. Needs root on Debian, `mmdebstrap`, `mke2fs`, `rsync` and loop devices.
 */
import { join } from "@std/path";
import { runOrThrow } from "../guest/_programs.ts";
import { makeDebianTree } from "../guest/_tree.ts";

const KERNEL = "linux-image-cloud-amd64";
const SYSTEM = [
  ..."systemd-sysv udev dbus python3 git cloud-init openssh-server".split(" "),
  KERNEL,
];
/** The base has the version before the latest one. */
const UPGRADED_PACKAGE = "libssl3";
const MANY_PACKAGES = [
  ..."bc curl ed file gawk htop jq less lsof make mc nano patch".split(" "),
  ..."rsync screen socat strace tcpdump tmux tree unzip vim-tiny".split(" "),
  ..."wget whois zip".split(" "),
];
const DISK_SIZE = "2G";

/**
 * Makes raw disks in a directory, which takes some minutes: a base, and its updates by
 * what differs.
 */
export async function makeUpdateDisks(dir: string) {
  const tree = join(dir, "tree");
  await makeDebianTree({ dir: tree, packages: SYSTEM });
  // Started services would keep a disk busy.
  const policy = join(tree, "usr/sbin/policy-rc.d");
  await Deno.writeTextFile(policy, "#!/bin/sh\nexit 101\n", { mode: 0o755 });
  const [latest, previous] = await findVersions(UPGRADED_PACKAGE);
  const upgrade = [`${UPGRADED_PACKAGE}=${latest}`];
  await installPackages(tree, [`${UPGRADED_PACKAGE}=${previous}`]);
  const base = await makeDisk(tree, join(dir, "base.raw"));
  const update = async (name: string, change: (root: string) => unknown) => {
    const disk = join(dir, `${name}.raw`);
    await runOrThrow("cp", { args: ["--sparse=always", base, disk] });
    await changeDisk(disk, change);
    return disk;
  };
  const inPlace = (name: string, packages: string[]) =>
    update(name, (root) => installPackages(root, packages));
  const updates = {
    "a package in place": await inPlace("one", upgrade),
    "25 packages in place": await inPlace("many", MANY_PACKAGES),
    "a kernel in place": await inPlace("kernel", [await findOtherKernel()]),
  };
  await installPackages(tree, upgrade);
  const sync = ["-aHAX", "--delete", "--checksum", "--exclude=/lost+found"];
  return {
    base,
    updates: {
      ...updates,
      rebuilt: await makeDisk(tree, join(dir, "rebuilt.raw")),
      "rebuilt, copied onto the base": await update(
        "synced",
        (root) => runOrThrow("rsync", { args: [...sync, `${tree}/`, root] }),
      ),
    },
  };
}

/** Returns the versions of a package in apt, the latest first. */
async function findVersions(name: string): Promise<string[]> {
  const { stdout } = await runOrThrow("apt-cache", { args: ["madison", name] });
  return stdout.trim().split("\n").map((line) => line.split("|")[1].trim());
}

/** Returns the kernel before the one that the system has. */
async function findOtherKernel(): Promise<string> {
  const { stdout } = await runOrThrow("apt-cache", {
    args: ["depends", "--important", KERNEL],
  });
  const [, current] = /Depends: (linux-image-\S+)/.exec(stdout)!;
  const { stdout: names } = await runOrThrow("apt-cache", {
    args: ["pkgnames", current.replace(/\d+-cloud.*/, "")],
  });
  const others = names.trim().split("\n").filter((name) =>
    name.endsWith("-cloud-amd64") && name !== current
  );
  const { compare } = new Intl.Collator("en", { numeric: true });
  return others.sort(compare).at(-1)!;
}

async function makeDisk(tree: string, disk: string): Promise<string> {
  await runOrThrow("mke2fs", {
    args: ["-q", "-t", "ext4", "-d", tree, disk, DISK_SIZE],
  });
  return disk;
}

/** Mounts a disk and changes its files. */
async function changeDisk(
  disk: string,
  change: (root: string) => unknown,
): Promise<void> {
  const root = `${disk}.mounted`;
  await Deno.mkdir(root);
  await runOrThrow("mount", { args: ["-o", "loop", disk, root] });
  try {
    await change(root);
    await runOrThrow("fstrim", { args: [root] });
  } finally {
    await runOrThrow("umount", { args: [root] });
  }
}

/** Installs packages of apt into a system, without their dependencies. */
async function installPackages(
  root: string,
  packages: string[],
): Promise<void> {
  const archives = await Deno.makeTempDir({ prefix: "toolsmith-debs-" });
  try {
    await runOrThrow("apt-get", {
      args: ["-q", "download", "-o", "APT::Sandbox::User=root", ...packages],
      cwd: archives,
    });
    const names = Array.from(Deno.readDirSync(archives), ({ name }) => name);
    await runOrThrow("dpkg", {
      args: ["--force-depends,downgrade", `--root=${root}`, "-i", ...names],
      cwd: archives,
      env: { DEBIAN_FRONTEND: "noninteractive" },
    });
  } finally {
    await Deno.remove(archives, { recursive: true });
  }
}
