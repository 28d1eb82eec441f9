/**
 * The seed: a small disk through which an image's own cloud-init starts a guest
 * agent. An image without cloud-init does not look at it.
 *
 * Formats: cloud-init's documentation, "NoCloud" (a file system labelled CIDATA
 * with `meta-data`, `user-data` and `network-config`) and "Cloud config".
 *
 * @module
 */
import { fatImage } from "./_fat_image.ts";
import { SEED_AGENT_PROGRAM } from "./_seed_agent.ts";

/** Some distributions keep a Python for their own programs elsewhere. */
const START = `for python in python3 /usr/libexec/platform-python; do
  command -v "$python" >/dev/null && exec "$python" -c "$1"
done`;

/**
 * What cloud-init does, besides starting the agent: as little as it can be asked
 * for. No user, password or key is set, and no package is installed.
 */
const CONFIG = {
  // At each boot, and early: the image may have been booted before.
  bootcmd: [["sh", "-c", START, "sh", SEED_AGENT_PROGRAM]],
  preserve_hostname: true,
  // Clones of one machine would share them.
  ssh_genkeytypes: [],
  growpart: { mode: "off" },
  // Seconds of an emulated boot, for what nobody uses here.
  grub_dpkg: { enabled: false },
  locale: false,
  resize_rootfs: false,
};

const FILES = {
  "meta-data": '{"instance-id": "toolsmith"}\n',
  // Without it some images wait for a network that is not there.
  "network-config": '{"version": 2, "ethernets": {}}\n',
  // YAML takes JSON as it is.
  "user-data": `#cloud-config\n${JSON.stringify(CONFIG)}\n`,
};

/**
 * Makes the seed.
 *
 * @returns The bytes of a FAT file system; always the same.
 */
export function seedImage(): Uint8Array<ArrayBuffer> {
  return fatImage("CIDATA", FILES);
}
