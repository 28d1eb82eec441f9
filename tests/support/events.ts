/** Sample events for tests of their text. */
const MIB = 1024 * 1024;

export const START = {
  type: "download_start",
  image: "demo",
  source: "oci://ghcr.io/o/r:1",
  bytes: 64 * MIB,
  resumed: 0,
  connections: 1,
} as const;

export const INSPECTED = {
  type: "image_inspected",
  image: "demo",
  path: "x.qcow2",
  bytes: 64 * MIB,
  virtualSize: 128 * MIB,
  compressed: false,
  sparseBytes: 0,
} as const;
