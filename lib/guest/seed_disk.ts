/**
 * The seed disk: a small disk that makes an image's cloud-init start a guest agent.
 * An image without cloud-init ignores the disk.
 *
 * Formats: cloud-init's documentation, "NoCloud" (a file system labelled CIDATA
 * with `meta-data`, `user-data` and `network-config`) and "Cloud config".
 */
import { fatImage } from "./_fat_image.ts";
import { SEED_AGENT_SOURCE } from "./_seed_agent.ts";

/** Some distributions have only a private Python in /usr/libexec. */
const START_SEED_AGENT_SCRIPT = `cd /
for python in python3 /usr/libexec/platform-python; do
  command -v "$python" || continue
  "$python" -c "$1" &
  exit
done </dev/null >/dev/null 2>&1`;

/**
 * Makes cloud-init start the agent and do as little else as possible. Sets no user,
 * password or key, and installs no package.
 */
const CLOUD_CONFIG = {
  // bootcmd runs at each boot: the image may have been booted before.
  bootcmd: [["sh", "-c", START_SEED_AGENT_SCRIPT, "sh", SEED_AGENT_SOURCE]],
  preserve_hostname: true,
  // Restored VMs would share host keys.
  ssh_genkeytypes: [],
  growpart: { mode: "off" },
  // Unused, and costs seconds in an emulated boot.
  grub_dpkg: { enabled: false },
  locale: false,
  resize_rootfs: false,
};

const SEED_FILES = {
  "meta-data": '{"instance-id": "toolsmith"}\n',
  // Without this file some images wait for a missing network.
  "network-config": '{"version": 2, "ethernets": {}}\n',
  // JSON is valid YAML.
  "user-data": `#cloud-config\n${JSON.stringify(CLOUD_CONFIG)}\n`,
};

/** Makes the seed disk, a FAT file system image of always the same bytes. */
export function seedDiskImage(): Uint8Array<ArrayBuffer> {
  return fatImage("CIDATA", SEED_FILES);
}
