/**
 * The guest that tests boot, and variants of it that fail.
 *
 * @module
 */
import { buildGuest } from "../../scripts/guest/build.ts";
import { buildDebian } from "../../scripts/guest/debian.ts";
import type { ToolsmithEvent } from "../../lib/events.ts";
import { needs, parts } from "./parts.ts";

/** Kernel arguments that make a guest fail in one way. */
const VARIANTS = {
  /** Comes up. */
  good: "",
  /** Its first process ends at once. */
  panics: "rdinit=/bin/false",
  /** Cannot mount directories of the host. */
  noDirs: "module_blacklist=9p",
  /** Has 9p, and says that it has not. */
  hides9p:
    `rdinit=/bin/sh -- -c "sed -i '2i mkdir -p /run; echo No such device >/run/toolsmith.no-9p' /etc/agent && exec /init"`,
  /** Comes up with nothing but a shell. */
  noAgent: "rdinit=/bin/sh",
  /** Its agent opens the port and says nothing. */
  silent:
    `rdinit=/bin/sh -- -c "sed -i 's,qemu-ga.*,sleep 9999 </dev/$port,' /etc/agent && exec /init"`,
  /** Writes to its disk, and to /tmp/mark, what no other boot writes. */
  writer:
    `rdinit=/bin/sh -- -c "sed -i '2i od -An -N16 -tx1 /dev/urandom >/tmp/mark; dd if=/tmp/mark of=/dev/vda seek=40 conv=fsync' /etc/agent && exec /init"`,
};

/** How the agent of a hostile guest behaves. */
export type HostileAgent = "never_exits" | "says_maximum" | "silent";

/**
 * Builds a guest whose agent is not honest.
 *
 * @param how What its agent does once it has answered to be there.
 * @returns The image's path.
 */
export function hostileGuest(how: HostileAgent): Promise<string> {
  const agent = `/bin/sh /etc/hostile_agent ${how} /dev/$port`;
  return buildGuest({
    append:
      `rdinit=/bin/sh -- -c "sed -i 's,qemu-ga.*,${agent},' /etc/agent && exec /init"`,
    add: [{
      source: `${import.meta.dirname}/hostile_agent.sh`,
      target: "/etc/hostile_agent",
    }],
  });
}

/** What a test that boots a guest spreads into its definition. */
export const needsGuest = needs("qemu", "qemuImg", "guest");

/** What a test that boots {@linkcode debian} spreads into its definition. */
export const needsDebian = needs("qemu", "qemuImg", "debian");

/** The QEMU that tests use. */
export const env = new Map(
  parts.qemu ? [["TOOLSMITH_QEMU", parts.qemu]] : [],
);

/**
 * Builds a guest, or takes the one that was built before.
 *
 * @param variant Which one.
 * @returns The image's path.
 */
export function guest(
  variant: keyof typeof VARIANTS = "good",
): Promise<string> {
  return buildGuest({ append: VARIANTS[variant] });
}

/**
 * Builds a Debian 12 with systemd, guest agent, python3 and git, or takes the
 * one that was built before.
 *
 * @returns The image's path.
 */
export function debian(): Promise<string> {
  return buildDebian("agent");
}

/** Collects events of one type. */
export function collect<T extends ToolsmithEvent["type"]>(type: T) {
  type Found = Extract<ToolsmithEvent, { type: T }>;
  const events: Found[] = [];
  const onEvent = (event: ToolsmithEvent) => {
    if (event.type === type) events.push(event as Found);
  };
  return { events, onEvent };
}
