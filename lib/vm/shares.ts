/**
 * Plugs into a running machine what differs from run to run: directories of the
 * host, and a network card.
 *
 * @module
 */
import { basename, resolve } from "@std/path";
import { ToolsmithError } from "../errors.ts";
import { setUpGuest, type SetUpOptions } from "../guest/setup.ts";
import type { Monitor } from "../qemu/monitor.ts";
import type { GuestShare } from "../qemu/args.ts";
import { NETWORK_SLOT, shareId, slotId } from "../qemu/devices.ts";
import type { Command } from "../qemu/qmp.ts";

/** A directory that the guest may write to. */
export interface GuestExport {
  /** The directory, on the host. */
  path: string;
  /** Its name: it is mounted at `/mnt/<tag>`. @default {"export"} or its name */
  tag?: string;
}

/** The tag of the workspace. */
export const WORKSPACE_TAG = "work";

const TAG = /^[A-Za-z0-9][A-Za-z0-9_-]{0,30}$/;
const NETWORK_TRIES = 100;
const NETWORK_PAUSE_MS = 100;

/**
 * Reads `DIR` or `DIR:tag`.
 *
 * @param text As it was given.
 * @returns The directory and its tag; without one it is the directory's name.
 */
export function parseExport(text: string): GuestExport {
  const at = text.lastIndexOf(":");
  const tag = text.slice(at + 1);
  return at > 0 && TAG.test(tag)
    ? { path: text.slice(0, at), tag }
    : { path: text };
}

/**
 * Checks directories before a machine is started for them.
 *
 * Needs `--allow-read` for the directories.
 *
 * @param workspace Mounted read-only, if there is one.
 * @param exports Mounted writable.
 * @returns The directories, with absolute paths and tags.
 * @throws {ToolsmithError} `usage` for a bad or doubled tag, or too many;
 * `file_unreadable` for what is not a directory.
 */
export async function planShares(
  workspace: string | undefined,
  exports: GuestExport[],
): Promise<GuestShare[]> {
  const shares: GuestShare[] = [];
  if (workspace !== undefined) {
    shares.push({
      path: await dir(workspace),
      tag: WORKSPACE_TAG,
      writable: false,
    });
  }
  for (const { path, tag } of exports) {
    const share = { path: await dir(path), writable: true };
    shares.push({ ...share, tag: tag ?? basename(share.path) });
  }
  for (const { tag, path } of shares) {
    if (!TAG.test(tag)) {
      throw new ToolsmithError("usage", `Not a usable tag: ${tag}`, {
        hint: `give one of letters, digits, - and _: --export ${path}:TAG`,
      });
    }
    if (shares.filter((other) => other.tag === tag).length > 1) {
      throw new ToolsmithError("usage", `Two directories have the tag ${tag}`, {
        hint: `give each its own: --export ${path}:TAG`,
      });
    }
  }
  // One slot is for the network card.
  if (shares.length > NETWORK_SLOT) {
    throw new ToolsmithError("usage", `Too many exports: ${exports.length}`);
  }
  return shares;
}

/**
 * Plugs directories in, mounts them in the guest, and sets its clock.
 *
 * @param monitor The machine.
 * @param shares As the machine was started with.
 * @param options Whether to set the clock.
 * @throws {ToolsmithError} `guest_failed` when the guest cannot mount them.
 */
export async function attachShares(
  monitor: Monitor,
  shares: GuestShare[],
  options: SetUpOptions = {},
): Promise<void> {
  if (shares.length === 0 && !options.clock) return;
  await monitor.qemu(...shares.map(({ tag }, index): Command => ["device_add", {
    driver: "virtio-9p-pci",
    id: `directory${index}`,
    bus: slotId(index),
    fsdev: shareId(index),
    mount_tag: tag,
  }]));
  await setUpGuest(monitor, shares, options);
}

/**
 * Plugs a network card in and waits until the guest has an address.
 *
 * @param monitor The machine.
 * @returns Whether the guest has an address.
 */
export async function attachNetwork(monitor: Monitor): Promise<boolean> {
  await monitor.qemu(
    ["netdev_add", { type: "user", id: "network" }],
    ["device_add", {
      driver: "virtio-net-pci",
      id: "card",
      bus: slotId(NETWORK_SLOT),
      netdev: "network",
    }],
  );
  for (let tries = 0; tries < NETWORK_TRIES; tries++) {
    const found = await monitor.agent(["guest-network-get-interfaces"])
      .catch(() => []) as Interface[];
    const addressed = found.some((card) =>
      card.name !== "lo" &&
      card["ip-addresses"]?.some((at) => at["ip-address-type"] === "ipv4")
    );
    if (addressed) return true;
    await new Promise((done) => setTimeout(done, NETWORK_PAUSE_MS));
  }
  return false;
}

interface Interface {
  name: string;
  "ip-addresses"?: { "ip-address-type": string }[];
}

async function dir(path: string): Promise<string> {
  const found = await Deno.stat(path).catch(() => undefined);
  if (found?.isDirectory) return await Deno.realPath(resolve(path));
  throw new ToolsmithError("file_unreadable", `Not a directory: ${path}`);
}
