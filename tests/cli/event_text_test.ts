import { assertEquals } from "@std/assert";
import { describe } from "../../lib/cli/event_text.ts";
import type { ToolsmithEvent, Untimed } from "../../lib/events.ts";
import { INSPECTED, START } from "../support/events.ts";

const MIB = 1024 * 1024;
const DIGEST = `sha256:${"ab".repeat(32)}`;
const timestamp = "2026-01-31T12:00:00.000Z";

const VERIFIED = {
  type: "publish_verified",
  image: "demo",
  reference: "ghcr.io/o/r:1",
  digest: DIGEST,
  verify: "manifest",
} as const;

const POLL = {
  type: "publish_poll",
  image: "demo",
  reference: "ghcr.io/o/r:1",
  attempt: 2,
  attempts: 20,
  message: "later",
  delayMs: 6000,
} as const;

const BOOT = {
  type: "vm_boot",
  image: "/x",
  how: "boot",
  backend: "qemu",
  version: "7.2",
  accelerator: "tcg",
  memory: 512,
  cpus: 1,
} as const;

const READY = {
  type: "boot_ready",
  image: "/x",
  how: "restored",
  phases: { start: 1, guest: 1, save: 0, attach: 0 },
  elapsedMs: 200,
} as const;

Deno.test("what happens is said in plain words", () => {
  const said: [Untimed<ToolsmithEvent>, string | undefined][] = [
    [START, "getting demo, 64.0 MiB, from oci://ghcr.io/o/r:1"],
    [{ ...START, bytes: null }, "getting demo from oci://ghcr.io/o/r:1"],
    [
      { ...START, resumed: 39 * MIB + 1, connections: 4 },
      "getting demo, 64.0 MiB, from oci://ghcr.io/o/r:1, resuming at 60 %, 4 connections",
    ],
    [
      { type: "ranges_unavailable", image: "demo", reason: "r answers 416" },
      "demo comes by oras pull: r answers 416",
    ],
    [
      {
        type: "mirror_failed",
        image: "demo",
        mirror: "cache.lan",
        reason: "no such host",
      },
      "warning: mirror cache.lan is given up: no such host",
    ],
    [
      {
        type: "download_end",
        image: "demo",
        source: "x",
        bytes: 64 * MIB,
        elapsedMs: 4000,
      },
      "got 64.0 MiB in 4.0 s (16.0 MiB/s)",
    ],
    [
      {
        type: "retry",
        image: "demo",
        code: "transfer_interrupted",
        message: "it was cut",
        attempt: 2,
        attempts: 4,
        delayMs: 1000,
      },
      "warning: it was cut; attempt 2 of 4 in 1.0 s",
    ],
    [
      { type: "cache_hit", image: "demo", path: "/x", digest: DIGEST },
      "cached demo sha256:abababababab",
    ],
    [
      { type: "lock_wait", image: "demo", path: "/x" },
      "waiting: another process is getting demo",
    ],
    [{ type: "warning", message: "careful" }, "warning: careful"],
    [
      {
        type: "push_end",
        image: "demo",
        reference: "ghcr.io/o/r:1",
        digest: DIGEST,
        bytes: 64 * MIB,
        elapsedMs: 4000,
      },
      `pushed 64.0 MiB in 4.0 s: ghcr.io/o/r:1@${DIGEST}`,
    ],
    [VERIFIED, "verified: the registry serves the same digests"],
    [{ ...VERIFIED, verify: "pull" }, "verified: pulled back, byte for byte"],
    [{ ...POLL, outcome: "served" }, undefined],
    [{ ...POLL, outcome: "waiting" }, "not served yet (2 of 20): later"],
    [BOOT, "booting with QEMU 7.2, tcg, 512 MiB, 1 processor"],
    [
      { ...BOOT, cpus: 2 },
      "booting with QEMU 7.2, tcg, 512 MiB, 2 processors",
    ],
    [{ ...BOOT, how: "restore" }, undefined],
    [
      { type: "download_progress", image: "demo", bytes: 1, total: 2 },
      undefined,
    ],
    [
      { ...START, resumed: MIB, bytes: null, connections: 1 },
      "getting demo from oci://ghcr.io/o/r:1",
    ],
    [
      { ...START, resumed: 1, connections: 2 },
      "getting demo, 64.0 MiB, from oci://ghcr.io/o/r:1, resuming at 0 %, 2 connections",
    ],
    [
      {
        type: "download_end",
        image: "demo",
        source: "x",
        bytes: 1,
        elapsedMs: 0,
      },
      "got 1 B in 0.0 s (1000 B/s)",
    ],
    [
      {
        type: "download_end",
        image: "demo",
        source: "x",
        bytes: 1000,
        elapsedMs: 1000,
      },
      "got 1000 B in 1.0 s (1000 B/s)",
    ],
    [{ ...READY, agent: "qemu" }, "restored in 0.2 s, guest agent: qemu"],
    [
      { ...READY, agent: "toolsmith" },
      "restored in 0.2 s, guest agent: Toolsmith's own",
    ],
    [
      INSPECTED,
      "publishing x.qcow2: 64.0 MiB, a disk of 128.0 MiB",
    ],
    [
      { ...INSPECTED, compressed: true },
      "publishing x.qcow2: 64.0 MiB, a disk of 128.0 MiB, compressed",
    ],
  ];
  for (const [event, line] of said) {
    assertEquals(describe({ timestamp, ...event } as ToolsmithEvent), line);
  }
});
