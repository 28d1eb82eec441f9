/**
 * Writes a small FAT12 file system with a few files in its top directory, each in one
 * cluster.
 *
 * Format: Microsoft, FAT32 File System Specification 1.03, with the long names of
 * its "Long Directory Entries".
 */

const SECTOR_BYTES = 512;
const DIR_ENTRY_BYTES = 32;
const ROOT_DIR_ENTRIES = 64;
const FIRST_CLUSTER = 2;
const CLUSTER_SECTORS = 16;
const CLUSTER_BYTES = CLUSTER_SECTORS * SECTOR_BYTES;
const FIXED_DISK = 0xf8;
const LONG_NAME_ATTRIBUTES = 0x0f;
const VOLUME_LABEL_ATTRIBUTE = 0x08;
const READ_ONLY_ATTRIBUTE = 0x01;
/** Byte offsets of a long name's characters in a directory entry. */
const LONG_NAME_CHAR_OFFSETS = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];

/**
 * Makes a file system image; the same files give the same bytes. The volume label has
 * at most eleven capitals and digits. Each file fits into a cluster, and none is empty.
 */
export function fatImage(label: string, files: Record<string, string>) {
  const table = SECTOR_BYTES;
  const directory = 2 * SECTOR_BYTES;
  const data = directory + ROOT_DIR_ENTRIES * DIR_ENTRY_BYTES;
  const contents = Object.entries(files);
  const image = new Uint8Array(data + contents.length * CLUSTER_BYTES);
  writeBootSector(new DataView(image.buffer), label);
  // All clusters end a chain, as 0xfff says in FAT12.
  image.fill(0xff, table, directory);
  image[table] = FIXED_DISK;
  let entryOffset = directory;
  const nextEntry = (name: string, attributes: number) => {
    const entry = new DataView(image.buffer, entryOffset, DIR_ENTRY_BYTES);
    entryOffset += DIR_ENTRY_BYTES;
    writeLatin1(entry, 0, name);
    entry.setUint8(11, attributes);
    return entry;
  };
  nextEntry(label.padEnd(11), VOLUME_LABEL_ATTRIBUTE);
  for (const [index, [name, text]] of contents.entries()) {
    const bytes = new TextEncoder().encode(text);
    if (bytes.length > CLUSTER_BYTES) {
      throw new RangeError(`${name} is too big`);
    }
    image.set(bytes, data + index * CLUSTER_BYTES);
    const short = `FILE${index}`.padEnd(11);
    const charCount = LONG_NAME_CHAR_OFFSETS.length;
    const entryCount = Math.ceil(name.length / charCount);
    // A zero ends the name; 0xffff pads the last entry.
    const padded = `${name}\0`.padEnd(entryCount * charCount, "\uffff");
    // In reverse order, as FAT requires.
    for (let order = entryCount; order > 0; order--) {
      const entry = nextEntry("", LONG_NAME_ATTRIBUTES);
      entry.setUint8(0, order | (order === entryCount ? 0x40 : 0));
      entry.setUint8(13, shortNameChecksum(short));
      LONG_NAME_CHAR_OFFSETS.forEach((at, index) => {
        const code = padded.charCodeAt((order - 1) * charCount + index);
        entry.setUint16(at, code, true);
      });
    }
    const entry = nextEntry(short, READ_ONLY_ATTRIBUTE);
    entry.setUint16(26, FIRST_CLUSTER + index, true);
    entry.setUint32(28, bytes.length, true);
  }
  return image;
}

function writeBootSector(view: DataView, label: string) {
  // The jump instruction by which systems recognise a boot sector.
  writeLatin1(view, 0, "\xeb\x3c\x90TOOLSMTH");
  view.setUint16(11, SECTOR_BYTES, true);
  view.setUint8(13, CLUSTER_SECTORS);
  view.setUint16(14, 1, true); // sectors before the table
  view.setUint8(16, 1); // tables
  view.setUint16(17, ROOT_DIR_ENTRIES, true);
  view.setUint16(19, view.byteLength / SECTOR_BYTES, true);
  view.setUint8(21, FIXED_DISK);
  view.setUint16(22, 1, true); // sectors of a table
  view.setUint16(24, 32, true); // sectors of a track, and heads: unused
  view.setUint16(26, 2, true);
  view.setUint8(36, 0x80);
  view.setUint8(38, 0x29); // the next three fields are there
  view.setUint32(39, 0x70054001, true);
  writeLatin1(view, 43, label.padEnd(11));
  writeLatin1(view, 54, "FAT12   ");
  view.setUint16(510, 0xaa55, true);
}

function shortNameChecksum(short: string): number {
  let sum = 0;
  for (const char of short) {
    sum = ((sum & 1) << 7 | sum >> 1) + char.charCodeAt(0) & 0xff;
  }
  return sum;
}

function writeLatin1(view: DataView, at: number, text: string) {
  for (let i = 0; i < text.length; i++) {
    view.setUint8(at + i, text.charCodeAt(i));
  }
}
