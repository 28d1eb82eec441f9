import { assertEquals } from "@std/assert";
import { eventLine } from "../../lib/cli/event_lines.ts";
import type {
  EventWithoutTimestamp,
  ToolsmithEvent,
} from "../../lib/events.ts";
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

const UPDATE = { from: "1.0", bytes: 3.9 * MIB, total: 160 * MIB } as const;

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

Deno.test("eventLine() describes each event in one plain line, or returns undefined", () => {
  const said: [EventWithoutTimestamp<ToolsmithEvent>, string | undefined][] = [
    [START, "downloading demo (64.0 MiB) from oci://ghcr.io/o/r:1"],
    [{ ...START, bytes: null }, "downloading demo from oci://ghcr.io/o/r:1"],
    [
      { ...START, resumed: 39 * MIB + 1, connections: 4 },
      "downloading demo (64.0 MiB) from oci://ghcr.io/o/r:1 over 4 connections, resuming at 60 %",
    ],
    [
      { type: "ranges_unavailable", image: "demo", reason: "r answers 416" },
      "falling back to oras pull for demo: r answers 416",
    ],
    [
      { type: "update_start", image: "demo", ...UPDATE },
      "updating demo: 3.9 MiB of 160.0 MiB to download (2.4 %), the rest from 1.0",
    ],
    [
      { type: "update_declined", image: "demo", reason: "it has no base" },
      "downloading all of demo: it has no base",
    ],
    [
      { type: "update_predicted", image: "demo", ...UPDATE },
      "a host with 1.0 will download 3.9 MiB of 160.0 MiB (2.4 %)",
    ],
    [{ type: "compress_start", path: "a.qcow2" }, "compressing a.qcow2"],
    [
      {
        type: "mirror_failed",
        image: "demo",
        mirror: "cache.lan",
        reason: "no such host",
      },
      "warning: mirror cache.lan failed: no such host",
    ],
    [
      {
        type: "download_end",
        image: "demo",
        source: "x",
        bytes: 64 * MIB,
        elapsedMs: 4000,
      },
      "downloaded 64.0 MiB in 4.0 s (16.0 MiB/s)",
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
      "warning: it was cut; retrying in 1.0 s (attempt 2 of 4)",
    ],
    [
      { type: "cache_hit", image: "demo", path: "/x", digest: DIGEST },
      "already cached: demo sha256:abababababab",
    ],
    [
      { type: "lock_wait", image: "demo", path: "/x" },
      "waiting: another process is working on demo in the cache",
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
    [
      { ...VERIFIED, verify: "pull" },
      "verified: pulled the image and compared its digest",
    ],
    [{ ...POLL, outcome: "served" }, undefined],
    [
      { ...POLL, outcome: "waiting" },
      "the registry does not serve the artifact yet (attempt 2 of 20): later",
    ],
    [BOOT, "booting with QEMU 7.2, tcg, 512 MiB, 1 processor"],
    [
      { ...BOOT, cpus: 2 },
      "booting with QEMU 7.2, tcg, 512 MiB, 2 processors",
    ],
    [{ ...BOOT, how: "restore" }, undefined],
    [
      { type: "download_progress", image: "demo", bytes: 1, total: 2 },
      "downloaded 1 B",
    ],
    [
      { ...START, resumed: MIB, bytes: null, connections: 1 },
      "downloading demo from oci://ghcr.io/o/r:1",
    ],
    [
      { ...START, resumed: 1, connections: 2 },
      "downloading demo (64.0 MiB) from oci://ghcr.io/o/r:1 over 2 connections, resuming at 0 %",
    ],
    [
      {
        type: "download_end",
        image: "demo",
        source: "x",
        bytes: 1,
        elapsedMs: 0,
      },
      "downloaded 1 B in 0.0 s (1000 B/s)",
    ],
    [
      {
        type: "download_end",
        image: "demo",
        source: "x",
        bytes: 1000,
        elapsedMs: 1000,
      },
      "downloaded 1000 B in 1.0 s (1000 B/s)",
    ],
    [{ ...READY, agent: "qemu" }, "restored in 0.2 s, guest agent: qemu"],
    [
      { ...READY, agent: "toolsmith" },
      "restored in 0.2 s, guest agent: Toolsmith's own",
    ],
    [
      INSPECTED,
      "publishing x.qcow2: 64.0 MiB, virtual size 128.0 MiB",
    ],
    [
      { ...INSPECTED, compressed: true },
      "publishing x.qcow2: 64.0 MiB, virtual size 128.0 MiB, compressed",
    ],
  ];
  for (const [event, line] of said) {
    assertEquals(eventLine({ timestamp, ...event } as ToolsmithEvent), line);
  }
});
