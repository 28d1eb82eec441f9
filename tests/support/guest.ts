/** The guest that tests boot, and variants of it that fail. */
import { buildGuest } from "../../scripts/guest/build.ts";
import { buildDebian } from "../../scripts/guest/debian.ts";
import type { Part } from "../../scripts/setup.ts";
import type { ToolsmithEvent } from "../../lib/events.ts";
import { foundTools, requires } from "./parts.ts";

/** Kernel arguments by variant, most of which make the guest fail. */
const FAILING_KERNEL_ARGS = {
  /** Boots normally. */
  good: "",
  /** Init exits at once. */
  panics: "rdinit=/bin/false",
  /** Cannot mount host directories. */
  noDirs: "module_blacklist=9p",
  /** Has 9p but reports that it does not. */
  hides9p:
    `rdinit=/bin/sh -- -c "sed -i '2i mkdir -p /run; echo No such device >/run/toolsmith.no-9p' /etc/agent && exec /init"`,
  /** Boots to a shell without an agent. */
  noAgent: "rdinit=/bin/sh",
  /** The agent opens its port, as the console shows, and stays silent. */
  silent:
    `rdinit=/bin/sh -- -c "sed -i 's,exec qemu-ga.*,{ echo agent-is-silent >/dev/console; exec sleep 9999; } </dev/$port,' /etc/agent && exec /init"`,
  /** Writes a unique value to its disk and to /tmp/mark at each boot. */
  writer:
    `rdinit=/bin/sh -- -c "sed -i '2i od -An -N16 -tx1 /dev/urandom >/tmp/mark; dd if=/tmp/mark of=/dev/vda seek=40 conv=fsync' /etc/agent && exec /init"`,
};

/** How the agent of a hostile guest behaves. */
export type HostileAgent = "never_exits" | "says_maximum" | "silent";

/**
 * Builds a guest with a hostile agent.
 *
 * @param how The agent's behaviour after its first answer.
 * @returns The image's path.
 */
export function buildHostileGuest(how: HostileAgent): Promise<string> {
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

/** The parts that tests with a guest need. */
export const GUEST_PARTS: Part[] = ["qemu", "qemuImg", "guest"];

/** Spread into the definition of a test that boots a guest. */
export const needsGuest = requires(...GUEST_PARTS);

/** What a test that boots {@linkcode buildDebianGuest}. Spread into the test's definition. */
export const needsDebian = requires("qemu", "qemuImg", "debian");

/** The environment with the tests' QEMU. */
export const env = new Map(
  foundTools.qemu ? [["TOOLSMITH_QEMU", foundTools.qemu]] : [],
);

/**
 * Builds the test guest unless it exists.
 *
 * @returns The image's path.
 */
export function buildTestGuest(
  variant: keyof typeof FAILING_KERNEL_ARGS = "good",
): Promise<string> {
  return buildGuest({ append: FAILING_KERNEL_ARGS[variant] });
}

/**
 * Builds a Debian 12 guest with systemd, a guest agent and programs that use a network unless it exists.
 *
 * @returns The image's path.
 */
export function buildDebianGuest(): Promise<string> {
  return buildDebian("agent");
}

/** Collects events of one type. */
export function collectEvents<T extends ToolsmithEvent["type"]>(type: T) {
  type Found = Extract<ToolsmithEvent, { type: T }>;
  const events: Found[] = [];
  const onEvent = (event: ToolsmithEvent) => {
    if (event.type === type) events.push(event as Found);
  };
  return { events, onEvent };
}
