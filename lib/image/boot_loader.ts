/**
 * What a disk boots: which boot loaders are on it, and so for which firmware and
 * which processor it is.
 *
 * Formats: UEFI Specification 2.10, sections 5.2 (partition tables), 13.3 (EFI
 * system partition) and 3.5.1.1 (names of boot loaders); the BIOS Boot
 * Specification 1.01 for the first sector.
 *
 * @module
 */
import { type DiskReader, openDisk } from "./_disk_bytes.ts";
import { fatHasFile } from "./_fat.ts";

/** The processor that an image is for, as Deno names it. */
export type ImageArch = "x86_64" | "aarch64";

/** The firmware that starts an image's boot loader. */
export type FirmwareKind = "bios" | "uefi";

/** What an image boots with. */
export interface BootLoader {
  /** The processor; `undefined` where the disk does not say. */
  arch?: ImageArch;
  /** The firmware; `undefined` where no boot loader was found. */
  firmware?: FirmwareKind;
}

/** What is in the table of partitions. */
interface Partitions {
  /** Where EFI system partitions begin, in bytes. */
  efi: number[];
  /** Is there something that the first sector's program is likely to start? */
  bios: boolean;
}

const SECTOR = 512;
/** The program in the first sector ends where the disk's signature begins. */
const CODE_BYTES = 440;
const MAX_ENTRIES = 1024;
/** An image with two system partitions takes less than a tenth of it. */
const MAX_BYTES = 2 * 1024 * 1024;
/** What a read costs at least, in bytes: 512 reads are the most. */
const MIN_COST = 4096;
const PROTECTIVE = 0xee;
const EFI_TYPE = 0xef;
const ACTIVE = 0x80;
const EFI_SYSTEM = "28732ac11ff8d211ba4b00a0c93ec93b";
const BIOS_BOOT = "4861682149646f6e744e656564454649";
/** Attribute bit 2 of a GPT entry: "Legacy BIOS Bootable". */
const LEGACY_BOOTABLE = 4n;

/** What {@linkcode findBootLoader} takes. */
export interface FindBootLoaderOptions {
  /** The image's path or address, for messages. @default {path} */
  shown?: string;
  /** Ends it when aborted. @default {undefined} */
  signal?: AbortSignal;
}

/**
 * Looks for boot loaders on the disk of an image. Little of it is read.
 *
 * Needs `--allow-read` for the file.
 *
 * @param path The image.
 * @param options What messages call it, and cancelling.
 * @returns What it boots with: BIOS where both are possible, as that is quicker.
 * @throws {ToolsmithError} `image_invalid`, `image_unsafe`.
 * @throws The signal's reason.
 *
 * @example
 * ```ts ignore
 * import { findBootLoader } from "./boot_loader.ts";
 *
 * const { arch, firmware } = await findBootLoader("image.qcow2");
 * console.log(arch, firmware);
 * ```
 */
export async function findBootLoader(
  path: string,
  { shown, signal }: FindBootLoaderOptions = {},
): Promise<BootLoader> {
  using disk = await openDisk(path, shown);
  return await bootLoaderOf(disk, { signal });
}

/**
 * Looks for boot loaders on a disk that is open.
 *
 * @param whole The disk.
 * @param options A signal that ends it when aborted.
 * @returns What it boots with.
 * @throws What reading the disk throws, and the signal's reason.
 */
export async function bootLoaderOf(
  whole: DiskReader,
  options: { signal?: AbortSignal } = {},
): Promise<BootLoader> {
  const disk = limited(whole, options);
  const first = await disk.read(0, SECTOR);
  const signed = first.getUint16(510, true) === 0xaa55;
  const { efi, bios } = signed
    ? await readPartitions(disk, first)
    : { efi: [], bios: false };
  const has = async (name: string) => {
    for (const start of efi) {
      if (await fatHasFile(disk, start, ["EFI", "BOOT", name])) return true;
    }
    return false;
  };
  const x86 = await has("BOOTX64.EFI");
  const arm = await has("BOOTAA64.EFI");
  const code = new Uint8Array(first.buffer, 0, CODE_BYTES);
  const program = signed && code.some((byte) => byte !== 0);
  // Some partitioning programs write one that only says that it cannot boot.
  const boots = program && (bios || isGrub(code) || !x86);
  if (arm && !x86) return { arch: "aarch64", firmware: "uefi" };
  if (boots) return { arch: "x86_64", firmware: "bios" };
  // One for both is told apart by whoever boots it.
  if (arm) return { firmware: "uefi" };
  return x86 ? { arch: "x86_64", firmware: "uefi" } : {};
}

/** A disk that leads from place to place reads as zeros in the end: nothing follows. */
function limited(
  disk: DiskReader,
  { signal }: { signal?: AbortSignal },
): DiskReader {
  let left = MAX_BYTES;
  return {
    async read(offset, length) {
      signal?.throwIfAborted();
      left -= Math.max(length, MIN_COST);
      if (left >= 0) return await disk.read(offset, length);
      return new DataView(new ArrayBuffer(length));
    },
  };
}

function isGrub(code: Uint8Array): boolean {
  return new TextDecoder("latin1").decode(code).includes("GRUB");
}

async function readPartitions(
  disk: DiskReader,
  first: DataView,
): Promise<Partitions> {
  const found: Partitions = { efi: [], bios: false };
  for (let at = 446; at < 510; at += 16) {
    const type = first.getUint8(at + 4);
    if (type === PROTECTIVE) return await readGpt(disk);
    if (type === EFI_TYPE) {
      found.efi.push(first.getUint32(at + 8, true) * SECTOR);
    }
    found.bios ||= type !== 0 && first.getUint8(at) === ACTIVE;
  }
  return found;
}

async function readGpt(disk: DiskReader): Promise<Partitions> {
  const found: Partitions = { efi: [], bios: false };
  const header = await disk.read(SECTOR, SECTOR);
  const signature = new TextDecoder("latin1").decode(header.buffer.slice(0, 8));
  if (signature !== "EFI PART") return found;
  const count = Math.min(header.getUint32(80, true), MAX_ENTRIES);
  const size = header.getUint32(84, true);
  const start = sectorAt(header, 72);
  if (size < 128 || size > SECTOR || start === undefined) return found;
  const entries = await disk.read(start, count * size);
  for (let at = 0; at + size <= entries.byteLength; at += size) {
    const type = new Uint8Array(entries.buffer, at, 16).toHex();
    const begin = sectorAt(entries, at + 32);
    if (type === EFI_SYSTEM && begin !== undefined) found.efi.push(begin);
    found.bios ||= type === BIOS_BOOT ||
      (entries.getBigUint64(at + 48, true) & LEGACY_BOOTABLE) !== 0n;
  }
  return found;
}

/** A sector's number, as a place in bytes; of a damaged table there is none. */
function sectorAt(view: DataView, at: number): number | undefined {
  const place = Number(view.getBigUint64(at, true)) * SECTOR;
  return Number.isSafeInteger(place) ? place : undefined;
}
