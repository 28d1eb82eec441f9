/**
 * Writes a small FAT12 file system with a few files in its top directory.
 *
 * Format: Microsoft, FAT32 File System Specification 1.03, with the long names of
 * its "Long Directory Entries".
 *
 * @module
 */

const SECTOR = 512;
const ENTRY = 32;
const ENTRIES = 64;
const FIRST_CLUSTER = 2;
/** As many clusters as one sector of the table has entries for. */
const MAX_CLUSTERS = 339;
const LONG_NAME = 0x0f;
const VOLUME_LABEL = 0x08;
const READ_ONLY = 0x01;
const END_OF_CHAIN = 0xfff;
/** Where the characters of a long name stand in an entry. */
const LONG_NAME_PLACES = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];

/**
 * Makes a file system.
 *
 * @param label Its name: at most eleven capitals and digits.
 * @param files Names and texts, none of them empty.
 * @returns Its bytes: as many as it needs, and always the same.
 */
export function fatImage(
  label: string,
  files: Record<string, string>,
): Uint8Array<ArrayBuffer> {
  const contents = Object.entries(files).map(([name, text]) => ({
    name,
    bytes: new TextEncoder().encode(text),
  }));
  const clustersOf = (size: number) => Math.ceil(size / SECTOR);
  const clusters = contents.map(({ bytes }) => clustersOf(bytes.length))
    .reduce((sum, count) => sum + count, 0);
  if (clusters > MAX_CLUSTERS) throw new RangeError("too much for a FAT image");
  const table = SECTOR;
  const directory = 2 * SECTOR;
  const data = directory + ENTRIES * ENTRY;
  const image = new Uint8Array(data + clusters * SECTOR);
  const view = new DataView(image.buffer);
  writeBootSector(view, label);
  setTableEntry(view, table, 0, 0xff8);
  setTableEntry(view, table, 1, END_OF_CHAIN);
  image.set(
    shortEntry(label.padEnd(11), { attributes: VOLUME_LABEL }),
    directory,
  );
  let cluster = FIRST_CLUSTER;
  let at = directory + ENTRY;
  for (const [index, { name, bytes }] of contents.entries()) {
    const short = `FILE${index}`.padEnd(11);
    const size = bytes.length;
    const entry = { attributes: READ_ONLY, cluster, size };
    for (
      const part of [...longEntries(name, short), shortEntry(short, entry)]
    ) {
      image.set(part, at);
      at += ENTRY;
    }
    image.set(bytes, data + (cluster - FIRST_CLUSTER) * SECTOR);
    const end = cluster + clustersOf(size);
    for (; cluster < end; cluster++) {
      const next = cluster + 1 < end ? cluster + 1 : END_OF_CHAIN;
      setTableEntry(view, table, cluster, next);
    }
  }
  return image;
}

function writeBootSector(view: DataView, label: string) {
  // A jump over the fields: what is there is recognised by it.
  writeText(view, 0, "\xeb\x3c\x90TOOLSMTH");
  view.setUint16(11, SECTOR, true);
  view.setUint8(13, 1); // sectors of a cluster
  view.setUint16(14, 1, true); // sectors before the table
  view.setUint8(16, 1); // tables
  view.setUint16(17, ENTRIES, true);
  view.setUint16(19, view.byteLength / SECTOR, true);
  view.setUint8(21, 0xf8); // a fixed disk
  view.setUint16(22, 1, true); // sectors of a table
  view.setUint16(24, 32, true); // sectors of a track, and heads: unused
  view.setUint16(26, 2, true);
  view.setUint8(36, 0x80);
  view.setUint8(38, 0x29); // the next three fields are there
  view.setUint32(39, 0x70054001, true);
  writeText(view, 43, label.padEnd(11));
  writeText(view, 54, "FAT12   ");
  view.setUint16(510, 0xaa55, true);
}

function setTableEntry(
  view: DataView,
  table: number,
  cluster: number,
  value: number,
) {
  const at = table + Math.floor(cluster * 1.5);
  const pair = view.getUint16(at, true);
  const both = cluster % 2 === 0
    ? pair & 0xf000 | value
    : pair & 0x000f | value << 4;
  view.setUint16(at, both, true);
}

function shortEntry(
  name: string,
  { attributes, cluster = 0, size = 0 }: {
    attributes: number;
    cluster?: number;
    size?: number;
  },
): Uint8Array {
  const entry = new DataView(new ArrayBuffer(ENTRY));
  writeText(entry, 0, name);
  entry.setUint8(11, attributes);
  entry.setUint16(26, cluster, true);
  entry.setUint32(28, size, true);
  return new Uint8Array(entry.buffer);
}

/** The entries of a long name: its last part comes first. */
function longEntries(name: string, short: string): Uint8Array[] {
  const perEntry = LONG_NAME_PLACES.length;
  const count = Math.ceil(name.length / perEntry);
  const sum = checksum(short);
  return Array.from({ length: count }, (_, index) => {
    const order = count - index;
    const entry = new DataView(new ArrayBuffer(ENTRY));
    entry.setUint8(0, order | (index === 0 ? 0x40 : 0));
    entry.setUint8(11, LONG_NAME);
    entry.setUint8(13, sum);
    const from = (order - 1) * perEntry;
    LONG_NAME_PLACES.forEach((place, offset) => {
      const at = from + offset;
      // A zero ends the name, and 0xffff fills what is left.
      const code = at > name.length ? 0xffff : name.charCodeAt(at) || 0;
      entry.setUint16(place, code, true);
    });
    return new Uint8Array(entry.buffer);
  });
}

function checksum(short: string): number {
  let sum = 0;
  for (const char of short) {
    sum = ((sum & 1) << 7 | sum >> 1) + char.charCodeAt(0) & 0xff;
  }
  return sum;
}

function writeText(view: DataView, at: number, text: string) {
  for (let i = 0; i < text.length; i++) {
    view.setUint8(at + i, text.charCodeAt(i));
  }
}
