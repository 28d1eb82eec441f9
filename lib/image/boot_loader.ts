/**
 * Detects the boot loaders on a disk, and from them the firmware and architecture
 * that the disk is for.
 *
 * Formats: UEFI Specification 2.10, sections 5.2 (partition tables), 13.3 (EFI
 * system partition) and 3.5.1.1 (names of boot loaders); the BIOS Boot
 * Specification 1.01 for the first sector.
 */
import { type DiskReader, openQcow2Disk } from "./_qcow2_disk.ts";
import { fatHasFile } from "./_fat_lookup.ts";

/** The architecture that an image is for, as in `Deno.build.arch`. */
export type ImageArch = "x86_64" | "aarch64";

/** The firmware that starts an image's boot loader. */
export type FirmwareKind = "bios" | "uefi";

/** What is known about an image's boot loader. */
export interface BootLoader {
  /** The architecture; `undefined` if the disk does not show one. */
  arch?: ImageArch;
  /** The firmware; `undefined` if no boot loader was found. */
  firmware?: FirmwareKind;
}

interface Partition {
  /** First byte on the disk. */
  start: number;
  isEfi: boolean;
  /** Does boot code in the first sector probably boot from it? */
  isBiosBoot: boolean;
}

const SECTOR_BYTES = 512;
/** The boot code in the first sector ends where the disk signature begins. */
const BOOT_CODE_BYTES = 440;
const MAX_GPT_ENTRIES = 1024;
/** More than ten times what an image with two EFI system partitions needs. */
const MAX_TOTAL_READ_BYTES = 2 * 1024 * 1024;
/** Small reads count as this many bytes, which allows 512 reads. */
const MIN_READ_COST_BYTES = 4096;
const PROTECTIVE_MBR_TYPE = 0xee;
const EFI_MBR_TYPE = 0xef;
const ACTIVE_FLAG = 0x80;
const EFI_SYSTEM_GUID = "28732ac11ff8d211ba4b00a0c93ec93b";
const BIOS_BOOT_GUID = "4861682149646f6e744e656564454649";
/** Attribute bit 2 of a GPT entry: "Legacy BIOS Bootable". */
const LEGACY_BOOTABLE_BIT = 4n;

/**
 * Detects the boot loader of an image; reads at most 2 MiB of the disk. If BIOS and
 * UEFI are both possible, it is BIOS, which boots faster. `displayName` is the image's
 * name in error messages: a path or URL.
 */
export async function findBootLoader(
  path: string,
  { displayName, signal }: { displayName?: string; signal?: AbortSignal } = {},
): Promise<BootLoader> {
  using disk = await openQcow2Disk(path, displayName);
  return await findBootLoaderOnDisk(disk, { signal });
}

export async function findBootLoaderOnDisk(
  unlimitedDisk: DiskReader,
  { signal }: { signal?: AbortSignal } = {},
): Promise<BootLoader> {
  const disk = limitReads(unlimitedDisk, signal);
  const sector = await disk.read(0, SECTOR_BYTES);
  const isSigned = sector.getUint16(510, true) === 0xaa55;
  const partitions = isSigned ? await readPartitions(disk, sector) : [];
  const hasLoader = async (name: string) => {
    for (const { start, isEfi } of partitions) {
      const path = ["EFI", "BOOT", name];
      if (isEfi && await fatHasFile(disk, start, path)) return true;
    }
    return false;
  };
  const x86 = await hasLoader("BOOTX64.EFI");
  const arm = await hasLoader("BOOTAA64.EFI");
  const code = latin1(new Uint8Array(sector.buffer, 0, BOOT_CODE_BYTES));
  const hasCode = isSigned && /[^\0]/.test(code);
  // Some partitioning tools write a stub that only prints that it cannot boot.
  const bootsBios = hasCode && (!x86 || code.includes("GRUB") ||
    partitions.some(({ isBiosBoot }) => isBiosBoot));
  if (arm && !x86) return { arch: "aarch64", firmware: "uefi" };
  if (bootsBios) return { arch: "x86_64", firmware: "bios" };
  // With loaders for both architectures, the caller chooses one.
  if (arm) return { firmware: "uefi" };
  return x86 ? { arch: "x86_64", firmware: "uefi" } : {};
}

/** Returns zeros beyond the limit, which end any endless chain on the disk. */
function limitReads(disk: DiskReader, signal?: AbortSignal): DiskReader {
  let left = MAX_TOTAL_READ_BYTES;
  return {
    async read(offset, length) {
      signal?.throwIfAborted();
      left -= Math.max(length, MIN_READ_COST_BYTES);
      if (left >= 0) return await disk.read(offset, length);
      return new DataView(new ArrayBuffer(length));
    },
  };
}

async function readPartitions(
  disk: DiskReader,
  sector: DataView,
): Promise<Partition[]> {
  const offsets = [446, 462, 478, 494];
  const typeAt = (at: number) => sector.getUint8(at + 4);
  if (offsets.some((at) => typeAt(at) === PROTECTIVE_MBR_TYPE)) {
    return await readGptPartitions(disk);
  }
  return offsets.map((at) => ({
    start: sector.getUint32(at + 8, true) * SECTOR_BYTES,
    isEfi: typeAt(at) === EFI_MBR_TYPE,
    isBiosBoot: typeAt(at) !== 0 && sector.getUint8(at) === ACTIVE_FLAG,
  }));
}

async function readGptPartitions(disk: DiskReader): Promise<Partition[]> {
  const header = await disk.read(SECTOR_BYTES, SECTOR_BYTES);
  const count = Math.min(header.getUint32(80, true), MAX_GPT_ENTRIES);
  const size = header.getUint32(84, true);
  const isGpt = latin1(new Uint8Array(header.buffer, 0, 8)) === "EFI PART";
  if (!isGpt || size < 128 || size > SECTOR_BYTES) return [];
  const entries = await disk.read(readSectorOffset(header, 72), count * size);
  return Array.from({ length: count }, (_, index) => {
    const at = index * size;
    const type = new Uint8Array(entries.buffer, at, 16).toHex();
    const attributes = entries.getBigUint64(at + 48, true);
    return {
      start: readSectorOffset(entries, at + 32),
      isEfi: type === EFI_SYSTEM_GUID,
      isBiosBoot: type === BIOS_BOOT_GUID ||
        (attributes & LEGACY_BOOTABLE_BIT) !== 0n,
    };
  });
}

/** Reads a sector number as a byte offset, which may be far beyond the disk's end. */
function readSectorOffset(view: DataView, at: number): number {
  return Number(view.getBigUint64(at, true)) * SECTOR_BYTES;
}

function latin1(bytes: Uint8Array): string {
  return new TextDecoder("latin1").decode(bytes);
}
